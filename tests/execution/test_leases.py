"""Leases: one owner at a time, whoever claims, renews, dawdles or vanishes."""

import asyncio
import gc
import sqlite3
import threading
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from sqlalchemy import insert, update

from orchestrator_state import (
    CorruptPayload,
    InvalidPayload,
    LeaseHeld,
    LeaseLost,
    OrchestratorStateError,
    Retry,
    Run,
    StateStore,
    StoreUnavailable,
)
from orchestrator_state.domain import WorkflowStatus
from orchestrator_state.execution.leases import _trying
from orchestrator_state.models import requests, workflow_states
from orchestrator_state.records import Lease, RunNames
from orchestrator_state.runs.run import Handler
from tests.support.engines import opened_engine
from tests.support.interleaving import just_before, raising
from tests.support.lost_answers import answer_lost
from tests.support.postgres_server import Postgres
from tests.support.running import Effect, Gate, becomes, change_row, count_rows, expire_lease, row_of, seconds
from tests.support.statements import traffic_of

pytestmark = pytest.mark.slow  # whole terms of leases pass

TERM = seconds(3)  # so long that a process which stands still for a second keeps its leases


RENEWAL = " AS now"  # what it asks for besides


async def is_renewed(store: StateStore, workflow_id: str) -> None:
    """Wait until the heartbeat has renewed the lease twice: what it needs for that, it has for any time."""
    for _ in range(2):
        seen = (await row_of(store, workflow_id)).lease_expires_at
        await becomes(partial(_ends_later, seen), store, workflow_id)


def _ends_later(than: datetime, row: Any) -> bool:
    return bool(row.lease_expires_at > than)


async def can_be_claimed(store: StateStore, effect: Effect) -> bool:
    """Whether this store finds an abandoned run, and takes it over."""
    report = await store.recover({"w": lambda run: run.step("s", effect, run.workflow_id)})
    return bool(report.runs or effect.calls)


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
    names = RunNames(ids=[(await row_of(store, "w")).id])
    await expire_lease(store, names.ids[0])
    seen = await store._transactions.read(lambda uow: uow.claims.find(names))
    assert seen is not None
    gate.opened.set()
    await task
    owner = store._executor.keeper.owner
    assert await store._transactions.write(lambda uow: uow.claims.claim(seen, owner)) is None
    assert (await row_of(store, "w")).status == WorkflowStatus.COMPLETED


async def test_a_lease_of_ours_that_no_run_here_holds_is_given_up_and_one_that_is_held_is_not(
    store: StateStore,
) -> None:
    gate, effect = Gate(), Effect()
    held = asyncio.create_task(store.run("w", lambda run: run.step("s", gate), workflow_id="held"))
    await gate.reached.wait()
    keeper = store._executor.keeper
    await store.start("w", workflow_id="orphan")
    await store._transactions.write(lambda uow: uow.claims.claim_abandoned({"w"}, keeper.owner, 1))

    report = await store.recover({"w": lambda run: run.step("s", effect, run.workflow_id)})

    assert [run.workflow_id for run in report.completed] == ["orphan"]
    assert effect.calls == ["orphan"]
    gate.opened.set()
    await held
    assert (await row_of(store, "held")).lease_token == 1


# --- renewal ---


async def test_a_lease_that_was_let_go_is_not_renewed_and_is_good_for_no_commit(store: StateStore) -> None:
    gate = Gate()
    task = asyncio.create_task(store.run("w", lambda run: run.step("s", gate), workflow_id="w"))
    await gate.reached.wait()
    row = await row_of(store, "w")
    keeper = store._executor.keeper
    renewed = await store._transactions.write(lambda uow: uow.leases.renew(keeper.owner, [row.id]))
    assert {run_id: (renewal.token, renewal.request) for run_id, renewal in renewed.items()} == {row.id: (1, None)}
    lease = Lease.of(row)
    await store._transactions.write(lambda uow: uow.runs.release(lease))
    assert await store._transactions.write(lambda uow: uow.leases.renew(keeper.owner, [row.id])) == {}
    assert (await row_of(store, "w")).lease_expires_at is None
    gate.opened.set()
    with pytest.raises(LeaseLost):
        await task
    assert await count_rows(store, "step_states") == 0


