"""Every pool and isolation level that an application's engine may have: a unit is one transaction, or refused."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
import pytest
from sqlalchemy import Pool, event, insert, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import AssertionPool, AsyncAdaptedQueuePool, NullPool, StaticPool

from orchestrator_state import ConfigurationError, Run, StateStore, UnitOfWork
from tests.support.cases import case
from tests.support.engines import count_orders, create_orders, orders
from tests.support.running import seconds
from tests.support.states import a_state, is_stored

LEVELS = {
    "sqlite": ["AUTOCOMMIT", "READ UNCOMMITTED", "SERIALIZABLE"],
    "postgres": ["AUTOCOMMIT", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"],
}
DRIVER_LEVELS: list[str | None] = [None, "", "DEFERRED", "IMMEDIATE", "EXCLUSIVE"]


class Regretted(Exception):
    """Raised in a block so that it rolls back."""


@asynccontextmanager
async def an_engine(url: str, connect_args: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[AsyncEngine]:
    """An engine of the application's, with its table of orders."""
    if url.startswith("sqlite"):
        url, options["connect_args"] = url.replace("sqlite:", "sqlite+aiosqlite:"), connect_args or {}
    else:
        dsn, url = url, "postgresql+asyncpg://"

        async def connect(**_: object) -> asyncpg.Connection:
            return await asyncpg.connect(dsn)

        options["async_creator"] = connect
    engine = create_async_engine(url, **options)
    yield engine
    await engine.dispose()


async def require_whole_units(engine: AsyncEngine) -> None:
    """What a unit of work promises: alone, beside readers, and in runs."""
    async with engine.execution_options(isolation_level="SERIALIZABLE").begin() as connection:
        await connection.run_sync(orders.metadata.create_all)
    async with StateStore.open(engine=engine) as store:
        await require_atomic(store, engine)
        await require_undisturbed_by_reads(store, engine)
        await require_runs(store, engine)


async def require_atomic(store: StateStore, engine: AsyncEngine) -> None:
    state = a_state("regretted")
    with suppress(Regretted):
        async with store.begin() as uow:
            await uow.session.execute(insert(orders).values(item="book"))
            await uow.workflows.save(state)
            raise Regretted
    assert (state.version, await is_stored(store, state), await count_orders(engine)) == (0, False, 0)


async def require_undisturbed_by_reads(store: StateStore, engine: AsyncEngine) -> None:
    state = a_state("kept")
    async with store.begin() as uow:
        await uow.session.execute(insert(orders).values(item="book"))
        assert await asyncio.create_task(count_orders(engine)) == 0
        assert await asyncio.create_task(store.list_active_workflows()) == []
        await uow.workflows.save(state)
    assert (await is_stored(store, state), await count_orders(engine)) == (True, 1)


async def require_runs(store: StateStore, engine: AsyncEngine) -> None:
    async def order(session: AsyncSession) -> None:
        await session.execute(insert(orders).values(item="pen"))

    async def regret(session: AsyncSession) -> None:
        await order(session)
        raise Regretted

    async def handler(run: Run) -> int:
        for number in range(3):
            await run.step("load", lambda n: n, number)
        await run.transact("order", order)
        with suppress(Regretted):
            await run.transact("regret", regret)
        return 3

    results = await asyncio.gather(*(store.run("n", handler, workflow_id=f"run {number}") for number in range(4)))
    assert (results, await count_orders(engine)) == ([3] * 4, 5)


@pytest.mark.parametrize("pool", [None, AsyncAdaptedQueuePool, NullPool])
async def test_a_unit_is_one_transaction_on_every_pool_of_several_connections(
    database_url: str, pool: type[Pool] | None
) -> None:
    async with an_engine(database_url, poolclass=pool) as engine:
        await require_whole_units(engine)


@pytest.mark.parametrize("where", ["engine", "options"])
@pytest.mark.parametrize(
    ("backend", "level"), [(backend, level) for backend, levels in LEVELS.items() for level in levels]
)
async def test_a_unit_is_one_transaction_at_every_isolation_level(database_url: str, level: str, where: str) -> None:
    options: dict[str, Any] = {"isolation_level": level}
    async with an_engine(database_url, **(options if where == "engine" else {})) as engine:
        await require_whole_units(engine.execution_options(**options) if where == "options" else engine)


@pytest.mark.parametrize("level", DRIVER_LEVELS)
async def test_a_unit_is_one_transaction_whatever_the_drivers_isolation_level(
    sqlite_url: str, level: str | None
) -> None:
    async with an_engine(sqlite_url, {"isolation_level": level}) as engine:
        await require_whole_units(engine)


@pytest.mark.parametrize("pool", [StaticPool, AssertionPool])
async def test_a_pool_of_one_connection_for_all_is_refused_by_name(database_url: str, pool: type[Pool]) -> None:
    async with an_engine(database_url, poolclass=pool) as engine:
        with pytest.raises(ConfigurationError, match=f"{pool.__name__}.*NullPool"):
            await StateStore.open(engine=engine, migrate=True)


