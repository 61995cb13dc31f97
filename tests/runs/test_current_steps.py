"""Which steps are running: seen from another process, and written by nobody in whose way it is."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, text, update

from orchestrator_state import Retry, Run, RunSummary, StateStore
from orchestrator_state.models import current_steps, workflow_states
from orchestrator_state.repositories.overview import RunningStep
from orchestrator_state.runs.journal.current_steps import CurrentSteps
from tests.support.children import child
from tests.support.interleaving import at_statement, just_before, raising
from tests.support.lost_answers import answer_lost
from tests.support.raw_sql import execute
from tests.support.running import Gate, becomes, change_row, expire_lease, fetch, row_of, seconds
from tests.support.statements import traffic_of

TABLE = "current_steps"
WRITES = "INSERT INTO current_steps"
DELETES = "DELETE FROM current_steps"
GUARD = "workflow_states.lease_owner, workflow_states.lease_token"


def of(store: StateStore) -> CurrentSteps:
    return store._executor.current_steps


def hurried(store: StateStore) -> StateStore:
    """A step counts as one that takes long at once."""
    of(store).pause = 0.01
    return store


@pytest.fixture
def store(store: StateStore) -> StateStore:
    return hurried(store)


@pytest.fixture
async def other(database_url: str, store: StateStore) -> AsyncIterator[StateStore]:
    """What another process sees, and does."""
    async with StateStore.open(database_url) as other:
        yield hurried(other)


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await holds():  # noqa: ASYNC110 - what changes it is a worker
            await asyncio.sleep(0.01)


async def rows(store: StateStore) -> set[tuple[str, int]]:
    return {(row.step_id, row.lease_token) for row in await fetch(store, select(current_steps))}


async def rows_become(wanted: set[tuple[str, int]], store: StateStore) -> None:
    async def are() -> bool:
        return await rows(store) == wanted

    await until(are)


async def listed(store: StateStore, workflow_id: str = "w") -> RunSummary:
    [run] = await store.list_runs(workflow_id=workflow_id)
    return run


@asynccontextmanager
async def hanging(store: StateStore, *step_ids: str, workflow_id: str = "w") -> AsyncIterator[Gate]:
    """Inside the block a run hangs in these steps; at the end they go on, and the run is waited for."""
    gate = Gate()

    async def handler(run: Run) -> None:
        await asyncio.gather(*(run.step(step_id, gate) for step_id in step_ids or ("ask model",)))

    running = asyncio.create_task(store.run("n", handler, workflow_id=workflow_id))
    try:
        await gate.reached.wait()
        yield gate
    finally:
        gate.opened.set()
        await asyncio.wait({running})
    with suppress(Exception):
        running.result()


# --- what is seen ----------------------------------------------------------------------------------------------------


async def test_a_step_that_hangs_is_seen_from_another_process_until_it_ends(
    store: StateStore, other: StateStore
) -> None:
    async with hanging(store, "ask model", "ask another"):
        await rows_become({("ask model", 1), ("ask another", 1)}, other)
        found = await listed(other)
        details = await other.get_run(found.id)
        assert {step.id for step in found.current_steps} == {"ask model", "ask another"}
        assert details.current_steps == found.current_steps
        assert (found.condition, [*details.timeline]) == ("owned", [])
    assert not (await listed(other)).current_steps
    await rows_become(set(), other)


async def test_it_began_when_its_function_was_first_called(store: StateStore, other: StateStore) -> None:
    gate, calls = Gate(), 0

    async def fails_first() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            await rows_become({("s", 1)}, other)
            raise ConnectionError
        await gate()

    async def handler(run: Run) -> None:
        await run.step("s", fails_first, retry=Retry(wait_initial=0, wait_jitter=0))

    running = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    await gate.reached.wait()
    [step] = (await listed(other)).current_steps
    run = await row_of(other, "w")
    now = await other._transactions.read(lambda uow: uow.leases.database_time())
    assert step.started_at is not None
    assert run.started_at - seconds(0.01) <= step.started_at <= now
    gate.opened.set()
    await running


async def test_so_is_the_function_of_a_transaction_on_postgres(postgres_url: str) -> None:
    async with StateStore.open(postgres_url) as store, StateStore.open(postgres_url) as other:
        gate = Gate()

        async def handler(run: Run) -> None:
            await run.transact("rows", lambda session: gate())

        running = asyncio.create_task(hurried(store).run("n", handler, workflow_id="w"))
        await rows_become({("rows", 1)}, other)
        gate.opened.set()
        await running
        await rows_become(set(), other)


async def test_a_function_in_a_thread_is_one_too(store: StateStore, other: StateStore) -> None:
    loop, opened = asyncio.get_running_loop(), asyncio.Event()

    def work() -> None:
        asyncio.run_coroutine_threadsafe(_wait(opened), loop).result()

    running = asyncio.create_task(store.run("n", lambda run: run.step("s", work), workflow_id="w"))
    await rows_become({("s", 1)}, other)
    opened.set()
    await running


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


# --- what it costs ---------------------------------------------------------------------------------------------------


async def test_quick_steps_write_nothing(database_url: str) -> None:
    async with StateStore.open(database_url) as store:

        async def handler(run: Run) -> None:
            for number in range(20):
                await run.step(f"s{number}", asyncio.sleep, 0)
                of(store)._look()  # as if the time had come in the middle
                assert of(store)._task is None

        with traffic_of(store) as traffic:
            await store.run("n", handler, workflow_id="w")
        writes = (f"INTO {TABLE}", f"FROM {TABLE} WHERE", f"UPDATE {TABLE}")
        assert not [statement for statement in traffic.statements if any(each in statement for each in writes)], writes
        assert not of(store).running


async def test_a_thousand_steps_are_written_by_two_statements_for_each_five_hundred(
    store: StateStore, other: StateStore
) -> None:
    costs: list[int] = []
    of(store).pause = 60.0
    async with hanging(store, *(f"s{number}" for number in range(1000))):
        of(store).pause = 0.0
        for written in (500, 1000, 1000):
            with traffic_of(store) as traffic:
                await of(store)._write()
            about_them = [statement for statement in traffic.statements if TABLE in statement or GUARD in statement]
            costs.append(len(about_them))
            assert len(await rows(other)) == written
        assert costs == [3, 2, 0]  # the first one tidies, too
    of(store)._look()
    await rows_become(set(), other)


async def test_what_is_written_is_not_written_again(store: StateStore, other: StateStore) -> None:
    async with hanging(store):
        await rows_become({("ask model", 1)}, other)
        with traffic_of(store) as traffic:
            for _ in range(3):
                of(store)._look()
        assert not [statement for statement in traffic.statements if TABLE in statement]


# --- whose right it is -----------------------------------------------------------------------------------------------


async def test_a_worker_that_has_lost_its_run_writes_nothing(store: StateStore, other: StateStore) -> None:
    of(store).pause = 60.0
    async with hanging(store):
        run = await row_of(other, "w")
        await change_row(other, run.id, lease_token=run.lease_token + 1)
        of(store).pause = 0.0
        with traffic_of(store) as traffic:
            await of(store)._write()
        assert [statement for statement in traffic.statements if GUARD in statement]
        assert not [statement for statement in traffic.statements if WRITES in statement]
        assert not of(store)._have_begun()  # it does not ask again at once


def _task(store: StateStore) -> asyncio.Task[None]:
    task = of(store)._task
    assert task is not None
    return task


async def test_who_takes_a_run_over_shows_its_own_step(store: StateStore, other: StateStore) -> None:
    async with hanging(store):
        await rows_become({("ask model", 1)}, other)
        first = (await listed(other)).current_steps[0]
        await expire_lease(other, (await row_of(other, "w")).id)
        gate = Gate()
        taken = asyncio.create_task(other.recover({"n": lambda run: run.step("ask model", gate)}))
        await rows_become({("ask model", 2)}, other)
        [step] = (await listed(store)).current_steps
        assert step.id == "ask model"
        assert step.started_at is not None
        assert first.started_at is not None
        assert step.started_at > first.started_at
    assert await rows(other) == {("ask model", 2)}  # the first one's end takes nothing of the second's along
    gate.opened.set()
    await taken
    await rows_become(set(), store)


async def test_no_row_of_an_older_lease_replaces_that_of_a_newer_one(store: StateStore, other: StateStore) -> None:
    of(store).pause = 60.0
    async with hanging(store):
        run = await row_of(store, "w")
        newer = {"workflow_state_id": run.id, "step_id": "late", "lease_token": 2, "started_at": datetime.now(UTC)}
        async with other.begin() as uow:
            await uow.session.execute(insert(current_steps).values(newer))
        late = RunningStep(run.id, run.lease_owner, run.lease_token, "late", 5.0)
        assert await store._transactions.write(lambda uow: uow.current_steps.add([late])) == [late]
        assert await rows(store) == {("late", 2)}


async def _hang_until_killed(pipe: Connection, url: str) -> None:
    async with StateStore.open(url) as store:
        hurried(store)
        running = asyncio.create_task(store.run("n", lambda run: run.step("lost", Gate()), workflow_id="w"))
        await rows_become({("lost", 1)}, store)
        pipe.send("written")
        await running


@pytest.mark.process
async def test_the_rows_of_a_killed_worker_are_ignored_and_go_when_its_run_is_taken_over(
    database_url: str, other: StateStore
) -> None:
    with child(_hang_until_killed, database_url) as worker:
        assert await asyncio.to_thread(worker.hear) == "written"
        await asyncio.to_thread(worker.kill)
    assert await rows(other) == {("lost", 1)}
    await expire_lease(other, (await row_of(other, "w")).id)
    assert not (await listed(other)).current_steps
    report = await other.recover({"n": lambda run: run.step("another", asyncio.sleep, 0)})
    assert len(report.runs) == 1
    await rows_become(set(), other)


async def test_rows_go_with_their_run(store: StateStore, other: StateStore) -> None:
    async with hanging(store):
        await rows_become({("ask model", 1)}, other)
        run = await row_of(other, "w")
        async with other.begin() as uow:
            await uow.session.execute(delete(workflow_states).where(workflow_states.c.id == run.id))
        assert not await rows(other)


async def test_tidying_leaves_good_rows_and_other_namespaces_alone(
    database_url: str, store: StateStore, other: StateStore
) -> None:
    async with (
        StateStore.open(database_url, namespace="elsewhere") as elsewhere,
        hanging(hurried(elsewhere), "theirs"),
        hanging(store, "mine"),
    ):
        await rows_become({("theirs", 1), ("mine", 1)}, other)
        async with elsewhere.begin() as uow:
            of_theirs = current_steps.c.step_id == "theirs"
            await uow.session.execute(update(current_steps).where(of_theirs).values(lease_token=0))
        await store._transactions.write(lambda uow: uow.current_steps.remove_left_behind())
        assert await rows(other) == {("theirs", 0), ("mine", 1)}
        await elsewhere._transactions.write(lambda uow: uow.current_steps.remove_left_behind())
        assert await rows(other) == {("mine", 1)}


# --- whatever happens ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", [GUARD, WRITES])
async def test_what_fails_is_tried_again_and_said_once(
    store: StateStore, other: StateStore, statement: str, caplog: pytest.LogCaptureFixture
) -> None:
    with just_before(store, statement, raising(*[ConnectionResetError() for _ in range(3)]), times=3):
        async with hanging(store):
            await rows_become({("ask model", 1)}, other)
    assert (await row_of(other, "w")).status == "completed"
    await rows_become(set(), other)
    said = [record for record in caplog.records if "steps are running" in record.message]
    assert len(said) == 1


async def test_rows_whose_commit_was_not_answered_go_too(store: StateStore, other: StateStore) -> None:
    gate = Gate()
    current = of(store)
    current.pause = 60.0
    running = asyncio.create_task(store.run("n", lambda run: run.step("s", gate), workflow_id="w"))
    await gate.reached.wait()
    current.pause = 0.0
    with answer_lost(store, is_late=False):
        await current._write()
    assert await rows(other) == {("s", 1)}
    assert not current._written
    gate.opened.set()
    await running
    current._look()
    await rows_become(set(), other)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("statement", [GUARD, WRITES, DELETES])
async def test_a_unit_that_is_cut_off_leaves_nothing_behind(
    store: StateStore, other: StateStore, statement: str, moment: str
) -> None:
    async def cut_off() -> None:
        _task(store).cancel()
        await asyncio.sleep(0)

    with at_statement(store, statement, cut_off, moment=moment):
        async with hanging(store):
            await rows_become({("ask model", 1)}, other)
        await rows_become(set(), other)
    assert (await row_of(other, "w")).status == "completed"


async def test_a_store_that_closes_deletes_its_rows_and_leaves_no_task(database_url: str, other: StateStore) -> None:
    store = hurried(await StateStore.open(database_url))
    running = asyncio.create_task(store.run("n", lambda run: run.step("s", Gate()), workflow_id="w"))
    await rows_become({("s", 1)}, other)
    await store.close()
    with suppress(Exception):
        await running
    assert not await rows(other)
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "orchestrator_state current steps"]
    timer = of(store)._timer
    assert timer is not None
    assert timer.cancelled()


async def test_a_store_closes_while_nothing_can_be_deleted(database_url: str, other: StateStore) -> None:
    store = hurried(await StateStore.open(database_url))
    running = asyncio.create_task(store.run("n", lambda run: run.step("s", Gate()), workflow_id="w"))
    await rows_become({("s", 1)}, other)
    with just_before(store, DELETES, raising(ConnectionResetError())):
        await store.close()
    with suppress(Exception):
        await running
    assert not (await listed(other)).current_steps


async def test_where_the_table_is_missing_it_says_so_once(
    database_url: str, store: StateStore, caplog: pytest.LogCaptureFixture
) -> None:
    of(store).pause = 60.0
    async with hanging(store):
        execute(database_url, "ALTER TABLE current_steps RENAME TO somewhere_else")
        try:
            of(store).pause = 0.0
            for _ in range(3):
                await of(store)._write()
            said = [record for record in caplog.records if record.levelno >= logging.WARNING]
            assert [record.message for record in said] == [
                "cannot write down which steps are running (SchemaChanged); they are not listed, and run all the same"
            ]
        finally:
            execute(database_url, "ALTER TABLE somewhere_else RENAME TO current_steps")


@pytest.mark.slow
async def test_leases_are_renewed_while_the_table_is_locked(postgres_url: str) -> None:
    async with (
        StateStore.open(postgres_url, lease_term=seconds(3), pool_max=2) as store,
        StateStore.open(postgres_url) as other,
        hanging(hurried(store)),
    ):
        async with other.begin() as uow:
            await uow.session.execute(text("LOCK TABLE current_steps IN ACCESS EXCLUSIVE MODE"))
            for _ in range(2):
                seen = (await row_of(other, "w")).lease_expires_at
                await becomes(partial(_ends_later, seen), other, "w")
        await rows_become({("ask model", 1)}, other)


def _ends_later(than: datetime, row: Any) -> bool:
    return bool(row.lease_expires_at > than)


async def test_a_run_that_somebody_has_locked_is_passed_over(postgres_url: str) -> None:
    async with StateStore.open(postgres_url) as store, StateStore.open(postgres_url) as other:
        of(store).pause = 60.0
        async with hanging(store, workflow_id="locked"), hanging(store, workflow_id="free"):
            of(store).pause = 0.0
            async with other.begin() as uow:
                locked = select(workflow_states.c.id).where(workflow_states.c.workflow_id == "locked")
                [(run,)] = await uow.session.execute(locked.with_for_update())
                await of(store)._write()
                found = await fetch(store, select(current_steps.c.workflow_state_id))
                assert len(found) == 1
                assert found[0][0] != run


async def test_a_forked_child_knows_none_of_its_parents_steps(store: StateStore) -> None:
    current = of(store)
    async with hanging(store):
        assert current.running
        current._pid = -1  # as if this were the child
        assert not current.here().running
    await current.close()
