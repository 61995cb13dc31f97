"""A stored time that never comes, or is none, keeps no run asleep or owned, and no other's history from being found."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from orchestrator_state import CorruptPayload, Run, StateStore, Worker, WorkflowState
from orchestrator_state.database.clock import FAR_FUTURE, LATEST_WAKING
from orchestrator_state.errors import ConfigurationError, LeaseHeld
from orchestrator_state.settings import LONGEST_LEASE
from tests.support.raw_sql import execute
from tests.support.running import Effect, becomes, change_row, row_of, seconds

NEVER = {
    "sqlite": [
        "'zzz'",
        "x'ff00'",
        "CAST(x'32ff' AS TEXT)",
        "'99999-01-01'",
        "'2026'",
        "'9999-12-30T00:00:00.000000+00:00'",
        "strftime('%Y-%m-', 'now', '1 day') || 'zz'",
    ],
    "postgres": ["'infinity'", "'200000-01-01'", "'294276-12-31'", "'9999-12-30 00:00:00+00'", "'7026-01-01'"],
}
LONG_AGO = {"sqlite": ["''", "17", "'-infinity'"], "postgres": ["'-infinity'", "'4713-01-01 BC'"]}


async def done(run: Run) -> str:
    await run.step("a", lambda: "a")
    return "done"


async def waits(run: Run) -> Any:
    return await run.wait_for("go")


def write(url: str, run_id: UUID, column: str, value: str) -> None:
    execute(url, f"UPDATE workflow_states SET {column} = {value} WHERE id = '{run_id}'")


# --- leases ----------------------------------------------------------------------------------------------------------


async def left_by_its_owner(store: StateStore) -> UUID:
    """A run of which the owner has vanished without a word."""
    run_id = (await store.start("n", workflow_id="w", context={})).id
    lease = {"lease_owner": UUID(int=7), "lease_process": "elsewhere 1 1", "lease_token": 3}
    await change_row(store, run_id, status="running", **lease)
    return run_id


async def test_a_lease_that_never_ends_is_nobodys(store: StateStore, database_url: str, backend: str) -> None:
    run_id = await left_by_its_owner(store)
    for value in NEVER[backend]:
        write(database_url, run_id, "status", "'running'")
        write(database_url, run_id, "lease_expires_at", value)
        report = await store.recover({"n": done})
        assert [run.workflow_state_id for run in report.completed] == [run_id], value


async def test_a_worker_takes_over_runs_whose_lease_never_ends_even_suspects(
    store: StateStore, database_url: str, backend: str
) -> None:
    run_id = await left_by_its_owner(store)
    await change_row(store, run_id, attempts=5)
    write(database_url, run_id, "lease_expires_at", NEVER[backend][0])
    async with Worker(store, {"n": done}, poll=0.05, handle_signals=False):
        await becomes(lambda row: row.status == "completed", store, "w")


async def test_whatever_is_asked_of_a_run_whose_lease_never_ends_is_done_at_once(
    store: StateStore, database_url: str, backend: str
) -> None:
    run_id = await left_by_its_owner(store)
    write(database_url, run_id, "lease_expires_at", NEVER[backend][0])
    await store.pause(run_id)
    assert (await row_of(store, "w")).status == "paused"
    write(database_url, run_id, "lease_expires_at", NEVER[backend][0])
    await store.cancel(run_id)
    assert (await row_of(store, "w")).status == "cancelled"


async def test_an_owner_whose_lease_is_damaged_takes_it_back_with_its_next_heartbeat(
    database_url: str, backend: str
) -> None:
    async with StateStore.open(database_url, lease_term=seconds(3)) as store:

        async def handler(run: Run) -> str:
            await run.step("a", lambda: write(database_url, run.id, "lease_expires_at", NEVER[backend][0]))
            await becomes(lambda row: row.lease_expires_at.year > 1, store, "w")
            return await run.step("b", lambda: "b")

        assert await store.run("n", handler, workflow_id="w", context={}) == "b"


async def test_the_longest_lease_holds(database_url: str) -> None:
    async with StateStore.open(database_url, lease_term=LONGEST_LEASE) as owner, StateStore.open(database_url) as other:

        async def handler(run: Run) -> None:
            with pytest.raises(LeaseHeld):
                await other.run("n", done, workflow_id="w")

        await owner.run("n", handler, workflow_id="w", context={})


def test_a_lease_that_would_be_taken_for_damage_cannot_be_asked_for() -> None:
    with pytest.raises(ConfigurationError, match="lease_term"):
        StateStore.open(":memory:", lease_term=LONGEST_LEASE + seconds(1))


async def test_a_unit_that_prolongs_leases_trips_over_none(store: StateStore, database_url: str, backend: str) -> None:
    run_id = await left_by_its_owner(store)
    for value in NEVER[backend]:
        write(database_url, run_id, "lease_expires_at", value)
        async with store._transactions.begin() as uow:
            await uow.leases.prolong(timedelta(hours=1))


# --- sleep -----------------------------------------------------------------------------------------------------------


async def test_a_run_sleeps_no_longer_than_a_time_that_comes(
    store: StateStore, database_url: str, backend: str
) -> None:
    effect = Effect()

    async def handler(run: Run) -> Any:
        await run.step("a", effect)
        await run.sleep(timedelta(days=1))

    run_id = (await store.start("n", workflow_id="w", context={})).id
    await store.recover({"n": handler})
    for value in NEVER[backend]:
        write(database_url, run_id, "wake_at", value)
        # It looks at what it has recorded of its sleep, and sleeps on.
        report = await store.recover({"n": handler})
        assert [run.workflow_state_id for run in report.suspended] == [run_id], value
        assert timedelta(hours=23) < (await row_of(store, "w")).wake_at - datetime.now(UTC) <= timedelta(days=1)
    assert len(effect.calls) == 1


async def test_a_child_whose_sleep_never_ends_is_gone_on_with_by_its_parent(
    store: StateStore, database_url: str, backend: str
) -> None:
    async def child(run: Run) -> str:
        await run.sleep(timedelta(days=1))
        return "slept"

    async def parent(run: Run) -> Any:
        return await run.child("child", child)

    run_id = (await store.start("p", workflow_id="p", context={})).id
    await store.recover({"p": parent})
    child_id = (await row_of(store, f"{run_id}/child:child")).id
    for value in NEVER[backend]:
        write(database_url, child_id, "wake_at", value)
        write(database_url, run_id, "wake_at", "NULL")
        await store.recover({"p": parent})
        assert (await row_of(store, f"{run_id}/child:child")).wake_at - datetime.now(UTC) <= timedelta(days=1), value


async def test_who_waits_without_a_limit_and_who_sleeps_for_ages_sleeps_on(store: StateStore) -> None:
    async def sleeps(run: Run) -> None:
        await run.sleep(timedelta(days=1000 * 365))

    for name in ("waits", "sleeps"):
        await store.start(name, workflow_id=name, context={})
    handlers: Any = {"waits": waits, "sleeps": sleeps}
    assert len((await store.recover(handlers)).suspended) == 2
    assert (await store.recover(handlers)).runs == []
    assert (await row_of(store, "waits")).wake_at == FAR_FUTURE
    assert (await row_of(store, "sleeps")).wake_at == LATEST_WAKING


# --- updated_at ------------------------------------------------------------------------------------------------------


async def finished(store: StateStore, workflow_id: str) -> UUID:
    run_id = (await store.start("n", workflow_id=workflow_id, context={})).id
    await store.recover({"n": done})
    return run_id


async def test_what_ended_at_no_time_anybody_can_tell_is_not_old(
    store: StateStore, database_url: str, backend: str
) -> None:
    run_id = await finished(store, "w")
    for value in [*LONG_AGO[backend], *NEVER[backend][:2]]:
        write(database_url, run_id, "updated_at", value)
        assert await store.delete_old_states(timedelta(days=30)) == 0, value
        assert await store.delete_old_states(datetime.now(UTC) + timedelta(days=1)) == 0, value
        assert not (await store.verify()).is_sound


async def test_a_family_of_which_one_ended_at_no_time_stays_together(
    store: StateStore, database_url: str, backend: str
) -> None:
    async def parent(run: Run) -> Any:
        return await run.child("child", done)

    await store.run("p", parent, workflow_id="p", context={})
    parent_id = (await row_of(store, "p")).id
    child_id = (await row_of(store, f"{parent_id}/child:child")).id
    for value in [*LONG_AGO[backend], *NEVER[backend][:2]]:
        write(database_url, child_id, "updated_at", value)
        assert await store.delete_old_states(datetime.now(UTC) + timedelta(days=1)) == 0, value


async def test_a_damaged_time_does_not_hide_the_newest_of_a_workflow_id(
    store: StateStore, database_url: str, backend: str
) -> None:
    old, new = (WorkflowState(workflow_id="w", workflow_name="n") for _ in range(2))
    for state in (old, new):
        await store.save_workflow_state(state)
    for value in NEVER[backend][:3]:
        write(database_url, old.id, "updated_at", value)
        assert (await store.load_workflow_state_by_workflow_id("w")).id == new.id, value
    write(database_url, new.id, "status", "'completed'")
    await store.run("n", done, workflow_id="w")
    assert (await row_of_id(store, old.id)) == "pending"


async def row_of_id(store: StateStore, run_id: UUID) -> str:
    async with store._transactions.begin() as uow:
        run = await uow.runs.lock(run_id)
    assert run is not None
    return run.status


async def test_the_only_one_of_a_workflow_id_is_told_to_be_damaged_and_not_absent(
    store: StateStore, database_url: str, backend: str
) -> None:
    state = WorkflowState(workflow_id="w", workflow_name="n")
    await store.save_workflow_state(state)
    for value in [*NEVER[backend][:2], *LONG_AGO[backend]]:
        write(database_url, state.id, "updated_at", value)
        with pytest.raises(CorruptPayload) as refused:
            await store.load_workflow_state_by_workflow_id("w")
        assert refused.value.about["workflow_state_id"] == state.id
