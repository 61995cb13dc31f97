"""One attempt at a run: load what is on record, call its handler, and write how that ended."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final, TypeVar

from orchestrator_state import hooks
from orchestrator_state.concurrency import Outcome, Threads, settled, uninterrupted
from orchestrator_state.database import DatabaseClock
from orchestrator_state.domain import WorkflowStatus
from orchestrator_state.errors import (
    CorruptPayload,
    LeaseLost,
    OrchestratorStateError,
    RunSuspended,
    StoreUnavailable,
    UnusedSteps,
)
from orchestrator_state.execution.endings import Endings, outcome_of
from orchestrator_state.execution.leases import LeaseKeeper
from orchestrator_state.execution.loading import Page, load_run
from orchestrator_state.execution.suspects import Suspects
from orchestrator_state.failures import is_a, trace_of, type_of
from orchestrator_state.records import ClaimedRun, UsageRecord, corrupt_cells
from orchestrator_state.runs import (
    NOT_THE_RUNS,
    BudgetGuard,
    CheckpointPolicy,
    CurrentSteps,
    Exits,
    Faults,
    GroupCommit,
    Handler,
    Journal,
    Lookout,
    RunTypes,
    StartChild,
    Steps,
    StopSwitch,
    Telling,
    WaitingRoom,
    bring_up_to_date,
    call_handler,
    fault_behind,
    stopped_as,
)
from orchestrator_state.transactions import Transactions

_T = TypeVar("_T")
_TO_FIND_OUT: Final = timedelta(seconds=2)  # of tries; whoever has called the run waits for them
_OF_AN_ERROR: Final = ("failed", "interrupted", "lost")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all runs of one store share in one process."""

    transactions: Transactions
    keeper: LeaseKeeper
    suspects: Suspects
    group_commit: GroupCommit
    lookout: Lookout
    exits: Exits
    threads: Threads
    endings: Endings
    policy: CheckpointPolicy
    current_steps: CurrentSteps
    faults: Faults | None = None


