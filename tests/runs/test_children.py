"""`run.child` on both databases: a run of its own, once for each call, that fails and is cancelled with its parent."""

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from orchestrator_state import LeaseHeld, Run, RunCancelled, RunFailed, StateStore
from orchestrator_state.database.clock import FAR_FUTURE
from orchestrator_state.models import workflow_states
from orchestrator_state.records import Lease
from tests.support.interleaving import just_after
from tests.support.running import (
    Effect,
    Failing,
    Gate,
    VanishesEverywhere,
    becomes,
    checkpoints_of,
    fetch,
    row_of,
    seconds,
    steps_of,
    until_done,
    vanish,
)


async def children_of(store: StateStore, parent_id: UUID) -> list[Any]:
    query = select(workflow_states).where(workflow_states.c.parent_id == parent_id)
    return list(await fetch(store, query.order_by(workflow_states.c.started_at)))


async def the_child(store: StateStore, workflow_id: str = "w") -> Any:
    [child] = await children_of(store, (await row_of(store, workflow_id)).id)
    return child


# --- a child's result ---


async def test_a_child_is_a_run_of_its_own_whose_result_is_a_step_of_the_parent(store: StateStore) -> None:
    async def child(run: Run) -> Any:
        return [run.name, str(run.parent_id), run.user_id, await run.step("inside", Effect(), run.context["n"])]

    async def parent(run: Run) -> Any:
        return await run.child("part", child, context={"n": 7})

    row_id = str((await store.start("n", workflow_id="w", user_id="u-1")).id)
    assert await store.run("n", parent, workflow_id="w") == ["part", row_id, "u-1", 7]
    assert (await the_child(store)).status == "completed"
    assert (await steps_of(store, "w"))["child:part"].status == "completed"


async def test_each_call_has_a_child_of_its_own_side_by_side_too(store: StateStore) -> None:
    async def child(run: Run) -> Any:
        return await run.step("double", lambda n: 2 * n, run.context["n"])

    async def parent(run: Run) -> Any:
        return list(await asyncio.gather(*(run.child("part", child, context={"n": n}) for n in range(5))))

    assert await store.run("n", parent, workflow_id="w") == [0, 2, 4, 6, 8]
    assert len(await children_of(store, (await row_of(store, "w")).id)) == 5


async def test_a_child_happens_once_wherever_the_worker_vanishes(database_url: str) -> None:
    effect = Effect()

    async def grandchild(run: Run) -> Any:
        return await run.step("effect", effect, "grandchild's")

    async def child(run: Run) -> Any:
        await run.child("grandchild", grandchild)
        return await run.step("effect", effect, "child's")

    async def parent(run: Run) -> Any:
        return await run.child("child", child)

    async with StateStore.open(database_url, hook=VanishesEverywhere()) as store:
        assert await until_done(lambda: store.run("n", parent, workflow_id="w")) == "child's"
        family = await fetch(store, select(workflow_states.c.status))
    assert [status for (status,) in family] == ["completed"] * 3


async def test_a_finished_child_is_not_called_again_by_a_resumed_parent(store: StateStore) -> None:
    effect = Effect()

    async def child(run: Run) -> Any:
        await effect()
        return "once"

    async def parent(run: Run) -> Any:
        result = await run.child("part", child)
        if not attempts:
            attempts.append(1)
            vanish()
        return result

    attempts: list[int] = []
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", parent, workflow_id="w")
    assert await store.run("n", parent, workflow_id="w") == "once"
    assert len(effect.calls) == 1


# --- failure ---


async def test_a_childs_exception_fails_the_step_of_the_parent_and_both_go_on_when_resumed(store: StateStore) -> None:
    kept, work = Effect(), Failing(LookupError("no such page"))

    async def child(run: Run) -> Any:
        await run.step("kept", kept)
        return await work()

    async def parent(run: Run) -> Any:
        return await run.child("part", child)

    with pytest.raises(LookupError):
        await store.run("n", parent, workflow_id="w")
    for row in (await row_of(store, "w"), await the_child(store), (await steps_of(store, "w"))["child:part"]):
        assert (row.status, row.error) == ("failed", "LookupError: no such page")
    assert await store.run("n", parent, workflow_id="w") == "done"
    assert len(kept.calls) == 1


async def test_a_parent_may_go_on_without_its_child(store: StateStore) -> None:
    async def child(run: Run) -> None:
        raise LookupError

    async def parent(run: Run) -> str:
        try:
            await run.child("part", child)
        except LookupError:
            return "without it"
        return "with it"

    assert await store.run("n", parent, workflow_id="w") == "without it"


