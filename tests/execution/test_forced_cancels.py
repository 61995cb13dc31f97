"""`store.cancel(…, force=True)` on both databases: an owner loses its right to write at once, however it hangs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from orchestrator_state import (
    ConfigurationError,
    InvalidTransition,
    LeaseLost,
    Run,
    RunCancelled,
    StateStore,
    Worker,
    WorkflowNotFound,
)
from orchestrator_state.hooks import RunEnded
from orchestrator_state.models import workflow_states
from tests.support.lost_answers import answer_lost
from tests.support.running import (
    Effect,
    Gate,
    Log,
    Stubborn,
    all_become,
    becomes,
    change_row,
    fetch,
    row_of,
    seconds,
    steps_of,
)

NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[StateStore]:
    """Another process's, which acts."""
    async with StateStore.open(database_url) as store:
        yield store


def one_step(fn: Callable[[], Awaitable[Any]]) -> Callable[[Run], Awaitable[Any]]:
    async def handler(run: Run) -> Any:
        return await run.step("first", fn)

    return handler


@asynccontextmanager
async def hanging(store: StateStore, fn: Any) -> AsyncIterator[tuple[asyncio.Task[Any], Any]]:
    task = asyncio.create_task(store.run("n", one_step(fn), workflow_id="w"))
    await fn.reached.wait()
    yield task, await row_of(store, "w")


# --- the owner ---


async def test_a_step_that_hangs_is_cancelled_at_once_in_the_same_store(store: StateStore) -> None:
    gate = Gate()
    async with hanging(store, gate) as (task, row):
        await store.cancel(row.id, force=True)
        after = await row_of(store, "w")
        assert (after.status, after.lease_expires_at, after.request) == ("cancelled", None, None)
        assert (after.lease_token, after.completed_at is None) == (row.lease_token + 1, False)
        with pytest.raises(RunCancelled):
            await task
        assert gate.cancelled
        assert await steps_of(store, "w") == {}


async def test_the_owner_in_another_process_hears_of_it_by_its_heartbeat(database_url: str, other: StateStore) -> None:
    gate, log = Gate(), Log()
    async with StateStore.open(database_url, lease_term=seconds(1), hook=log) as store:
        async with hanging(store, gate) as (task, row):
            await other.cancel(row.id, force=True)
            assert (await row_of(other, "w")).status == "cancelled"
            with pytest.raises(RunCancelled):
                await task
        assert gate.cancelled
        assert [event.outcome for event in log.of(RunEnded)] == ["cancelled"]


@pytest.mark.parametrize("acts_here", [True, False])
async def test_what_ignores_the_cancellation_and_returns_late_writes_nothing(
    store: StateStore, other: StateStore, acts_here: bool
) -> None:
    step = Stubborn()
    async with hanging(store, step) as (task, row):
        await (store if acts_here else other).cancel(row.id, force=True)
        before = await row_of(other, "w")
        if acts_here:
            await step.refused.wait()
        step.let_go.set()
        with pytest.raises(RunCancelled):
            await task
    assert await row_of(other, "w") == before
    assert await steps_of(other, "w") == {}


async def test_a_handler_that_is_done_with_its_steps_does_not_complete_the_run(
    store: StateStore, other: StateStore
) -> None:
    gate = Gate()

    async def handler(run: Run) -> str:
        await run.step("first", Effect())
        await gate()
        return "done"

    task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    await gate.reached.wait()
    row = await row_of(store, "w")
    await other.cancel(row.id, force=True)
    gate.opened.set()
    with pytest.raises(RunCancelled):
        await task
    assert (await row_of(store, "w")).status == "cancelled"
    assert list(await steps_of(store, "w")) == ["first"]


