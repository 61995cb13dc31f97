"""The database of a store that is a SQLite file.

The driver's own transaction handling is switched off; a writing transaction starts with BEGIN IMMEDIATE (a lock upgrade
does not wait, so it must not happen), a reading one with none (each read is one statement). WAL with synchronous=FULL:
NORMAL loses acknowledged commits in a power cut. Writers of one process take turns.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, closing, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import URL, Connection, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from orchestrator_state.concurrency import Turns
from orchestrator_state.database import adopted
from orchestrator_state.database.direct import driver, heard
from orchestrator_state.database.direct.batches import Batch, write_in_thread
from orchestrator_state.database.engine import LOGGING_NAME, Database, committed, pool_arguments
from orchestrator_state.database.errors import SQLITE_ROLLED_BACK, database_errors, sqlite_code
from orchestrator_state.database.internals import greenlet_spawn, hear_errors, is_heard, sqlite3_of
from orchestrator_state.database.sessions.lent import put_back_sqlite
from orchestrator_state.database.sqlite import connection
from orchestrator_state.database.sqlite.file import OpenFiles, SqliteFile, refuse_what_is_no_database
from orchestrator_state.database.sqlite.memory import TemporaryDirectory
from orchestrator_state.database.urls import SqliteLocation
from orchestrator_state.errors import ConfigurationError, StoreUnavailable
from orchestrator_state.settings import Settings

_Answer = TypeVar("_Answer")

_BEGIN: Final = "orchestrator_state_begin"  # execution option: the statement that begins a transaction
_BEGIN_IMMEDIATE: Final = "BEGIN IMMEDIATE"
_LONGEST_BUSY_WAIT: Final = 0.1  # seconds between two looks of sqlite3_busy_timeout
_LONGEST_MIGRATION: Final = 600.0  # seconds that another's may take
_SHORT: Final = timedelta(seconds=0.1)  # a transaction that no lease comes to its end by
_JOURNAL_SIZE_LIMIT: Final = 64 * 1024 * 1024


class SqliteDatabase(Database):
    """One file, in which one transaction writes at a time."""

    has_idle_limit = True
    # What waits for the write lock in another process looks again within this time, and gets it if it is free.
    pause_for_writers = _LONGEST_BUSY_WAIT
    # While a transaction that writes is open, nobody else writes: nor can a lease be taken over.
    renewals_may_hang = False
    batches_at_once = 1
    most_writers = 1

    def __init__(
        self,
        engine: AsyncEngine,
        settings: Settings,
        *,
        owned: bool,
        adopted_file: OpenFiles | None = None,
        connections: Iterable[sqlite3.Connection] = (),
        threads: WeakSet[connection.SqliteConnection] | None = None,
        temporary: TemporaryDirectory | None = None,
    ) -> None:
        settings.refuse("db_schema", "db_schema is for Postgres; SQLite has no schemas")
        if not owned:
            adopted.roll_back_when_cancelled(engine.sync_engine)
            adopted.begin_before_savepoints(engine.sync_engine)
        super().__init__(engine, settings, owned=owned, schema=None)
        for view in (self.writer, self.reader, self._urgent_writer):
            if owned:  # on the views: whoever listens to the engine itself is somebody else, see `is_heard`
                event.listen(view.sync_engine, "begin", _begin)
            else:
                adopted.read_what_is_no_text(view.sync_engine)
        self.is_direct = owned and not settings.pgbouncer
        self._adopted_file = adopted_file
        self._connections = connections
        self._threads = threads
        self._temporary = temporary
        self._wait = settings.pool_timeout.total_seconds()
        self._turn = Turns()

    def _as_writer(self, engine: AsyncEngine) -> AsyncEngine:
        # The application's engine may have a "begin" event of its own instead: see `_begin_adopted`.
        return engine.execution_options(**{_BEGIN: _BEGIN_IMMEDIATE})

    def _as_reader(self, engine: AsyncEngine) -> AsyncEngine:
        return engine.execution_options(**{_BEGIN: None})

    @property
    def is_migrated_on_opening(self) -> bool:
        return self.owned

    async def warm_up(self, connections: int) -> None:
        """A file is opened in no time."""

    @property
    def file(self) -> Path | None:
        name = self._pool.url.database
        return Path(name) if name else None

    async def copy_to(self, path: Path) -> None:
        # All pages at once: readers hold up no writer in WAL, and a copy in parts begins anew with each write.
        with closing(sqlite3.connect(path, check_same_thread=False)) as copy, database_errors():
            async with self.reader.connect() as connection:
                source = (await connection.get_raw_connection()).driver_connection
                await source.backup(copy)  # type: ignore[union-attr]

    async def hold_snapshot(self, session: AsyncSession) -> None:
        """While a transaction that may write is open, no other does."""

    def held_up_renewals(self, open_for: timedelta) -> bool:
        return open_for > _SHORT

    async def waited_to_begin(self, session: AsyncSession) -> timedelta:
        began = time.monotonic()
        with database_errors():
            await session.connection()
        return timedelta(seconds=time.monotonic() - began)

    async def _begin_adopted(self, session: AsyncSession) -> None:
        connection = await session.connection()
        if not await connection.run_sync(_is_in_transaction):
            await connection.exec_driver_sql(_BEGIN_IMMEDIATE)

    def _rows_of(self, sql: str, arguments: Sequence[Any]) -> Sequence[Any]:
        return driver.query(self._pool.sync_engine, sql, arguments)

    async def write_at_once(self, batch: Batch[_Answer]) -> _Answer:
        self.enter()
        engine = self._pool.sync_engine
        self.refuse_inside_a_unit()
        end_turn = await self._begin_turn(urgent=False)
        try:
            if is_heard(engine):
                return await greenlet_spawn(heard.write_several, self.writer.sync_engine, self.statements, batch)
            work = partial(write_in_thread, statements=self.statements, batch=batch)
            return await greenlet_spawn(driver.in_one_hop, engine, work)
        finally:
            end_turn()

    @asynccontextmanager
    async def migrating(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection in the one transaction of a migration; other migrations wait for it to end."""
        self.enter()
        with database_errors(opening=True):
            async with self.reader.connect() as connection, _foreign_keys_off(connection), committed(connection):
                await _begin_migration(connection)
                yield connection
                await _check_foreign_keys(connection)

    async def close(self) -> None:
        await super().close()
        if self._threads is not None:
            await connection.wait_until_closed(self._threads)
        if self._temporary is not None:
            self._temporary.cleanup()

    def _require_same_file(self) -> None:
        if self._adopted_file is not None:  # of our own connections each looks at its own
            self._adopted_file.require_same(written=True)

    async def _begin_turn(self, *, urgent: bool) -> Callable[[], None]:
        """SQLite's own way of waiting is unfair."""
        turn = self._turn
        if not turn.take():
            try:
                async with asyncio.timeout(self._wait):
                    await turn.acquire(urgent=urgent)
            except TimeoutError:
                message = f"other writes of this process to SQLite took longer than pool_timeout ({self._wait:g} s)"
                raise StoreUnavailable(message, transient=True, crowded=True) from None
        return turn.release

    def _let_go_of_the_parents(self) -> None:
        """Close the inherited connections of ours.

        SQLite keeps its locks per process and believes theirs to be held here: without closing them, what the child
        commits is lost when the parent closes its last one.
        """
        if self.owned:
            pool = self._pool.sync_engine.pool
            if pool.checkedout():  # type: ignore[attr-defined]
                raise ConfigurationError(
                    "this process was forked while its parent used the SQLite store; fork between calls, or spawn"
                )
            for inherited in self._connections:
                inherited.close()
        self._turn = Turns()


