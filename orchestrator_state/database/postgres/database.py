"""The database of a store on Postgres.

A read is one statement in autocommit: one round trip. Timeouts on both sides, so that a black hole is an error.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import uuid4

from sqlalchemy import Connection, event, exc, func, inspect, literal, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.pool import ConnectionPoolEntry, NullPool
from sqlalchemy.schema import CreateSchema

from orchestrator_state import hooks
from orchestrator_state.database.direct import driver, heard
from orchestrator_state.database.direct.batches import Batch
from orchestrator_state.database.engine import LOGGING_NAME, Database, committed, pool_arguments
from orchestrator_state.database.errors import database_errors
from orchestrator_state.database.internals import greenlet_spawn, is_heard, pool_limit
from orchestrator_state.database.postgres.connection import Connector
from orchestrator_state.database.postgres.notifications import ServerListener
from orchestrator_state.database.sessions.failed_statements import refuse_entangled_connections
from orchestrator_state.database.sessions.lent import put_back_postgres
from orchestrator_state.database.urls import PostgresLocation
from orchestrator_state.errors import ConfigurationError, StoreUnavailable
from orchestrator_state.settings import Settings

_Answer = TypeVar("_Answer")

_NO_LIMIT: Final = 1000
_PING_AFTER_IDLE: Final = 10.0  # seconds
# Until the transaction ends, whatever else is said by the URL, the role (behind PgBouncer), the application's engine.
_WITHOUT_LIMITS: Final = select(
    *(func.set_config(limit, "0", literal(value=True)) for limit in ("statement_timeout", "lock_timeout"))
)
_MIGRATION_LOCK: Final = 0x6F7263685F7374  # "orch_st": the key of the advisory lock that migrations take


_HOLD_SNAPSHOT: Final = text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")


class PostgresDatabase(Database):
    """A server, or a pooler in front of it."""

    batches_at_once = 2  # so that one is on its way while the server works on the other
    is_migrated_on_opening = False

    def __init__(self, engine: AsyncEngine, settings: Settings, *, owned: bool, autocommits: bool = False) -> None:
        self._through_pooler: Final = settings.pgbouncer
        refuse_entangled_connections(engine.sync_engine)
        super().__init__(engine, settings, owned=owned, schema=settings.db_schema)
        # Past SQLAlchemy: neither with events and settings of the application's, nor, behind PgBouncer, with prepared
        # statements outside a transaction.
        self.is_direct = self.has_idle_limit = owned and not settings.pgbouncer
        self.listener = None if settings.pgbouncer else ServerListener(self)
        self.limits_statements = owned
        self._autocommits = autocommits

    def _as_writer(self, engine: AsyncEngine) -> AsyncEngine:
        return engine.execution_options()  # one to listen to that is not the application's

    def _as_reader(self, engine: AsyncEngine) -> AsyncEngine:
        # Behind PgBouncer a statement outside a transaction is prepared on one server and executed on another.
        return engine if self._through_pooler else engine.execution_options(isolation_level="AUTOCOMMIT")

    @property
    def most_writers(self) -> int:
        return pool_limit(self._pool.sync_engine.pool) or _NO_LIMIT

    async def warm_up(self, connections: int) -> None:
        if not self.owned:
            return
        with database_errors(opening=True):
            async with AsyncExitStack() as held:
                for _ in range(connections):
                    await held.enter_async_context(self._pool.connect())

    async def _begin_adopted(self, session: AsyncSession) -> None:
        if self._autocommits:
            await session.connection(execution_options={"isolation_level": "READ COMMITTED"})

    async def copy_to(self, path: Path) -> None:
        raise ConfigurationError("a Postgres database is backed up with pg_dump, or by its server: see its manual")

    async def hold_snapshot(self, session: AsyncSession) -> None:
        with database_errors():
            await session.execute(_HOLD_SNAPSHOT)

    async def _urgently(self) -> AsyncEngine:
        """On a connection beside the pool; where the server has none free for that, on one of the pool after all."""
        try:
            with database_errors():
                async with self._beside.connect():
                    pass
        except StoreUnavailable:
            return self.writer
        return self._urgent_writer

    def _rows_of(self, sql: str, arguments: Sequence[Any]) -> Sequence[Any]:
        return driver.fetch(self._pool.sync_engine, sql, arguments, committing=False)

    async def write_at_once(self, batch: Batch[_Answer]) -> _Answer:
        self.enter()
        statement, parameters = batch.as_one_statement()
        compiled = self.statements[statement]
        engine, arguments = self._pool.sync_engine, compiled.arguments(parameters)
        if is_heard(engine):
            rows = await greenlet_spawn(heard.write_one, self.writer.sync_engine, compiled.sql, arguments)
        else:
            send = partial(driver.fetch, committing=True)
            rows = await greenlet_spawn(send, engine, compiled.sql, arguments)
        return batch.answer(rows)

    def _require_same_file(self) -> None:
        """There is none here."""

    def _let_go_of_the_parents(self) -> None:
        """The server knows which process holds what: they are only left alone."""

    @asynccontextmanager
    async def migrating(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection in the one transaction of a migration; other migrations wait for it to end."""
        self.enter()
        with database_errors(opening=True):
            async with self.reader.connect() as connection:
                await connection.execution_options(isolation_level="READ COMMITTED")
                async with committed(connection):
                    await connection.execute(_WITHOUT_LIMITS)
                    await connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
                    if self.schema is not None:
                        await connection.run_sync(_enter_schema, self.schema)
                    yield connection