async def test_a_child_that_fails_by_itself_is_not_called_again_and_its_parent_hears_of_it(store: StateStore) -> None:
    charge, seen = Failing(*(LookupError("card declined") for _ in range(9))), []

    async def grandchild(run: Run) -> Any:
        await run.wait_for("go")
        return await run.step("charge", charge, retry=2)

    async def child(run: Run) -> Any:
        return await run.child("grandchild", grandchild)

    async def parent(run: Run) -> Any:
        try:
            await run.child("child", child)
        except RunFailed as failed:
            seen.append(failed.error)
        return await run.wait_for("answer")

    handlers = {"n": parent, "child": child, "grandchild": grandchild}
    state = await store.start("n", workflow_id="w")
    await store.recover(handlers)
    [below] = await children_of(store, (await the_child(store)).id)
    await store.signal(below.id, "go", 1)
    for _ in range(3):
        await store.recover(handlers)
    await store.signal(state.id, "answer", "without it")
    await store.recover(handlers)
    assert charge.calls == 2
    assert await store.run("n", parent, workflow_id="w") == "without it"
    assert {*seen} == {f"RunFailed: run {below.id} failed: LookupError: card declined"}
    assert (await the_child(store)).status == "failed"


@pytest.mark.parametrize("how", ["resume", "run", "rewind"])
async def test_a_failed_parent_that_is_tried_again_tries_its_failed_child_again(store: StateStore, how: str) -> None:
    work = Failing(LookupError("no such page"))

    async def child(run: Run) -> Any:
        await run.wait_for("go")
        return await run.step("work", work)

    async def parent(run: Run) -> Any:
        await run.step("before", Effect())
        return await run.child("part", child)

    handlers = {"n": parent, "part": child}
    state = await store.start("n", workflow_id="w")
    await store.recover(handlers)
    await store.signal((await the_child(store)).id, "go", 1)
    await store.recover(handlers)
    assert (await row_of(store, "w")).status == (await the_child(store)).status == "failed"
    if how == "resume":
        await store.resume(state.id)
    if how == "rewind":
        checkpoint = await store.get_latest_checkpoint(state.id)
        assert checkpoint is not None
        await store.rewind(checkpoint.id)
    assert await store.run("n", parent, workflow_id="w") == "done"
    assert work.calls == 2


async def test_who_waits_for_a_run_that_fails_elsewhere_does_not_call_it_again(
    database_url: str, store: StateStore
) -> None:
    gate, calls, found_held = Gate(), [], asyncio.Event()

    async def note() -> None:
        found_held.set()

    async def handler(run: Run) -> None:
        calls.append(run.id)
        await run.step("under way", gate)
        raise LookupError("no such page")

    async with StateStore.open(database_url) as other:
        theirs = asyncio.create_task(other.run("n", handler, workflow_id="w"))
        await gate.reached.wait()
        with just_after(store, "FROM workflow_states", note):
            ours = asyncio.create_task(store.run("n", handler, workflow_id="w", wait=seconds(60)))
            await found_held.wait()
        gate.opened.set()
        with pytest.raises(LookupError):
            await theirs
        with pytest.raises(RunFailed, match="no such page"):
            await ours
        assert len(calls) == 1
        with pytest.raises(LookupError):
            await store.run("n", handler, workflow_id="w")


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
async def test_a_child_that_is_ended_by_hand_wakes_its_parent(store: StateStore, status: str) -> None:
    await store.start("n", workflow_id="w")
    await store.recover(BOTH)
    child = await store.load_workflow_state((await the_child(store)).id)
    child.mark_running()
    match status:
        case "completed":
            child.mark_completed()
        case "failed":
            child.mark_failed("by hand")
        case "cancelled":
            child.mark_cancelled()
    await store.save_workflow_state(child)
    assert [run.name for run in (await store.recover(BOTH)).runs] == ["n"]
    assert (await row_of(store, "w")).status == ("completed" if status == "completed" else "failed")


# --- waiting, without a worker ---


async def child_that_waits(run: Run) -> Any:
    return await run.wait_for("approval")


async def parent_that_waits(run: Run) -> Any:
    return ["the child said", await run.child("part", child_that_waits)]


BOTH = {"n": parent_that_waits, "part": child_that_waits}


