"""Looks for what the waiting runs of a process wait for: one query for all of them, now and then and when told to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Iterable, Iterator
from contextvars import Context
from dataclasses import dataclass, field
from typing import Final, Protocol
from uuid import UUID

from orchestrator_state import hooks
from orchestrator_state.concurrency import ProcessIdentity
from orchestrator_state.records import Lease, Owner
from orchestrator_state.repositories.runs import Awaited, News
from orchestrator_state.transactions import StoreUnit, Transactions

_PAUSE: Final = 0.25  # seconds between two looks, jittered
_SHORTEST_PAUSE: Final = 0.01  # also for those who were told that there is something
_REST: Final = 4  # times as long as the last look took, at least
_LONGEST_REST: Final = 5  # seconds: one look may have waited for a server that stood still


class Leases(Protocol):
    """The leases that this process holds."""

    @property
    def owner(self) -> Owner:
        """Whose they are."""

    def has(self, workflow_state_id: UUID) -> bool:
        """Whether that run is under way here."""

    def is_fresh(self, lease: Lease) -> bool:
        """Whether it was renewed within a term."""

    async def confirm(self, lease: Lease) -> None:
        """Ask the database for one that is not fresh. Raises `LeaseLost`."""


class Stoppable(Protocol):
    """What ends a run from outside."""

    @property
    def reason(self) -> Exception | None: ...

    def notice(self, request: str | None) -> None:
        """Somebody left a request."""


@dataclass(eq=False, slots=True, kw_only=True)
class Watch:
    """What one branch of a run waits for, besides the time."""

    workflow_state_id: UUID
    switch: Stoppable
    signals: frozenset[str] = frozenset()
    child: UUID | None = None
    is_question: bool = False
    """Not a wait: whether `child`, which may not have been started yet, is one to wait for. One look answers it."""
    is_met: bool = False
    woken: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, news: News) -> None:
        run = self.workflow_state_id
        if (request := news.requests.get(run)) is not None:
            self.switch.notice(request)
        self.is_met = (
            self.switch.reason is not None
            or request is not None
            or any((run, name) in news.signals for name in self.signals)
            or self.child in news.ready
        )
        if self.is_met or self.is_question:
            self.woken.set()


class Lookout:
    """Wakes the branches for which something has come.

    It has a task while there is a branch that waits, and holds no connection between two looks. A branch that is woken
    looks for itself: being woken for nothing costs it a query, and what is missed is found with the next look.
    """

    def __init__(self, transactions: Transactions, leases: Leases) -> None:
        self._transactions = transactions
        self._leases = leases
        self._start_anew()

    def _start_anew(self) -> None:
        self._pid = os.getpid()
        self._watches: set[Watch] = set()
        self._told = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def watching(self, watch: Watch) -> Iterator[None]:
        """Look on behalf of `watch` until the end of the block."""
        if self._pid != os.getpid():
            self._start_anew()  # in a forked child: the others are the parent's
        self._watches.add(watch)
        if self._task is None or self._task.done():
            # In a context of its own: it is not one of the run's tasks that happens to need it first.
            self._task = asyncio.get_running_loop().create_task(
                self._look_on(), name="orchestrator_state lookout", context=Context()
            )
        if watch.is_question:
            self.look_now()
        try:
            yield
        finally:
            self._watches.discard(watch)

    def look_now(self) -> None:
        """Something may have come. Called often, it looks once."""
        self._told.set()

    async def close(self) -> None:
        """Wait for the task to end."""
        if self._pid == os.getpid() and self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _look_on(self) -> None:
        self._took = 0.0
        while self._watches:
            await asyncio.sleep(max(_SHORTEST_PAUSE, min(_REST * self._took, _LONGEST_REST)))
            await self._pause()
            watches = list(self._watches)
            try:
                news = await self._look(watches)
            except Exception as error:  # noqa: BLE001 - the database may be away; what comes is there when it is back
                hooks.logger.warning("cannot look for what runs wait for (%s)", type(error).__name__)
                news = News()
            for watch in watches:
                watch.tell(news)

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PAUSE * random.uniform(0.8, 1.2)):  # noqa: S311 - spreads load, guards nothing
                await self._told.wait()
        self._told.clear()

    async def _ask(self, uow: StoreUnit, awaited: Awaited) -> News:
        """One attempt. Those before it that failed are no sign of a database that has much to do."""
        began = time.monotonic()
        news = await uow.waits.look(awaited)
        self._took = time.monotonic() - began
        return news

    async def _look(self, watches: Iterable[Watch]) -> News:
        children = {watch.child for watch in watches if watch.child is not None}
        awaited = Awaited(
            runs={watch.workflow_state_id for watch in watches},
            signalled={watch.workflow_state_id for watch in watches if watch.signals},
            names=frozenset[str]().union(*(watch.signals for watch in watches)),
            children=children,
            idle=[child for child in children if not self._leases.has(child)],
            owner=self._leases.owner.id,
        )
        news = await self._transactions.read(lambda uow: self._ask(uow, awaited))
        identities = (ProcessIdentity.parse(process) for process in news.owners)
        if any(identity is not None and identity.is_dead() for identity in identities):
            news.ready |= children  # each may be the dead one's, and is taken over at once
        # So is what a claim of ours that was cut off has left. One that is under way has told the keeper by now.
        news.ready |= {child for child in news.claimed if not self._leases.has(child)}
        news.ready |= children - news.known  # to be started, also where somebody has deleted it
        return news
