"""Who is told that there may be a run to claim: the workers of all processes by Postgres, those of this one by us.

Postgres tells with the commit of the transaction (`postgres/notifications.py`). On SQLite, and behind PgBouncer, nobody
tells other processes, which poll; the workers of this one are told once the session has committed, whatever thread and
event loop they are in. Being told is a hint: it is worth a look, and a lost one costs a poll interval.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from orchestrator_state.database.engine import Database
from orchestrator_state.database.postgres.notifications import CHANNEL, ENDS, Heard, notify, notify_of_ends
from orchestrator_state.database.sessions.session import once_committed
from orchestrator_state.database.urls import path_of


@dataclass(frozen=True, slots=True)
class _Announcement:
    """A run of `namespace` can be claimed, in the SQLite file at `path`, or wherever, if that is not known."""

    namespace: str
    path: str | None

    def __call__(self) -> None:
        for hearer in list(_hearers.values()):  # a list, made at once: other threads begin and end to hear meanwhile
            if hearer.namespace == self.namespace and (None in (hearer.path, self.path) or hearer.path == self.path):
                hearer.tell()


@dataclass(frozen=True, slots=True)
class _Hearer:
    namespace: str
    path: str | None
    wake: Callable[[], object]
    loop: asyncio.AbstractEventLoop
    pid: int

    def tell(self) -> None:
        if self.pid != os.getpid():
            return  # the parent's, in a forked child: its loop has a socket that both share
        with suppress(RuntimeError):  # its loop is closed
            self.loop.call_soon_threadsafe(self.wake)


_hearers: Final[dict[int, _Hearer]] = {}


async def announce(session: AsyncSession, connection: AsyncConnection, namespace: str) -> None:
    """Tell, with the commit of this transaction, that a run of `namespace` can be claimed."""
    if connection.dialect.name == "postgresql" and not session.sync_session.twophase:  # which Postgres would refuse
        await notify(connection, namespace)
    once_committed(session, _Announcement(namespace, path_of(connection.sync_engine)))


@asynccontextmanager
async def listening(database: Database, namespace: str, wake: Callable[[], object]) -> AsyncIterator[None]:
    """Call `wake` in this event loop for each announcement in `namespace`, as far as somebody tells of them."""
    database.enter()
    if database.listener is not None:
        async with database.listener.hearing(CHANNEL, lambda said: wake() if said in (None, namespace) else None):
            yield
        return
    path = path_of(database.writer.sync_engine)
    hearer = _Hearer(namespace, path, wake, asyncio.get_running_loop(), os.getpid())
    _hearers[id(hearer)] = hearer
    try:
        yield
    finally:
        del _hearers[id(hearer)]


@asynccontextmanager
async def hearing_of_ends(database: Database, heard: Heard) -> AsyncIterator[bool]:
    """Call `heard` with the ids of runs that are over, as far as a server tells of them: yields whether one does."""
    if database.listener is None:
        yield False
        return
    async with database.listener.hearing(ENDS, heard):
        yield True


async def tell_of_ends(database: Database, ids: Sequence[UUID]) -> None:
    """Tell other processes that these runs are over, at most 200; only where `database.listener` says that we can."""
    async with database.reader.connect() as connection:
        await notify_of_ends(connection, ids)
