"""What is on record of a run whose context was refused: what is wrong with it, not how that was found out."""

import itertools
from typing import Any

import pytest

from orchestrator_state import InvalidPayload, Run, StateStore
from tests.support.cases import case
from tests.support.running import Effect, row_of

REFUSED: dict[str, Any] = {
    "no JSON": object(),
    "a key": {1: 2},
    "no finite number": float("nan"),
    "too deep": [[[[1]]]],
}


async def test_the_error_of_a_refused_context_is_recorded_alone(database_url: str) -> None:
    async def handler(run: Run) -> None:
        run.context["v"] = REFUSED[value]
        if when == "with a step":
            await run.step("a", Effect())

    async with StateStore.open(database_url, migrate=True, max_depth=4) as store:
        for value, when in itertools.product(REFUSED, ["with a step", "at the end"]):
            with case(name := f"{value} {when}"):
                with pytest.raises(InvalidPayload) as raised:
                    await store.run("n", handler, workflow_id=name)
                assert raised.value.__context__ is None
                assert (await row_of(store, name)).error == f"InvalidPayload: {raised.value}"
