"""Fork and rewind on both databases: go on from a checkpoint, in a new run or in place."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from orchestrator_state import (
    Checkpoint,
    CheckpointNotFound,
    InvalidPayload,
    LeaseHeld,
    LeaseLost,
    OutcomeUnknown,
    Run,
    StateStore,
    WorkflowState,
    WorkflowStatus,
)
from tests.support.running import (
    LONG_AGO,
    Effect,
    Failing,
    Gate,
    change_row,
    checkpoints_of,
    row_of,
    seconds,
    steps_of,
    vanish,
)


class Pipeline:
    """A handler of three steps, which counts in the context before, in and after each of them."""

    def __init__(self) -> None:
        self.effect = Effect()

    async def __call__(self, run: Run) -> list[Any]:
        outputs = []
        for step_id in ("a", "b", "c"):
            run.context["before"] += 1
            run.append("log", f"before {step_id}")
            outputs.append(await run.step(step_id, self._work, run, step_id))
            run.append("log", f"after {step_id}")
        return outputs

    async def _work(self, run: Run, step_id: str) -> str:
        run.context["inside"] += 1
        await self.effect(step_id)
        return f"{step_id}, call {len(self.effect.calls)}"


START = {"before": 0, "inside": 0}
END = {
    "before": 3,
    "inside": 3,
    "log": [f"{when} {step_id}" for step_id in ("a", "b", "c") for when in ("before", "after")],
}


async def finished(store: StateStore, pipeline: Pipeline) -> list[Checkpoint]:
    """The checkpoints of the finished run `w`, oldest first."""
    await store.run("n", pipeline, workflow_id="w", context=START)
    return await checkpoints_of(store, "w")


# --- fork ---


async def test_a_fork_keeps_the_steps_up_to_its_checkpoint_and_does_the_others_again(store: StateStore) -> None:
    pipeline = Pipeline()
    for n, checkpoint in enumerate(await finished(store, pipeline), 1):
        pipeline.effect.calls.clear()
        fork = await store.fork(checkpoint.id, workflow_id=f"fork {n}")
        assert (fork.workflow_id, fork.status) == (f"fork {n}", WorkflowStatus.PENDING)
        assert list(fork.steps) == ["a", "b", "c"][:n]
        await store.run("n", pipeline, workflow_id=f"fork {n}")
        assert pipeline.effect.calls == ["a", "b", "c"][n:]
        assert (await store.load_workflow_state(fork.id)).context == END, "what the handler counts counts once"


async def test_a_fork_remembers_where_it_came_from(store: StateStore) -> None:
    [_, checkpoint, _] = await finished(store, Pipeline())
    fork = await store.fork(str(checkpoint.id))
    row = await row_of(store, fork.workflow_id)
    assert (row.forked_from_id, row.forked_from_seq) == (checkpoint.workflow_state_id, checkpoint.seq)
    assert fork.id != checkpoint.workflow_state_id
    assert fork.workflow_id.startswith("w-fork-")


async def test_a_fork_and_its_source_do_not_touch_each_other(store: StateStore) -> None:
    pipeline = Pipeline()
    [_, checkpoint, _] = await finished(store, pipeline)
    source = await store.load_workflow_state_by_workflow_id("w")
    fork = await store.fork(checkpoint.id, workflow_id="fork")
    assert await store.run("n", pipeline, workflow_id="fork") == ["a, call 1", "b, call 2", "c, call 4"]
    assert await store.load_workflow_state(source.id) == source
    assert await store.run("n", pipeline, workflow_id="w") == ["a, call 1", "b, call 2", "c, call 3"]
    await change_row(store, source.id, updated_at=LONG_AGO)
    assert await store.delete_old_states(older_than=LONG_AGO + seconds(1)) == 1
    assert (await store.load_workflow_state(fork.id)).status == "completed"


async def test_a_fork_of_a_run_that_is_under_way_leaves_it_alone(store: StateStore) -> None:
    gate = Gate()

    async def handler(run: Run) -> list[Any]:
        return [await run.step("first", Effect(), 1), await run.step("second", gate, 2)]

    task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    await gate.reached.wait()
    [checkpoint] = await checkpoints_of(store, "w")
    fork = await store.fork(checkpoint.id)
    gate.opened.set()
    assert await task == [1, 2]
    assert [run.workflow_state_id for run in (await store.recover({"n": handler})).completed] == [fork.id]


async def test_a_fork_of_a_fork_counts_once_too(store: StateStore) -> None:
    pipeline = Pipeline()
    [checkpoint, _, _] = await finished(store, pipeline)
    await store.fork(checkpoint.id, workflow_id="fork")
    await store.run("n", pipeline, workflow_id="fork")
    [of_b, _] = await checkpoints_of(store, "fork")
    grandchild = await store.fork(of_b.id, workflow_id="fork of fork")
    await store.run("n", pipeline, workflow_id="fork of fork")
    assert (await store.load_workflow_state(grandchild.id)).context == END


async def test_a_fork_of_what_is_no_workflows_state_is_refused(store: StateStore) -> None:
    state = WorkflowState(workflow_id="w", workflow_name="n")
    other = WorkflowState(workflow_id="other", workflow_name="n")
    await store.save_workflow_state(state)
    for snapshot in ("text", {"a": 1}, other.to_snapshot()):
        checkpoint = Checkpoint(workflow_state_id=state.id, step_id="by hand", snapshot=snapshot)
        await store.create_checkpoint(checkpoint)
        with pytest.raises(InvalidPayload):
            await store.fork(checkpoint.id)
        with pytest.raises(InvalidPayload):
            await store.rewind(checkpoint.id)
    assert [state.id for state in await store.list_active_workflows()] == [state.id]


async def test_a_checkpoint_that_is_gone_is_refused(store: StateStore) -> None:
    [checkpoint, *_] = await finished(store, Pipeline())
    await store.cleanup_old_checkpoints(checkpoint.workflow_state_id, keep=1)
    with pytest.raises(CheckpointNotFound):
        await store.fork(checkpoint.id)
    with pytest.raises(CheckpointNotFound):
        await store.rewind(checkpoint.id)


# --- rewind ---


async def test_a_rewound_run_forgets_the_later_steps_and_does_them_again(store: StateStore) -> None:
    pipeline = Pipeline()
    checkpoints = await finished(store, pipeline)
    for kept in (2, 1):
        pipeline.effect.calls.clear()
        rewound = await store.rewind(checkpoints[kept - 1].id)
        assert (rewound.status, list(rewound.steps)) == (WorkflowStatus.PENDING, ["a", "b", "c"][:kept])
        assert (rewound.completed_at, rewound.context["inside"]) == (None, kept)
        assert await store.load_workflow_state(rewound.id) == rewound
        assert len((await store.recover({"n": pipeline})).completed) == 1
        assert pipeline.effect.calls == ["a", "b", "c"][kept:]
        assert (await store.load_workflow_state(rewound.id)).context == END, "what the handler counts counts once"


async def test_the_result_of_a_rewound_run_is_the_new_one(store: StateStore) -> None:
    pipeline = Pipeline()
    [checkpoint, *_] = await finished(store, pipeline)
    await store.rewind(checkpoint.id)
    assert (await row_of(store, "w")).result is None
    new = ["a, call 1", "b, call 4", "c, call 5"]
    for _ in range(2):
        assert await store.run("n", pipeline, workflow_id="w") == new


async def test_a_run_that_a_worker_owns_is_not_rewound(database_url: str, store: StateStore) -> None:
    gate = Gate()

    async def handler(run: Run) -> list[Any]:
        return [await run.step("first", Effect(), 1), await run.step("second", gate, 2)]

    task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    await gate.reached.wait()
    [checkpoint] = await checkpoints_of(store, "w")
    async with StateStore.open(database_url) as other:
        with pytest.raises(LeaseHeld):
            await other.rewind(checkpoint.id)
    gate.opened.set()
    assert await task == [1, 2]


async def test_a_worker_whose_lease_ended_cannot_write_into_a_rewound_run(store: StateStore) -> None:
    gate = Gate()

    async def handler(run: Run) -> list[Any]:
        return [await run.step("first", Effect(), 1), await run.step("second", gate, 2)]

    task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    await gate.reached.wait()
    [checkpoint] = await checkpoints_of(store, "w")
    await change_row(store, checkpoint.workflow_state_id, lease_expires_at=LONG_AGO)
    await store.rewind(checkpoint.id)
    gate.opened.set()
    with pytest.raises(LeaseLost):
        await task
    assert list(await steps_of(store, "w")) == ["first"]
    assert (await row_of(store, "w")).status == "pending"


async def test_a_step_of_unknown_outcome_is_settled_by_a_rewind(store: StateStore) -> None:
    charges: list[int] = []

    async def charge() -> str:
        charges.append(1)
        if len(charges) == 1:
            vanish()
        return "charged"

    async def handler(run: Run) -> str:
        await run.step("before", Effect())
        return await run.step("charge", charge, on_unknown="raise")

    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    with pytest.raises(OutcomeUnknown):
        await store.run("n", handler, workflow_id="w")
    [checkpoint] = await checkpoints_of(store, "w")
    await store.rewind(checkpoint.id)
    assert await store.run("n", handler, workflow_id="w") == "charged"


async def test_a_rewind_forgets_the_checkpoints_of_the_line_that_it_gives_up(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        for _ in range(3):
            await run.step("step", asyncio.sleep, 0)

    await store.run("n", handler, workflow_id="w")
    state = await store.load_workflow_state_by_workflow_id("w")
    async with store.begin() as uow:
        third, second, first = await uow.checkpoints.list(state.id)
    await store.rewind(second.id)
    async with store.begin() as uow:
        assert [checkpoint.id for checkpoint in await uow.checkpoints.list(state.id)] == [second.id, first.id]
        assert await uow.checkpoints.find(third.id) is None


@pytest.mark.parametrize("how", ["fork", "rewind"])
async def test_what_a_step_did_to_the_context_after_the_checkpoint_is_not_kept(store: StateStore, how: str) -> None:
    """A step that had failed by then, and was finished later."""
    flaky = Failing(LookupError("not yet"))

    async def work(run: Run) -> None:
        await flaky()
        run.context["done"] += 1

    async def handler(run: Run) -> None:
        run.context["asked"] += 1
        try:
            await run.step("flaky", work, run)
        except LookupError:
            await run.step("beside", Effect())
            raise

    with pytest.raises(LookupError):
        await store.run("n", handler, workflow_id="w", context={"asked": 0, "done": 0})
    await store.run("n", handler, workflow_id="w")
    assert (await store.load_workflow_state_by_workflow_id("w")).context == {"asked": 1, "done": 1}
    [before, *_] = await checkpoints_of(store, "w")
    if how == "fork":
        again = await store.fork(before.id, workflow_id="fork")
    else:
        again = await store.rewind(before.id)
    assert again.context == {"asked": 1, "done": 0}
    await store.run("n", handler, workflow_id=again.workflow_id)
    assert (await store.load_workflow_state(again.id)).context == {"asked": 1, "done": 1}


async def test_a_fork_with_a_name_is_made_once_however_often_it_is_asked_for(store: StateStore) -> None:
    """By a process that was killed after its commit, say, and by the one that was started in its place."""

    async def handler(run: Run) -> str:
        return await run.step("a", Effect(), "done")

    await store.run("n", handler, workflow_id="w")
    [checkpoint] = await checkpoints_of(store, "w")
    first = await store.fork(checkpoint.id, workflow_id="fork")
    await store.run("n", handler, workflow_id="fork")
    again = await store.fork(str(checkpoint.id), workflow_id="fork")
    assert (again.id, again.status) == (first.id, "completed")
    others = [(await store.fork(checkpoint.id, workflow_id=name)).id for name in ("another", None, None)]
    assert len({first.id, *others}) == 4


@pytest.mark.parametrize("name", ["", 7, "\0", "\ud800", "n" * 256])
async def test_a_fork_cannot_have_a_name_that_cannot_be_stored(store: StateStore, name: Any) -> None:
    with pytest.raises(InvalidPayload, match="workflow_id"):
        await store.fork(uuid4(), workflow_id=name)
