"""Transactions that are open while the caller's code runs: how many there are, and for how long a server bears them.

A process that is frozen keeps the locks of its transaction. So Postgres ends one in which nothing has happened for
some time, and as long as the process lives, something does. Of SQLite's locks nobody but their holder can let go.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.util import greenlet_spawn

from orchestrator_state.uninterrupted import settled

_PINGS_PER_LIMIT: Final = 4
_PATIENCE: Final = 5.0  # seconds; a server that has not answered a ping by then is not going to commit
_has_place: Final[ContextVar[bool]] = ContextVar("orchestrator_state_has_place", default=False)


def idle_limit(lease_term: timedelta) -> timedelta:
    """How long a transaction may idle: it has ended before the lease of its frozen process does.

    A lease was renewed within the last third of its term, and so has two thirds left.
    """
    return lease_term / 2


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


class _Pings:
    def __init__(self, connection: Any, pause: float) -> None:
        self._connection = connection
        self._pause = pause
        self._loop = asyncio.get_running_loop()
        self._under_way: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(pause, self._start)

    def _start(self) -> None:
        if self._under_way is None or self._under_way.done():
            self._under_way = asyncio.create_task(_ping(self._connection), name="orchestrator_state ping")
        self._timer = self._loop.call_later(self._pause, self._start)

    async def end(self) -> None:
        """Wait for what is under way: its answer would be taken for that of the COMMIT."""
        self._timer.cancel()
        if self._under_way is not None and not self._under_way.done():
            try:
                await asyncio.wait({self._under_way}, timeout=_PATIENCE)
            finally:
                await settled(self._under_way)


async def _ping(connection: Any) -> None:
    def ask() -> None:
        if connection._transaction is None:  # noqa: SLF001 - it has ended, and a statement would begin another
            return
        cursor = connection.cursor()
        try:
            cursor.execute("SELECT 1")
        finally:
            cursor.close()

    with suppress(Exception):  # whatever it is, the next statement meets it, and says so
        await greenlet_spawn(ask)
