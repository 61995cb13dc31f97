"""A long context, which no step writes whole, after steps that saved it were taken back. On both databases."""

import asyncio
import contextlib
import itertools

from orchestrator_state import Run, StateStore
from tests.support.cases import case
from tests.support.running import checkpoints_of, until_done, vanish

LONG = "a long text " * 10_000


async def test_steps_that_come_in_the_place_of_others_keep_what_they_do_to_the_context(store: StateStore) -> None:
    befores = ("changed nothing", "changed it", "changed it there and back")
    for before, after in itertools.product(befores, ("rewound", "saved by hand")):
        with case(name := f"{before}, {after}"):
            await assert_keep_what_they_do(store, name, before, is_rewound=after == "rewound")


async def assert_keep_what_they_do(store: StateStore, workflow_id: str, before: str, *, is_rewound: bool) -> None:
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

    with contextlib.suppress(asyncio.CancelledError):
        await store.run("w", handler, workflow_id=workflow_id, context={"text": LONG, "log": []})
    first, *_ = await checkpoints_of(store, workflow_id)
    if is_rewound:
        await store.rewind(first.id)
    else:
        await store.save_workflow_state(await store.restore_from_checkpoint(first.id))
    with contextlib.suppress(asyncio.CancelledError):
        await store.run("w", handler, workflow_id=workflow_id)
    state = await store.load_workflow_state_by_workflow_id(workflow_id)
    assert state.context["log"] == [1, 2]
    await until_done(lambda: store.run("w", handler, workflow_id=workflow_id))
    state = await store.load_workflow_state_by_workflow_id(workflow_id)
    assert state.context == {"text": LONG, "log": [1, 2]}