def open_postgres(
    location: PostgresLocation, settings: Settings, hook: hooks.Hook | None, *, for_migration: bool
) -> PostgresDatabase:
    """Make the engines for a server. Connects to nothing yet."""
    from sqlalchemy.ext.asyncio import create_async_engine  # the one that tracing may have put in its place by now

    engine = create_async_engine(
        "postgresql+asyncpg://",
        connect_args=_asyncpg_arguments(location, settings, hook, for_migration=for_migration),
        hide_parameters=True,
        logging_name=LOGGING_NAME,
        **({"poolclass": NullPool} if for_migration else pool_arguments(settings)),
    )
    event.listen(engine.sync_engine, "checkout", _refuse_dead_connection)
    event.listen(engine.sync_engine, "checkin", _note_the_time)
    if not settings.pgbouncer:  # where a session's settings are of no session
        put_back_postgres(engine.sync_engine)
    return PostgresDatabase(engine, settings, owned=True)


def _asyncpg_arguments(
    location: PostgresLocation, settings: Settings, hook: hooks.Hook | None = None, *, for_migration: bool
) -> dict[str, Any]:
    timeout = settings.connect_timeout.total_seconds()
    if location.options.connect_timeout is not None and "connect_timeout" not in settings.model_fields_set:
        timeout = location.options.connect_timeout
    arguments: dict[str, Any] = {
        "async_creator_fn": Connector(location, settings, hook),
        "timeout": timeout,
        "command_timeout": None if for_migration else settings.command_timeout.total_seconds(),
    }
    if settings.pgbouncer:
        # A pooled server connection changes with each transaction: no named statement may outlive one.
        arguments["statement_cache_size"] = arguments["prepared_statement_cache_size"] = 0
        arguments["prepared_statement_name_func"] = lambda: f"__orchestrator_state_{uuid4()}__"
    else:
        given = location.options.settings
        arguments["server_settings"] = _server_settings(settings, given, for_migration=for_migration)
    return arguments


def _server_settings(settings: Settings, given: Mapping[str, str], *, for_migration: bool) -> dict[str, str]:
    """Start-up parameters, of which those `given` in the URL win; PgBouncer refuses all but a few, so it gets none."""
    common = {"application_name": "orchestrator_state", "jit": "off", **given}
    if for_migration:
        return common
    milliseconds = {
        "statement_timeout": settings.command_timeout,
        "lock_timeout": settings.lock_timeout,
        "idle_in_transaction_session_timeout": settings.idle_limit,  # see `open_transactions` for who needs more
    }
    return {name: str(int(value.total_seconds() * 1000)) for name, value in milliseconds.items()} | common


def _refuse_dead_connection(dbapi_connection: Any, entry: ConnectionPoolEntry, _: Any) -> None:
    """A ping for each checkout would double a read's round trips: look at the socket, and ping only after idling."""
    if dbapi_connection.driver_connection.is_closed():
        raise exc.DisconnectionError
    if time.monotonic() - entry.info.get("returned_at", time.monotonic()) > _PING_AFTER_IDLE:
        try:
            dbapi_connection.ping()
        except Exception:  # noqa: BLE001 - whatever is wrong with it, the pool can open another
            raise exc.DisconnectionError from None


def _note_the_time(_: object, entry: ConnectionPoolEntry) -> None:
    entry.info["returned_at"] = time.monotonic()


def _enter_schema(connection: Connection, schema: str) -> None:
    """Make the schema if need be, and let unqualified names mean it until the transaction ends."""
    if not inspect(connection).has_schema(schema):
        connection.execute(CreateSchema(schema))
    quoted = connection.dialect.identifier_preparer.quote(schema)
    connection.execute(select(func.set_config("search_path", quoted, literal(value=True))))
