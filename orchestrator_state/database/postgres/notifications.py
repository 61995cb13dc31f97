"""LISTEN/NOTIFY: Postgres wakes workers when there is something to do, and who waits for runs when those are over.

Elsewhere, and behind PgBouncer, they poll. A notification is a hint: a lost one costs a poll interval.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from contextvars import Context
from functools import partial
from typing import Any, Final, NoReturn
from uuid import UUID

from sqlalchemy import Connection, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator_state import hooks
from orchestrator_state.concurrency import settled
from orchestrator_state.database.engine import Database

CHANNEL: Final = "orchestrator_state"
"""On which a namespace says that a run of it can be claimed."""
ENDS: Final = "orchestrator_state_ends"
"""On which the ids of runs that are over are said."""
Heard = Callable[[str | None], object]
"""Called with what was said; with None if it may be anything, since nobody has listened for a while."""


async def notify(connection: AsyncConnection, namespace: str) -> None:
    """Notify, with the commit of this transaction, that a run of `namespace` can be claimed."""
    await connection.execute(select(func.pg_notify(CHANNEL, namespace)))


async def notify_of_ends(connection: AsyncConnection, ids: Iterable[UUID]) -> None:
    """Notify that these runs are over; of no more than 200, since Postgres takes 8,000 characters."""
    await connection.execute(select(func.pg_notify(ENDS, " ".join(map(str, ids)))))


class ServerListener:
    """Listens on one connection of its own beside the pool's, for all of a store who want to hear, while somebody does.

    While that is broken, polling goes on.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._start_anew()

    def _start_anew(self) -> None:
        self._pid = os.getpid()
        self._hearers: dict[object, tuple[str, Heard]] = {}
        self._task: asyncio.Task[NoReturn] | None = None

    @asynccontextmanager
    async def hearing(self, channel: str, heard: Heard) -> AsyncIterator[None]:
        """Call `heard` for what is said on `channel` by any process, for the time of the block."""
        if self._pid != os.getpid():
            self._start_anew()  # in a forked child: the others are the parent's
        hearer = object()
        self._hearers[hearer] = channel, heard
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(
                self._listen(), name="orchestrator_state listener", context=Context()
            )
        else:
            heard(None)
        try:
            yield
        finally:
            self._hearers.pop(hearer, None)
            if not self._hearers and (task := self._task) is not None:
                self._task = None
                await settled(task)

    async def _listen(self) -> NoReturn:
        """Listen for ever; after each break tell all, for what was said meanwhile."""
        while True:
            try:
                async with self._database.reader.connect() as connection:
                    raw: Any = (await connection.get_raw_connection()).driver_connection
                    # So that it takes no place of the pool, and no later user of it hears what we listen to.
                    await connection.run_sync(Connection.detach)
                    broken = asyncio.Event()
                    raw.add_termination_listener(partial(_set, broken))
                    for channel in (CHANNEL, ENDS):
                        await raw.add_listener(channel, self._notified)
                    for channel in (CHANNEL, ENDS):
                        self._tell(channel, None)
                    await broken.wait()
            except Exception as error:  # noqa: BLE001 - it is a hint, and polling goes on
                hooks.logger.warning("cannot listen for announcements (%s); polling goes on", type(error).__name__)
            await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311 - spreads load, guards nothing

    def _notified(self, _connection: object, _pid: int, channel: str, said: object) -> None:
        self._tell(channel, str(said))

    def _tell(self, channel: str, said: str | None) -> None:
        for wanted, heard in list(self._hearers.values()):
            if wanted == channel:
                heard(said)


def _set(broken: asyncio.Event, _connection: object) -> None:
    broken.set()