_databases: Final = WeakKeyDictionary[SqliteDatabase, SqliteFile]()


def open_sqlite(location: SqliteLocation, settings: Settings) -> SqliteDatabase:
    """Make the engines for a file. Connects to nothing yet."""
    settings.refuse("password", "password is for Postgres; a SQLite file has none")
    temporary = None
    path = location.path
    if path is None:
        # A real file: with one shared in-memory connection, a task's rollback would erase another task's write.
        temporary = TemporaryDirectory()
        path = temporary.path / "memory.db"
    else:
        refuse_what_is_no_database(path)
    file = SqliteFile(path)
    connections, threads = WeakSet[sqlite3.Connection](), WeakSet[connection.SqliteConnection]()

    def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = _Connection(*arguments, **options)
        connections.add(connection)
        return connection

    pragmas = {
        "synchronous": "OFF" if temporary else settings.synchronous,
        "foreign_keys": "ON",
        "journal_size_limit": _JOURNAL_SIZE_LIMIT,
        "busy_timeout": round(settings.lock_timeout.total_seconds() * 1000),
    }
    from sqlalchemy.ext.asyncio import create_async_engine  # the one that tracing may have put in its place by now

    engine = create_async_engine(
        URL.create("sqlite+aiosqlite", database=str(file.path)),
        connect_args={
            "async_creator_fn": partial(connection.connect, threads, file, pragmas),
            "timeout": settings.lock_timeout.total_seconds(),
            "isolation_level": None,
            "factory": connect,
        },
        hide_parameters=True,
        logging_name=LOGGING_NAME,
        **pool_arguments(settings),
    )
    put_back_sqlite(engine.sync_engine, pragmas)
    hear_errors(engine.sync_engine, _fail_the_whole_unit)
    _leave_the_parents_alone(file)
    database = SqliteDatabase(
        engine, settings, owned=True, connections=connections, threads=threads, temporary=temporary
    )
    _databases[database] = file
    return database


