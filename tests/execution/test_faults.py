"""Servers that stop, locks, rows that are refused, and what the caller's own code raises: typed errors, whole units."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import exc, text

from orchestrator_state import (
    Conflict,
    StateStore,
    StepState,
    StoreUnavailable,
)
from orchestrator_state.database.errors import translate
from tests.support.held import checked_out
from tests.support.postgres_server import Postgres, PrivatePostgres
from tests.support.states import a_checkpoint, a_state, is_stored

# --- A server that stops ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mortal_postgres() -> Iterator[PrivatePostgres]:
    """A server for the tests that stop it."""

    async def migrate(url: str) -> None:
        async with StateStore.open(url, migrate=True, pool_min=1):
            pass

    with PrivatePostgres(deadlock_timeout="3s") as server:
        asyncio.run(migrate(server.url()))
        yield server


async def restart(server: PrivatePostgres, mode: Any) -> None:
    await asyncio.to_thread(server.stop, mode)
    await asyncio.to_thread(server.start)


@pytest.mark.process
async def test_the_next_call_after_a_restart_of_the_server_just_works(mortal_postgres: PrivatePostgres) -> None:
    async with StateStore.open(mortal_postgres.url()) as store:
        state = a_state()
        await store.save_workflow_state(state)
        await restart(mortal_postgres, "fast")
        assert await store.load_workflow_state(state.id) == state
        await restart(mortal_postgres, "immediate")
        state.context = 1
        await store.save_workflow_state(state)
        await restart(mortal_postgres, "fast")
        await store.create_checkpoint(a_checkpoint(state))
        await restart(mortal_postgres, "immediate")
        async with store.begin() as uow:
            assert await uow.workflows.get(state.id) == state
        assert state.version == 2


@pytest.mark.process
async def test_a_server_that_dies_under_load_gives_typed_errors_only_and_keeps_what_it_acknowledged(
    mortal_postgres: PrivatePostgres,
) -> None:
    acknowledged: dict[UUID, int] = {}
    down, over = asyncio.Event(), asyncio.Event()
    refused = 0

    async def work(store: StateStore, number: int) -> None:
        nonlocal refused
        state = a_state(str(number))
        while not over.is_set():
            state.context += 1
            try:
                await store.save_workflow_state(state)
                acknowledged[state.id] = state.context
                await store.create_checkpoint(a_checkpoint(state))
                await store.load_workflow_state(state.id)
                async with store.begin() as uow:
                    await uow.workflows.save(a_state())
            except StoreUnavailable:
                refused += 1
                await down.wait()

    async def trouble(working: asyncio.Future[Any]) -> None:
        restarts = 0
        while restarts < 2 or not (refused or working.done()):
            await asyncio.sleep(0.3)
            down.clear()
            await restart(mortal_postgres, "immediate")
            down.set()
            restarts += 1
        await asyncio.sleep(0.3)
        over.set()

    async with StateStore.open(mortal_postgres.url(), pool_max=5) as store:
        working = asyncio.gather(*(work(store, number) for number in range(8)))
        await trouble(working)  # until somebody noticed: before that, the load was none
        await working
        assert checked_out(store) == 0
        for state_id, context in acknowledged.items():
            assert (await store.load_workflow_state(state_id)).context >= context


async def test_the_exception_of_a_block_comes_out_although_its_connection_has_died(
    postgres: Postgres, postgres_url: str
) -> None:
    """Its rollback cannot reach a server, and need not."""
    state, error = a_state(), ValueError("the caller's")

    async def unit(store: StateStore) -> None:
        async with store.begin() as uow:
            await uow.workflows.save(state)
            pid = await uow.session.scalar(text("SELECT pg_backend_pid()"))
            postgres.execute("SELECT pg_terminate_backend($1, 5000)", pid)
            raise error

    async with StateStore.open(postgres_url) as store:
        with pytest.raises(ValueError, match="the caller's") as raised:
            await unit(store)
        assert raised.value is error
        assert (state.version, checked_out(store)) == (0, 0)
        await store.save_workflow_state(state)
        assert await is_stored(store, state)


async def test_a_unit_that_goes_on_over_a_dead_connection_meets_typed_errors_only(
    postgres: Postgres, postgres_url: str
) -> None:
    early, late, last = a_state("early"), a_state("late"), a_state("last")

    async def unit(store: StateStore) -> None:
        async with store.begin() as uow:
            await uow.workflows.save(early)
            pid = await uow.session.scalar(text("SELECT pg_backend_pid()"))
            postgres.execute("SELECT pg_terminate_backend($1, 5000)", pid)
            for state in (late, last):
                with pytest.raises(StoreUnavailable):
                    await uow.workflows.save(state)

    async with StateStore.open(postgres_url) as store:
        with pytest.raises(StoreUnavailable):
            await unit(store)
        assert [state.version for state in (early, late, last)] == [0, 0, 0]
        assert await store.list_active_workflows() == []
        assert checked_out(store) == 0


# --- Locks ------------------------------------------------------------------------------------------------------


async def until_somebody_waits(connection: asyncpg.Connection) -> None:
    """Return once a statement in this database waits for a lock."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    while not await connection.fetch(waiting):
        await connection.execute("SELECT pg_stat_clear_snapshot()")