async def test_a_run_claimed_anew_here_is_renewed_although_its_former_holder_ends_later(database_url: str) -> None:
    async with StateStore.open(database_url, lease_term=TERM) as store:
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
        await store._executor.keeper._renew()
        await told.wait()
        await expire_lease(store, row.id)
        second = asyncio.create_task(
            store.run("w", lambda run: run.step("s", gate, "second"), workflow_id="w", wait=seconds(60))
        )
        await gate.reached.wait()
        dawdles.set()
        with pytest.raises(LeaseLost):
            await first

        await is_renewed(store, "w")
        gate.opened.set()
        assert await second == "second"


async def test_a_heartbeat_that_is_stuck_for_a_term_counts_as_a_lost_lease(postgres_url: str) -> None:
    async with StateStore.open(postgres_url, lease_term=seconds(1)) as store, StateStore.open(postgres_url) as other:
        gate = Gate()
        task = asyncio.create_task(store.run("w", lambda run: run.step("s", gate), workflow_id="w"))
        await gate.reached.wait()
        async with other.begin() as uow:
            # Holds the row's lock until the run has ended.
            await uow.session.execute(update(workflow_states).values(user_id="blocker"))
            with pytest.raises(LeaseLost):
                await task
        assert gate.cancelled


async def test_no_lease_ends_while_somebody_else_keeps_the_sqlite_file_to_himself(sqlite_url: str) -> None:
    async with StateStore.open(sqlite_url, lease_term=seconds(1)) as store, StateStore.open(sqlite_url) as other:
        gate, effect = Gate(), Effect()
        task = asyncio.create_task(store.run("w", partial(_through, gate), workflow_id="w"))
        await gate.reached.wait()
        async with other.begin() as uow:
            await uow.session.execute(update(workflow_states).values(user_id="blocker"))
            claim = asyncio.create_task(other.recover({"w": lambda run: run.step("s", effect)}))
            await asyncio.sleep(1.5)
        assert not (await claim).runs, "the lease has not ended with the end of the unit, either"
        gate.opened.set()
        await task
    assert not effect.calls


async def test_a_transaction_of_a_run_may_take_longer_than_its_lease_and_harms_no_neighbour(database_url: str) -> None:
    calls = 0

    async def slow(session: Any) -> str:
        nonlocal calls
        calls += 1
        values = {"id": uuid4(), "namespace": "n", "kind": "k", "made_at": datetime.now(UTC)}
        await session.execute(insert(requests).values(values))
        await asyncio.sleep(TERM.total_seconds() + 1)
        return "done"

    async with StateStore.open(database_url, lease_term=TERM) as store, StateStore.open(database_url) as other:
        gate, effect = Gate(), Effect()
        neighbour = asyncio.create_task(store.run("w", partial(_through, gate), workflow_id="neighbour"))
        await gate.reached.wait()
        looking = asyncio.create_task(_look_until(other, effect, neighbour))
        assert await store.run("w", lambda run: run.transact("t", slow), workflow_id="w") == "done"
        gate.opened.set()
        await neighbour
        await looking
    assert (calls, effect.calls) == (1, [])


async def _look_until(store: StateStore, effect: Effect, end: asyncio.Task[Any]) -> None:
    """Take over whatever is abandoned, as a worker does."""
    while not end.done():
        await store.recover({"w": lambda run: run.step("s", effect, run.workflow_id)})
        await asyncio.sleep(0.05)


async def test_leases_are_renewed_although_no_connection_of_the_pool_is_free(database_url: str) -> None:
    async with (
        StateStore.open(database_url, lease_term=TERM, pool_min=0, pool_max=1) as store,
        StateStore.open(database_url) as other,
    ):
        gate, effect = Gate(), Effect()
        task = asyncio.create_task(store.run("w", partial(_through, gate), workflow_id="w"))
        await gate.reached.wait()
        async with store._transactions.database._pool.connect():
            await is_renewed(other, "w")
        assert not await can_be_claimed(other, effect)
        gate.opened.set()
        await task


