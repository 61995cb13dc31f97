"""URL -> engine. Every fact about a dialect that is not a column type or an error code stands here.

SQLite
    The driver's own transaction handling is switched off; a writing transaction starts with BEGIN IMMEDIATE (a lock
    upgrade does not wait, so it must not happen), a reading one with none (each read is one statement). WAL with
    synchronous=FULL: NORMAL loses acknowledged commits in a power cut. Writers of one process take turns.
Postgres
    A read is one statement in autocommit: one round trip. Timeouts on both sides, so that a black hole is an error.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar, cast
from uuid import uuid4
from weakref import WeakSet

from sqlalchemy import URL, Connection, Executable, Table, event, exc, func, inspect, literal, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, NullPool, QueuePool
from sqlalchemy.schema import CreateSchema
from sqlalchemy.util import greenlet_spawn

from orchestrator_state.concurrency import Turns, require_own_loop, running_loop
from orchestrator_state.database import adopted, driver
from orchestrator_state.database.beside import close_beside, close_what_comes_back, engine_beside, leave_connections
from orchestrator_state.database.driver_statements import DriverStatements
from orchestrator_state.database.errors import (
    SQLITE_ROLLED_BACK,
    database_errors,
    sqlite_code,
)
from orchestrator_state.database.failed_statements import (
    refuse_commits_after_failure,
    refuse_entangled_connections,
    remember_failures,
)
from orchestrator_state.database.lent import put_back_postgres, put_back_sqlite
from orchestrator_state.database.postgres.connection import Connector
from orchestrator_state.database.sessions import StoreSession
from orchestrator_state.database.sqlite import connection
from orchestrator_state.database.sqlite.file import OpenFiles, SqliteFile, refuse_what_is_no_database
from orchestrator_state.database.urls import PostgresLocation, SqliteLocation, locate
from orchestrator_state.errors import ConfigurationError, StoreUnavailable
from orchestrator_state.settings import Settings

_Result = TypeVar("_Result")

PROTECTED_NAMESPACES: Final = "orchestrator_state_protected"  # execution option: of stores on it that encrypt
_BEGIN: Final = "orchestrator_state_begin"  # execution option: the statement that begins a transaction on SQLite
_BEGIN_IMMEDIATE: Final = "BEGIN IMMEDIATE"
_LONGEST_BUSY_WAIT: Final = 0.1  # seconds between two looks of sqlite3_busy_timeout
_NO_LIMIT: Final = 1000
_PING_AFTER_IDLE: Final = 10.0  # seconds
_TRIES_TO_CLOSE: Final = 100
_PAUSE_TO_CLOSE: Final = 0.01  # seconds
_MIGRATION_LOCK: Final = 0x6F7263685F7374  # "orch_st": the key of the advisory lock that migrations take
_JOURNAL_SIZE_LIMIT: Final = 64 * 1024 * 1024

# At DEBUG SQLAlchemy logs every row that it fetches, payloads included; `hide_parameters` is about parameters only.
_LOGGING_NAME: Final = "orchestrator_state"
logging.getLogger(f"sqlalchemy.engine.Engine.{_LOGGING_NAME}").addFilter(lambda record: record.levelno > logging.DEBUG)


class Database:
    """The engines of one store: one pool, seen as a writer and as a reader, and a small one for what is urgent."""

    def __init__(
        self,
        engine: AsyncEngine,
        settings: Settings,
        *,
        owned: bool,
        autocommits: bool = False,
        sqlite_file: OpenFiles | None = None,
        sqlite_connections: Iterable[sqlite3.Connection] = (),
        sqlite_threads: WeakSet[Any] | None = None,
    ) -> None:
        self.is_sqlite: Final = engine.dialect.name == "sqlite"
        # Past SQLAlchemy: neither with events and settings of the application's, nor, behind PgBouncer, with prepared
        # statements outside a transaction.
        self.is_direct: Final = owned and not settings.pgbouncer
        # Where connections are not set up by us, each transaction has to say how long it may idle.
        self.has_idle_limit: Final = self.is_sqlite or self.is_direct
        self.can_listen: Final = engine.dialect.name == "postgresql" and not settings.pgbouncer
        # While a transaction that writes is open, nobody else writes: nor can a lease be taken over.
        self.has_one_writer: Final = self.is_sqlite
        # What waits for SQLite's write lock in another process looks again within this time, and gets it if it is free.
        self.pause_for_writers: Final = _LONGEST_BUSY_WAIT if self.is_sqlite else 0.0
        self._pool = engine
        self.owned = owned
        self.closed = False
        self._autocommits = autocommits
        self._sqlite_file = sqlite_file
        self._wait = settings.pool_timeout.total_seconds()
        self._turn = Turns()
        self._inside: set[asyncio.Task[Any] | None] = set()
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._left_behind: list[object] = []
        self._sqlite_connections = sqlite_connections
        self._sqlite_threads = sqlite_threads
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self.schema: Final = None if self.is_sqlite else settings.db_schema
        self.statements: Final = DriverStatements(engine.dialect, self.schema)
        if self.is_sqlite:
            settings.refuse("db_schema", "db_schema is for Postgres; SQLite has no schemas")
            # The application's engine may have a "begin" event of its own instead: see `_begin_adopted_sqlite`.
            self.writer = engine.execution_options(**{_BEGIN: _BEGIN_IMMEDIATE})
            self.reader = engine.execution_options(**{_BEGIN: None})
        else:
            self.writer = engine.execution_options()  # an engine to listen to that is not the application's
            # Behind PgBouncer a statement outside a transaction is prepared on one server and executed on another.
            self.reader = engine if settings.pgbouncer else engine.execution_options(isolation_level="AUTOCOMMIT")

        refuse_entangled_connections(engine.sync_engine)
        self._beside = engine_beside(engine)
        self._urgent_writer = self._beside.execution_options(**({_BEGIN: _BEGIN_IMMEDIATE} if self.is_sqlite else {}))

        if self.is_sqlite and not owned:
            adopted.roll_back_when_cancelled(engine.sync_engine)
            adopted.begin_before_savepoints(engine.sync_engine)
            for view in (self.writer, self.reader, self._urgent_writer):
                adopted.read_what_is_no_text(view.sync_engine)
        remember_failures(engine.sync_engine)
        refuse_commits_after_failure(self.writer.sync_engine)

    @asynccontextmanager
    async def writing(self, *, urgent: bool = False) -> AsyncIterator[AsyncSession]:
        """Yield a session whose transaction commits at the end of the block and rolls back on any exception.

        What is `urgent` queues neither for a connection nor, on SQLite, behind the other writers of this process.
        """
        self.enter()
        begun = self._begun_urgently() if urgent else self._begun(self.writer)
        async with self._my_turn(urgent=urgent), begun as session:
            yield session
            with database_errors(committing=True):
                await session.commit()
            if self._sqlite_file is not None:
                self._sqlite_file.require_same(written=True)

    @asynccontextmanager
    async def _begun(self, writer: AsyncEngine) -> AsyncIterator[AsyncSession]:
        async with self._session(writer) as session:
            if not self.owned:
                await self._begin_adopted(session)
            yield session

    @asynccontextmanager
    async def _begun_urgently(self) -> AsyncIterator[AsyncSession]:
        """On a connection beside the pool; where Postgres has none free for that, on one of the pool after all."""
        writer = self._urgent_writer
        if not self.is_sqlite:
            try:
                with database_errors():
                    async with self._beside.connect():
                        pass
            except StoreUnavailable:
                writer = self.writer
        async with self._begun(writer) as session:
            yield session

    async def _begin_adopted(self, session: AsyncSession) -> None:
        """Begin on the application's engine, whose driver may begin late or never, and whose events may have begun."""
        with database_errors():
            if self.is_sqlite:
                await _begin_adopted_sqlite(session)
            elif self._autocommits:
                await session.connection(execution_options={"isolation_level": "READ COMMITTED"})

    def reading(self) -> AsyncSession:
        """Return a session for single statements, each of which sees one consistent snapshot."""
        self.enter()
        return ReadingSession(self)

    async def fetch(self, sql: str, arguments: Sequence[Any]) -> Sequence[Any]:
        """Send Postgres one statement in autocommit, past SQLAlchemy; only if `is_direct`."""
        self.enter()
        return await greenlet_spawn(partial(driver.fetch, committing=True), self._pool.sync_engine, sql, arguments)

    async def query(self, statement: Executable, parameters: Mapping[str, Any]) -> Sequence[Any]:
        """The rows of a query, values only, past SQLAlchemy; only if `is_direct`."""
        self.enter()
        compiled, engine = self.statements[statement], self._pool.sync_engine
        read = driver.query if self.is_sqlite else partial(driver.fetch, committing=False)
        return compiled.converted(await greenlet_spawn(read, engine, compiled.sql, compiled.arguments(parameters)))

    async def in_one_hop(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Run `work` in a SQLite connection's thread, in a transaction of its own; only if `is_direct`."""
        self.enter()
        async with self._my_turn():
            return await greenlet_spawn(driver.in_one_hop, self._pool.sync_engine, work)

    def note_protected(self, namespace: str) -> None:
        """Let whoever uses the engine know that the payloads of `namespace` are encrypted."""
        for engine in (self._pool, self.writer, self.reader):
            known: frozenset[str] = engine.sync_engine.get_execution_options().get(PROTECTED_NAMESPACES, frozenset())
            engine.update_execution_options(**{PROTECTED_NAMESPACES: known | {namespace}})

    async def warm_up(self, connections: int) -> None:
        """Open the pool's first connections now, so that the first callers do not wait for them."""
        with database_errors(opening=True):
            async with AsyncExitStack() as held:
                for _ in range(connections):
                    await held.enter_async_context(self._pool.connect())

    @asynccontextmanager
    async def migrating(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection in the one transaction of a migration; other migrations wait for it to end."""
        self.enter()
        with database_errors(opening=True):
            async with self.reader.connect() as connection:
                if self.is_sqlite:
                    async with _foreign_keys_off(connection):
                        await connection.execution_options(**{_BEGIN: _BEGIN_IMMEDIATE})
                        async with _committed(connection):
                            if not self.owned:
                                await connection.exec_driver_sql(_BEGIN_IMMEDIATE)
                            yield connection
                            await _check_foreign_keys(connection)
                        await connection.execution_options(**{_BEGIN: None})
                else:
                    await connection.execution_options(isolation_level="READ COMMITTED")
                    async with _committed(connection):
                        await connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
                        if self.schema is not None:
                            await connection.run_sync(_enter_schema, self.schema)
                        yield connection

    async def close(self) -> None:
        """Close every connection; the application's own engine is left as it is."""
        self.enter()
        self.closed = True
        if self._pid == os.getpid():
            if self.owned:
                close_what_comes_back(self._pool.sync_engine.pool)
            await close_beside(self._beside)
        if self.owned:
            await self._pool.dispose(close=self._pid == os.getpid())
        if self._sqlite_threads is not None:
            await connection.wait_until_closed(self._sqlite_threads)
        if self._temporary is not None:
            self._temporary.cleanup()

    @property
    def most_connections(self) -> int:
        """As many as the pool has at most; an application's may have no limit."""
        pool = self._pool.sync_engine.pool
        size = pool.size() + pool._max_overflow if isinstance(pool, QueuePool) else 0  # noqa: SLF001
        return size if size > 0 else _NO_LIMIT

    def keep_until_closed(self, directory: tempfile.TemporaryDirectory[str]) -> None:
        self._temporary = directory

    @asynccontextmanager
    async def _session(self, engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
        self.enter()
        # A session used after its block would begin a transaction that nobody ends, so it is closed for good.
        session = AsyncSession(
            engine,
            sync_session_class=StoreSession,
            expire_on_commit=False,
            autoflush=False,
            close_resets_only=False,
        )
        failed = True
        try:
            yield session
            failed = False
        finally:
            # Shielded, and one task: a second cancellation must find nothing half done.
            ending = asyncio.create_task(_end(session, failed=failed), name="orchestrator_state end of a session")
            await asyncio.shield(ending)

    @asynccontextmanager
    async def _my_turn(self, *, urgent: bool = False) -> AsyncIterator[None]:
        """Refuse a unit inside a unit; on SQLite, whose busy wait is unfair, queue this process's writers in order."""
        self.refuse_inside_a_unit()
        task = asyncio.current_task()
        if self.is_sqlite and not self._turn.take():
            try:
                async with asyncio.timeout(self._wait):
                    await self._turn.acquire(urgent=urgent)
            except TimeoutError:
                message = f"other writes of this process to SQLite took longer than pool_timeout ({self._wait:g} s)"
                raise StoreUnavailable(message, transient=True, crowded=True) from None
        turn = self._turn
        self._inside.add(task)
        try:
            yield
        finally:
            self._inside.discard(task)
            if self.is_sqlite:
                turn.release()

    def refuse_inside_a_unit(self) -> None:
        """Raise `ConfigurationError` in a task that is inside a unit: it would wait for itself."""
        if self._inside and asyncio.current_task() in self._inside:
            raise ConfigurationError(
                "this task is inside `async with store.begin() as uow` already; use that uow for this call"
            )

    def enter(self) -> None:
        """Begin a call. Raises `ConfigurationError` in another event loop than the one of the first call."""
        if self._loop is running_loop() and self._pid == os.getpid():
            return  # as nearly always
        self.leave_the_parent_alone()
        if self._loop is None:
            self._loop = running_loop()
        require_own_loop(self._loop)

    def leave_the_parent_alone(self) -> None:
        """In a forked child, start a pool of its own and neither use nor close the parent's connections."""
        if self._pid == os.getpid():
            return
        pool = self._pool.sync_engine.pool
        if self.is_sqlite and self.owned:
            # SQLite keeps its locks per process and believes the inherited ones to be held here: without closing these
            # connections, what the child commits is lost when the parent closes its last one.
            if pool.checkedout():  # type: ignore[attr-defined]
                raise ConfigurationError(
                    "this process was forked while its parent used the SQLite store; fork between calls, or spawn"
                )
            for connection in self._sqlite_connections:
                connection.close()
        # Kept alive, not closed: closing would unregister the parent's sockets from the epoll that both share.
        self._left_behind.append(pool)
        self._pool.sync_engine.dispose(close=False)
        self._left_behind.append(leave_connections(self._beside))
        self._turn, self._inside, self._pid, self._loop = Turns(), set(), os.getpid(), None


class ReadingSession(AsyncSession):
    """Each statement takes a connection for itself and gives it back: there is nothing to begin and nothing to close.

    All of that in one greenlet. A session that begins, executes and closes switches six times and starts a task,
    which takes longer than a small statement.
    """

    def __init__(self, database: Database) -> None:
        super().__init__(database.reader, sync_session_class=StoreSession)
        self._database = database

    async def rows(self, statement: Executable, parameters: Mapping[str, Any]) -> Sequence[Any] | None:
        """The rows of a query, values only, by the shortest way there is; None if that is `execute`."""
        return await self._database.query(statement, parameters) if self._database.is_direct else None

    async def execute(self, statement: Any, params: Any = None, **options: Any) -> Any:
        return await greenlet_spawn(self._select, statement, params, options.get("execution_options"))

    def _select(self, statement: Executable, params: Any, options: Any) -> Any:
        with cast(AsyncEngine, self.bind).sync_engine.connect() as connection:
            return connection.execute(statement, params, execution_options=options)  # neither driver streams unasked


def open_database(settings: Settings, *, for_migration: bool = False) -> Database:
    """Make the engines for `settings.database_url`. Connects to nothing yet.

    `for_migration` makes an engine without a pool and without statement timeouts: a migration takes what it takes.
    """
    location = locate(settings.database_url)
    if isinstance(location, SqliteLocation):
        return _open_sqlite(location, settings)
    engine = create_async_engine(
        "postgresql+asyncpg://",
        connect_args=_asyncpg_arguments(location, settings, for_migration=for_migration),
        hide_parameters=True,
        logging_name=_LOGGING_NAME,
        **({"poolclass": NullPool} if for_migration else _pool_arguments(settings)),
    )
    event.listen(engine.sync_engine, "checkout", _refuse_dead_connection)
    event.listen(engine.sync_engine, "checkin", _note_the_time)
    if not settings.pgbouncer:  # where a session's settings are of no session
        put_back_postgres(engine.sync_engine)
    return Database(engine, settings, owned=True)


_sqlite_databases: Final = WeakSet[Database]()


async def adopt_engine(engine: AsyncEngine, settings: Settings) -> Database:
    """Use an engine that the application owns: its pool, its connections, its life time.

    Raises `ConfigurationError` if a unit of work on it would not be one transaction.
    """
    settings.refuse("password", "give the password to the application's engine, which makes the connections")
    adopted.require_fit(engine)
    try:
        with database_errors(opening=True):
            async with engine.connect() as connection:
                path = await connection.run_sync(adopted.require_fit_connection)
                autocommits = await connection.run_sync(adopted.autocommits)
    except exc.ArgumentError:
        raise ConfigurationError(
            "SQLAlchemy refuses the engine's options; is its isolation_level one of this database's?"
        ) from None
    file = OpenFiles(path, beside=False) if path else None
    return Database(engine, settings, owned=False, autocommits=autocommits, sqlite_file=file)


@asynccontextmanager
async def _committed(connection: AsyncConnection) -> AsyncIterator[None]:
    """A transaction of a migration, which commits at the end of the block."""
    async with connection.begin() as transaction:
        yield
        with database_errors(opening=True, committing=True):
            await transaction.commit()


async def _end(session: AsyncSession, *, failed: bool) -> None:
    # A connection that has died cannot be rolled back, and need not: what failed first says more.
    with suppress(Exception):
        if failed:
            await session.rollback()  # unlike close(), it tells the states saved in it also when it fails
    with suppress(Exception):  # after a commit that was acknowledged this is nobody's failure
        await _close(session)


async def _close(session: AsyncSession) -> None:
    """A task that the caller's code left behind may be using the session at this very moment: then, after it."""
    for _ in range(_TRIES_TO_CLOSE):
        try:
            await session.close()
        except exc.IllegalStateChangeError:
            await asyncio.sleep(_PAUSE_TO_CLOSE)
        except Exception:  # noqa: BLE001 - whatever it is, such a connection is not used again
            break
        else:
            return
    await session.invalidate()


def conflict_aware_insert(dialect: str, table: Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that knows ON CONFLICT, for the dialect of that name."""
    return sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)


class _Pool(AsyncAdaptedQueuePool):
    """What was returned last is taken first: but no place whose connection was lost, while others have theirs.

    A server without a connection to spare would refuse the one for that place again and again.
    """

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        if record.dbapi_connection is None and not self._pool.empty():
            self._dec_overflow()  # the place is free; nobody waits for one while the queue has some
        else:
            super()._do_return_conn(record)


def _pool_arguments(settings: Settings) -> dict[str, Any]:
    # pool_size, not overflow: an overflow connection is closed on return, and opening one costs fifty round trips.
    return {
        "poolclass": _Pool,
        "pool_size": settings.pool_max,
        "max_overflow": 0,
        "pool_timeout": settings.pool_timeout.total_seconds(),
        "pool_recycle": 1800,
        "pool_use_lifo": True,
    }


# --- Postgres ---------------------------------------------------------------------------------------------------


def _asyncpg_arguments(location: PostgresLocation, settings: Settings, *, for_migration: bool) -> dict[str, Any]:
    timeout = settings.connect_timeout.total_seconds()
    if location.options.connect_timeout is not None and "connect_timeout" not in settings.model_fields_set:
        timeout = location.options.connect_timeout
    arguments: dict[str, Any] = {
        "async_creator_fn": Connector(location, settings),
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
        return common | {"statement_timeout": "0", "lock_timeout": "0"}
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


def _note_the_time(_: Any, entry: ConnectionPoolEntry) -> None:
    entry.info["returned_at"] = time.monotonic()


def _enter_schema(connection: Connection, schema: str) -> None:
    """Make the schema if need be, and let unqualified names mean it until the transaction ends."""
    if not inspect(connection).has_schema(schema):
        connection.execute(CreateSchema(schema))
    quoted = connection.dialect.identifier_preparer.quote(schema)
    connection.execute(select(func.set_config("search_path", quoted, literal(value=True))))


# --- SQLite -----------------------------------------------------------------------------------------------------


def _open_sqlite(location: SqliteLocation, settings: Settings) -> Database:
    settings.refuse("password", "password is for Postgres; a SQLite file has none")
    temporary = None
    path = location.path
    if path is None:
        # A real file: with one shared in-memory connection, a task's rollback would erase another task's write.
        temporary = _temporary_directory()
        path = Path(temporary.name) / "memory.db"
    else:
        refuse_what_is_no_database(path)
    file = SqliteFile(path)
    connections, threads = WeakSet[sqlite3.Connection](), WeakSet[Any]()

    def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = _SqliteConnection(*arguments, **options)
        connections.add(connection)
        return connection

    engine = create_async_engine(
        URL.create("sqlite+aiosqlite", database=str(file.path)),
        connect_args={
            "async_creator_fn": partial(connection.connect, threads, file),
            "timeout": settings.lock_timeout.total_seconds(),
            "isolation_level": None,
            "factory": connect,
        },
        hide_parameters=True,
        logging_name=_LOGGING_NAME,
        **_pool_arguments(settings),
    )
    pragmas = {
        "synchronous": "OFF" if temporary else settings.synchronous,
        "foreign_keys": "ON",
        "journal_size_limit": _JOURNAL_SIZE_LIMIT,
        "busy_timeout": round(settings.lock_timeout.total_seconds() * 1000),
    }
    sync_engine = engine.sync_engine
    event.listen(sync_engine, "connect", lambda connection, _: _prepare_sqlite(connection, pragmas, file))
    put_back_sqlite(sync_engine, pragmas)
    event.listen(sync_engine, "begin", _begin)
    event.listen(sync_engine, "handle_error", _fail_the_whole_unit)
    for inherited in _sqlite_databases:
        with suppress(ConfigurationError):
            inherited.leave_the_parent_alone()
    database = Database(engine, settings, owned=True, sqlite_connections=connections, sqlite_threads=threads)
    _sqlite_databases.add(database)
    if temporary is not None:
        database.keep_until_closed(temporary)
    return database


def _temporary_directory() -> tempfile.TemporaryDirectory[str]:
    try:
        directory = tempfile.TemporaryDirectory(prefix="orchestrator-state-", ignore_cleanup_errors=True)
        Path(directory.name).chmod(0o700)  # whatever the process's umask
    except OSError as error:
        raise ConfigurationError(
            f"there is no place for a database in memory ({type(error).__name__}); set TMPDIR to a directory "
            "that can be written to"
        ) from None
    return directory


class _SqliteConnection(sqlite3.Connection):
    """Closing rolls back first: with a cursor still alive, as after a cancellation, SQLite would otherwise keep the
    transaction and its write lock until the garbage collector finds that cursor."""

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self.rollback()
        super().close()


def _prepare_sqlite(dbapi_connection: Any, pragmas: Mapping[str, object], file: SqliteFile) -> None:
    cursor = dbapi_connection.cursor()
    # Reading first: a file that is not a database must be refused before anything could be written to it.
    cursor.execute("PRAGMA schema_version")
    cursor.execute("PRAGMA journal_mode=WAL")
    for pragma, value in pragmas.items():
        cursor.execute(f"PRAGMA {pragma}={value}")  # a PRAGMA takes no parameters; both sides are constants
    cursor.execute("PRAGMA schema_version")  # the first reading in WAL mode makes the files beside the database
    cursor.close()
    dbapi_connection.driver_connection.files = file.opened()


def _begin(connection: Connection) -> None:
    statement = connection.get_execution_options().get(_BEGIN, "BEGIN")
    if statement is not None:
        connection.exec_driver_sql(statement)


def _fail_the_whole_unit(context: ExceptionContext) -> None:
    """SQLite rolls back by itself on a full disk or an I/O error; a session that went on would commit half a unit."""
    if sqlite_code(context.original_exception) in SQLITE_ROLLED_BACK:
        context.is_disconnect = True


async def _begin_adopted_sqlite(session: AsyncSession) -> None:
    connection = await session.connection()
    raw = await connection.get_raw_connection()
    if not cast("sqlite3.Connection", raw.driver_connection).in_transaction:
        await connection.exec_driver_sql(_BEGIN_IMMEDIATE)


@asynccontextmanager
async def _foreign_keys_off(connection: AsyncConnection) -> AsyncIterator[None]:
    """Rebuilding a parent table with foreign keys on would empty its children through the cascade.

    The pragma is without effect inside a transaction, so it comes before BEGIN. A connection on which it was not taken
    back, because something failed, is given up: whoever used it next would have no foreign keys.
    """
    enforced = (await connection.exec_driver_sql("PRAGMA foreign_keys")).scalar_one()
    is_as_before = False
    try:
        await connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
        await _require_no_transaction(connection)
        await connection.rollback()
        yield
        if enforced:
            await connection.exec_driver_sql("PRAGMA foreign_keys=ON")
        is_as_before = True
    finally:
        if enforced and not is_as_before:
            await connection.invalidate()


async def _require_no_transaction(connection: AsyncConnection) -> None:
    """Inside a transaction, such as one that the application's engine begins by itself, the pragma has no effect."""
    raw = await connection.get_raw_connection()
    if cast("sqlite3.Connection", raw.driver_connection).in_transaction:
        raise ConfigurationError(
            "this engine begins transactions by itself, so the schema cannot be migrated through it; "
            "run `orchestrator-state db upgrade`"
        )


async def _check_foreign_keys(connection: AsyncConnection) -> None:
    if (await connection.exec_driver_sql("PRAGMA foreign_key_check")).first() is not None:
        raise ConfigurationError("the migration would leave rows without their parent; nothing was changed")
