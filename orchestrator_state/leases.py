"""The leases that this process holds: one owner id, one heartbeat for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from datetime import timedelta
from typing import Final, Protocol
from uuid import UUID, uuid4

from orchestrator_state.errors import LeaseLost, StoreUnavailable
from orchestrator_state.processes import ProcessIdentity
from orchestrator_state.run_repository import Lease, Owner, lease_lost
from orchestrator_state.transactions import Transactions

_RENEWALS_PER_TERM: Final = 3


class Leaseholder(Protocol):
    """A run as the keeper of its lease sees it."""

    @property
    def lease(self) -> Lease: ...

    def notice(self, request: str | None) -> None:
        """Somebody left a request."""

    def lose(self, error: LeaseLost) -> None:
        """The lease is gone: stop, and write no more."""


class LeaseKeeper:
    """Renews the leases of the runs under way here, and tells those that lost theirs.

    The heartbeat is a task that lives while there is a lease to renew. A lease that could not be renewed for a whole
    term, by the monotonic clock, counts as lost: another worker may own the run by now.
    """

    def __init__(self, transactions: Transactions, term: timedelta) -> None:
        self._transactions = transactions
        self._term = term
        self._owner = Owner(id=uuid4(), process=str(ProcessIdentity.mine()), term=term)
        self._pid = os.getpid()
        self._held: dict[UUID, Leaseholder] = {}
        self._renewed_at: dict[UUID, float] = {}
        self._heartbeat: asyncio.Task[None] | None = None

    @property
    def owner(self) -> Owner:
        if self._pid != os.getpid():  # a forked child is a worker of its own
            self._owner = Owner(id=uuid4(), process=str(ProcessIdentity.mine()), term=self._term)
            self._pid, self._held, self._heartbeat = os.getpid(), {}, None
        return self._owner

    @property
    def held(self) -> frozenset[UUID]:
        return frozenset(self._held)

    def hold(self, run: Leaseholder) -> None:
        self._held[run.lease.workflow_state_id] = run
        self._renewed_at[run.lease.workflow_state_id] = time.monotonic()
        if self._heartbeat is None or self._heartbeat.done() or self._heartbeat.cancelling():
            self._heartbeat = asyncio.create_task(self._beat(), name="orchestrator_state heartbeat")

    def drop(self, run: Leaseholder) -> None:
        """Stop renewing. The lease itself is released by whoever ends the run."""
        self._held.pop(run.lease.workflow_state_id, None)
        self._renewed_at.pop(run.lease.workflow_state_id, None)
        if not self._held and self._heartbeat is not None:
            self._heartbeat.cancel()

    async def close(self) -> None:
        """Wait for the heartbeat to end."""
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            await asyncio.wait({self._heartbeat})

    async def confirm(self, lease: Lease) -> None:
        """Before new work: if this process was frozen past the term, ask the database first. Raises `LeaseLost`."""
        age = time.monotonic() - self._renewed_at.get(lease.workflow_state_id, 0.0)
        if age >= self._term.total_seconds():
            await self._renew()
            if lease.workflow_state_id not in self._held:
                raise lease_lost(lease)

    async def _beat(self) -> None:
        pause = self._term.total_seconds() / _RENEWALS_PER_TERM
        while self._held:
            await asyncio.sleep(pause)
            with contextlib.suppress(StoreUnavailable):
                await self._renew()
            self._give_up_overdue()

    async def _renew(self) -> None:
        asked = dict(self._held)
        at = time.monotonic()
        renewed = await self._transactions.write(lambda uow: uow.runs.renew(self.owner, asked))
        for workflow_state_id, run in asked.items():
            if self._held.get(workflow_state_id) is not run:
                continue
            token, request = renewed.get(workflow_state_id, (None, None))
            if token == run.lease.token:
                self._renewed_at[workflow_state_id] = at
                run.notice(request)
            else:
                self._lose(run)

    def _give_up_overdue(self) -> None:
        now = time.monotonic()
        for workflow_state_id, run in list(self._held.items()):
            if now - self._renewed_at[workflow_state_id] >= self._term.total_seconds():
                self._lose(run)

    def _lose(self, run: Leaseholder) -> None:
        self._held.pop(run.lease.workflow_state_id, None)
        self._renewed_at.pop(run.lease.workflow_state_id, None)
        run.lose(lease_lost(run.lease))