@pytest.mark.process
async def test_a_save_that_is_the_victim_of_a_deadlock_is_repeated(mortal_postgres: PrivatePostgres) -> None:
    async with StateStore.open(mortal_postgres.url(), pool_min=1) as store:
        state = a_state()
        await store.save_workflow_state(state)
        # Who looks for deadlocks first is the victim. This one hardly ever looks; the store looks once, three seconds
        # after it began to wait, by when this one has come to wait for it, also on a busy machine.
        other = await asyncpg.connect(mortal_postgres.url(), server_settings={"deadlock_timeout": "5min"})
        try:
            async with other.transaction():
                await other.execute("UPDATE step_states SET retry_count = 7 WHERE workflow_state_id = $1", state.id)
                state.context = state.steps["load"].outputs = 1
                saving = asyncio.create_task(store.save_workflow_state(state))
                await until_somebody_waits(other)
                # The store has the workflow and waits for the step: this can only go on when the store is refused.
                await other.execute("UPDATE workflow_states SET user_id = 'by hand' WHERE id = $1", state.id)
                assert not saving.done()
            await saving
        finally:
            await other.close()
        live = await store.load_workflow_state(state.id)
        assert (state.version, live.version, live.context, live.steps["load"].outputs) == (2, 2, 1, 1)
        assert "deadlock detected" in mortal_postgres.log.read_text()