async def test_under_recover_a_waiting_child_and_its_parent_need_no_worker(store: StateStore) -> None:
    await store.start("n", workflow_id="w")
    assert [run.name for run in (await store.recover(BOTH)).suspended] == ["n"]
    parent, child = await row_of(store, "w"), await the_child(store)
    assert parent.lease_expires_at is child.lease_expires_at is None
    assert (await store.recover(BOTH)).runs == []
    await store.signal(child.id, "approval", "yes")
    report = await store.recover(BOTH)
    assert sorted(run.name for run in report.completed) == ["n", "part"]
    assert await store.run("n", parent_that_waits, workflow_id="w") == ["the child said", "yes"]


async def test_a_child_that_sleeps_wakes_its_parent_when_it_ends(store: StateStore) -> None:
    async def child(run: Run) -> str:
        await run.sleep(0.2)
        return "rested"

    async def parent(run: Run) -> str:
        return await run.child("part", child)

    handlers = {"n": parent, "part": child}
    await store.start("n", workflow_id="w")
    while (await row_of(store, "w")).status != "completed":
        await store.recover(handlers)
        await asyncio.sleep(0.05)
    assert await store.run("n", parent, workflow_id="w") == "rested"


async def test_store_run_waits_in_place_for_a_child_that_somebody_else_finishes(store: StateStore) -> None:
    await store.start("n", workflow_id="w")
    await store.recover(BOTH)
    task = asyncio.create_task(store.run("n", parent_that_waits, workflow_id="w"))
    child = await the_child(store)
    await store.signal(child.id, "approval", "yes")
    assert await task == ["the child said", "yes"]


