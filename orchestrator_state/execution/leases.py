"""The leases that this process holds: one owner id, one heartbeat for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, Protocol
from uuid import UUID, uuid4

from orchestrator_state import hooks
from orchestrator_state.concurrency import ProcessIdentity, uninterrupted
from orchestrator_state.database import elapsed
from orchestrator_state.errors import OrchestratorStateError, StoreUnavailable
from orchestrator_state.records import Lease, Owner, Renewal
from orchestrator_state.repositories import chunks
from orchestrator_state.repositories.runs import lease_lost
from orchestrator_state.transactions import StoreUnit, Transactions, Work

_RENEWALS_PER_TERM: Final = 3
_TRIES_PER_PAUSE: Final = 5  # after a renewal that failed
_TO_STOP: Final = 1.0  # seconds for the runs of a store that closes


class Leaseholder(Protocol):
    """A run as the keeper of its lease sees it."""

    @property
    def lease(self) -> Lease: ...

    def renewed(self, request: str | None, now: datetime, asked_at: float) -> None:
        """The lease goes on. `now` is the database's time, as `asked_at`, and somebody may have left a request."""

    def skip(self, duration: timedelta) -> None:
        """The time has jumped by so much, and `renewed` has told of it."""

    @property
    def is_resting(self) -> bool:
        """Whether all that it has to do is to wait, some of it between two calls of a step."""

    def stop(self, reason: OrchestratorStateError) -> None:
        """The lease is gone, or is to be let go of: stop, and write no more."""


class Claim(set[UUID]):
    """The runs that a claim takes, when it began to, and the run that it has just created, if any."""

    began_at = 0.0
    created: UUID | None = None

    def __init__(self, supersede: Callable[[Collection[UUID]], None]) -> None:
        super().__init__()
        self._supersede = supersede

    def take(self, ids: Collection[UUID]) -> None:
        """The transaction, which has still to commit, claims these runs."""
        self.update(ids)
        self._supersede(ids)

    def begin(self) -> None:
        """Before the first statement of each attempt."""
        self.began_at = elapsed()
        self.created = None


