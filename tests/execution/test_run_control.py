"""Who may change a run, on both databases: requests from outside, and owners that lost their right to write."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from orchestrator_state import (
    InvalidTransition,
    LeaseHeld,
    LeaseLost,
    Run,
    RunCancelled,
    RunPaused,
    StaleVersion,
    StateStore,
    WorkflowNotFound,
    WorkflowStatus,
)
from orchestrator_state.hooks import RunEnded
from tests.support.running import (
    Effect,
    Failing,
    Gate,
    Log,
    becomes,
    change_row,
    expire_lease,
    row_of,
    seconds,
    steps_of,
)

NOBODY = "00000000-0000-4000-8000-000000000000"


class TwoSteps:
    """A handler whose first step waits at a gate."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.second = Effect()

    async def __call__(self, run: Run) -> list[Any]:
        return [await run.step("first", self.gate, 1), await run.step("second", self.second, 2)]


@asynccontextmanager
async def under_way(store: StateStore, handler: TwoSteps) -> AsyncIterator[tuple[asyncio.Task[list[Any]], Any]]:
    """The task of the run `w`, which stands at its gate, and its row."""
    task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    await handler.gate.reached.wait()
    try:
        yield task, await row_of(store, "w")
    finally:
        handler.gate.opened.set()
        await asyncio.wait({task})


# --- pause and resume ---


async def test_a_running_handler_pauses_at_its_next_step_and_its_finished_step_is_kept(
    database_url: str, store: StateStore
) -> None:
    handler = TwoSteps()
    async with StateStore.open(database_url) as other, under_way(store, handler) as (task, row):
        await other.pause(row.id)
        await other.pause(row.id)
        assert (await row_of(other, "w")).status == "running"
        handler.gate.opened.set()
        with pytest.raises(RunPaused) as raised:
            await task
    assert raised.value.workflow_state_id == row.id
    row = await row_of(store, "w")
    assert (row.status, row.request, row.lease_expires_at) == ("paused", None, None)
    assert [step.status for step in (await steps_of(store, "w")).values()] == ["completed"]
    assert handler.second.calls == []


async def test_a_paused_run_is_left_alone_until_it_is_resumed(store: StateStore) -> None:
    handler = TwoSteps()
    handler.gate.opened.set()
    state = await store.start("n", workflow_id="w")
    await store.pause(str(state.id))
    await store.pause(state.id)
    assert (await row_of(store, "w")).status == "paused"
    assert (await store.recover({"n": handler})).runs == []
    with pytest.raises(RunPaused):
        await store.run("n", handler, workflow_id="w")
    await store.resume(str(state.id))
    assert (await row_of(store, "w")).status == "pending"
    assert len((await store.recover({"n": handler})).completed) == 1
    assert await store.run("n", handler, workflow_id="w") == [1, 2]


async def test_a_pause_can_be_taken_back_before_the_handler_notices(store: StateStore) -> None:
    handler = TwoSteps()
    async with under_way(store, handler) as (task, row):
        await store.pause(row.id)
        await store.resume(row.id)
        handler.gate.opened.set()
        assert await task == [1, 2]


