"""The leases that this process holds: one owner id, one heartbeat for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Collection, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Protocol
from uuid import UUID, uuid4

from orchestrator_state import hooks
from orchestrator_state.errors import LeaseLost
from orchestrator_state.processes import ProcessIdentity
from orchestrator_state.repositories import chunks
from orchestrator_state.run_records import Lease, Owner
from orchestrator_state.run_repository import lease_lost
from orchestrator_state.transactions import Transactions

_RENEWALS_PER_TERM: Final = 3
_TRIES_PER_PAUSE: Final = 5  # after a renewal that failed


class Leaseholder(Protocol):
    """A run as the keeper of its lease sees it."""

    @property
    def lease(self) -> Lease: ...

    def renewed(self, request: str | None, now: datetime) -> None:
        """The lease goes on. `now` is the database's time, and somebody may have left a request."""

    def lose(self, error: LeaseLost) -> None:
        """The lease is gone: stop, and write no more."""


class LeaseKeeper:
    """Renews the leases of the runs under way here, and tells those that lost theirs.

    The heartbeat is a task that lives while there is a lease to renew. It has a connection of its own, and on SQLite
    the next turn to write. A lease that could not be renewed for a whole term, by the monotonic clock, counts as lost:
    another worker may own the run by now. Not on SQLite: what keeps us from writing keeps others from taking over, so
    there the answer of the next renewal counts.
    """

    def __init__(self, transactions: Transactions, term: timedelta) -> None:
        self._transactions = transactions
        self._has_one_writer = transactions.database.has_one_writer
        self._term = term
        self._term_seconds = term.total_seconds()
        self._owner = Owner(id=uuid4(), process=str(ProcessIdentity.mine()), term=term)
        self._pid = os.getpid()
        self._held: dict[UUID, Leaseholder] = {}
        self._renewed_at: dict[UUID, float] = {}
        self._claims: list[set[UUID]] = []
        self._heartbeat: asyncio.Task[None] | None = None
        self._renewal: asyncio.Task[bool] | None = None
        self._stragglers: asyncio.Task[None] | None = None

    @property
    def owner(self) -> Owner:
        if self._pid != os.getpid():  # a forked child is a worker of its own
            self._owner = Owner(id=uuid4(), process=str(ProcessIdentity.mine()), term=self._term)
            self._pid, self._held, self._claims = os.getpid(), {}, []
            self._heartbeat = self._renewal = self._stragglers = None
        return self._owner

    @contextlib.contextmanager
    def claiming(self) -> Iterator[set[UUID]]:
        """Tell of a claim: what is put into the set before it commits is ours, held or not, until the block ends."""
        claim: set[UUID] = set()
        self._claims.append(claim)
        try:
            yield claim
        finally:
            self._claims = [other for other in self._claims if other is not claim]

    def has(self, workflow_state_id: UUID) -> bool:
        """Whether that run is under way here. A lease of ours on any other is nobody's."""
        return workflow_state_id in self._held or any(workflow_state_id in claim for claim in self._claims)

    def hold(self, run: Leaseholder) -> None:
        self._held[run.lease.workflow_state_id] = run
        self._renewed_at[run.lease.workflow_state_id] = time.monotonic()
        if self._heartbeat is None or self._heartbeat.done() or self._heartbeat.cancelling():
            self._heartbeat = asyncio.create_task(self._beat(), name="orchestrator_state heartbeat")

    def drop(self, run: Leaseholder) -> None:
        """Stop renewing. The lease itself is released by whoever ends the run."""
        self._forget(run)
        if not self._held:
            self._end_heartbeat()

    async def close(self) -> None:
        """Wait for the heartbeat to end."""
        if self._pid != os.getpid():
            return  # the parent's
        ending = self._end_heartbeat()
        if ending:
            await asyncio.wait(ending)

    def _end_heartbeat(self) -> set[asyncio.Task[Any]]:
        tasks: tuple[asyncio.Task[Any] | None, ...] = (self._heartbeat, self._renewal, self._stragglers)
        ending = {task for task in tasks if task is not None and not task.done()}
        for task in ending:
            if not task.cancelling():  # a second cancellation would hit the clean-up after the first
                task.cancel()
        return ending

    def is_fresh(self, lease: Lease) -> bool:
        """Before new work: whether it was renewed within a term. Not, if this process was frozen past that."""
        return time.monotonic() - self._renewed_at.get(lease.workflow_state_id, 0.0) < self._term_seconds

    async def confirm(self, lease: Lease) -> None:
        """Ask the database for one that is not fresh. Raises `LeaseLost`."""
        await self._renew_among([lease.workflow_state_id], wait=True)
        if lease.workflow_state_id not in self._held:
            raise lease_lost(lease)

    async def _beat(self) -> None:
        pause = self._term_seconds / _RENEWALS_PER_TERM
        is_answered = True
        while self._held:
            await asyncio.sleep(pause if is_answered else pause / _TRIES_PER_PAUSE)
            if self._renewal is None or self._renewal.done():
                self._renewal = asyncio.create_task(_trying(self._renew()), name="orchestrator_state renewal")
            await asyncio.wait({self._renewal}, timeout=max(pause, self._time_left()))
            is_answered = self._renewal.done() and self._renewal.result()
            self._give_up_overdue()

    async def _renew(self) -> None:
        """Renew all leases, a short transaction at a time.

        A row that somebody has locked is waited for beside the heartbeat: the other leases must not end meanwhile.
        """
        # A SQLite connection that waits for a lock cannot be had back before its time; one to a server may be dead.
        limit = None if self._has_one_writer else self._term_seconds / _RENEWALS_PER_TERM
        async with asyncio.timeout(limit):
            await self._renew_all()

    async def _renew_all(self) -> None:
        passed_over: list[UUID] = []
        for chunk in chunks(list(self._held)):
            passed_over += await self._renew_among(chunk, wait=False)
        if passed_over and (self._stragglers is None or self._stragglers.done()):
            waiting = self._renew_one_by_one(passed_over)
            self._stragglers = asyncio.create_task(waiting, name="orchestrator_state late renewal")

    async def _renew_one_by_one(self, ids: Sequence[UUID]) -> None:
        for workflow_state_id in ids:
            await _trying(self._renew_among([workflow_state_id], wait=True))

    async def _renew_among(self, ids: Collection[UUID], *, wait: bool) -> list[UUID]:
        """Renew those of `ids` that are held. Without `wait`, returns those that were not: locked, or lost."""
        asked = {key: run for key in ids if (run := self._held.get(key)) is not None}
        at = time.monotonic()
        renewed = await self._transactions.write(lambda uow: uow.runs.renew(self.owner, asked, wait=wait), urgent=True)
        for workflow_state_id, run in asked.items():
            if self._held.get(workflow_state_id) is not run:
                continue
            renewal = renewed.get(workflow_state_id)
            if renewal is not None and renewal.token == run.lease.token:
                self._renewed_at[workflow_state_id] = at
                run.renewed(renewal.request, renewal.now)
            elif wait or renewal is not None:
                self._lose(run)
        return [workflow_state_id for workflow_state_id in asked if workflow_state_id not in renewed]

    def _time_left(self) -> float:
        """Seconds until the first lease is overdue."""
        return self._term_seconds - (time.monotonic() - min(self._renewed_at.values(), default=0.0))

    def _give_up_overdue(self) -> None:
        if self._has_one_writer:
            return
        now = time.monotonic()
        for workflow_state_id, run in list(self._held.items()):
            if now - self._renewed_at[workflow_state_id] >= self._term_seconds:
                self._lose(run)

    def _lose(self, run: Leaseholder) -> None:
        self._forget(run)
        run.lose(lease_lost(run.lease))

    def _forget(self, run: Leaseholder) -> None:
        """Unless the run was claimed here anew: then it is the new holder's."""
        if self._held.get(run.lease.workflow_state_id) is run:
            del self._held[run.lease.workflow_state_id], self._renewed_at[run.lease.workflow_state_id]


async def _trying(renewal: Awaitable[object]) -> bool:
    """Whether it succeeded."""
    try:
        await renewal
    except Exception as error:  # noqa: BLE001 - whatever it is, the next renewal may succeed within the term
        hooks.logger.warning("leases could not be renewed (%s)", type(error).__name__)
        return False
    return True
