"""Who is told that a run is over: at once whoever waits for it in this process, soon after other processes.

The others are told by Postgres, of all runs that ended here within a moment, and not in the transaction of an end: a
transaction that notifies commits alone, so that the ends of runs would wait for each other. Being told is a hint, worth
a look; what nobody was told of is found by a poll.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from orchestrator_state import hooks
from orchestrator_state.database import Database, tell_of_ends

_GATHER: Final = 0.02  # seconds in which ends are gathered, to be told together
_AT_ONCE: Final = 200
_MOST_WAITING: Final = 10_000
"""Ids: what ends while the database is away is found by polls."""
_TO_TELL: Final = 1.0  # seconds for a store that closes


@dataclass(eq=False, frozen=True, slots=True)
class Hearer:
    """Who waits for a run, in whatever event loop of this process."""

    loop: asyncio.AbstractEventLoop
    tell: Callable[[], object]
    pid: int


_hearers: Final[dict[UUID, set[Hearer]]] = {}


def hear_of(workflow_state_id: UUID, tell: Callable[[], object]) -> Callable[[], None]:
    """Call `tell` in this event loop when a run ends in this process. Returns what ends that."""
    hearer = Hearer(asyncio.get_running_loop(), tell, os.getpid())
    _hearers.setdefault(workflow_state_id, set()).add(hearer)

    def forget() -> None:
        hearers = _hearers.get(workflow_state_id)
        if hearers is not None:
            hearers.discard(hearer)
            if not hearers:
                _hearers.pop(workflow_state_id, None)

    return forget


def _tell_here(workflow_state_id: UUID) -> None:
    pid = os.getpid()
    for hearer in list(_hearers.get(workflow_state_id, ())):
        if hearer.pid == pid:  # not the parent's, in a forked child: its loop has a socket that both share
            with suppress(RuntimeError):  # its loop is closed
                hearer.loop.call_soon_threadsafe(hearer.tell)


class Ends:
    """Tells of the runs that end in one store. It has a task only while there is somebody to tell."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._start_anew()

    def _start_anew(self) -> None:
        self._pid = os.getpid()
        self._ids: list[UUID] = []
        self._task: asyncio.Task[None] | None = None

    def tell(self, workflow_state_id: UUID) -> None:
        """This run is over, and that has committed."""
        _tell_here(workflow_state_id)
        if self._database.listener is None:
            return
        if self._pid != os.getpid():
            self._start_anew()
        if len(self._ids) < _MOST_WAITING:
            self._ids.append(workflow_state_id)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(
                self._tell_others(), name="orchestrator_state ends", context=Context()
            )

    async def close(self) -> None:
        """Tell of what has ended, if that is quickly done."""
        if self._pid == os.getpid() and self._task is not None and not self._task.done():
            await asyncio.wait({self._task}, timeout=_TO_TELL)
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _tell_others(self) -> None:
        while self._ids:
            await asyncio.sleep(_GATHER)
            ids, self._ids = self._ids[:_AT_ONCE], self._ids[_AT_ONCE:]
            try:
                await tell_of_ends(self._database, ids)
            except Exception as error:  # noqa: BLE001 - it is a hint, and who waits polls
                hooks.logger.info("other processes are not told of runs that ended (%s)", type(error).__name__)
