"""Every option of `StateStore.open` and of the environment: what it does, and what it must not be."""

import sys
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import create_engine, exc, text

from orchestrator_state import ConfigurationError, Run, SchemaOutOfDate, StateStore, StoreUnavailable, schema
from tests.support.engines import opened_engine
from tests.support.held import comes_true
from tests.support.old_databases import FIRST, downgrade, make_first_revision
from tests.support.raw_sql import contents, fetch
from tests.support.running import Effect, checkpoints_of
from tests.support.workflows import checkpointed, saved


def connections(url: str) -> int:
    """How many connections of ours the server has."""
    query = """
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'orchestrator_state'
    """
    return int(fetch(url, query)[0][0])


async def test_a_store_is_opened_by_await_or_by_async_with(database_url: str) -> None:
    store = await StateStore.open(database_url)
    state = await saved(store)
    async with store as entered:
        assert entered is store
        assert await store.load_workflow_state(state.id) == state
    async with StateStore.open(database_url) as store:
        assert await store.load_workflow_state(state.id) == state


async def test_a_closed_store_may_be_closed_again_and_does_nothing_else(database_url: str) -> None:
    store = await StateStore.open(database_url)
    await store.close()
    await store.close()
    for call in (store.list_active_workflows, store.health_check, store.begin().__aenter__):
        with pytest.raises(ConfigurationError, match="closed"):
            await call()


async def test_an_exception_in_the_block_closes_the_store(database_url: str) -> None:
    with pytest.raises(KeyError):
        async with StateStore.open(database_url) as store:
            raise KeyError
    with pytest.raises(ConfigurationError, match="closed"):
        await store.health_check()


# --- migrate ----------------------------------------------------------------------------------------------------


async def test_sqlite_is_migrated_on_open(empty_sqlite_url: str) -> None:
    async with StateStore.open(empty_sqlite_url) as store:
        await saved(store)


async def test_postgres_is_verified_on_open_and_the_error_names_the_command(empty_postgres_url: str) -> None:
    with pytest.raises(SchemaOutOfDate, match=r"orchestrator-state db upgrade.*migrate=True") as refused:
        await StateStore.open(empty_postgres_url)
    assert (refused.value.found, refused.value.expected) == (None, schema.head_revision())
    assert contents(empty_postgres_url) == {"": []}
    assert connections(empty_postgres_url) == 0


async def test_migrate_brings_the_schema_up_to_date(empty_database_url: str) -> None:
    async with StateStore.open(empty_database_url, migrate=True) as store:
        await saved(store)


async def test_without_migrate_an_older_schema_is_refused_and_left_alone(empty_database_url: str) -> None:
    await make_first_revision(empty_database_url)
    before = contents(empty_database_url)
    with pytest.raises(SchemaOutOfDate, match="db upgrade") as refused:
        await StateStore.open(empty_database_url, migrate=False)
    assert refused.value.found == FIRST
    assert contents(empty_database_url) == before


async def test_tables_that_vanish_under_an_open_store_are_an_error_that_names_the_command(database_url: str) -> None:
    """They may come back, so that the store is unavailable until somebody runs it."""
    async with StateStore.open(database_url, retry_timeout=timedelta(seconds=0.2)) as store:
        await downgrade(database_url, "base")
        with pytest.raises(SchemaOutOfDate, match="db upgrade") as raised:
            await store.list_active_workflows()
    assert isinstance(raised.value, StoreUnavailable)


# --- pool -------------------------------------------------------------------------------------------------------