async def test_a_child_that_ends_while_its_parent_falls_asleep_wakes_it(store: StateStore) -> None:
    """The two transactions meet: the child's has written its end, the parent's looks for it, then the first commits."""
    gate = Gate()

    async def handler(run: Run) -> Any:
        return await run.child("part", lambda run: run.step("work", gate))

    task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    await gate.reached.wait()
    parent, child = await row_of(store, "w"), await the_child(store)

    async def fall_asleep() -> None:
        async with store._transactions.begin() as uow:
            await uow.runs.suspend(lease_of(parent), wake_at=FAR_FUTURE, signals=(), children=[child.id])

    async with store._transactions.begin() as uow:
        await uow.runs.finish(lease_of(child), {"status": "completed"})
        falling = asyncio.create_task(fall_asleep())
        await asyncio.sleep(0.1)
    await falling
    assert (await row_of(store, "w")).wake_at <= datetime.now(UTC) + seconds(60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def lease_of(row: Any) -> Lease:
    return Lease.of(row)


# --- cancel and pause ---


async def test_a_waiting_child_is_cancelled_with_its_parent(store: StateStore) -> None:
    state = await store.start("n", workflow_id="w")
    await store.recover(BOTH)
    await store.cancel(state.id)
    assert (await row_of(store, "w")).status == (await the_child(store)).status == "cancelled"
    assert (await store.recover(BOTH)).runs == []


async def test_a_cancelled_parent_that_is_rewound_has_its_children_back(store: StateStore) -> None:
    async def child(run: Run) -> Any:
        return await run.child("grandchild", child_that_waits)

    async def parent(run: Run) -> Any:
        await run.checkpoint()
        return await run.child("child", child)

    handlers = {"parent": parent, "child": child, "grandchild": child_that_waits}
    state = await store.start("parent", workflow_id="w")
    await store.recover(handlers)
    before = (await checkpoints_of(store, "w"))[0]
    await store.cancel(state.id)

    await store.rewind(before.id)
    await store.recover(handlers)
    [grandchild] = await children_of(store, (await the_child(store)).id)
    await store.signal(grandchild.id, "approval", "late, not lost")
    await store.recover(handlers)
    assert await store.run("parent", parent, workflow_id="w") == "late, not lost"


async def test_a_child_whose_owner_has_still_to_hear_of_the_cancel_goes_on_after_a_rewind(
    database_url: str, store: StateStore
) -> None:
    gate = Gate()

    async def child(run: Run) -> Any:
        return await run.step("work", gate, await run.wait_for("approval"))

    async def parent(run: Run) -> Any:
        await run.checkpoint()
        return await run.child("child", child)

    state = await store.start("parent", workflow_id="w")
    await store.recover({"parent": parent})
    await store.signal((await the_child(store)).id, "approval", "done")
    async with StateStore.open(database_url) as other:
        under_way = asyncio.create_task(other.recover({"child": child}))
        await gate.reached.wait()
        await store.cancel(state.id)
        await store.rewind((await checkpoints_of(store, "w"))[0].id)
        gate.opened.set()
        await under_way
    assert await store.run("parent", parent, workflow_id="w") == "done"


async def test_a_child_under_way_is_cancelled_with_its_parent_at_its_next_step(store: StateStore) -> None:
    gate, never = Gate(), Effect()

    async def grandchild(run: Run) -> None:
        await run.step("under way", gate)
        await run.step("never", never)

    async def child(run: Run) -> None:
        await run.child("grandchild", grandchild)

    async def parent(run: Run) -> None:
        await run.child("child", child)

    task = asyncio.create_task(store.run("n", parent, workflow_id="w"))
    await gate.reached.wait()
    await store.cancel((await row_of(store, "w")).id)
    gate.opened.set()
    with pytest.raises(RunCancelled) as raised:
        await task
    assert raised.value.workflow_state_id == (await row_of(store, "w")).id
    family = await fetch(store, select(workflow_states.c.status))
    assert [status for (status,) in family] == ["cancelled"] * 3
    assert never.calls == []


async def test_a_child_that_is_cancelled_by_itself_wakes_its_parent_which_may_handle_it(store: StateStore) -> None:
    async def parent(run: Run) -> str:
        try:
            await run.child("part", child_that_waits)
        except RunCancelled:
            return "without it"
        return "with it"

    handlers = {"n": parent, "part": child_that_waits}
    await store.start("n", workflow_id="w")
    await store.recover(handlers)
    await store.cancel((await the_child(store)).id)
    assert [run.name for run in (await store.recover(handlers)).completed] == ["n"]
    assert await store.run("n", parent, workflow_id="w") == "without it"


async def test_a_parent_that_does_not_handle_it_is_reported_as_failed_not_as_cancelled(store: StateStore) -> None:
    await store.start("n", workflow_id="w")
    await store.recover(BOTH)
    await store.cancel((await the_child(store)).id)
    assert [(run.name, type(run.error)) for run in (await store.recover(BOTH)).failed] == [("n", RunCancelled)]
    assert (await row_of(store, "w")).status == "failed"


async def test_a_paused_child_makes_its_parent_wait(store: StateStore) -> None:
    await store.start("n", workflow_id="w")
    await store.recover(BOTH)
    child = await the_child(store)
    await store.pause(child.id)
    task = asyncio.create_task(store.run("n", parent_that_waits, workflow_id="w"))
    await becomes(lambda row: row.lease_expires_at is not None, store, "w")
    await store.signal(child.id, "approval", "yes")
    await store.resume(child.id)
    assert await task == ["the child said", "yes"]


async def test_a_child_that_is_paused_under_way_makes_its_parent_wait_without_a_worker(store: StateStore) -> None:
    gate = Gate()

    async def child(run: Run) -> str:
        await run.step("under way", gate)
        return str(await run.step("next", Effect(), "next"))

    async def parent(run: Run) -> str:
        return await run.child("part", child)

    handlers = {"n": parent, "part": child}
    await store.start("n", workflow_id="w")
    task = asyncio.create_task(store.recover(handlers))
    await gate.reached.wait()
    await store.pause((await the_child(store)).id)
    gate.opened.set()
    assert [run.name for run in (await task).suspended] == ["n"]
    assert (await the_child(store)).status == "paused"
    await store.resume((await the_child(store)).id)
    assert sorted(run.name for run in (await store.recover(handlers)).completed) == ["n", "part"]
    assert await store.run("n", parent, workflow_id="w") == "next"


async def test_a_child_that_another_worker_has_is_waited_for(database_url: str, store: StateStore) -> None:
    gate = Gate()

    async def child(run: Run) -> Any:
        return await run.step("under way", gate, "the other's")

    async def parent(run: Run) -> Any:
        return await run.child("part", child)

    await store.start("n", workflow_id="w")
    await store.recover(BOTH)
    row = await the_child(store)
    async with StateStore.open(database_url) as other:
        theirs = asyncio.create_task(other.run("part", child, workflow_id=row.workflow_id))
        await gate.reached.wait()
        with pytest.raises(LeaseHeld):
            await store.run("part", child, workflow_id=row.workflow_id)
        ours = asyncio.create_task(store.run("n", parent, workflow_id="w"))
        await becomes(lambda row: row.lease_expires_at is not None, store, "w")
        gate.opened.set()
        assert await ours == await theirs == "the other's"
