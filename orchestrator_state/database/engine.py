"""The engines of one store: what SQLite and Postgres have in common, and what each has to answer for."""

from __future__ import annotations

import asyncio
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy import Executable, Pool, event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from orchestrator_state.concurrency import require_own_loop, running_loop
from orchestrator_state.database.beside import close_beside, close_what_comes_back, engine_beside, leave_connections
from orchestrator_state.database.compiled import share_compiled
from orchestrator_state.database.direct import heard
from orchestrator_state.database.direct.batches import Batch
from orchestrator_state.database.direct.driver import DriverStatements
from orchestrator_state.database.errors import database_errors
from orchestrator_state.database.internals import PlacesPool, greenlet_spawn, is_heard
from orchestrator_state.database.sessions import callers
from orchestrator_state.database.sessions.callers import Maker
from orchestrator_state.database.sessions.failed_statements import (
    refuse_commits_after_failure,
    remember_failures,
)
from orchestrator_state.database.sessions.protected import note_protected
from orchestrator_state.database.sessions.session import StoreSession, end_session
from orchestrator_state.errors import ConfigurationError
from orchestrator_state.settings import Settings

if TYPE_CHECKING:
    from orchestrator_state.database.postgres.notifications import ServerListener

_Answer = TypeVar("_Answer")

# At DEBUG SQLAlchemy logs every row that it fetches, payloads included; `hide_parameters` is about parameters only.
LOGGING_NAME: Final = "orchestrator_state"
logging.getLogger(f"sqlalchemy.engine.Engine.{LOGGING_NAME}").addFilter(lambda record: record.levelno > logging.DEBUG)