@pytest.mark.filterwarnings("ignore:Selection of the")
@pytest.mark.parametrize(
    ("url", "pool"),
    [
        ("sqlite+aiosqlite://", None),
        ("sqlite+aiosqlite:///:memory:", None),
        ("sqlite+aiosqlite://", NullPool),
        ("sqlite+aiosqlite://", AsyncAdaptedQueuePool),
        ("sqlite+aiosqlite:///file:shared?mode=memory&cache=shared&uri=true", AsyncAdaptedQueuePool),
    ],
)
async def test_an_engine_in_memory_is_refused_and_the_store_of_its_own_is_named(
    url: str, pool: type[Pool] | None
) -> None:
    engine = create_async_engine(url, poolclass=pool)
    with pytest.raises(ConfigurationError, match=r"StateStore\.open\(':memory:'\)"):
        await StateStore.open(engine=engine, migrate=True)
    await engine.dispose()


async def test_an_engine_that_never_rolls_back_is_refused(sqlite_url: str) -> None:
    async with an_engine(sqlite_url, isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True) as engine:
        with pytest.raises(ConfigurationError, match="skip_autocommit_rollback"):
            await StateStore.open(engine=engine)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"stream_results": True}, "stream_results"),
        ({"yield_per": 10}, "yield_per"),
        ({"schema_translate_map": {None: "elsewhere"}}, "schema_translate_map"),
    ],
)
async def test_options_that_no_statement_of_the_store_can_bear_are_refused_by_name(
    database_url: str, options: dict[str, Any], named: str
) -> None:
    async with an_engine(database_url) as engine:
        with pytest.raises(ConfigurationError, match=named):
            await StateStore.open(engine=engine.execution_options(**options), migrate=True)


async def test_an_isolation_level_that_the_database_does_not_have_is_refused_by_name(database_url: str) -> None:
    async with an_engine(database_url, isolation_level="SNAPSHOT") as engine:
        with pytest.raises(ConfigurationError, match="isolation_level"):
            await StateStore.open(engine=engine, migrate=True)


@pytest.mark.parametrize("enforced", ["ON", "OFF"])
async def test_a_migration_is_refused_where_the_applications_events_begin_transactions(
    sqlite_url: str, enforced: str
) -> None:
    async with an_engine(sqlite_url.replace(".db", "-new.db"), {"isolation_level": None}) as engine:
        event.listen(
            engine.sync_engine, "connect", lambda raw, _: raw.cursor().execute(f"PRAGMA foreign_keys={enforced}")
        )
        event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        with pytest.raises(ConfigurationError, match="begins transactions by itself"):
            await StateStore.open(engine=engine, migrate=True)


@pytest.mark.filterwarnings("ignore:The default timestamp converter")  # as of Python 3.12
@pytest.mark.parametrize("native", [False, True])
async def test_a_driver_that_converts_timestamps_is_refused_by_name(sqlite_url: str, native: bool) -> None:
    async with an_engine(sqlite_url, {"detect_types": sqlite3.PARSE_DECLTYPES}, native_datetime=native) as engine:
        with pytest.raises(ConfigurationError, match="PARSE_DECLTYPES"):
            await StateStore.open(engine=engine)


@pytest.mark.parametrize("what", ["a URL", object(), 5])
async def test_what_is_no_engine_is_refused(what: Any) -> None:
    with pytest.raises(ConfigurationError, match="AsyncEngine"):
        await StateStore.open(engine=what)


# --- UnitOfWork(session): the application's transaction -----------------------------------------------------------


async def test_a_unit_on_a_session_that_commits_each_statement_is_refused_and_writes_nothing(
    database_url: str, store: StateStore
) -> None:
    for where in ("engine", "options", "connection"):
        for begun in (False, True):
            with case(f"{where}, {begun=}"):
                await is_refused_and_writes_nothing(database_url, store, where, begun=begun)


async def is_refused_and_writes_nothing(database_url: str, store: StateStore, where: str, *, begun: bool) -> None:
    level: dict[str, Any] = {"isolation_level": "AUTOCOMMIT"}
    async with an_engine(database_url, **(level if where == "engine" else {})) as engine:
        state = a_state()
        bind = engine.execution_options(**level) if where == "options" else engine
        async with AsyncSession(bind) as session:
            if where == "connection":
                await session.connection(execution_options=level)
            elif begun:
                await session.execute(text("SELECT 1"))
            with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
                await UnitOfWork(session).workflows.save(state)
        assert not await is_stored(store, state)


@pytest.mark.parametrize("level", [None, ""])
async def test_a_unit_joins_a_transaction_that_the_applications_events_begin(
    sqlite_url: str, level: str | None
) -> None:
    """SQLAlchemy's recipe for SQLite: the driver begins nothing by itself."""
    async with an_engine(sqlite_url, {"isolation_level": level}) as engine:
        await create_orders(engine)
        event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        state = a_state()
        async with AsyncSession(engine) as session, session.begin():
            await session.execute(insert(orders).values(item="book"))
            await UnitOfWork(session).workflows.save(state)
            await session.rollback()
        assert (state.version, await count_orders(engine)) == (0, 0)


async def test_a_transaction_that_the_application_left_open_on_a_pooled_connection_is_in_nobodys_way(
    postgres_url: str,
) -> None:
    async with (
        an_engine(postgres_url, pool_size=1, max_overflow=0) as engine,
        StateStore.open(engine=engine, retry_timeout=seconds(10)) as store,
    ):
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.exec_driver_sql("BEGIN")
        await store.start("n")
