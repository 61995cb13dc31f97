"""Leases: one owner at a time, whoever claims, renews, dawdles or vanishes."""

import asyncio
from functools import partial
from typing import Any

import pytest
from sqlalchemy import update

from orchestrator_state import (
    CorruptPayload,
    InvalidPayload,
    LeaseHeld,
    LeaseLost,
    Run,
    StateStore,
    StoreUnavailable,
)
from orchestrator_state.domain import WorkflowStatus
from orchestrator_state.models import workflow_states
from orchestrator_state.run_records import Lease
from orchestrator_state.run_repository import RunRepository
from tests.running import Effect, Gate, change_row, expire_lease, row_of, seconds
from tests.statements import traffic_of

# --- claims ---


async def test_of_concurrent_starts_in_one_store_one_runs_and_the_others_are_told_so(store: StateStore) -> None:
    calls = 0

    async def handler(run: Run) -> None:
        nonlocal calls
        calls += 1
        await run.step("nap", asyncio.sleep, 0.002)

    for number in range(20):
        calls = 0
        starts = (store.run("nap", handler, workflow_id=f"w-{number}") for _ in range(6))
        ends = await asyncio.gather(*starts, return_exceptions=True)
        assert calls == 1
        assert {type(end) for end in ends} <= {type(None), LeaseHeld}


async def test_a_run_that_ended_since_it_was_looked_at_is_not_claimed(store: StateStore) -> None:
    async def handler(run: Run) -> None: ...

    gate = Gate()
    task = asyncio.create_task(store.run("w", lambda run: run.step("s", gate), workflow_id="w"))
    await gate.reached.wait()
    await expire_lease(store, (await row_of(store, "w")).id)
    seen = await row_of(store, "w")
    gate.opened.set()
    await task
    owner = store._executor.keeper.owner
    assert await store._transactions.write(lambda uow: uow.runs.claim(seen, owner)) is None
    assert (await row_of(store, "w")).status == WorkflowStatus.COMPLETED


async def test_a_lease_of_ours_that_no_run_here_holds_is_given_up_and_one_that_is_held_is_not(
    store: StateStore,
) -> None:
    gate, effect = Gate(), Effect()
    held = asyncio.create_task(store.run("w", lambda run: run.step("s", gate), workflow_id="held"))
    await gate.reached.wait()
    keeper = store._executor.keeper
    await store.start("w", workflow_id="orphan")
    await store._transactions.write(lambda uow: uow.runs.claim_abandoned({"w"}, keeper.owner, 1))

    report = await store.recover({"w": lambda run: run.step("s", effect, run.workflow_id)})

    assert [run.workflow_id for run in report.completed] == ["orphan"]
    assert effect.calls == ["orphan"]
    gate.opened.set()
    await held
    assert (await row_of(store, "held")).lease_token == 1


# --- renewal ---


async def test_a_lease_that_was_let_go_is_not_renewed(store: StateStore) -> None:
    gate = Gate()
    task = asyncio.create_task(store.run("w", lambda run: run.step("s", gate), workflow_id="w"))
    await gate.reached.wait()
    row = await row_of(store, "w")
    keeper = store._executor.keeper
    assert await store._transactions.write(lambda uow: uow.runs.renew(keeper.owner, [row.id])) == {row.id: (1, None)}
    lease = Lease(workflow_state_id=row.id, owner=row.lease_owner, token=row.lease_token)
    await store._transactions.write(lambda uow: uow.runs.release(lease))
    assert await store._transactions.write(lambda uow: uow.runs.renew(keeper.owner, [row.id])) == {}
    assert (await row_of(store, "w")).lease_expires_at is None
    gate.opened.set()
    await task


async def test_a_run_claimed_anew_here_is_renewed_although_its_former_holder_ends_later(database_url: str) -> None:
    async with StateStore.open(database_url, lease_term=seconds(0.6)) as store:
        lost, gate = Gate(), Gate()
        told, dawdles = asyncio.Event(), asyncio.Event()

        async def former(run: Run) -> None:
            try:
                await run.step("s", lost)
            finally:
                told.set()
                await dawdles.wait()

        first = asyncio.create_task(store.run("w", former, workflow_id="w"))
        await lost.reached.wait()
        row = await row_of(store, "w")
        await change_row(store, row.id, lease_token=row.lease_token + 1)
        await asyncio.wait_for(told.wait(), 10)
        await expire_lease(store, row.id)
        second = asyncio.create_task(
            store.run("w", lambda run: run.step("s", gate, "second"), workflow_id="w", wait=seconds(10))
        )
        await gate.reached.wait()
        dawdles.set()
        with pytest.raises(LeaseLost):
            await first

        await asyncio.sleep(1.5)  # more than two terms: without renewal the lease is over by then
        assert not (await store.recover({"w": lambda run: run.step("s", Effect())})).runs
        gate.opened.set()
        assert await second == "second"