class Attempt:
    """A run that was just claimed, on its way to an end."""

    def __init__(
        self,
        shared: Shared,
        run: ClaimedRun,
        types: RunTypes,
        start_child: StartChild,
        page: Page,
        *,
        strict: bool = False,
        linger: timedelta | None = None,
    ) -> None:
        """`page`: the runs that were claimed with it."""
        self.fell_back: hooks.FellBack | None = None
        """What was damaged on record; None before it is loaded."""
        self.lease: Final = run.lease
        self._shared = shared
        self._run = run
        self._types = types
        self._start_child = start_child
        self._page = page
        self._strict = strict
        self._linger = linger
        self._telling = Telling.of(shared.transactions.hook, run)
        self._switch = StopSwitch(run.id)
        self._journal: Journal | None = None
        self._room: WaitingRoom | None = None

    # --- as the keeper of its lease sees it ----------------------------------------------------------------------

    def renewed(self, request: str | None, now: datetime, asked_at: float) -> None:
        self._switch.notice(request)
        self._clock.set(now, asked_at)

    def stop(self, reason: OrchestratorStateError) -> None:
        self._switch.trip(reason)

    def skip(self, duration: timedelta) -> None:
        if self._room is not None:
            self._room.skip(duration)

    @property
    def is_resting(self) -> bool:
        return self._room is not None and self._room.is_resting

    # --- from the claim to the end -------------------------------------------------------------------------------

    async def drive(self, handler: Handler[_T]) -> Outcome[_T]:
        """Call `handler`.

        The outcome is what the handler returned, or raised, of whatever class: then the run has failed. Raised is what
        happened to the run: a fault, or what its switch stopped it for. So neither can be taken for the other.

        Whatever happens, no lease is renewed and no task is left afterwards.
        """
        try:
            outcome = await self._drive(handler)
        except BaseException as error:
            is_over = self._journal is None and is_a(error, CorruptPayload)
            self._ended(outcome_of(error, otherwise="failed" if is_over else "interrupted"), error)
            raise
        else:
            self._ended("completed" if outcome.error is None else "failed", outcome.error)
            return outcome
        finally:
            self._shared.keeper.drop(self)

    def _ended(self, outcome: str, error: BaseException | None) -> None:
        """Say it, in the log if somebody should look at it."""
        run = self._run
        if outcome == WorkflowStatus.FAILED and error is not None and self._journal is not None:
            trace = trace_of(error, with_text=self._shared.transactions.settings.log_error_text)
            hooks.logger.error("run %s of %r failed: %s", run.id, run.name, trace)
        elif outcome == "lost":
            hooks.logger.warning("run %s of %r has lost its lease: to another worker, or by force", run.id, run.name)
        if self._telling is not None:
            why = None if error is None or outcome not in _OF_AN_ERROR else type_of(error)
            self._telling.run_ended(outcome, why)

    async def _drive(self, handler: Handler[_T]) -> Outcome[_T]:
        shared, switch = self._shared, self._switch
        make_clock = DatabaseClock if shared.faults is None else shared.faults.clock
        self._clock = make_clock(self._run.now, asked_at=shared.keeper.hold(self))
        try:
            if self._run.request is not None:  # left for an owner that is gone
                switch.trip(stopped_as(await shared.endings.let_go(self._run), self._run.id))
            if switch.reason is not None:
                raise switch.reason
            self._journal = journal = await self._load()
            self._room = room = WaitingRoom(
                self._run.id, switch, self._linger, self._clock, shared.lookout, shared.exits
            )
            shares = shared.keeper, shared.transactions, shared.threads, shared.current_steps
            steps = Steps(journal, switch, room, *shares, self._types)
            await self._set_guard(steps)
            return await self._call(handler, steps)
        except (asyncio.CancelledError, OrchestratorStateError) as error:
            # Left as it is, for whoever comes next. After a stop or a failure the lease is released already.
            is_failed = self._journal is None and is_a(error, CorruptPayload)
            if switch.reason is None and not is_failed:
                await uninterrupted(shared.endings.leave(self._run, error, progress=self._has_progressed))
            raise

    @property
    def _has_progressed(self) -> bool:
        return self._journal is not None and self._journal.has_progressed

    async def _set_guard(self, steps: Steps) -> None:
        run, spending = self._run, steps.journal.spending
        if run.budget_cost is not None or run.budget_tokens is not None:
            spent = await self._shared.transactions.read(lambda uow: uow.usage.spent(run.id))
            spending.cost, spending.tokens = spent
            steps.guard = BudgetGuard(steps, run.budget_cost, run.budget_tokens)

    async def _load(self) -> Journal:
        """What is on record. A run that is damaged beyond use is failed, and `CorruptPayload` raised."""
        shared, run, transactions = self._shared, self._run, self._shared.transactions
        try:
            if run.damaged:
                raise corrupt_cells(run.damaged, run.id)
            transactions.schemas.require_runnable(run.name, run.stored.schema_version, run.id)
            loaded = await load_run(transactions, run, transactions.hook, self._page)
            recorded = loaded.steps, loaded.history
            steps, history = await bring_up_to_date(transactions, run, self._types, recorded)
        except CorruptPayload as error:
            status = await shared.endings.fail(run, error)
            hooks.logger.warning("run %s is damaged, and now %s: %s", run.id, status, error)
            raise
        self.fell_back = loaded.fell_back
        journal = Journal(
            run, steps, history, self._types.version, shared.group_commit, self._switch, shared.policy, self._telling
        )
        journal.faults = shared.faults
        if run.id in shared.suspects:
            journal.on_progress = partial(shared.suspects.clear, run.id)
        return journal

    async def _call(self, handler: Handler[_T], steps: Steps) -> Outcome[_T]:
        """Call the handler, and write how the run ended."""
        run, telling, is_left = self._run, self._telling, True
        if run.attempts:
            message = "run %s of %r goes on here; workers that vanished over it: %d"
            hooks.logger.warning(message, run.id, run.name, run.attempts)
            self._shared.current_steps.tidy()
        try:
            if telling is None:
                result = await self._supervise(handler, steps)
            else:
                result = await telling.run_started(self._supervise, handler, steps)
            result = await self._complete(steps, result)
            is_left = False
            return Outcome(result)
        except asyncio.CancelledError:
            await self._record_owed(steps.journal)
            if self._switch.reason is None:
                raise
            is_left, reason = await uninterrupted(self._stopped(self._switch.reason, steps))
            raise reason from None
        except Exception as error:
            await self._record_owed(steps.journal)  # in no order: a branch that was left behind may hold that for ever
            if (fault := fault_behind(error)) is not None:
                is_left = False
                raise fault from None
            stopped = await self._failed(error)
            is_left = False
            if stopped is not None:
                raise stopped from error
            return Outcome(None, error)
        finally:
            self._switch.end(is_left=is_left)
            steps.room.wake_all()

    async def _supervise(self, handler: Handler[_T], steps: Steps) -> _T:
        """Call the handler in a task of its own, which can be stopped without stopping our caller.

        The run was cancelled if the switch or our caller was. Any other `CancelledError` is the handler's own failure.
        """
        task = call_handler(handler, steps, self._start_child)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            await settled(task)
            raise
        self._switch.check()  # a handler may swallow the cancellation that stops it, and return as if it had not come
        if task.cancelled():
            raise asyncio.CancelledError  # before it began
        outcome: Outcome[_T] = task.result()
        return outcome.result()

    async def _record_owed(self, journal: Journal) -> None:
        """Write what no commit of a step holds: of a call that was cancelled, or whose lease was lost meanwhile."""
        if owed := journal.spending.owed():
            await uninterrupted(self._record(journal, owed))

    async def _record(self, journal: Journal, owed: Sequence[UsageRecord]) -> None:
        run_id, transactions = self._run.id, self._shared.transactions
        try:
            await transactions.write(lambda uow: uow.commits.add_usage(run_id, owed), patience=_TO_FIND_OUT)
        except OrchestratorStateError as error:
            hooks.logger.warning(
                "run %s: what %d calls of models have used is not recorded: %s", run_id, len(owed), error
            )
        else:
            journal.has_recorded(owed)

    async def _complete(self, steps: Steps, result: _T) -> _T:
        """Record the result. Returns it as it will be read."""
        steps.require_all_awaited()
        self._look_for_unused(steps)
        encoded, result = await self._types.encode(self._types.result, result, "result")
        journal = steps.journal
        # Of a task left behind. What a commit under way saves would be done a second time to a context that holds it.
        async with journal.in_order:
            await self._record_owed(journal)
            await self._shared.endings.complete(self._run, encoded, await journal.final_context())
        return result

    def _look_for_unused(self, steps: Steps) -> None:
        unused = steps.unused
        if not unused:
            return
        message = f"run {self._run.id} ended without asking for the recorded steps {', '.join(unused)}"
        if self._strict:
            raise UnusedSteps(message, workflow_state_id=self._run.id, step_ids=unused)
        hooks.logger.warning("%s", message)
        if self._telling is not None:
            self._telling.steps_unused(unused)

    async def _stopped(self, reason: OrchestratorStateError, steps: Steps) -> tuple[bool, OrchestratorStateError]:
        """Write why the run stops before its handler is done. Returns whether it was released, and what to raise.

        What was asked of the run by then counts, whatever it stops for.
        """
        try:
            if not is_a(reason, (LeaseLost, *NOT_THE_RUNS)):
                return await self._let_go(reason, steps.room)
        except (LeaseLost, StoreUnavailable) as error:
            reason = error
        if is_a(reason, LeaseLost):
            return False, await self._lost(reason)
        await self._shared.endings.leave(self._run, reason, progress=self._has_progressed)
        return False, reason

    async def _failed(self, error: Exception) -> OrchestratorStateError | None:
        """Write that the run has failed of `error`. Returns what it was stopped for, if it was."""
        try:
            status = await self._shared.endings.fail(self._run, error)
        except LeaseLost as lost:
            self._switch.trip(lost)
            return await self._lost(lost)
        return stopped_as(status, self._run.id) if status == WorkflowStatus.CANCELLED else None

    async def _lost(self, reason: OrchestratorStateError) -> OrchestratorStateError:
        """A run that was cancelled by force has nobody's lease: whoever called it hears that, if that can be read."""
        run_id = self._run.id
        try:
            status = await self._shared.transactions.read(
                lambda uow: uow.runs.find_status(run_id), patience=_TO_FIND_OUT
            )
        except OrchestratorStateError:
            return reason
        return stopped_as(status, run_id) if status == WorkflowStatus.CANCELLED else reason

    async def _let_go(self, reason: OrchestratorStateError, room: WaitingRoom) -> tuple[bool, OrchestratorStateError]:
        endings, run = self._shared.endings, self._run
        suspends = is_a(reason, RunSuspended)
        status = await (endings.suspend(run, room) if suspends else endings.let_go(run))
        if status != WorkflowStatus.RUNNING:
            return False, stopped_as(status, run.id)
        return (False, reason) if suspends else (True, stopped_as(status, run.id))
