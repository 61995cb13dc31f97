"""Looks whether runs that somebody waits for are over: one look for all of them, now and then and when told to."""

from __future__ import annotations

import asyncio
import copy
import os
import random
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from orchestrator_state.database import hearing_of_ends
from orchestrator_state.domain import FINISHED
from orchestrator_state.errors import ConfigurationError
from orchestrator_state.execution.outcomes.ends import hear_of
from orchestrator_state.transactions import Transactions

_PAUSE: Final = 0.25  # seconds between two looks, jittered
_PAUSE_WHEN_TOLD: Final = 1.0  # the same, where a server tells of what is over
_SHORTEST_PAUSE: Final = 0.01  # also for who is told all the time
_REST: Final = 4  # times as long as the last look took, at least
_LONGEST_REST: Final = 5  # seconds


@dataclass(eq=False, slots=True)
class Waiter:
    """One call that waits for a run."""

    workflow_state_id: UUID
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None
    """Why it waits in vain."""

    async def wait(self) -> None:
        """Until it is worth while to look at the run. Raises what keeps that from being known."""
        await self.woken.wait()
        self.woken.clear()
        if self.error is not None:
            raise self.error


class EndWatch:
    """Wakes those whose run is over, or gone.

    It has a task while somebody waits, and holds no connection of the pool's between two looks.
    """

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self._closed = False
        self._start_anew()

    def _start_anew(self) -> None:
        self._pid = os.getpid()
        self._waiters: set[Waiter] = set()
        self._told = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    @contextmanager
    def waiting(self, workflow_state_id: UUID) -> Iterator[Waiter]:
        """Look on behalf of one call until the end of the block."""
        if self._closed:
            raise _store_closed()
        if self._pid != os.getpid():
            self._start_anew()  # in a forked child: the others are the parent's
        waiter = Waiter(workflow_state_id)
        forget = hear_of(workflow_state_id, waiter.woken.set)
        self._waiters.add(waiter)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(
                self._look_on(), name="orchestrator_state ends watch", context=Context()
            )
        try:
            yield waiter
        finally:
            forget()
            self._waiters.discard(waiter)
            if not self._waiters:
                self._end_task()

    def look_now(self) -> None:
        """Something may be over. Called often, it looks once."""
        self._told.set()

    async def close(self) -> None:
        """End all waits, and wait for the task to end."""
        self._closed = True
        if self._pid != os.getpid():
            return
        for waiter in self._waiters:
            waiter.error = _store_closed()
            waiter.woken.set()
        self._end_task()
        if self._ending:
            await asyncio.wait(set(self._ending))

    def _end_task(self) -> None:
        task, self._task = self._task, None
        if task is not None and not task.done():
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            task.cancel()

    async def _look_on(self) -> None:
        async with hearing_of_ends(self._transactions.database, self._heard) as is_told:
            pause, took = (_PAUSE_WHEN_TOLD if is_told else _PAUSE), 0.0
            while self._waiters:
                await asyncio.sleep(max(_SHORTEST_PAUSE, min(_REST * took, _LONGEST_REST)))
                await self._pause(pause)
                waiters = list(self._waiters)
                began = time.monotonic()
                try:
                    statuses = await self._look({waiter.workflow_state_id for waiter in waiters})
                except Exception as error:  # noqa: BLE001 - whatever it is, it is the callers'
                    _fail(waiters, error)
                    continue
                took = time.monotonic() - began
                for waiter in waiters:
                    if statuses.get(waiter.workflow_state_id) in (None, *FINISHED):
                        waiter.woken.set()

    async def _look(self, ids: Collection[UUID]) -> dict[UUID, str]:
        return await self._transactions.read(lambda uow: uow.waits.list_statuses(ids))

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds * random.uniform(0.8, 1.2)):  # noqa: S311 - spreads load, guards nothing
                await self._told.wait()
        self._told.clear()

    def _heard(self, said: str | None) -> None:
        """Of what ended in some process."""
        ended = None if said is None else set(said.split())
        if ended is None or any(str(waiter.workflow_state_id) in ended for waiter in self._waiters):
            self.look_now()


def _fail(waiters: Collection[Waiter], error: Exception) -> None:
    for waiter in waiters:  # each has its own, with its own traceback
        waiter.error = own = copy.copy(error)
        own.__dict__.update(error.__dict__)
        waiter.woken.set()


def _store_closed() -> ConfigurationError:
    return ConfigurationError("the store is closed; open another")
