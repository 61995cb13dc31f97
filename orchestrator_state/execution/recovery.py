"""Claim abandoned runs and resume them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, Final, TypeVar
from uuid import UUID

from orchestrator_state import hooks
from orchestrator_state.arguments import as_handlers, as_positive
from orchestrator_state.concurrency import ProcessIdentity, uninterrupted
from orchestrator_state.errors import CorruptPayload, PauseTakenBack
from orchestrator_state.execution.endings import outcome_of
from orchestrator_state.execution.executor import Executor
from orchestrator_state.execution.leases import Claim
from orchestrator_state.execution.loading import Page
from orchestrator_state.failures import is_a
from orchestrator_state.hooks import FellBack
from orchestrator_state.records import ClaimedRun, Lease, UnclaimableRun, corrupt_cells
from orchestrator_state.retry import after_an_effect
from orchestrator_state.runs import Handler
from orchestrator_state.transactions import StoreUnit, Transactions, Work

_Result = TypeVar("_Result")
_PAGE: Final = 500  # runs that are claimed, and loaded, together


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredRun:
    """How one abandoned run fared. `error` is the exception, for a run that failed or could not go on.

    `fell_back` says which recorded steps were damaged, and which checkpoint they were taken from.
    """

    workflow_state_id: UUID
    workflow_id: str
    name: str
    outcome: str
    error: BaseException | None = field(default=None, repr=False)
    fell_back: FellBack | None = None


@dataclass(slots=True)
class RecoveryReport:
    """What `store.recover` found and did.

    `unknown` are runs whose handler it was not given, or which newer code has written, or whose id is damaged,
    or a count of its writes; they stay as they are. Of the latter `error` says so.
    """

    runs: list[RecoveredRun] = field(default_factory=list)
    unknown: list[RecoveredRun] = field(default_factory=list)

    def of(self, outcome: str) -> list[RecoveredRun]:
        """The runs that ended `completed`, `failed`, `suspended`, `paused`, `cancelled`, `lost` or `interrupted`."""
        return [run for run in self.runs if run.outcome == outcome]

    @property
    def fell_back(self) -> list[RecoveredRun]:
        """The runs of which something on record was damaged."""
        return [run for run in self.runs if run.fell_back is not None]

    @property
    def completed(self) -> list[RecoveredRun]:
        """The runs that came to their end."""
        return self.of("completed")

    @property
    def failed(self) -> list[RecoveredRun]:
        """The runs whose handler raised, or that were given up on."""
        return self.of("failed")

    @property
    def suspended(self) -> list[RecoveredRun]:
        """The runs that wait, for a signal or a timer, and were let go of until it comes."""
        return self.of("suspended")


class Recovery:
    """Finds runs without an owner. Used by `store.recover`, and over and over by `Worker`."""

    def __init__(
        self,
        transactions: Transactions,
        executor: Executor,
        handlers: Mapping[str, Handler[Any]],
        *,
        patience: timedelta | None = None,
    ) -> None:
        """`patience` is for how long a look for work is tried while the database is away; None is `retry_timeout`."""
        self._transactions = transactions
        self._patience = patience
        self._executor = executor
        self._handlers = as_handlers(handlers)
        self._max_attempts = transactions.settings.max_attempts

    async def end_dead_leases(self) -> None:
        """End the leases of processes of this machine that are gone, and ours of runs that are not under way.

        What was asked of owners that are gone is done.
        """
        keeper = self._executor.keeper
        self._executor.suspects.are_looked_for = True
        mine = ProcessIdentity.mine()
        processes = await self._read(lambda uow: uow.leases.list_processes(mine.machine))
        identities = [identity for identity in map(ProcessIdentity.parse, processes) if identity is not None]
        dead = [str(identity) for identity in identities if identity.is_dead()]
        ours: Sequence[Lease] = ()
        if str(mine) in processes:
            ours = await self._read(lambda uow: uow.leases.list_of(keeper.owner.id))
        # The keeper is asked after the read: what was claimed before it is known to the keeper by now.
        orphans = [lease for lease in ours if not keeper.has(lease.workflow_state_id)]

        async def end(uow: StoreUnit) -> None:
            await uow.leases.end_of(dead)
            for lease in orphans:
                await uow.runs.release(lease)
            await uow.runs.heed_requests()

        are_unheeded: bool = await self._read(lambda uow: uow.runs.has_unheeded_requests())
        if dead or orphans or are_unheeded:
            await self._transactions.write(end, patience=self._patience)

    def _read(self, work: Work[_Result]) -> Coroutine[Any, Any, _Result]:
        return self._transactions.read(work, patience=self._patience)

    async def forget_old_calls(self) -> None:
        """See `Transactions.forget_old_calls`."""
        await self._transactions.forget_old_calls()

    async def start(
        self, limit: int, watch: Callable[[asyncio.Task[RecoveredRun]], object], *, linger: timedelta = timedelta()
    ) -> None:
        """Claim up to `limit` abandoned runs that have a handler here; resume each in a task that `watch` is given."""
        while self._handlers and limit > 0 and not self._executor.suspects.are_alone:
            asked = min(limit, _PAGE)
            found = await self._start_page(asked, watch, linger)
            limit = limit - found if found == asked else 0

    async def _start_page(
        self, limit: int, watch: Callable[[asyncio.Task[RecoveredRun]], object], linger: timedelta
    ) -> int:
        """Claim one page, and return how many runs were in it. Their steps are read while the next one is claimed."""
        async with self._executor.keeper.claiming() as claim:
            claiming = partial(self._claim, claim=claim, limit=limit, patient=linger > timedelta())
            runs = await self._transactions.write_after_renewals(claiming, patience=self._patience)
            page = Page(self._transactions, [run.id for run in runs])
            for run in runs:
                self._executor.suspects.add(run.id, run.attempts)
                watch(asyncio.create_task(self._resume(run, page, linger)))
            await asyncio.sleep(0)  # until the tasks hold their leases
        return len(runs)

    async def _claim(self, uow: StoreUnit, claim: Claim, limit: int, *, patient: bool) -> list[ClaimedRun]:
        """Runs that may kill their workers, and all others, in turns."""
        suspects, owner = self._executor.suspects, self._executor.keeper.owner
        claim.begin()
        # Perhaps there was an attempt before this one, which took effect.
        runs = await uow.claims.list_claimed(claim, owner) if claim else []
        if not runs and not suspects.come_first and not suspects.have_their_turn:
            runs = await uow.claims.claim_abandoned(self._handlers, owner, limit)
            runs += await self._claim_suspects(uow, limit, patient=patient, beside=len(runs))
        elif not runs:
            runs = await self._claim_suspects(uow, limit, patient=patient)
            if not (suspects.have_their_turn or any(suspects.is_for_itself(run.attempts) for run in runs)):
                runs += await uow.claims.claim_abandoned(self._handlers, owner, limit - len(runs))
        claim.take([run.id for run in runs])
        return runs

    async def _claim_suspects(self, uow: StoreUnit, limit: int, *, patient: bool, beside: int = 0) -> list[ClaimedRun]:
        """Once in a while, or as long as one is to be tried alone. Who works on and on lets them rest before."""
        suspects = self._executor.suspects
        if limit <= beside or (patient and not suspects.are_looked_for):
            return []
        runs = await uow.claims.claim_suspects(
            self._handlers,
            self._executor.keeper.owner,
            limit - beside,
            partial(suspects.choose, beside=beside),
            patient=patient,
        )
        suspects.are_looked_for = bool(runs) or suspects.have_their_turn
        return runs

    def telling(self, listener: Callable[[], object]) -> AbstractContextManager[None]:
        """Call `listener` whenever there may be more to claim although no run has ended."""
        return self._executor.suspects.telling(listener)

    async def list_unknown(self) -> list[RecoveredRun]:
        """The runs that are left alone, and in the log what is wrong with them."""
        runs = await self._transactions.read(lambda uow: uow.claims.list_unclaimable(self._handlers))
        for run in runs:
            if run.unwritable:
                hooks.logger.warning(
                    "a run of %r cannot be resumed: its %s is damaged", run.workflow_id, run.unwritable[0]
                )
            elif run.name in self._handlers:
                hooks.logger.warning(
                    "run %s is left to newer code: its schema is at version %s", run.id, run.schema_version
                )
        return [_recovered(run, "unknown", _why_unknown(run)) for run in runs]

    async def _resume(self, run: ClaimedRun, page: Page, linger: timedelta) -> RecoveredRun:
        """Drive a claimed run to its end, or until it waits. Never raises but for cancellation."""
        attempt = self._executor.attempt(run, page=page, linger=linger)
        error: BaseException | None
        try:
            if run.attempts > self._max_attempts:
                outcome, error = await self._executor.give_up(run), None
            else:
                ended = await attempt.drive(self._handlers[run.name])
                outcome, error = ("completed" if ended.error is None else "failed"), ended.error
        except Exception as raised:  # noqa: BLE001 - all are reported
            outcome, error = _outcome(raised), raised
        finally:
            self._executor.suspects.remove(run.id)
        return _recovered(run, outcome, error, attempt.fell_back)

    async def run_once(self, concurrency: int) -> RecoveryReport:
        """Claim and resume until nothing is left to claim. At most `concurrency` runs are under way at a time."""
        as_positive(concurrency, "concurrency")
        report = RecoveryReport()
        await self.end_dead_leases()
        under_way: set[asyncio.Task[RecoveredRun]] = set()
        news = asyncio.Event()
        hearing = asyncio.ensure_future(news.wait())
        try:
            with self.telling(news.set), after_an_effect(acted=lambda: bool(report.runs or under_way)):
                while True:
                    news.clear()
                    await self.start(concurrency - len(under_way), under_way.add)
                    if not under_way:
                        break
                    if hearing.done():
                        hearing = asyncio.ensure_future(news.wait())
                    done, _ = await asyncio.wait(
                        {*under_way, hearing},
                        timeout=self._executor.suspects.next_change or None,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    report.runs += [task.result() for task in under_way & done]
                    under_way -= done
        finally:
            hearing.cancel()
            for task in under_way:
                task.cancel()
            if under_way:
                await uninterrupted(asyncio.wait(under_way))
        with after_an_effect(acted=bool(report.runs)):
            report.unknown = await self.list_unknown()
        return report


def _outcome(error: Exception) -> str:
    """Of a run that something happened to."""
    return "interrupted" if is_a(error, PauseTakenBack) else outcome_of(error, otherwise="failed")


def _why_unknown(run: UnclaimableRun) -> CorruptPayload | None:
    return corrupt_cells(run.unwritable, run.id, workflow_id=run.workflow_id) if run.unwritable else None


def _recovered(
    run: ClaimedRun | UnclaimableRun,
    outcome: str,
    error: BaseException | None = None,
    fell_back: FellBack | None = None,
) -> RecoveredRun:
    return RecoveredRun(
        workflow_state_id=run.id,
        workflow_id=run.workflow_id,
        name=run.name,
        outcome=outcome,
        # A run that waits is no error, and the exception would keep all its frames alive.
        error=None if outcome in ("suspended", "paused") else error,
        fell_back=fell_back,
    )