@pytest.fixture
def default_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is for applications, and not as the tests have it."""
    monkeypatch.delenv("ORCHESTRATOR_STATE_POOL_MIN")


@pytest.mark.usefixtures("default_pool")
async def test_the_pool_has_five_connections_when_the_store_opens(postgres_url: str) -> None:
    async with StateStore.open(postgres_url):
        assert connections(postgres_url) == 5
    assert await comes_true(lambda: connections(postgres_url) == 0)


async def test_the_pool_grows_to_twenty(postgres_url: str) -> None:
    async with StateStore.open(postgres_url, pool_timeout=timedelta(seconds=0.2)) as store:
        assert await most_at_once(store, 21) == 20


@pytest.mark.parametrize(("least", "most"), [(0, 1), (2, 3)])
async def test_the_bounds_of_the_pool_are_an_option(postgres_url: str, least: int, most: int) -> None:
    async with StateStore.open(
        postgres_url, pool_min=least, pool_max=most, pool_timeout=timedelta(seconds=0.2)
    ) as store:
        # Looking at the schema takes one.
        assert connections(postgres_url) == max(least, 1)
        assert await most_at_once(store, most + 1) == most
        await store.health_check()


async def most_at_once(store: StateStore, wanted: int) -> int:
    """How many connections the store hands out before it gives up."""
    async with AsyncExitStack() as held:
        for taken in range(wanted):
            try:
                await held.enter_async_context(store._transactions.database.reader.connect())
            except exc.TimeoutError:
                return taken
    return wanted


@pytest.mark.parametrize(
    ("setting", "options"),
    [
        ("pool_min", {"pool_min": -1}),
        ("pool_min", {"pool_min": "many"}),
        ("pool_max", {"pool_min": 0, "pool_max": 0}),
        ("pool_max", {"pool_max": 1001}),
        ("pool_min must not exceed pool_max", {"pool_min": 6, "pool_max": 5}),
        ("pool_min must not exceed pool_max", {"pool_max": 4}),
        ("pool_timeout", {"pool_timeout": timedelta(0)}),
        ("connect_timeout", {"connect_timeout": timedelta(seconds=-1)}),
        ("command_timeout", {"command_timeout": timedelta(0)}),
        ("lock_timeout", {"lock_timeout": timedelta(0)}),
        ("retry_timeout", {"retry_timeout": "soon"}),
        ("namespace", {"namespace": ""}),
        ("namespace", {"namespace": "x" * 256}),
        ("namespace", {"namespace": "a\0b"}),
        ("namespace", {"namespace": "lone \ud800 surrogate"}),
        ("keep_checkpoints", {"keep_checkpoints": 0}),
        ("keep_checkpoints", {"keep_checkpoints": 2**63}),
        ("synchronous", {"synchronous": "OFF"}),
        ("pgbouncer", {"pgbouncer": "perhaps"}),
    ],
)
@pytest.mark.usefixtures("default_pool")
def test_an_option_out_of_bounds_is_refused_at_once_and_by_name(setting: str, options: dict[str, Any]) -> None:
    """Before anything is awaited, so that the traceback ends at the call."""
    with pytest.raises(ConfigurationError, match=setting):
        StateStore.open(":memory:", **options)


async def test_all_checkpoints_can_be_kept(database_url: str) -> None:
    """`sys.maxsize` is the most that both databases count to; of more, each step would fail its run."""

    async def handler(run: Run) -> None:
        await run.step("a", Effect())
        await run.checkpoint()

    async with StateStore.open(database_url, keep_checkpoints=sys.maxsize) as store:
        await store.run("n", handler, workflow_id="w")
        state = await store.load_workflow_state_by_workflow_id("w")
        await checkpointed(store, state)
        assert len(await checkpoints_of(store, "w")) == 3


# --- environment ------------------------------------------------------------------------------------------------


async def test_settings_come_from_the_environment_and_yield_to_arguments(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    monkeypatch.setenv("ORCHESTRATOR_STATE_POOL_MIN", "3")
    monkeypatch.setenv("ORCHESTRATOR_STATE_NAMESPACE", "tenant")
    monkeypatch.setenv("ORCHESTRATOR_STATE_KEEP_CHECKPOINTS", "2")
    async with StateStore.open() as store:
        assert (store.namespace, connections(postgres_url)) == ("tenant", 3)
        state = await saved(store)
        for _ in range(4):
            await checkpointed(store, state)
        assert fetch(postgres_url, "SELECT count(*) FROM checkpoints") == [(2,)]
    async with StateStore.open(namespace="other", pool_min=2) as store:
        assert (store.namespace, connections(postgres_url)) == ("other", 2)
        assert await store.list_active_workflows() == []


async def test_a_schema_may_come_from_the_environment(empty_postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_STATE_DB_SCHEMA", "mine")
    async with StateStore.open(empty_postgres_url, migrate=True) as store:
        await saved(store)
    assert fetch(empty_postgres_url, "SELECT count(*) FROM mine.workflow_states") == [(1,)]


def test_a_bad_environment_variable_is_named_and_its_value_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_STATE_POOL_MIN", "canary")
    with pytest.raises(ConfigurationError, match="pool_min") as refused:
        StateStore.open(":memory:")
    assert "canary" not in str(refused.value)
    assert refused.value.__cause__ is None


# --- the application's engine -----------------------------------------------------------------------------------


async def test_the_engine_of_the_application_is_used_and_left_open(database_url: str) -> None:
    async with opened_engine(database_url) as engine:
        async with StateStore.open(engine=engine) as store:
            state = await saved(store, "load")
            assert await store.load_workflow_state(state.id) == state
        async with engine.connect() as connection:
            assert await connection.scalar(text("SELECT count(*) FROM workflow_states")) == 1
        async with StateStore.open(engine=engine) as store:
            assert await store.load_workflow_state(state.id) == state


async def test_the_engine_of_the_application_is_verified_and_migrated_when_asked(empty_database_url: str) -> None:
    async with opened_engine(empty_database_url) as engine:
        with pytest.raises(SchemaOutOfDate, match="migrate=True"):
            await StateStore.open(engine=engine)
        async with StateStore.open(engine=engine, migrate=True) as store:
            await saved(store)


async def test_a_database_and_an_engine_are_one_too_many(sqlite_url: str) -> None:
    async with opened_engine(sqlite_url) as engine:
        with pytest.raises(ConfigurationError, match="not both"):
            StateStore.open(sqlite_url, engine=engine)


async def test_an_engine_on_another_driver_is_refused_by_name() -> None:
    engine: Any = create_engine("sqlite://")
    with pytest.raises(ConfigurationError, match=r"sqlite\+pysqlite.*sqlite\+aiosqlite"):
        await StateStore.open(engine=engine)
    engine.dispose()