class Database(ABC):
    """The engines of one store: one pool, seen as a writer and as a reader, and a small one for what is urgent."""

    is_direct: bool
    """Whether statements may go to the driver, past SQLAlchemy: only on connections that we set up ourselves."""
    has_idle_limit: bool
    """Whether its connections are set up so that a transaction of a frozen process ends; else each has to say so."""
    listener: ServerListener | None = None
    """What hears of the database that there is something to do, if that tells."""
    limits_statements = False
    """Whether its connections give up on a statement after a while, as those of a migration must not."""
    renewals_may_hang = True
    """Whether the renewal of a lease can go without an answer for longer than the lease lasts.

    Not where all that it can wait for is a lock that keeps everybody from taking the lease over.
    """
    batches_at_once: int
    """How many transactions of step commits are worth having under way at the same time."""
    pause_for_writers = 0.0
    """Seconds within which a writer of another process has its turn, if nobody writes here."""

    def __init__(self, engine: AsyncEngine, settings: Settings, *, owned: bool, schema: str | None) -> None:
        self.owned: Final = owned
        self.schema: Final = schema
        self.statements: Final = DriverStatements(engine.dialect, schema)
        self.closed = False
        self.callers_sessions: Maker | None = None
        """What makes the sessions that the caller's code is given, if not we."""
        if owned:  # an application's engine may compile in ways of its own
            share_compiled(engine)
        self._pool = engine
        self._beside = engine_beside(engine)
        self.writer = self._as_writer(engine)
        self.reader = self._as_reader(engine)
        self._urgent_writer = self._as_writer(self._beside)
        self._inside: set[asyncio.Task[Any] | None] = set()
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._left_behind: list[Pool] = []
        remember_failures(engine.sync_engine)
        refuse_commits_after_failure(self.writer.sync_engine)

    # --- what each database does in its own way -------------------------------------------------------------------

    @abstractmethod
    def _as_writer(self, engine: AsyncEngine) -> AsyncEngine:
        """A view of `engine` whose transactions are for writing."""

    @abstractmethod
    def _as_reader(self, engine: AsyncEngine) -> AsyncEngine:
        """A view of `engine` on which each statement is a transaction of its own."""

    @abstractmethod
    async def _begin_adopted(self, session: AsyncSession) -> None:
        """Begin on the application's engine, whose driver may begin late or never, and whose events may have begun."""

    @abstractmethod
    def _rows_of(self, sql: str, arguments: Sequence[Any]) -> Sequence[Any]:
        """The rows of a query, straight from the driver. Called in SQLAlchemy's greenlet."""

    @abstractmethod
    def migrating(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Yield a connection in the one transaction of a migration; other migrations wait for it to end."""

    @property
    @abstractmethod
    def is_migrated_on_opening(self) -> bool:
        """Whether opening a store brings the schema up to date, unless told otherwise."""

    @property
    @abstractmethod
    def most_writers(self) -> int:
        """How many transactions that write can be open at a time."""

    @abstractmethod
    async def warm_up(self, connections: int) -> None:
        """Open the pool's first connections now, if that takes long, so that the first callers do not wait for them."""

    @property
    def file(self) -> Path | None:
        """The file that the database is in, if it is in one."""
        return None

    @abstractmethod
    async def copy_to(self, path: Path) -> None:
        """Copy the database as it is now into an empty file, while others use it."""

    @abstractmethod
    async def hold_snapshot(self, session: AsyncSession) -> None:
        """Let all statements of this transaction see the same; to be called before its first."""

    def held_up_renewals(self, open_for: timedelta) -> bool:
        """Whether a transaction that was `open_for` so long kept leases from being renewed."""
        return False

    async def waited_to_begin(self, session: AsyncSession) -> timedelta:
        """Begin the transaction of `session`. Returns how long it had to wait until somebody let others write."""
        return timedelta()

    @abstractmethod
    async def write_at_once(self, batch: Batch[_Answer]) -> _Answer:
        """Write `batch` in a transaction of its own: one round trip, or one switch of threads; only if `is_direct`."""

    @abstractmethod
    def _require_same_file(self) -> None:
        """Raise `AccessLost` if what was committed went into a file that is no longer the database's."""

    @abstractmethod
    def _let_go_of_the_parents(self) -> None:
        """Do with the connections that a forked child has inherited what cannot be left to the parent."""

    # --- reading and writing --------------------------------------------------------------------------------------

    @asynccontextmanager
    async def writing(self, *, urgent: bool = False, for_caller: bool = False) -> AsyncIterator[AsyncSession]:
        """Yield a session whose transaction commits at the end of the block and rolls back on any exception.

        What is `urgent` queues neither for a connection nor behind the other writers of this process. What is
        `for_caller` is of the application's own kind, if it has told us which.
        """
        self.enter()
        self.refuse_inside_a_unit()
        end_turn, task = await self._begin_turn(urgent=urgent), asyncio.current_task()
        self._inside.add(task)
        try:
            session = self._session(await self._urgently() if urgent else self.writer, for_caller=for_caller)
            failed = True
            try:
                await self._begin(session)
                yield session
                if isinstance(session.sync_session, StoreSession):
                    with database_errors(committing=True):
                        await session.commit()
                else:
                    await callers.commit_callers(session, through_one=True)
                self._require_same_file()
                failed = False
            finally:
                # Shielded, and one task: a second cancellation must find nothing half done.
                ending = end_session(session, failed=failed)
                await asyncio.shield(asyncio.create_task(ending, name="orchestrator_state end of a session"))
        finally:
            self._inside.discard(task)
            end_turn()

    async def _begin(self, session: AsyncSession) -> None:
        if not session.sync_session.autobegin:
            await session.begin()
        is_ours = isinstance(session.sync_session, StoreSession)
        with database_errors() if is_ours else callers.beginning(session):
            if not self.owned:
                await self._begin_adopted(session)
            if not is_ours:
                await session.connection()

    def _session(self, engine: AsyncEngine, *, for_caller: bool) -> AsyncSession:
        if for_caller and self.callers_sessions is not None:
            return callers.session_of(self.callers_sessions, engine)
        # A session used after its block would begin a transaction that nobody ends, so it is closed for good.
        return AsyncSession(
            engine,
            sync_session_class=StoreSession,
            expire_on_commit=False,
            autoflush=False,
            close_resets_only=False,
        )

    def make_sessions_with(self, maker: Maker) -> None:
        """Give the caller's code sessions that `maker` makes. Raises `ConfigurationError` if they cannot be ours."""
        callers.session_of(maker, self.writer)
        self.callers_sessions = maker

    def reading(self) -> AsyncSession:
        """Return a session for single statements, each of which sees one consistent snapshot."""
        self.enter()
        return ReadingSession(self)

    async def query(self, statement: Executable, parameters: Mapping[str, Any]) -> Sequence[Any]:
        """The rows of a query, values only, past SQLAlchemy unless somebody listens to it; only if `is_direct`."""
        compiled = self.statements[statement]
        arguments = compiled.arguments(parameters)
        if is_heard(self._pool.sync_engine):
            rows = await greenlet_spawn(heard.read, self.reader.sync_engine, compiled.sql, arguments)
        else:
            rows = await greenlet_spawn(self._rows_of, compiled.sql, arguments)
        return compiled.converted(rows)

    async def note_protected(self, namespace: str) -> None:
        """Let whoever writes to the same database know that the payloads of `namespace` are encrypted."""
        with database_errors(opening=True):
            async with self.reader.connect() as connection:
                await note_protected(self, connection, namespace)

    async def prepare_connections(self, prepare: Callable[[Any], object]) -> None:
        """Call `prepare` with each connection that is made from now on; to be called before others use the database."""
        self.enter()
        for engine in (self._pool, self._beside):
            event.listen(engine.sync_engine.pool, "connect", lambda connection, _: prepare(connection))
        await self._pool.dispose()  # those that were made before

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

    async def _urgently(self) -> AsyncEngine:
        """The writer that does not queue for a connection."""
        return self._urgent_writer

    # --- whose turn it is, in which task, loop and process --------------------------------------------------------

    async def _begin_turn(self, *, urgent: bool) -> Callable[[], None]:
        """Wait until this task may write, in order where one writes at a time. Returns what lets the next one write."""
        return _nothing

    def refuse_inside_a_unit(self) -> None:
        """Raise `ConfigurationError` in a task that is inside a unit: it would wait for itself."""
        if self._inside and asyncio.current_task() in self._inside:
            raise ConfigurationError(
                "this task is inside `async with store.begin() as uow` already; use that uow for this call"
            )

    def enter(self) -> None:
        """Begin a call. Raises `ConfigurationError` in another event loop than the one of the first call."""
        try:
            if self._loop is asyncio.get_running_loop() and self._pid == os.getpid():
                return  # as nearly always
        except RuntimeError:
            running_loop()  # which says so in words
        self.leave_the_parent_alone()
        if self._loop is None:
            self._loop = running_loop()
        require_own_loop(self._loop)

    def leave_the_parent_alone(self) -> None:
        """In a forked child, start a pool of its own and neither use nor close the parent's connections."""
        if self._pid == os.getpid():
            return
        self._let_go_of_the_parents()
        # Kept alive, not closed: closing would unregister the parent's sockets from the epoll that both share.
        self._left_behind += [self._pool.sync_engine.pool]
        self._pool.sync_engine.dispose(close=False)
        self._left_behind += [leave_connections(self._beside)]
        self._inside, self._pid, self._loop = set(), os.getpid(), None


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
        with self._database.reader.sync_engine.connect() as connection:
            return connection.execute(statement, params, execution_options=options)  # neither driver streams unasked


def pool_arguments(settings: Settings) -> dict[str, Any]:
    """Of `create_async_engine`, for an engine of ours."""
    # pool_size, not overflow: an overflow connection is closed on return, and opening one costs fifty round trips.
    return {
        "poolclass": PlacesPool,
        "pool_size": settings.pool_max,
        "max_overflow": 0,
        "pool_timeout": settings.pool_timeout.total_seconds(),
        "pool_recycle": 1800,
        "pool_use_lifo": True,
    }


@asynccontextmanager
async def committed(connection: AsyncConnection) -> AsyncIterator[None]:
    """A transaction of a migration, which commits at the end of the block."""
    async with connection.begin() as transaction:
        yield
        with database_errors(opening=True, committing=True):
            await transaction.commit()


def _nothing() -> None:
    pass
