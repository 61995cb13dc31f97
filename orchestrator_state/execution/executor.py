"""Run what is wanted: claim it, drive it, or return what is on record."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from typing import Any, Final, TypeVar
from uuid import UUID

from orchestrator_state import hooks
from orchestrator_state.concurrency import Outcome, Threads, running_loop, uninterrupted
from orchestrator_state.domain import WorkflowStatus
from orchestrator_state.errors import (
    LeaseHeld,
    OrchestratorStateError,
    PauseTakenBack,
    RunPaused,
    RunSuspended,
)
from orchestrator_state.execution.attempts import Attempt, Shared
from orchestrator_state.execution.endings import GIVEN_UP, Endings
from orchestrator_state.execution.leases import LeaseKeeper
from orchestrator_state.execution.loading import Page
from orchestrator_state.execution.outcomes.ends import Ends
from orchestrator_state.execution.outcomes.outcomes import Outcomes
from orchestrator_state.execution.outcomes.results import recorded_failure, recorded_result
from orchestrator_state.execution.starting import Starting, WantedRun, start_pending
from orchestrator_state.execution.suspects import Suspects
from orchestrator_state.records import ClaimedRun
from orchestrator_state.retry import after_an_effect
from orchestrator_state.runs import (
    CheckpointPolicy,
    CurrentSteps,
    Exits,
    Faults,
    GroupCommit,
    Handler,
    Lookout,
    RunTypes,
    Telling,
    child_run_id,
)
from orchestrator_state.transactions import Transactions

_T = TypeVar("_T")
_LOOK_AGAIN: Final = 0.25  # seconds between looks at a run that another worker owns
_HAS_RESULT: Final = frozenset({WorkflowStatus.COMPLETED.value})
_ENDED: Final = _HAS_RESULT | {WorkflowStatus.FAILED.value}


class Executor:
    """Runs of one store in one process."""

    def __init__(self, transactions: Transactions, faults: Faults | None = None) -> None:
        settings = transactions.settings
        self._of_callers = transactions
        self._transactions = transactions = transactions.for_runs()
        self.keeper: Final = LeaseKeeper(transactions, settings.lease_term)
        self.group_commit: Final = GroupCommit(transactions)
        self.suspects: Final = Suspects(settings.max_attempts)
        self.threads: Final = Threads("orchestrator_state step", settings.step_threads)
        self.lookout: Final = Lookout(transactions, self.keeper)
        self.current_steps: Final = CurrentSteps(transactions)
        self._starting = Starting(transactions, self.keeper)
        self.outcomes: Final = Outcomes(self._of_callers)
        self._ends = Ends(transactions.database)
        self._endings = Endings(transactions, self.tell_of_end)
        self._shared = Shared(
            transactions=transactions,
            keeper=self.keeper,
            suspects=self.suspects,
            group_commit=self.group_commit,
            lookout=self.lookout,
            exits=Exits(),
            threads=self.threads,
            endings=self._endings,
            policy=CheckpointPolicy(every=settings.checkpoint_every, keep=settings.keep_checkpoints),
            current_steps=self.current_steps,
            faults=faults,
        )

    async def close(self) -> None:
        """Stop the runs under way, which let go of their leases, and wait until all that was to be written is."""
        await self.keeper.stop_runs()
        await self.outcomes.watch.close()
        await self.lookout.close()
        await self.current_steps.close()
        await self.keeper.close()
        await self.group_commit.close()
        await self._ends.close()
        self.threads.close()

    def look_now(self) -> None:
        """Something was changed from outside, which runs here, or callers, may wait for."""
        self.lookout.look_now()
        self.outcomes.watch.look_now()

    def tell_of_end(self, workflow_state_id: UUID) -> None:
        """This run may be over, which here, and elsewhere, somebody may wait for."""
        self.look_now()
        self._ends.tell(workflow_state_id)

    def types_of(self, workflow_name: str, state: Any = None, result: Any = None) -> RunTypes:
        """See `RunTypes.of`."""
        transactions = self._transactions
        return RunTypes.of(transactions.schemas, transactions.payloads, workflow_name, state, result)

    async def start(self, wanted: WantedRun) -> tuple[UUID, bool]:
        """Create the run for a worker to claim, unless it is there already. Returns its id, and whether it is new."""
        wanted = await self._starting.prepared(wanted)
        return await self._of_callers.write_once("start", partial(start_pending, wanted=wanted))

    async def run(
        self,
        wanted: WantedRun,
        handler: Handler[_T],
        *,
        wait: timedelta,
        strict: bool = False,
        linger: timedelta | None = None,
    ) -> Outcome[_T]:
        """Start the run, resume it, or return its recorded result. See `StateStore.run`.

        What the handler raised is in the outcome. Raised is only what happened to the run, as in `Attempt.drive`.
        """
        deadline = running_loop().time() + wait.total_seconds()
        # A child that has failed is its parent's to hear of. So is a run that failed while we waited for its owner.
        is_over = _ENDED if wanted.parent is not None else _HAS_RESULT
        wanted = await self._starting.prepared(wanted)
        while True:
            async with self.keeper.claiming() as claim:
                looking = partial(self._starting.start_or_claim, wanted=wanted, claim=claim, is_over=is_over)
                run = await self._transactions.write_after_renewals(looking)
                if isinstance(run, ClaimedRun):
                    is_new = claim.created == run.id
                    page = Page.of_new_run(self._transactions, run.id) if is_new else None
                    attempt = self.attempt(run, wanted.types, page=page, strict=strict, linger=linger)
                    try:
                        with after_an_effect():
                            return await attempt.drive(handler)
                    except PauseTakenBack:
                        continue
                if not isinstance(run, LeaseHeld):
                    if run.status == WorkflowStatus.FAILED:
                        raise await recorded_failure(self._transactions, run)
                    return await recorded_result(self._transactions, run, wanted.types)
            if running_loop().time() >= deadline:
                raise run
            is_over = _ENDED
            await asyncio.sleep(_LOOK_AGAIN)

    def attempt(
        self,
        run: ClaimedRun,
        types: RunTypes | None = None,
        *,
        page: Page | None = None,
        strict: bool = False,
        linger: timedelta | None = None,
    ) -> Attempt:
        """An attempt at a run that was just claimed. Without `types` they are the schema's.

        `page`: the runs that were claimed with it.
        """
        return Attempt(
            self._shared,
            run,
            types or self.types_of(run.name),
            partial(self._run_child, linger=linger),
            page or Page(self._transactions, [run.id]),
            strict=strict,
            linger=linger,
        )

    async def give_up(self, run: ClaimedRun) -> str:
        """Mark a claimed run failed because too many workers vanished over it. Returns its status."""
        try:
            begun = await self._transactions.read(lambda uow: uow.history.list_intents(run.id))
            where = f", with {', '.join(map(repr, begun))} under way" if begun else ""
            message = (
                f"{run.attempts} workers vanished over this run since it last finished a step{where}; "
                "`store.resume` gives it a new budget"
            )
            status = await self._endings.give_up(run, message)
        except (asyncio.CancelledError, OrchestratorStateError) as error:
            await uninterrupted(self._endings.leave(run, error, progress=False))
            raise
        hooks.logger.error("run %s of %r is %s: %s", run.id, run.name, status, message)
        if (telling := Telling.of(self._transactions.hook, run)) is not None:
            telling.run_ended(status, GIVEN_UP)
        return status

    async def _run_child(
        self,
        parent: ClaimedRun,
        step_id: str,
        handler: Handler[Any],
        types: RunTypes,
        context: str | None,
        *,
        linger: timedelta | None,
    ) -> Outcome[Any]:
        """See `StartChild`."""
        wanted = WantedRun(
            id=child_run_id(parent.id, step_id),
            name=types.workflow_name,
            types=types,
            workflow_id=f"{parent.id}/{step_id}"[:255],
            context=context,
            user_id=parent.user_id,
            parent=parent.lease,
        )
        try:
            return await self.run(wanted, handler, wait=timedelta(), linger=linger)
        except LeaseHeld:
            raise RunSuspended(f"another worker has child run {wanted.id}", workflow_state_id=wanted.id) from None
        except RunPaused:
            raise RunSuspended(f"child run {wanted.id} is paused", workflow_state_id=wanted.id) from None