@pytest.mark.parametrize("fails", [False, True])
async def test_how_the_owner_ends_it_meanwhile_is_decided_by_the_rows_lock(
    store: StateStore, other: StateStore, fails: bool
) -> None:
    begun: asyncio.Queue[UUID] = asyncio.Queue()

    async def handler(run: Run) -> str:
        begun.put_nowait(run.id)
        await run.step("first", Effect())
        if fails:
            raise LookupError
        return "done"

    for number in range(10):
        name = f"w{number}"
        task = asyncio.create_task(store.run("n", handler, workflow_id=name))
        cancelling = other.cancel(await begun.get(), force=True)
        cancelled, ended = await asyncio.gather(cancelling, task, return_exceptions=True)
        status = (await row_of(other, name)).status
        if isinstance(cancelled, InvalidTransition):
            assert status == ("failed" if fails else "completed")
        else:
            assert status == "cancelled"
            assert isinstance(ended, RunCancelled)


async def test_a_run_that_waits_where_it_is_stops_waiting(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        return await run.wait_for("never")

    task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    state = await store.start("n", workflow_id="w")
    await becomes(lambda row: row.lease_expires_at is not None, store, "w")
    await store.cancel(state.id, force=True)
    with pytest.raises(RunCancelled):
        await task


async def test_a_worker_goes_on_with_others_and_reports_the_run_as_cancelled(store: StateStore) -> None:
    gate = Gate()
    state = await store.start("n", workflow_id="w")
    recovering = asyncio.create_task(store.recover({"n": one_step(gate)}))
    await gate.reached.wait()
    await store.cancel(state.id, force=True)
    assert [run.outcome for run in (await recovering).runs] == ["cancelled"]


# --- children ---


async def test_children_in_other_workers_lose_their_leases_with_it(database_url: str, store: StateStore) -> None:
    step = Stubborn()

    async def grandchild(run: Run) -> Any:
        return await run.step("first", step)

    async def child(run: Run) -> Any:
        return await run.child("grandchild", grandchild)

    async def parent(run: Run) -> Any:
        return await run.child("child", child)

    state = await store.start("parent", workflow_id="w")
    async with StateStore.open(database_url, lease_term=seconds(1)) as busy:
        recovering = asyncio.create_task(busy.recover({"parent": parent, "child": child, "grandchild": grandchild}))
        await step.reached.wait()
        await store.cancel(state.id, force=True)
        rows = await _all(store)
        assert [(row.status, row.lease_expires_at) for row in rows] == [("cancelled", None)] * 3
        await step.refused.wait()
        step.let_go.set()
        assert [run.outcome for run in (await recovering).runs] == ["cancelled"]
    assert await _all(store) == rows
    for row in rows:
        assert all(each.status != "completed" for each in (await steps_of(store, row.workflow_id)).values())


async def test_a_child_alone_is_cancelled_and_its_parent_hears_of_it(store: StateStore) -> None:
    gate = Gate()

    async def parent(run: Run) -> str:
        try:
            return str(await run.child("child", one_step(gate)))
        except RunCancelled:
            return "without it"

    task = asyncio.create_task(store.run("parent", parent, workflow_id="w"))
    await gate.reached.wait()
    [child] = [row for row in await _all(store) if row.parent_id is not None]
    await store.cancel(child.id, force=True)
    assert await task == "without it"
    assert (await row_of(store, child.workflow_id)).status == "cancelled"


async def test_children_whose_owners_were_only_asked_are_taken_from_them_afterwards(
    store: StateStore, other: StateStore
) -> None:
    step = Stubborn()

    async def parent(run: Run) -> Any:
        return await run.child("child", one_step(step))

    task = asyncio.create_task(store.run("parent", parent, workflow_id="w"))
    await step.reached.wait()
    row = await row_of(store, "w")
    await other.cancel(row.id)
    assert {each.status for each in await _all(store)} == {"running"}
    await other.cancel(row.id, force=True)
    await other.cancel(row.id, force=True)
    assert {each.status for each in await _all(store)} == {"cancelled"}
    step.let_go.set()
    with pytest.raises(RunCancelled):
        await task


async def _all(store: StateStore) -> list[Any]:
    return list(await fetch(store, select(workflow_states).order_by(workflow_states.c.id)))


# --- what an ordinary cancel does ---


async def test_of_a_run_that_nobody_owns_it_is_an_ordinary_cancel(store: StateStore) -> None:
    state = await store.start("n", workflow_id="w")
    await store.cancel(state.id, force=True)
    assert (await row_of(store, "w")).status == "cancelled"
    await store.cancel(state.id, force=True)


async def test_a_run_that_is_over_stays_so(store: StateStore) -> None:
    await store.run("n", one_step(Effect()), workflow_id="w")
    row = await row_of(store, "w")
    with pytest.raises(InvalidTransition, match="is completed and cannot be cancelled"):
        await store.cancel(row.id, force=True)
    assert await row_of(store, "w") == row


async def test_unknown_runs_and_odd_arguments_are_refused(store: StateStore) -> None:
    with pytest.raises(WorkflowNotFound):
        await store.cancel(NOBODY, force=True)
    with pytest.raises(ConfigurationError, match="force must be True or False, not a int"):
        await store.cancel(NOBODY, force=1)  # type: ignore[arg-type]


async def test_no_other_namespace_is_touched(database_url: str, store: StateStore) -> None:
    gate = Gate()
    async with StateStore.open(database_url, namespace="tenant") as tenant, hanging(store, gate) as (task, row):
        with pytest.raises(WorkflowNotFound):
            await tenant.cancel(row.id, force=True)
        gate.opened.set()
        assert await task is None


# --- what is done afterwards ---


async def test_the_owner_that_lost_it_does_not_write_into_what_a_rewind_made_of_it(
    store: StateStore, other: StateStore
) -> None:
    step = Stubborn()

    async def handler(run: Run) -> Any:
        await run.checkpoint("begun")
        return await run.step("first", step)

    task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    await step.reached.wait()
    row = await row_of(store, "w")
    await other.cancel(row.id, force=True)
    checkpoint = await other.get_latest_checkpoint(row.id)
    assert checkpoint is not None
    await other.rewind(checkpoint.id)
    assert await other.run("n", one_step(Effect()), workflow_id="w") is None
    before = await row_of(other, "w"), await steps_of(other, "w")
    step.let_go.set()
    with pytest.raises(LeaseLost):
        await task
    assert (await row_of(other, "w"), await steps_of(other, "w")) == before


async def test_a_lost_answer_is_a_cancel_all_the_same_and_takes_nothing_that_came_after(
    store: StateStore, other: StateStore
) -> None:
    gate = Gate()

    async def handler(run: Run) -> Any:
        await run.checkpoint("begun")
        return await run.step("first", gate)

    task = asyncio.create_task(other.run("n", handler, workflow_id="w"))
    await gate.reached.wait()
    row = await row_of(other, "w")

    async def start_again() -> None:
        checkpoint = await other.get_latest_checkpoint(row.id)
        assert checkpoint is not None
        await other.rewind(checkpoint.id)

    with answer_lost(store, start_again):
        await store.cancel(row.id, force=True)
    assert (await row_of(other, "w")).status == "pending"
    gate.opened.set()
    with pytest.raises(LeaseLost):
        await task


async def test_a_worker_has_room_for_others_again(store: StateStore) -> None:
    gate, effect = Gate(), Effect()

    async def handler(run: Run) -> Any:
        return await run.step("first", gate if run.workflow_id == "hangs" else effect)

    state = await store.start("n", workflow_id="hangs")
    async with Worker(store, {"n": handler}, concurrency=1):
        await gate.reached.wait()
        await store.start("n", workflow_id="next")
        await store.cancel(state.id, force=True)
        await all_become("completed", store, ["next"])


async def test_a_claim_that_takes_it_over_meanwhile_loses_it_too(store: StateStore, other: StateStore) -> None:
    gate = Gate()
    async with hanging(store, gate) as (task, row):
        await change_row(store, row.id, lease_expires_at=row.started_at)
        second = Gate()
        taking = asyncio.create_task(other.run("n", one_step(second), workflow_id="w"))
        await second.reached.wait()
        await other.cancel(row.id, force=True)
        with pytest.raises(RunCancelled):
            await taking
        gate.opened.set()
        with pytest.raises(RunCancelled):
            await task
