"""What is on record of a run whose context was refused: what is wrong with it, not how that was found out."""

from typing import Any

import pytest

from orchestrator_state import InvalidPayload, Run, StateStore
from tests.support.running import Effect, row_of

REFUSED: dict[str, Any] = {
    "no JSON": object(),
    "a key": {1: 2},
    "no finite number": float("nan"),
    "too deep": [[[[1]]]],
}


@pytest.mark.parametrize("at_the_end", [False, True], ids=["with a step", "at the end"])
@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED)
async def test_the_error_of_a_refused_context_is_recorded_alone(
    database_url: str, value: Any, at_the_end: bool
) -> None:
    async def handler(run: Run) -> None:
        run.context["v"] = value
        if not at_the_end:
            await run.step("a", Effect())

    async with StateStore.open(database_url, migrate=True, max_depth=4) as store:
        with pytest.raises(InvalidPayload) as raised:
            await store.run("n", handler, workflow_id="w")
        assert raised.value.__context__ is None
        assert (await row_of(store, "w")).error == f"InvalidPayload: {raised.value}"