async def test_a_waiting_handler_notices_a_pause_by_its_heartbeat(database_url: str, store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        return await run.wait_for("approval")

    async with StateStore.open(database_url, lease_term=seconds(3)) as owner:
        task = asyncio.create_task(owner.run("n", handler, workflow_id="w"))
        state = await store.start("n", workflow_id="w")
        await becomes(lambda row: row.lease_expires_at is not None, store, "w")
        await store.pause(state.id)
        with pytest.raises(RunPaused):
            await task


async def test_a_request_outlives_the_owner_it_was_left_for(store: StateStore) -> None:
    handler = TwoSteps()
    async with under_way(store, handler) as (task, row):
        await store.pause(row.id)
        task.cancel()
    with pytest.raises(RunPaused):
        await store.run("n", handler, workflow_id="w")
    assert handler.second.calls == []


async def test_a_failed_run_is_resumed_on_purpose_with_a_new_budget(store: StateStore) -> None:
    work = Failing(LookupError("no such page"))

    async def handler(run: Run) -> str:
        return await run.step("work", work)

    with pytest.raises(LookupError):
        await store.run("n", handler, workflow_id="w")
    row = await row_of(store, "w")
    await change_row(store, row.id, attempts=7)
    assert (await store.recover({"n": handler})).runs == [], "nobody asked for it"
    await store.resume(row.id)
    row = await row_of(store, "w")
    assert (row.status, row.error, row.completed_at, row.attempts) == ("pending", None, None, 0)
    assert len((await store.recover({"n": handler})).completed) == 1


# --- cancel ---


async def test_a_running_handler_is_cancelled_at_its_next_step(database_url: str) -> None:
    handler, log = TwoSteps(), Log()
    async with (
        StateStore.open(database_url, hook=log) as store,
        StateStore.open(database_url) as other,
        under_way(store, handler) as (task, row),
    ):
        await other.cancel(row.id)
        handler.gate.opened.set()
        with pytest.raises(RunCancelled) as raised:
            await task
        assert raised.value.workflow_state_id == row.id
        state = await other.load_workflow_state(row.id)
        assert (state.status, list(state.steps)) == (WorkflowStatus.CANCELLED, ["first"])
        assert state.completed_at is not None
        assert handler.second.calls == []
        with pytest.raises(RunCancelled):
            await other.run("n", handler, workflow_id="w")
    assert [event.outcome for event in log.of(RunEnded)] == ["cancelled"]


async def test_a_run_that_nobody_owns_is_cancelled_at_once(store: StateStore) -> None:
    handler = TwoSteps()
    state = await store.start("n", workflow_id="w")
    await store.cancel(str(state.id))
    await store.cancel(state.id)
    assert (await row_of(store, "w")).status == "cancelled"
    assert (await store.recover({"n": handler})).runs == []
    with pytest.raises(RunCancelled):
        await store.run("n", handler, workflow_id="w")


async def test_a_paused_run_can_be_cancelled(store: StateStore) -> None:
    state = await store.start("n", workflow_id="w")
    await store.pause(state.id)
    await store.cancel(state.id)
    assert (await row_of(store, "w")).status == "cancelled"


async def test_a_cancelled_handler_that_swallows_the_cancellation_stays_cancelled(store: StateStore) -> None:
    gate = Gate()

    async def stubborn(run: Run) -> str:
        await run.step("first", gate)
        try:
            await run.step("second", Effect())
        except asyncio.CancelledError:
            return "as if nothing had happened"
        return "done"

    task = asyncio.create_task(store.run("n", stubborn, workflow_id="w"))
    await gate.reached.wait()
    await store.cancel((await row_of(store, "w")).id)
    gate.opened.set()
    with pytest.raises(RunCancelled):
        await task
    assert (await row_of(store, "w")).status == "cancelled"


async def test_steps_side_by_side_are_all_stopped(store: StateStore) -> None:
    gates = [Gate() for _ in range(3)]

    async def handler(run: Run) -> None:
        async def branch(gate: Gate) -> None:
            await run.step("first", gate)
            await run.step("never", Effect())

        async with asyncio.TaskGroup() as group:
            for gate in gates:
                group.create_task(branch(gate))

    task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    for gate in gates:
        await gate.reached.wait()
    await store.cancel((await row_of(store, "w")).id)
    gates[0].opened.set()
    with pytest.raises(RunCancelled):
        await task
    assert [gate.cancelled for gate in gates] == [False, True, True]
    assert list(await steps_of(store, "w")) == ["first"]


async def test_the_last_step_is_late_enough_for_a_request_to_come_too_late(store: StateStore) -> None:
    gate = Gate()

    async def handler(run: Run) -> Any:
        return await run.step("only", gate, "done")

    task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    await gate.reached.wait()
    await store.cancel((await row_of(store, "w")).id)
    gate.opened.set()
    assert await task == "done"
    row = await row_of(store, "w")
    assert (row.status, row.request) == ("completed", None)


# --- refused ---


async def test_what_makes_no_sense_for_the_runs_status_is_refused(store: StateStore) -> None:
    async def finish(run: Run) -> None:
        pass

    async def fail(run: Run) -> None:
        raise LookupError

    await store.run("n", finish, workflow_id="completed")
    with pytest.raises(LookupError):
        await store.run("n", fail, workflow_id="failed")
    await store.cancel((await store.start("n", workflow_id="cancelled")).id)
    refused: dict[str, list[Callable[[Any], Awaitable[None]]]] = {
        "completed": [store.pause, store.resume, store.cancel],
        "failed": [store.pause, store.cancel],
        "cancelled": [store.pause, store.resume],
    }
    for status, calls in refused.items():
        before = await row_of(store, status)
        for call in calls:
            with pytest.raises(InvalidTransition, match=f"is {status} and cannot be") as raised:
                await call(before.id)
            assert raised.value.found == status
        assert await row_of(store, status) == before


async def test_what_is_not_there_is_refused(database_url: str, store: StateStore) -> None:
    state = await store.start("n", workflow_id="w")
    async with StateStore.open(database_url, namespace="tenant") as tenant:
        for call, target in (
            *((call, NOBODY) for call in (store.pause, store.resume, store.cancel)),
            *((call, str(state.id)) for call in (tenant.pause, tenant.resume, tenant.cancel)),
        ):
            with pytest.raises(WorkflowNotFound):
                await call(target)
    assert (await row_of(store, "w")).status == "pending"


# --- a lease that is lost ---


async def test_a_worker_whose_run_was_taken_over_writes_nothing_and_is_told(
    database_url: str, store: StateStore
) -> None:
    handler, theirs = TwoSteps(), TwoSteps()
    theirs.gate.opened.set()
    async with StateStore.open(database_url) as other, under_way(store, handler) as (task, row):
        await expire_lease(other, row.id)
        assert await other.run("n", theirs, workflow_id="w") == [1, 2]
        before = await row_of(other, "w"), await steps_of(other, "w")
        handler.gate.opened.set()
        with pytest.raises(LeaseLost) as raised:
            await task
        assert raised.value.about["workflow_state_id"] == row.id
        assert (await row_of(other, "w"), await steps_of(other, "w")) == before
    assert handler.second.calls == []
    assert (await row_of(store, "w")).attempts == 1


async def test_the_heartbeat_cancels_a_handler_whose_lease_was_taken(database_url: str) -> None:
    handler, log = TwoSteps(), Log()
    async with (
        StateStore.open(database_url, lease_term=seconds(3), hook=log) as store,
        under_way(store, handler) as (task, row),
    ):
        await change_row(store, row.id, lease_token=99)
        with pytest.raises(LeaseLost):
            await task
        assert handler.gate.cancelled
        assert await steps_of(store, "w") == {}
    assert [event.outcome for event in log.of(RunEnded)] == ["lost"]


async def test_a_handler_that_failed_after_it_lost_its_lease_fails_nothing(store: StateStore) -> None:
    gate = Gate()

    async def handler(run: Run) -> None:
        await gate()
        raise LookupError

    task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    await gate.reached.wait()
    row = await row_of(store, "w")
    await change_row(store, row.id, lease_token=99)
    gate.opened.set()
    with pytest.raises(LeaseLost):
        await task
    row = await row_of(store, "w")
    assert (row.status, row.error, row.lease_token) == ("running", None, 99)


# --- saving a run by hand ---


async def test_a_run_that_a_worker_owns_is_not_overwritten_by_hand(store: StateStore) -> None:
    handler = TwoSteps()
    async with under_way(store, handler) as (task, row):
        state = await store.load_workflow_state(row.id)
        state.context = {"edited": True}
        with pytest.raises(LeaseHeld, match=str(row.lease_owner)) as refused:
            await store.save_workflow_state(state)
        assert (refused.value.owner, refused.value.workflow_state_id) == (row.lease_owner, row.id)
        handler.gate.opened.set()
        assert await task == [1, 2]
    assert (await store.load_workflow_state(row.id)).context == {}
    with pytest.raises(StaleVersion):
        await store.save_workflow_state(state)


async def test_a_run_whose_lease_ended_may_be_saved_and_its_old_owner_can_write_no_more(store: StateStore) -> None:
    handler = TwoSteps()
    async with under_way(store, handler) as (task, row):
        await expire_lease(store, row.id)
        state = await store.load_workflow_state(row.id)
        state.context = {"edited": True}
        await store.save_workflow_state(state)
        handler.gate.opened.set()
        with pytest.raises(LeaseLost):
            await task
    assert await store.load_workflow_state(row.id) == state
    handler.gate.opened.set()
    assert await store.run("n", handler, workflow_id="w") == [1, 2]
    assert (await store.load_workflow_state(row.id)).context == {"edited": True}


async def test_a_copy_loaded_before_a_step_is_stale_after_it(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        copies.append(await store.load_workflow_state(run.id))
        await run.step("a", Effect())

    copies: list[Any] = []
    await store.run("n", handler, workflow_id="w")
    copies[0].context = {"edited": True}
    with pytest.raises(StaleVersion):
        await store.save_workflow_state(copies[0])