@pytest.fixture
async def hold_lock(database_url: str, backend: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Another program's transaction, which locks out writers until the function that this yields is called."""
    if backend == "sqlite":
        with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"), isolation_level=None)) as connection:

            async def release() -> None:
                connection.execute("COMMIT")

            connection.execute("BEGIN IMMEDIATE")
            yield release
    else:
        server = await asyncpg.connect(database_url)

        async def let_go() -> None:
            await server.execute("COMMIT")

        try:
            await server.execute("BEGIN")
            await server.execute("LOCK TABLE workflow_states IN SHARE MODE")
            yield let_go
        finally:
            await server.close()


async def test_a_call_outlasts_a_lock_that_is_held_for_several_lock_timeouts(
    database_url: str, hold_lock: Callable[[], Awaitable[None]]
) -> None:
    short = timedelta(milliseconds=50)
    async with StateStore.open(database_url, lock_timeout=short, pool_min=1, migrate=False) as store:
        state = a_state()
        saving = asyncio.create_task(store.save_workflow_state(state))
        await asyncio.sleep(0.5)
        assert not saving.done()
        await hold_lock()
        await saving
        assert await is_stored(store, state)


async def test_a_lock_that_is_never_released_is_a_typed_error_and_nothing_is_written(
    database_url: str, hold_lock: Callable[[], Awaitable[None]]
) -> None:
    short = timedelta(milliseconds=50)
    options: dict[str, Any] = {"lock_timeout": short, "retry_timeout": short * 3, "pool_min": 1}
    async with StateStore.open(database_url, migrate=False, **options) as store:
        state = a_state()
        with pytest.raises(StoreUnavailable) as raised:
            await store.save_workflow_state(state)
        assert (raised.value.transient, raised.value.outcome_unknown) == (True, False)
        with pytest.raises(StoreUnavailable):
            async with store.begin() as uow:
                await uow.workflows.save(state)
        assert (state.version, checked_out(store)) == (0, 0)
        assert await store.list_active_workflows() == []
        await hold_lock()
        await store.save_workflow_state(state)


# --- What the caller's own code raises --------------------------------------------------------------------------


CALLERS_OWN = [
    OSError("the caller's disk"),
    ConnectionResetError("the caller's peer"),
    TimeoutError("the caller's clock"),
    sqlite3.OperationalError("database is locked"),
    asyncpg.DeadlockDetectedError("the caller's other database"),
    exc.OperationalError("SELECT 1", {}, Exception("the caller's other engine")),
    exc.TimeoutError("the caller's other pool"),
]


async def test_what_the_callers_own_code_raises_in_a_block_comes_out_untouched_and_once(store: StateStore) -> None:
    state = a_state()
    entered = 0

    async def unit(error: Exception) -> None:
        nonlocal entered
        async with store.begin() as uow:
            entered += 1
            await uow.workflows.save(state)
            raise error

    for number, error in enumerate(CALLERS_OWN, 1):
        with pytest.raises(type(error)) as raised:
            await unit(error)
        assert raised.value is error
        assert (entered, state.version, await is_stored(store, state)) == (number, 0, False)


# --- Rows that the database refuses -----------------------------------------------------------------------------

FORBID = {
    "sqlite": [
        """CREATE TRIGGER forbid BEFORE INSERT ON step_states WHEN NEW.step_id = 'forbidden'
        BEGIN SELECT RAISE(ABORT, 'secret'); END"""
    ],
    "postgres": [
        """CREATE FUNCTION forbid() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN IF NEW.step_id = 'forbidden' THEN RAISE EXCEPTION 'secret'; END IF; RETURN NEW; END $$""",
        "CREATE TRIGGER forbid BEFORE INSERT ON step_states FOR EACH ROW EXECUTE FUNCTION forbid()",
    ],
}


async def test_a_row_that_a_rule_of_the_application_refuses_is_a_typed_conflict_without_the_rows_content(
    store: StateStore, backend: str
) -> None:
    async with store.begin() as uow:
        for statement in FORBID[backend]:
            await uow.session.execute(text(statement))
    state = a_state()
    state.steps["forbidden"] = StepState(step_id="forbidden", outputs="secret")
    with pytest.raises(Conflict) as raised:
        await store.save_workflow_state(state)
    assert "secret" not in f"{raised.value!r} {raised.value.__cause__!r}"
    assert (state.version, await is_stored(store, state)) == (0, False)
    del state.steps["forbidden"]
    await store.save_workflow_state(state)
    assert await is_stored(store, state)


async def test_a_constraint_that_is_checked_at_the_commit_is_a_typed_conflict_and_rolls_the_unit_back(
    store: StateStore, backend: str
) -> None:
    state = a_state()

    async def unit() -> None:
        async with store.begin() as uow:
            if backend == "sqlite":
                await uow.session.execute(text("PRAGMA defer_foreign_keys = ON"))
            else:
                constraint = "step_states_workflow_state_id_fkey"
                alter = f"ALTER TABLE step_states ALTER CONSTRAINT {constraint} DEFERRABLE INITIALLY DEFERRED"
                await uow.session.execute(text(alter))
            await uow.workflows.save(state)
            orphan = "INSERT INTO step_states (workflow_state_id, step_id, status) VALUES (:id, 's', 'pending')"
            await uow.session.execute(text(orphan), {"id": "6f1e0000-0000-4000-8000-000000000000"})

    with pytest.raises(Conflict):
        await unit()
    assert (state.version, await is_stored(store, state), checked_out(store)) == (0, False, 0)


IMPOSSIBLE = [
    "UPDATE workflow_states SET status = 'unheard of'",
    "UPDATE workflow_states SET workflow_id = :long",
    "UPDATE workflow_states SET version = NULL",
    "UPDATE step_states SET status = 'unheard of'",
    "UPDATE step_states SET step_id = :long",
    "UPDATE step_states SET workflow_state_id = '6f1e0000-0000-4000-8000-000000000000'",
]


async def test_the_schema_refuses_what_no_state_may_be_also_from_sql_by_hand(store: StateStore) -> None:
    state = a_state()
    await store.save_workflow_state(state)
    for statement in IMPOSSIBLE:
        with pytest.raises(exc.DBAPIError) as raised:
            async with store.begin() as uow:
                await uow.session.execute(text(statement), {"long": "x" * 256} if ":long" in statement else {})
        assert not isinstance(translate(raised.value), StoreUnavailable | None), "to repeat it would not help"
        assert not raised.value.connection_invalidated
    assert await is_stored(store, state)