async def test_leases_are_renewed_beside_an_applications_engine_that_is_at_its_limit(database_url: str) -> None:
    async with (
        opened_engine(database_url, pool_size=1, max_overflow=0) as engine,
        StateStore.open(engine=engine, lease_term=TERM) as store,
        StateStore.open(database_url) as other,
    ):
        gate, effect = Gate(), Effect()
        task = asyncio.create_task(store.run("w", partial(_through, gate), workflow_id="w"))
        await gate.reached.wait()
        async with engine.connect():
            await is_renewed(other, "w")
        assert not await can_be_claimed(other, effect)
        gate.opened.set()
        await task


async def test_leases_are_renewed_by_the_pool_where_the_server_has_no_connection_beside_it(
    postgres: Postgres, postgres_url: str
) -> None:
    database = urlsplit(postgres_url).path[1:]
    postgres.execute(f'CREATE ROLE "{database}" LOGIN CONNECTION LIMIT 1', database=database)
    postgres.execute(f'GRANT ALL ON ALL TABLES IN SCHEMA public TO "{database}"', database=database)
    gate = Gate()
    url = postgres_url.replace("//postgres@", f"//{database}@")
    try:
        async with (
            StateStore.open(url, lease_term=TERM, pool_min=1, pool_max=1) as store,
            StateStore.open(postgres_url) as other,
        ):
            task = asyncio.create_task(store.run("w", lambda run: run.step("s", gate, "answer"), workflow_id="w"))
            await gate.reached.wait()
            await is_renewed(other, "w")
            gate.opened.set()
            assert await task == "answer"
    finally:
        postgres.execute(f'DROP OWNED BY "{database}"', database=database)
        postgres.execute(f'DROP ROLE "{database}"', database=database)


async def test_leases_are_renewed_before_those_who_have_waited_longer_to_write(sqlite_url: str) -> None:
    order: list[int] = []

    async def write(store: StateStore, number: int) -> None:
        async with store.begin():
            order.append(number)
            await asyncio.sleep(0.1)

    async with StateStore.open(sqlite_url, lease_term=seconds(0.6)) as store:
        gate = Gate()
        task = asyncio.create_task(store.run("w", partial(_through, gate), workflow_id="w"))
        await gate.reached.wait()
        with traffic_of(store) as traffic:
            await asyncio.gather(*(write(store, number) for number in range(12)))
        gate.opened.set()
        await task
    assert sum(RENEWAL in statement for statement in traffic.statements) > 3, "each as soon as it was due"
    assert order == list(range(12)), "the others in their order"