def _leave_the_parents_alone(file: SqliteFile) -> None:
    """In a forked child: raise `ConfigurationError` if the parent was using a store of the same file.

    What that store held at the fork, SQLite would take for held in this process for ever. Other files are nobody's
    business here: that the parent was using one of them is said to who uses its store.
    """
    for reference in _databases.keyrefs():  # a list, made at once: other threads open stores meanwhile
        if (inherited := reference()) is None:
            continue
        try:
            inherited.leave_the_parent_alone()
        except ConfigurationError:
            if _databases[inherited].is_same(file):
                raise


class _Connection(sqlite3.Connection):
    """Closing rolls back first: with a cursor still alive, as after a cancellation, SQLite would otherwise keep the
    transaction and its write lock until the garbage collector finds that cursor."""

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self.rollback()
        super().close()


def _begin(connection: Connection) -> None:
    statement = connection.get_execution_options().get(_BEGIN, "BEGIN")
    if statement is not None:
        connection.exec_driver_sql(statement)


def _fail_the_whole_unit(context: ExceptionContext) -> None:
    """SQLite rolls back by itself on a full disk or an I/O error; a session that went on would commit half a unit."""
    if sqlite_code(context.original_exception) in SQLITE_ROLLED_BACK:
        context.is_disconnect = True


async def _begin_migration(connection: AsyncConnection) -> None:
    """Begin once nobody else writes. Another's migration takes what it takes; a lock held for ever is an error."""
    gives_up = time.monotonic() + _LONGEST_MIGRATION
    while True:
        try:
            await connection.exec_driver_sql(_BEGIN_IMMEDIATE)
        except DBAPIError as error:
            if sqlite_code(error.orig) != sqlite3.SQLITE_BUSY or time.monotonic() > gives_up:
                raise
            await asyncio.sleep(_LONGEST_BUSY_WAIT)
        else:
            return


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


def _is_in_transaction(connection: Connection) -> bool:
    return sqlite3_of(connection).in_transaction


async def _require_no_transaction(connection: AsyncConnection) -> None:
    """Inside a transaction, such as one that the application's engine begins by itself, the pragma has no effect."""
    if await connection.run_sync(_is_in_transaction):
        raise ConfigurationError(
            "this engine begins transactions by itself, so the schema cannot be migrated through it; "
            "run `orchestrator-state db upgrade`"
        )


async def _check_foreign_keys(connection: AsyncConnection) -> None:
    if (await connection.exec_driver_sql("PRAGMA foreign_key_check")).first() is not None:
        raise ConfigurationError("the migration would leave rows without their parent; nothing was changed")
