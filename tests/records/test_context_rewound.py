"""A long context, which no step writes whole, after steps that saved it were taken back. On both databases."""

import asyncio
import contextlib

import pytest

from orchestrator_state import Run, StateStore
from tests.support.running import checkpoints_of, until_done, vanish

LONG = "a long text " * 10_000


@pytest.mark.parametrize("is_rewound", [True, False], ids=["rewound", "saved by hand"])
@pytest.mark.parametrize("before", ["changed nothing", "changed it", "changed it there and back"])
async def test_steps_that_come_in_the_place_of_others_keep_what_they_do_to_the_context(
    database_url: str, is_rewound: bool, before: str
) -> None:
    lives: list[int] = []

    async def change(run: Run, number: int) -> None:
        if lives or before == "changed it":
            run.context["log"].append(number)
        elif before == "changed it there and back":
            run.context["text"] = LONG if number == 2 else LONG[::-1]

    async def handler(run: Run) -> None:
        await run.checkpoint("zero")
        await run.step("one", change, run, 1)
        await run.step("two", change, run, 2)
        if len(lives) < 2:
            lives.append(0)
            vanish()

    async with StateStore.open(database_url) as store:
        with contextlib.suppress(asyncio.CancelledError):
            await store.run("w", handler, workflow_id="w", context={"text": LONG, "log": []})
        first, *_ = await checkpoints_of(store, "w")
        if is_rewound:
            await store.rewind(first.id)
        else:
            await store.save_workflow_state(await store.restore_from_checkpoint(first.id))
        with contextlib.suppress(asyncio.CancelledError):
            await store.run("w", handler, workflow_id="w")
        state = await store.load_workflow_state_by_workflow_id("w")
        assert state.context["log"] == [1, 2]
        await until_done(lambda: store.run("w", handler, workflow_id="w"))
        state = await store.load_workflow_state_by_workflow_id("w")
    assert state.context == {"text": LONG, "log": [1, 2]}
