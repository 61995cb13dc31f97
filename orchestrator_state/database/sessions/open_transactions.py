"""Open transactions: how many there are while the caller's code runs, and for how long a server bears one that idles.

A process that is frozen keeps the locks of its transaction. So Postgres ends one in which nothing has happened for
some time. Our own statements follow each other; where the caller's code runs, and the process lives, something is made
to happen. Of SQLite's locks nobody but their holder can let go.
"""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from contextvars import ContextVar
from datetime import timedelta
from enum import Enum, auto
from typing import Any, Final

from sqlalchemy import ColumnElement, func, literal, select
from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state.concurrency import settled
from orchestrator_state.database.errors import database_errors
from orchestrator_state.database.internals import begun_connections, greenlet_spawn, transaction_of
from orchestrator_state.settings import Settings

_IDLE_LIMIT: Final = "idle_in_transaction_session_timeout"
_PINGS_PER_LIMIT: Final = 4
_PATIENCE: Final = 5.0  # seconds; a server that has not answered a ping by then is not going to commit
_has_place: Final[ContextVar[bool]] = ContextVar("orchestrator_state_has_place", default=False)


def idle_limit(lease_term: timedelta) -> timedelta:
    """How long a transaction may idle: it has ended before the lease of its frozen process does.

    A lease was renewed within the last third of its term, and so has two thirds left.
    """
    return lease_term / 2


def writes_alone(session: AsyncSession) -> bool:
    """Whether nobody else can write, nor has begun to, while the transaction of `session` writes."""
    return session.get_bind().dialect.name == "sqlite"


class Idling(Enum):
    """For how long a transaction may idle, and who says so to Postgres."""

    BRIEFLY = auto()
    """It has our own statements alone."""
    WITH_ROOM = auto()
    """The caller's code runs in it."""
    AS_IT_SAYS = auto()
    """One of its own statements says so, at no cost."""


def setting_idle_limit(limit: timedelta) -> ColumnElement[str]:
    """Sets it on Postgres, until the transaction ends."""
    milliseconds = max(1, round(limit.total_seconds() * 1000))
    return func.set_config(_IDLE_LIMIT, str(milliseconds), literal(value=True))


async def wait_briefly_for_locks(session: AsyncSession, limit: timedelta) -> None:
    """Let the statements of this transaction give up on a lock after `limit`. SQLite has one lock, had by then."""
    if session.get_bind().dialect.name == "postgresql":
        milliseconds = max(1, round(limit.total_seconds() * 1000))
        with database_errors():
            await session.execute(select(func.set_config("lock_timeout", str(milliseconds), literal(value=True))))


def idling(
    session: AsyncSession, how: Idling, settings: Settings, *, is_limited: bool
) -> AbstractAsyncContextManager[None]:
    """Have Postgres end the transaction of `session` when its process is frozen.

    `is_limited`: as its connection is set up. A block of the caller's then gets more room, and only once it needs that:
    nearly all are over before.
    """
    has_to_be_said = how is (Idling.WITH_ROOM if is_limited else Idling.BRIEFLY)
    if not has_to_be_said or session.get_bind().dialect.name != "postgresql":
        return nullcontext()
    return _with_room(session, settings) if is_limited else _limited(session, settings)


@asynccontextmanager
async def _limited(session: AsyncSession, settings: Settings) -> AsyncIterator[None]:
    with database_errors():
        await session.execute(select(setting_idle_limit(settings.idle_limit)))
    yield


@asynccontextmanager
async def _with_room(session: AsyncSession, settings: Settings) -> AsyncIterator[None]:
    room = _Room(session, settings)
    try:
        yield
    finally:
        await room.end()


class Places:
    """Lets only so many of them be open at a time, so that there are connections left for everything else.

    The others wait as long as it takes: that their own process is busy is no fault of the database.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._start_anew()

    def _start_anew(self) -> None:
        self._pid = os.getpid()
        self._free = asyncio.Semaphore(self._number)

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Have a place. Inside one that has a place already, none is waited for: that might be for ever."""
        if _has_place.get():
            yield
            return
        if self._pid != os.getpid():
            self._start_anew()
        async with self._free:
            token = _has_place.set(True)
            try:
                yield
            finally:
                _has_place.reset(token)


@asynccontextmanager
async def kept_open(session: AsyncSession, idle_limit: timedelta) -> AsyncIterator[None]:
    """While the caller's code uses `session`, tell Postgres now and then that this process lives.

    Only between its statements: SQLAlchemy lets one at a time use the driver's connection.
    """
    if session.get_bind().dialect.name != "postgresql":
        yield
        return
    connection: Any = (await (await session.connection()).get_raw_connection()).dbapi_connection
    pings = _Pings(connection, idle_limit.total_seconds() / _PINGS_PER_LIMIT)
    try:
        yield
    finally:
        await pings.end()


class _NowAndThen(ABC):
    """Asks something of a connection in the pauses of whoever uses it, until the end."""

    def __init__(self, pause: float) -> None:
        self._pause = pause
        self._loop = asyncio.get_running_loop()
        self._under_way: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(pause, self._start)

    def _start(self) -> None:
        if self._under_way is None or self._under_way.done():
            self._under_way = asyncio.create_task(self._ask_once(), name="orchestrator_state ping")
        self._timer = self._loop.call_later(self._pause, self._start)

    async def end(self) -> None:
        """Wait for what is under way: its answer would be taken for that of the COMMIT."""
        self._timer.cancel()
        if self._under_way is not None and not self._under_way.done():
            try:
                await asyncio.wait({self._under_way}, timeout=_PATIENCE)
            finally:
                await settled(self._under_way)

    async def _ask_once(self) -> None:
        with suppress(Exception):  # whatever it is, the next statement meets it, and says so
            await greenlet_spawn(self._ask)

    @abstractmethod
    def _ask(self) -> None:
        """Called in a greenlet of the connection's."""


class _Pings(_NowAndThen):
    def __init__(self, connection: Any, pause: float) -> None:
        super().__init__(pause)
        self._connection = connection
        self._transaction = transaction_of(connection)  # no other one is ours to ping

    def _ask(self) -> None:
        if transaction_of(self._connection) is self._transaction:
            _send(self._connection, "SELECT 1")
        # Else it has ended: a statement would begin another, or disturb that of somebody else.


class _Room(_NowAndThen):
    """Gives a block of the caller's more room, if it is still open after a while. Until it has a transaction, again."""

    def __init__(self, session: AsyncSession, settings: Settings) -> None:
        super().__init__(settings.idle_limit.total_seconds() / _PINGS_PER_LIMIT)
        self._session = session.sync_session
        self._limit = str(round(settings.idle_limit_with_room.total_seconds() * 1000))

    def _ask(self) -> None:
        for connection in begun_connections(self._session):
            driver: Any = connection.connection.dbapi_connection
            if transaction_of(driver) is not None:
                _send(driver, "SELECT set_config($1, $2, true)", (_IDLE_LIMIT, self._limit))
                self._timer.cancel()


def _send(connection: Any, statement: str, parameters: tuple[str, ...] = ()) -> None:
    cursor = connection.cursor()
    try:
        cursor.execute(statement, parameters)
    finally:
        cursor.close()