class LeaseKeeper:
    """Renews the leases of the runs under way here, and tells those that lost theirs. Times are by `elapsed`.

    The heartbeat is a task that lives while there is a lease to renew. It has a connection of its own, and on SQLite
    the next turn to write. A lease that could not be renewed for a whole term counts as lost: another worker may own
    the run by now. Not on SQLite: what keeps us from writing keeps others from taking over, so there the answer of the
    next renewal counts.
    """

    def __init__(self, transactions: Transactions, term: timedelta) -> None:
        self._transactions = transactions
        self._renewals_may_hang = transactions.database.renewals_may_hang
        self._term = term
        self._term_seconds = term.total_seconds()
        self._owner = Owner(id=uuid4(), process=str(ProcessIdentity.mine()), term=term)
        self._pid = os.getpid()
        self._held: dict[UUID, Leaseholder] = {}
        self._renewed_at: dict[UUID, float] = {}
        self._claims: list[Claim] = []
        self._all_dropped = asyncio.Event()
        self._is_stopping = False
        self._heartbeat: asyncio.Task[None] | None = None
        self._renewal: asyncio.Task[bool] | None = None
        self._stragglers: asyncio.Task[None] | None = None

    @property
    def owner(self) -> Owner:
        if self._pid != os.getpid():  # a forked child is a worker of its own
            self._owner = Owner(id=uuid4(), process=str(ProcessIdentity.mine()), term=self._term)
            self._pid, self._held, self._claims = os.getpid(), {}, []
            self._all_dropped, self._is_stopping = asyncio.Event(), False
            self._heartbeat = self._renewal = self._stragglers = None
        return self._owner

    @contextlib.asynccontextmanager
    async def claiming(self) -> AsyncIterator[Claim]:
        """Tell of a claim: what is put into the set before it commits is ours, held or not, until the block ends.

        If the block is cancelled, or does not know whether it took effect, what was claimed all the same, and is not
        held, is let go of: nobody may come back to it here.
        """
        claim = Claim(self._supersede)
        self._claims.append(claim)
        try:
            yield claim
        except asyncio.CancelledError:
            await self._let_go(claim, patience=self._term / _RENEWALS_PER_TERM)
            raise
        except StoreUnavailable as error:
            if error.outcome_unknown:
                await self._let_go(claim, patience=timedelta())  # who was told to give up has waited for long
            raise
        finally:
            self._claims = [other for other in self._claims if other is not claim]

    async def _let_go(self, claim: Collection[UUID], *, patience: timedelta) -> None:
        """Best effort: a lease that is not released ends by itself."""

        async def release(uow: StoreUnit) -> None:
            for run in await uow.claims.list_claimed(claim, self.owner):
                if run.id not in self._held:
                    await uow.runs.release(run.lease)

        if claim:
            letting_go = partial(self._transactions.write, release, patience=patience)
            await uninterrupted(_trying(letting_go, "what was claimed could not be let go of"))

    def has(self, workflow_state_id: UUID) -> bool:
        """Whether that run is under way here. A lease of ours on any other is nobody's."""
        return workflow_state_id in self._held or any(workflow_state_id in claim for claim in self._claims)

    @property
    def resting(self) -> int:
        """How many runs under way here have nothing to do for now."""
        return sum(run.is_resting for run in self._held.values())

    def hold(self, run: Leaseholder) -> float:
        """Renew the lease of a run that was just claimed, until it is dropped. Returns when the claim began."""
        self._held[run.lease.workflow_state_id] = run
        # Not as of now: this process may have been frozen since the database counted the lease from.
        claims = (claim.began_at for claim in self._claims if run.lease.workflow_state_id in claim)
        self._renewed_at[run.lease.workflow_state_id] = began_at = max(claims, default=elapsed())
        for claim in self._claims:
            claim.discard(run.lease.workflow_state_id)
        if self._heartbeat is None or self._heartbeat.done() or self._heartbeat.cancelling():
            self._heartbeat = asyncio.create_task(self._beat(), name="orchestrator_state heartbeat")
        if self._is_stopping:
            run.stop(_store_closed())
        return began_at

    def holders_of(self, ids: Iterable[UUID]) -> list[Leaseholder]:
        """Those of these runs that are under way here."""
        if self._pid != os.getpid():
            return []  # they are the parent's
        return [run for workflow_state_id in ids if (run := self._held.get(workflow_state_id)) is not None]

    def revoke(self, runs: Iterable[Leaseholder]) -> None:
        """Stop runs whose leases somebody has taken away, at once: the heartbeat would learn of it later."""
        for run in runs:
            run.lease.revoke()
            self._lose(run)

    def _supersede(self, ids: Collection[UUID]) -> None:
        """Runs that are claimed anew have been lost here before.

        Their tokens need not say so: a run that was deleted under the hands of its owner, and started again, comes to
        have the same owner, token and version.
        """
        self.revoke(self.holders_of(ids))

    def drop(self, run: Leaseholder) -> None:
        """Stop renewing. The lease itself is released by whoever ends the run."""
        self._forget(run)
        if not self._held:
            self._all_dropped.set()
            self._end_heartbeat()

    async def stop_runs(self) -> None:
        """Stop the runs under way, and those to come, since their store closes; they have a moment to let go of leases.

        Else a handler that waits would wait for ever, and another would see an error of its closed store's, and take it
        for its own.
        """
        if self._pid != os.getpid():
            return  # the parent's
        self._is_stopping = True
        for run in list(self._held.values()):
            run.stop(_store_closed())
        if self._held:
            self._all_dropped.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TO_STOP):
                    await self._all_dropped.wait()

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
        renewed_at = self._renewed_at.get(lease.workflow_state_id)
        return renewed_at is not None and elapsed() - renewed_at < self._term_seconds

    async def confirm(self, lease: Lease) -> None:
        """Ask the database for one that is not fresh. Raises `LeaseLost`."""
        await self._renew_among([lease.workflow_state_id], wait=True)
        if lease.workflow_state_id not in self._held:
            raise lease_lost(lease)

    async def jump(self, move: Work[None], duration: timedelta) -> None:
        """Let the database's clock jump by `duration` with `move`, in one transaction with the renewal of all leases.

        So a jump ends the leases of those who are gone, and no other. `move` must bear being done twice.
        """
        under_way = list(self._held.values())

        async def move_and_renew(uow: StoreUnit) -> None:
            await move(uow)
            await uow.leases.renew(self.owner, [run for claim in self._claims for run in claim])  # not held yet

        await self._renew_among(list(self._held), wait=True, first=move_and_renew)
        for run in under_way:
            run.skip(duration)

    async def _beat(self) -> None:
        pause = self._term_seconds / _RENEWALS_PER_TERM
        is_answered = True
        while self._held:
            await asyncio.sleep(pause if is_answered else pause / _TRIES_PER_PAUSE)
            if self._renewal is None or self._renewal.done():
                self._renewal = asyncio.create_task(_trying(self._renew), name="orchestrator_state renewal")
            await asyncio.wait({self._renewal}, timeout=max(pause, self._time_left()))
            is_answered = self._renewal.done() and self._renewal.result()
            self._give_up_overdue()

    async def _renew(self) -> None:
        """Renew all leases, a short transaction at a time.

        A row that somebody has locked is waited for beside the heartbeat: the other leases must not end meanwhile.
        """
        # A SQLite connection that waits for a lock cannot be had back before its time; one to a server may be dead.
        limit = self._term_seconds / _RENEWALS_PER_TERM if self._renewals_may_hang else None
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
            await _trying(partial(self._renew_among, [workflow_state_id], wait=True))

    async def _renew_among(self, ids: Collection[UUID], *, wait: bool, first: Work[None] | None = None) -> list[UUID]:
        """Renew those of `ids` that are held, in a transaction that begins with `first`.

        Without `wait`, returns those that were not renewed: locked, or lost.
        """
        asked = {key: run for key in ids if (run := self._held.get(key)) is not None}
        at = 0.0

        async def renew(uow: StoreUnit) -> dict[UUID, Renewal]:
            nonlocal at
            if first is not None:
                await first(uow)
            at = elapsed()  # of the attempt that takes effect: the database may have been away before
            return await uow.leases.renew(self.owner, asked, wait=wait)

        renewed = await self._transactions.write(renew, urgent=True)
        for workflow_state_id, run in asked.items():
            if self._held.get(workflow_state_id) is not run:
                continue
            renewal = renewed.get(workflow_state_id)
            if renewal is not None and renewal.token == run.lease.token:
                self._renewed_at[workflow_state_id] = at
                run.renewed(renewal.request, renewal.now, at)
            elif wait or renewal is not None:
                self._lose(run)
        return [workflow_state_id for workflow_state_id in asked if workflow_state_id not in renewed]

    def _time_left(self) -> float:
        """Seconds until the first lease is overdue."""
        return self._term_seconds - (elapsed() - min(self._renewed_at.values(), default=0.0))

    def _give_up_overdue(self) -> None:
        if not self._renewals_may_hang:
            return
        now = elapsed()
        for workflow_state_id, run in list(self._held.items()):
            if now - self._renewed_at[workflow_state_id] >= self._term_seconds:
                self._lose(run)

    def _lose(self, run: Leaseholder) -> None:
        self._forget(run)
        run.stop(lease_lost(run.lease))

    def _forget(self, run: Leaseholder) -> None:
        """Unless the run was claimed here anew: then it is the new holder's."""
        if self._held.get(run.lease.workflow_state_id) is run:
            del self._held[run.lease.workflow_state_id], self._renewed_at[run.lease.workflow_state_id]


def _store_closed() -> StoreUnavailable:
    return StoreUnavailable("the store is closed; open another")


async def _trying(work: Callable[[], Awaitable[object]], otherwise: str = "leases could not be renewed") -> bool:
    """Whether it succeeded. Not called at all, if the task is cancelled before it has begun."""
    try:
        await work()
    except Exception as error:  # noqa: BLE001 - whatever it is, the next try may succeed within the term
        hooks.logger.warning("%s (%s)", otherwise, type(error).__name__)
        return False
    return True