async def test_a_heartbeat_that_is_stuck_for_a_term_counts_as_a_lost_lease(database_url: str) -> None:
    async with StateStore.open(database_url, lease_term=seconds(0.6)) as store, StateStore.open(database_url) as other:
        gate = Gate()
        task = asyncio.create_task(store.run("w", lambda run: run.step("s", gate), workflow_id="w"))
        await gate.reached.wait()
        async with other.begin() as uow:
            # Holds the row's lock on Postgres, and the file's on SQLite, until the run has ended.
            await uow.session.execute(update(workflow_states).values(user_id="blocker"))
            with pytest.raises(LeaseLost):
                await asyncio.wait_for(task, 9)
        assert gate.cancelled


async def test_a_heartbeat_survives_an_error_that_nobody_foresaw(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    renew, failures = RunRepository.renew, 0

    async def fails_once(self: RunRepository, *args: Any, **options: Any) -> Any:
        nonlocal failures
        failures += 1
        if failures == 1:
            raise RuntimeError("unforeseen")
        return await renew(self, *args, **options)

    monkeypatch.setattr(RunRepository, "renew", fails_once)
    async with StateStore.open(database_url, lease_term=seconds(0.9)) as store, StateStore.open(database_url) as other:
        gate = Gate()
        task = asyncio.create_task(store.run("w", lambda run: run.step("s", gate, "done"), workflow_id="w"))
        await asyncio.sleep(2)  # more than two terms
        assert failures > 2
        with pytest.raises(LeaseHeld):
            await other.run("w", lambda run: run.step("s", Effect()), workflow_id="w")
        gate.opened.set()
        assert await task == "done"


# --- letting go ---


async def test_recovery_ends_although_a_run_cannot_go_on_and_leaves_it_for_later(store: StateStore) -> None:
    calls = 0

    async def handler(run: Run) -> None:
        nonlocal calls
        calls += 1
        raise StoreUnavailable("the handler's other store is away")

    await store.start("w", workflow_id="w")
    report = await asyncio.wait_for(store.recover({"w": handler}), 10)
    assert [run.outcome for run in report.runs] == ["interrupted"]
    assert calls == 1
    row = await row_of(store, "w")
    assert (row.status, row.lease_expires_at) == (WorkflowStatus.RUNNING, None)
    await asyncio.sleep(1.1)  # the pause after a fault
    assert len((await store.recover({"w": handler})).runs) == 1


async def test_a_run_whose_context_cannot_be_read_fails_with_a_reason(store: StateStore) -> None:
    state = await store.start("w", workflow_id="w")
    await change_row(store, state.id, context='{"torn')

    report = await asyncio.wait_for(store.recover({"w": lambda run: run.step("s", Effect())}), 10)

    assert [type(run.error) for run in report.failed] == [CorruptPayload]
    row = await row_of(store, "w")
    assert row.status == WorkflowStatus.FAILED
    assert row.error.startswith("CorruptPayload: ")


async def test_a_failed_run_keeps_its_status_when_its_lease_is_let_go(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        raise InvalidPayload("the handler's own", path="x")

    with pytest.raises(InvalidPayload):
        await store.run("w", handler, workflow_id="w")
    row = await row_of(store, "w")
    assert (row.status, row.wake_at, row.lease_expires_at) == (WorkflowStatus.FAILED, None, None)


async def test_a_row_that_somebody_has_locked_costs_no_other_run_its_lease(postgres_url: str) -> None:
    async with StateStore.open(postgres_url, lease_term=seconds(0.9)) as store, StateStore.open(postgres_url) as other:
        gates = [Gate(), Gate()]

        def run(number: int) -> asyncio.Task[str]:
            return asyncio.create_task(
                store.run("w", lambda run: run.step("s", gates[number], "done"), workflow_id=f"w{number}")
            )

        tasks = [run(0), run(1)]
        for gate in gates:
            await gate.reached.wait()
        async with other.begin() as uow:
            await uow.runs.lock((await row_of(store, "w0")).id)
            with pytest.raises(LeaseLost):
                await asyncio.wait_for(tasks[0], 9)
            await asyncio.sleep(0.5)
            gates[1].opened.set()
            assert await tasks[1] == "done"


async def _through(gate: Gate, run: Run) -> Any:
    return await run.step("s", gate)


async def test_many_leases_are_renewed_in_several_transactions(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator_state.repositories._MAX_IDS", 2)
    gates = [Gate() for _ in range(5)]
    tasks = [
        asyncio.create_task(store.run("w", partial(_through, gate), workflow_id=f"w{number}"))
        for number, gate in enumerate(gates)
    ]
    for gate in gates:
        await gate.reached.wait()
    before = {number: (await row_of(store, f"w{number}")).lease_expires_at for number in range(5)}
    with traffic_of(store) as traffic:
        await store._executor.keeper._renew()
    assert traffic.commits == 3
    assert all([(await row_of(store, f"w{number}")).lease_expires_at > before[number] for number in range(5)])
    for gate in gates:
        gate.opened.set()
    await asyncio.gather(*tasks)