async def test_a_lease_that_is_not_held_is_not_fresh_however_short_a_time_ago_the_machine_was_started(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease(workflow_state_id=uuid4(), owner=uuid4(), token=1, version=1)
    with monkeypatch.context() as machine:
        machine.setattr(time, "monotonic", lambda: 1.0)
        assert not store._executor.keeper.is_fresh(lease)


async def test_a_step_that_waits_to_be_called_again_is_not_called_by_a_worker_that_lost_the_run(
    database_url: str,
) -> None:
    calls: list[str] = []

    def runs_in(worker: str, retry: Retry) -> Handler[str]:
        async def fn() -> str:
            calls.append(worker)
            if worker == "frozen":
                raise ConnectionError
            return worker

        async def handler(run: Run) -> str:
            return await run.step("s", fn, retry=retry)

        return handler

    slow = Retry(attempts=2, wait_initial=seconds(2), wait_jitter=0)
    async with StateStore.open(database_url, lease_term=TERM) as store, StateStore.open(database_url) as other:
        frozen = asyncio.create_task(store.run("n", runs_in("frozen", slow), workflow_id="w"))
        await called(calls, 1)
        await freeze(store, other, "w")
        assert await other.run("n", runs_in("other", Retry()), workflow_id="w", wait=60) == "other"
        with pytest.raises(LeaseLost):
            await frozen
    assert calls == ["frozen", "other"]


async def test_a_step_that_waits_for_a_thread_is_not_called_by_a_worker_that_lost_the_run(database_url: str) -> None:
    calls: list[str] = []
    occupied, let_go = threading.Event(), threading.Event()

    def occupy() -> None:
        occupied.set()
        let_go.wait(60)

    def note(worker: str) -> str:
        calls.append(worker)
        return worker

    async def handler(run: Run, worker: str) -> str:
        return await run.step("s", note, worker)

    async with (
        StateStore.open(database_url, lease_term=TERM, step_threads=1) as store,
        StateStore.open(database_url) as other,
    ):
        neighbour = asyncio.create_task(store.run("busy", lambda run: run.step("s", occupy), workflow_id="busy"))
        await asyncio.to_thread(occupied.wait)
        frozen = asyncio.create_task(store.run("n", lambda run: handler(run, "frozen"), workflow_id="w"))
        while not store._executor.threads._waiting:  # noqa: ASYNC110 - a thread changes it
            await asyncio.sleep(0.005)
        await freeze(store, other, "w")
        assert await other.run("n", lambda run: handler(run, "other"), workflow_id="w", wait=60) == "other"
        let_go.set()
        with pytest.raises(LeaseLost):
            await frozen
        await asyncio.gather(neighbour, return_exceptions=True)
    assert calls == ["other"]


async def test_a_machine_that_slept_for_longer_than_a_term_calls_no_step_that_is_anothers_by_now(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The monotonic clock does not count the sleep."""
    calls: list[str] = []
    asleep = Gate()
    since_boot = time.clock_gettime

    async def note(worker: str) -> str:
        calls.append(worker)
        return worker

    async def sleeps(run: Run) -> str:
        await asleep("")
        return await run.step("s", note, "sleeper")

    async with StateStore.open(database_url) as store, StateStore.open(database_url) as other:
        sleeper = asyncio.create_task(store.run("n", sleeps, workflow_id="w"))
        await asleep.reached.wait()
        await expire_lease(other, (await row_of(other, "w")).id)
        assert await other.run("n", lambda run: run.step("s", note, "other"), workflow_id="w", wait=60) == "other"
        monkeypatch.setattr(time, "clock_gettime", lambda clock: since_boot(clock) + 3600)
        asleep.opened.set()
        with pytest.raises(LeaseLost):
            await sleeper
    assert calls == ["other"]


async def test_no_run_is_taken_from_an_owner_that_could_not_write_because_somebody_held_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever it was, and however it ended: who has waited to claim lets owners renew their leases first.

    For half a second, in which the owner looks several times: here for three, since the machine may be busy.
    """
    monkeypatch.setattr("orchestrator_state.transactions._RENEWALS_TAKE", 30)
    path, gate = tmp_path / "held.db", Gate()

    async with AsyncExitStack() as stack:
        owner, *others = [
            await stack.enter_async_context(StateStore.open(path, lease_term=seconds(1), lock_timeout=seconds(60)))
            for _ in range(9)
        ]
        run = asyncio.create_task(owner.run("n", lambda run: run.step("s", gate, "done"), workflow_id="w"))
        await gate.reached.wait()
        holder = sqlite3.connect(path, isolation_level=None)
        stack.callback(holder.close)
        holder.execute("BEGIN IMMEDIATE")
        looks = [asyncio.create_task(other.recover({"n": lambda run: run.step("s", Effect())})) for other in others]
        await becomes(lambda row: row.lease_expires_at < datetime.now(UTC), others[0], "w")
        holder.execute("ROLLBACK")
        await asyncio.gather(*looks)
        gate.opened.set()
        assert await run == "done"


async def freeze(store: StateStore, other: StateStore, workflow_id: str) -> None:
    """Stop the heartbeat, and let the term of the lease be over, as if the process had been frozen for that long."""
    keeper, row = store._executor.keeper, await row_of(other, workflow_id)
    assert keeper._heartbeat is not None
    keeper._heartbeat.cancel()
    keeper._renewed_at[row.id] -= TERM.total_seconds()
    await expire_lease(other, row.id)


async def called(calls: list[str], count: int) -> None:
    while len(calls) < count:  # noqa: ASYNC110 - a step's function changes it
        await asyncio.sleep(0.005)


async def test_a_heartbeat_survives_an_error_that_nobody_foresaw(database_url: str) -> None:
    async with StateStore.open(database_url, lease_term=TERM) as store, StateStore.open(database_url) as other:
        gate = Gate()
        task = asyncio.create_task(store.run("w", lambda run: run.step("s", gate, "done"), workflow_id="w"))
        await gate.reached.wait()
        with just_before(store, RENEWAL, raising(OrchestratorStateError("unforeseen")), times=3):
            await is_renewed(other, "w")
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
    report = await store.recover({"w": handler})
    assert [run.outcome for run in report.runs] == ["interrupted"]
    assert calls == 1
    row = await row_of(store, "w")
    assert (row.status, row.lease_expires_at) == (WorkflowStatus.RUNNING, None)
    await asyncio.sleep(1.1)  # the pause after a fault
    assert len((await store.recover({"w": handler})).runs) == 1


async def test_a_run_whose_context_cannot_be_read_fails_with_a_reason(store: StateStore) -> None:
    state = await store.start("w", workflow_id="w")
    await change_row(store, state.id, context='{"torn')

    report = await store.recover({"w": lambda run: run.step("s", Effect())})

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
    async with StateStore.open(postgres_url, lease_term=seconds(2)) as store, StateStore.open(postgres_url) as other:
        gates = [Gate(), Gate()]

        def run(number: int) -> asyncio.Task[str]:
            return asyncio.create_task(
                store.run("w", lambda run: run.step("s", gates[number], "done"), workflow_id=f"w{number}")
            )

        tasks = [run(0), run(1)]
        for gate in gates:
            await gate.reached.wait()
        async with other._transactions.begin() as uow:
            await uow.runs.lock((await row_of(store, "w0")).id)
            with pytest.raises(LeaseLost):
                await tasks[0]
            await asyncio.sleep(0.5)
            gates[1].opened.set()
            assert await tasks[1] == "done"


async def _through(gate: Gate, run: Run) -> Any:
    return await run.step("s", gate)


async def test_many_leases_are_renewed_in_several_transactions(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator_state.repositories.base._MAX_IDS", 2)
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


async def test_a_renewal_that_is_stopped_before_it_has_begun_is_not_reported_as_forgotten(database_url: str) -> None:
    """As closing the store does; Python warns of what was made to be awaited and never was."""
    stopped = asyncio.Event()

    def stopping(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(work, loop=loop, **options)
        if work.__name__ == _trying.__name__ and not stopped.is_set():
            task.cancel()
            stopped.set()
        return task

    async with StateStore.open(database_url, lease_term=seconds(1)) as store:
        gate = Gate()
        running = asyncio.create_task(store.run("n", lambda run: run.step("s", gate), workflow_id="w"))
        await gate.reached.wait()
        asyncio.get_running_loop().set_task_factory(stopping)
        await stopped.wait()
        gate.opened.set()
        await running
    gc.collect()


# --- a process that was frozen ---


async def test_a_worker_that_was_frozen_since_its_claim_makes_sure_of_its_lease_before_it_calls(
    database_url: str, store: StateStore
) -> None:
    gate, effect = Gate(), Effect()
    others: list[asyncio.Task[Any]] = []

    async def another_takes_over() -> None:
        run = store.run("w", lambda run: run.step("s", gate, "the other"), workflow_id="w", wait=seconds(20))
        others.append(asyncio.create_task(run))
        await gate.reached.wait()

    await store.start("w", workflow_id="w")
    async with StateStore.open(database_url, lease_term=seconds(0.5)) as frozen:
        with answer_lost(frozen, another_takes_over, is_late=True), pytest.raises(LeaseLost):
            await frozen.run("w", lambda run: run.step("s", effect), workflow_id="w")
    assert effect.calls == []
    gate.opened.set()
    assert await others[0] == "the other"
