"""Drive a run: claim it, call its handler, and write how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextvars import copy_context
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, TypeVar
from uuid import UUID, uuid5

from orchestrator_state import hooks
from orchestrator_state.concurrency import (
    LONG,
    Outcome,
    ProcessIdentity,
    Threads,
    awaitable,
    outcome_of,
    running_loop,
    settled,
    uninterrupted,
)
from orchestrator_state.database import DatabaseClock
from orchestrator_state.domain import WorkflowStatus
from orchestrator_state.errors import (
    Conflict,
    CorruptPayload,
    LeaseHeld,
    LeaseLost,
    OrchestratorStateError,
    PauseTakenBack,
    RunCancelled,
    RunFailed,
    RunPaused,
    RunSuspended,
    SchemaMismatch,
    StoreUnavailable,
    UnusedSteps,
)
from orchestrator_state.execution.leases import Claim, LeaseKeeper
from orchestrator_state.execution.loading import LoadedRun, Page, load_run
from orchestrator_state.execution.suspects import Suspects
from orchestrator_state.failures import describe, is_a, message_of
from orchestrator_state.payloads import Sealed
from orchestrator_state.records import (
    UNOPENED_HERE,
    Columns,
    Lease,
    Opener,
    Owner,
    RunNames,
    corrupt_cells,
    is_id,
    prepared_workflow,
    require_sound,
    unclaimable_columns,
)
from orchestrator_state.repositories import lease_held
from orchestrator_state.repositories.runs import CANCEL, MOST_LOOKS
from orchestrator_state.retry import after_an_effect
from orchestrator_state.runs import (
    HANDLER,
    NOT_THE_RUNS,
    CheckpointPolicy,
    Exits,
    Handler,
    Journal,
    Lookout,
    Run,
    RunRow,
    RunTypes,
    Steps,
    StopSwitch,
    WaitingRoom,
    Writer,
    bring_up_to_date,
    child_run_id,
    fault_behind,
    mark,
    pause_after,
    stopped_as,
)
from orchestrator_state.transactions import StoreUnit, Transactions

_T = TypeVar("_T")
_IDS: Final = 4  # that a run is given one of
_LOOK_AGAIN: Final = 0.25  # seconds between looks at a run that another worker owns
_HAS_RESULT: Final = frozenset({WorkflowStatus.COMPLETED.value})
_ENDED: Final = _HAS_RESULT | {WorkflowStatus.FAILED.value}
_RELEASE_WITHIN: Final = timedelta(seconds=2)  # of tries; a stop, or the error of a caller, waits for them


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class WantedRun:
    """What `store.run` was asked for."""

    name: str
    workflow_id: str
    context: str | None = None
    """As JSON."""
    prepared: Sealed | None = None
    """A long `context` as it is stored in a run of the first id that it may get."""
    types: RunTypes
    user_id: str | None = None
    idempotency_key: str | None = None
    id: UUID | None = None
    """A given id: that of a child run."""
    parent: Lease | None = None
    """The lease of the run that starts it as its child."""

    @property
    def parent_id(self) -> UUID | None:
        return None if self.parent is None else self.parent.workflow_state_id


class Executor:
    """Runs of one store in one process."""

    def __init__(self, transactions: Transactions, hook: hooks.Hook | None) -> None:
        settings = transactions.settings
        self._of_callers = transactions
        transactions = transactions.for_runs()
        self.keeper: Final = LeaseKeeper(transactions, settings.lease_term)
        self.writer: Final = Writer(transactions)
        self.suspects: Final = Suspects(settings.max_attempts)
        self.threads: Final = Threads("orchestrator_state step", settings.step_threads)
        self.lookout: Final = Lookout(transactions, self.keeper)
        self._exits = Exits()
        self._transactions = transactions
        self._hook = hook
        self._policy = CheckpointPolicy(every=settings.checkpoint_every, keep=settings.keep_checkpoints)

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

        What the handler raised is in the outcome. Raised is only what happened to the run, as in `drive`.
        """
        deadline = running_loop().time() + wait.total_seconds()
        # A child that has failed is its parent's to hear of. So is a run that failed while we waited for its owner.
        is_over = _ENDED if wanted.parent is not None else _HAS_RESULT
        wanted = await self._prepared(wanted)
        while True:
            async with self.keeper.claiming() as claim:
                look = partial(self._start_or_claim, wanted=wanted, claim=claim, is_over=is_over)
                row = await self._transactions.write(look)
                if isinstance(row, RunSuspended):
                    raise row
                if not isinstance(row, LeaseHeld):
                    if row.status == WorkflowStatus.COMPLETED:
                        return Outcome(await wanted.types.decode_result(row, await self._result(row)))
                    if row.status == WorkflowStatus.FAILED:
                        raise await self._failure(row)
                    try:
                        with after_an_effect():
                            page = Page.of_new_run(self._transactions, row.id) if claim.created == row.id else None
                            return await self.drive(row, handler, wanted.types, strict=strict, linger=linger, page=page)
                    except PauseTakenBack:
                        continue
            if running_loop().time() >= deadline:
                raise row
            is_over = _ENDED
            await asyncio.sleep(_LOOK_AGAIN)

    async def _result(self, row: Any) -> str:
        """What a completed run returned, as JSON."""
        payloads = await self._transactions.payloads_of([(row.result,)])
        if payloads.misses_blobs:  # it was written anew under other keys since the row was read
            names = RunNames(ids=[row.id])
            row = await self._transactions.read(lambda uow: uow.claims.find(names)) or row
            payloads = await self._transactions.payloads_of([(row.result,)])
        opener = Opener.of(payloads, row)
        try:
            opening = partial(opener.result, row.result, row.result_digest)
            return await payloads.aside.call(opening, payloads.length([row.result]))
        except CorruptPayload as error:
            raise error.concerning(workflow_state_id=row.id) from None

    async def _failure(self, row: Any) -> RunFailed:
        """What a run that failed elsewhere, or before, is known to have failed of."""
        try:
            payloads = await self._transactions.payloads_of([(row.error,)])
            opener = Opener.of(payloads, row)
            error = opener.workflow("error", row.error, row.error_digest)
        except UNOPENED_HERE:
            error = None
        return RunFailed(
            f"run {row.id} failed: {error or 'of what cannot be read'}", workflow_state_id=row.id, error=error
        )

    async def drive(
        self,
        row: Any,
        handler: Handler[_T],
        types: RunTypes | None = None,
        *,
        strict: bool = False,
        linger: timedelta | None = None,
        page: Page | None = None,
        loaded: Callable[[LoadedRun], object] | None = None,
    ) -> Outcome[_T]:
        """Call `handler` for a run that was just claimed. `loaded` is told what was on record.

        The outcome is what the handler returned, or raised, of whatever class: then the run has failed. Raised is what
        happened to the run: a fault, or what its switch stopped it for. So neither can be taken for the other.

        Whatever happens, no lease is renewed and no task is left afterwards. Without `types` they are the schema's.
        `page`: the runs that were claimed with it.
        """
        types = types or self.types_of(row.workflow_name)
        lease = Lease.of(row)
        switch = StopSwitch(row.id)
        held = _Held(lease, switch, DatabaseClock(row.now))
        self.keeper.hold(held)
        journal: Journal | None = None
        try:
            if row.request is not None:  # left for an owner that is gone
                switch.trip(stopped_as(await self._transactions.write(lambda uow: uow.runs.let_go(lease)), row.id))
            if switch.reason is not None:
                raise switch.reason
            recorded = await self._load(row, lease, types, page or Page(self._transactions, [row.id]))
            if loaded is not None:
                loaded(recorded)
            journal = self._journal(row, lease, recorded, switch, types)
            if row.id in self.suspects:
                journal.on_progress = partial(self.suspects.clear, row.id)
            room = WaitingRoom(row.id, switch, linger, held.clock, self.lookout, self._exits)
            steps = Steps(journal, switch, room, self.keeper, self._transactions, self.threads, types)
            run: Run[Any] = Run(steps, self._start_child(lease, linger))
            return await self._call_handler(row, run, steps, handler, strict=strict)
        except (asyncio.CancelledError, OrchestratorStateError) as error:
            # Left as it is, for whoever comes next. After a stop or a failure the lease is released already.
            is_failed = journal is None and is_a(error, CorruptPayload)
            if switch.reason is None and not is_failed:
                await uninterrupted(self._leave(row, lease, error, progress=bool(journal and journal.has_progressed)))
            raise
        finally:
            self.keeper.drop(held)

    def types_of(self, workflow_name: str, state: Any = None, result: Any = None) -> RunTypes:
        """See `RunTypes.of`."""
        transactions = self._transactions
        return RunTypes.of(transactions.schemas, transactions.payloads, workflow_name, state, result)

    async def _load(self, row: Any, lease: Lease, types: RunTypes, page: Page) -> LoadedRun:
        try:
            require_sound(row)
            self._transactions.schemas.require_runnable(row.workflow_name, row.schema_version, row.id)
            loaded = await load_run(self._transactions, row, lease, self._hook, page)
            steps, history = await bring_up_to_date(
                self._transactions, row, lease, types, (loaded.steps, loaded.history)
            )
            return replace(loaded, steps=steps, history=history)
        except CorruptPayload as error:
            status = await self._fail(row, lease, describe(error))
            hooks.logger.warning("run %s is damaged, and now %s: %s", row.id, status, error)
            raise

    def _journal(self, row: Any, lease: Lease, recorded: LoadedRun, switch: StopSwitch, types: RunTypes) -> Journal:
        run_row = RunRow(
            id=row.id,
            workflow_id=row.workflow_id,
            name=row.workflow_name,
            user_id=row.user_id,
            started_at=row.started_at,
            parent_id=row.parent_id,
            attempts=row.attempts,
            now=row.now,
            schema_version=types.version,
        )
        return Journal(run_row, lease, recorded.steps, recorded.history, self.writer, switch, self._policy, self._hook)

    async def give_up(self, row: Any) -> str:
        """Mark a claimed run failed because too many workers vanished over it. Returns its status."""
        lease = Lease.of(row)
        try:
            begun = await self._transactions.read(lambda uow: uow.history.list_intents(row.id))
            where = f", with {', '.join(map(repr, begun))} under way" if begun else ""
            message = (
                f"{row.attempts} workers vanished over this run since it last finished a step{where}; "
                "`store.resume` gives it a new budget"
            )
            return await self._fail(row, lease, message, spare_ancestors=True)
        except (asyncio.CancelledError, OrchestratorStateError) as error:
            await uninterrupted(self._leave(row, lease, error, progress=False))
            raise

    async def _fail(self, row: Any, lease: Lease, message: str, *, spare_ancestors: bool = False) -> str:
        columns: Columns = {"status": WorkflowStatus.FAILED.value, "error": message}

        async def fail(uow: StoreUnit) -> str:
            status = await uow.runs.finish(lease, columns, parent_id=row.parent_id)
            if spare_ancestors:
                await uow.lineage.spare_ancestors(row.parent_id)
            return status

        return await self._transactions.write(fail)

    async def start(self, wanted: WantedRun) -> tuple[UUID, bool]:
        """Create the run for a worker to claim, unless it is there already. Returns its id, and whether it is new."""
        wanted = await self._prepared(wanted)

        async def start(uow: StoreUnit) -> tuple[UUID, bool]:
            row, is_new = await uow.claims.find(self._names(wanted)), False
            if row is None:
                columns = self._new_columns(wanted) | {"status": WorkflowStatus.PENDING.value}
                row, is_new = await self._create(uow, wanted, columns, None)
            return _require_same(row, wanted).id, is_new

        return await self._of_callers.write_once("start", start)

    # --- the handler ---------------------------------------------------------------------------------------------

    async def _call_handler(
        self, row: Any, run: Run[Any], steps: Steps, handler: Handler[_T], *, strict: bool
    ) -> Outcome[_T]:
        journal, switch, types = steps.journal, steps.switch, steps.types
        hooks.tell(
            self._hook,
            hooks.RunStarted,
            workflow_state_id=row.id,
            name=row.workflow_name,
            attempts=row.attempts,
        )
        outcome = "released"
        try:
            result = await self._supervise(run, steps, handler)
            steps.require_all_awaited()
            self._look_for_unused(journal, strict=strict)
            encoded, result = await types.encode(types.result, result, "result")
            await self._finish(journal, WorkflowStatus.COMPLETED, result=encoded)
            outcome = WorkflowStatus.COMPLETED.value
            return Outcome(result)
        except asyncio.CancelledError:
            if switch.reason is None:
                raise
            outcome, reason = await uninterrupted(self._stopped(row, journal, switch.reason, steps.room))
            raise reason from None
        except Exception as error:
            if (fault := fault_behind(error)) is not None:
                outcome = "interrupted"
                raise fault from None
            outcome = await self._finish(journal, WorkflowStatus.FAILED, error=describe(error))
            if outcome == WorkflowStatus.CANCELLED:
                raise stopped_as(outcome, row.id) from error
            return Outcome(None, error)
        finally:
            switch.end(is_left=outcome == "released")
            steps.room.wake_all()
            hooks.tell(self._hook, hooks.RunEnded, workflow_state_id=row.id, outcome=outcome)

    async def _supervise(self, run: Run[Any], steps: Steps, handler: Handler[_T]) -> _T:
        """Call the handler in a task of its own, which can be stopped without stopping our caller.

        The run was cancelled if the switch or our caller was. Any other `CancelledError` is the handler's own failure.
        """
        context = copy_context()
        context.run(mark, steps.room)
        context.run(steps.enter)
        task = asyncio.get_running_loop().create_task(
            outcome_of(partial(awaitable, "the handler", handler, run)), name=f"{HANDLER} {run.id}", context=context
        )
        steps.switch.watch(task)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            await settled(task)
            raise
        steps.switch.check()  # a handler may swallow the cancellation that stops it, and return as if it had not come
        if task.cancelled():
            raise asyncio.CancelledError  # before it began
        outcome: Outcome[_T] = task.result()
        return outcome.result()

    def _look_for_unused(self, journal: Journal, *, strict: bool) -> None:
        unused = journal.unused
        if not unused:
            return
        message = f"run {journal.row.id} ended without asking for the recorded steps {', '.join(unused)}"
        if strict:
            raise UnusedSteps(message, workflow_state_id=journal.row.id, step_ids=unused)
        hooks.logger.warning("%s", message)
        hooks.tell(self._hook, hooks.StepsUnused, workflow_state_id=journal.row.id, step_ids=unused)

    # --- how it ended --------------------------------------------------------------------------------------------

    async def _finish(
        self, journal: Journal, status: WorkflowStatus, *, result: str | None = None, error: str | None = None
    ) -> str:
        """Returns the status that was written: a run that fails although it was to be cancelled is cancelled."""
        columns: Columns = {
            "status": status.value,
            "error": error,
            "wake_at": None,
            "request": None,
        }
        if status is WorkflowStatus.COMPLETED:
            columns |= {"result": result} | await journal.final_context()
        columns = await prepared_workflow(self._transactions.payloads, journal.row.id, columns)

        async def finish(uow: StoreUnit) -> str:
            return await uow.runs.finish(journal.lease, columns, parent_id=journal.row.parent_id)

        written = await self._transactions.write(finish)
        self.lookout.look_now()
        return written

    async def _stopped(
        self, row: Any, journal: Journal, reason: OrchestratorStateError, room: WaitingRoom
    ) -> tuple[str, OrchestratorStateError]:
        """Write why the run stops before its handler is done. Returns the outcome for the hook, and for the caller.

        What was asked of the run by then counts, whatever it stops for.
        """
        if is_a(reason, LeaseLost):
            return "lost", reason
        try:
            if not is_a(reason, NOT_THE_RUNS):
                return await self._write_stop(journal, reason, room)
        except StoreUnavailable as unavailable:
            reason = unavailable
        await self._leave(row, journal.lease, reason, progress=journal.has_progressed)
        return "interrupted", reason

    async def _write_stop(
        self, journal: Journal, reason: OrchestratorStateError, room: WaitingRoom
    ) -> tuple[str, OrchestratorStateError]:
        lease = journal.lease
        if is_a(reason, RunSuspended):
            status = await self._transactions.write(
                lambda uow: uow.runs.suspend(
                    lease, wake_at=room.wake_at, signals=room.awaited_signals, children=room.awaited_children
                )
            )
            if status == WorkflowStatus.RUNNING:
                return "suspended", reason
        else:
            status = await self._transactions.write(lambda uow: uow.runs.let_go(lease))
        return ("released" if status == WorkflowStatus.RUNNING else status), stopped_as(status, journal.row.id)

    async def _leave(self, row: Any, lease: Lease, error: BaseException, *, progress: bool) -> None:
        """Let go of the run; after a fault with a pause, which grows while faults follow each other without progress.

        Best effort: a lease that is not released ends by itself.
        """
        faults, pause = (0 if progress else row.faults), timedelta()
        if is_a(error, OrchestratorStateError):
            faults += 1
            pause = pause_after(error, faults, self._transactions.settings.lease_term)
        try:
            is_left = await self._transactions.write(
                lambda uow: uow.runs.release(lease, pause, faults=faults), patience=_RELEASE_WITHIN
            )
        except OrchestratorStateError:
            is_left = True
            hooks.logger.warning("the lease of run %s could not be released; it ends by itself", row.id)
        if pause and is_left:
            whom = "code that can read it" if is_a(error, SchemaMismatch) else "whoever comes next"
            seconds, why = pause.total_seconds(), message_of(error)
            hooks.logger.warning("run %s is left to %s in %.1f s: %s", row.id, whom, seconds, why)

    # --- starting and claiming -----------------------------------------------------------------------------------

    async def _start_or_claim(self, uow: StoreUnit, wanted: WantedRun, claim: Claim, is_over: Collection[str]) -> Any:
        """The claimed row; one that `is_over`; or why it cannot be claimed, for the caller to raise or to wait for."""
        claim.begin()
        row = await uow.claims.find(self._names(wanted))
        if row is None:
            await self._require_goes_on(uow, wanted.parent)
            row, is_new = await self._create(uow, wanted, self._new_columns(wanted), self.keeper.owner)
            if is_new:
                claim.add(row.id)
                claim.created = row.id
                return row
        row = _require_same(row, wanted)
        self._transactions.schemas.require_runnable(row.workflow_name, row.schema_version, row.id)
        if row.status in is_over:
            return row
        if row.status == WorkflowStatus.CANCELLED:
            raise RunCancelled(f"run {row.id} was cancelled", workflow_state_id=row.id)
        if row.status == WorkflowStatus.PAUSED:
            raise RunPaused(f"run {row.id} is paused; `store.resume` continues it", workflow_state_id=row.id)
        if row.id in claim and not row.lease_is_free and row.lease_owner == self.keeper.owner.id:
            return row  # claimed by an earlier attempt, whose answer was lost
        claimed = await self._claim(uow, row, wanted, claim)
        return claimed or await self._start_or_claim(uow, wanted, claim, is_over)

    async def _claim(self, uow: StoreUnit, row: Any, wanted: WantedRun, claim: Claim) -> Any:
        """The unfinished `row`, claimed; or why it cannot be; None if it has changed since it was read."""
        if unclaimable := unclaimable_columns(row):
            raise corrupt_cells(unclaimable, row.id, workflow_id=row.workflow_id)
        if not row.lease_is_free and not self._is_abandoned(row):
            return lease_held(row.id, row)
        if wanted.parent_id is not None and row.is_asleep:
            return RunSuspended(f"child run {row.id} waits", workflow_state_id=row.id, wake_at=row.wake_at)
        claimed = await uow.claims.claim(row, self.keeper.owner)
        if claimed is not None:
            _require_same(claimed, wanted)  # what was read may have been deleted, and its id another's by now
            claim.add(claimed.id)
            if row.status == WorkflowStatus.FAILED:
                await uow.lineage.revive_descendants(row.id)
        return claimed

    async def _require_goes_on(self, uow: StoreUnit, parent: Lease | None) -> None:
        """A child that is started after its parent was to be cancelled would not be cancelled with it."""
        if parent is not None and await uow.runs.hold_owned(parent) == CANCEL:
            raise stopped_as(WorkflowStatus.CANCELLED, parent.workflow_state_id)

    async def _create(
        self, uow: StoreUnit, wanted: WantedRun, columns: Columns, owner: Owner | None
    ) -> tuple[Any, bool]:
        """The new row, and True; or the one that somebody else has created just now. Raises `Conflict`.

        What kept us from creating it may have been deleted before it was looked for: then the same id is free, and
        whoever starts the run at the same time tries that.
        """
        names = self._names(wanted)
        first: Columns = {} if wanted.prepared is None else {"context": wanted.prepared}
        for run_id in names.ids:
            for _ in range(MOST_LOOKS):
                if created := await uow.claims.create(columns | {"id": run_id} | first, owner):
                    return created, True
                if found := await uow.claims.find(names):
                    return found, False
                if await uow.claims.is_taken_elsewhere(run_id):
                    break
            first = {}
        message = "the run's ids are taken in other namespaces, or another unique index refuses the run"
        raise Conflict(message, workflow_id=wanted.workflow_id)

    def _names(self, wanted: WantedRun) -> RunNames:
        """The same id for the same start, so that the primary key lets only one of two concurrent starts create it."""
        derived = uuid5(_RUN_IDS, f"{self._transactions.settings.namespace}\0{wanted.workflow_id}")
        first = wanted.id or derived
        return RunNames(
            # Anybody can guess an id, and take it in a namespace of theirs: that is no reason to fail.
            ids=[first, *(uuid5(first, f"taken {number}") for number in range(1, _IDS))],
            idempotency_key=wanted.idempotency_key,
            # A child is its parent's call, whatever it is called.
            workflow_id=wanted.workflow_id if wanted.id is None else None,
        )

    async def _prepared(self, wanted: WantedRun) -> WantedRun:
        if wanted.context is None or len(wanted.context) < LONG:
            return wanted
        first = self._names(wanted).ids[0]
        columns: Columns = {"context": wanted.context}
        columns = await prepared_workflow(self._transactions.payloads, first, columns)
        return replace(wanted, prepared=columns["context"])

    def _new_columns(self, wanted: WantedRun) -> Columns:
        return {
            "workflow_id": wanted.workflow_id,
            "workflow_name": wanted.name,
            "status": WorkflowStatus.RUNNING.value,
            "user_id": wanted.user_id,
            # A resume needs no context, so a model that has no defaults refuses a start only here.
            "context": wanted.types.context_text({}) if wanted.context is None else wanted.context,
            "schema_version": wanted.types.version,
            "idempotency_key": wanted.idempotency_key,
            "parent_id": wanted.parent_id,
        }

    def _is_abandoned(self, row: Any) -> bool:
        """Whether the lease's owner is provably gone: its process is dead, or it is us and nothing runs here."""
        if row.lease_owner == self.keeper.owner.id:
            return not self.keeper.has(row.id)
        process = ProcessIdentity.parse(row.lease_process)
        return process is not None and process.is_dead()

    def _start_child(self, lease: Lease, linger: timedelta | None) -> Any:
        async def start(
            parent: RunRow, step_id: str, handler: Handler[Any], types: RunTypes, context: str | None
        ) -> Outcome[Any]:
            wanted = WantedRun(
                id=child_run_id(parent.id, step_id),
                name=types.workflow_name,
                types=types,
                workflow_id=f"{parent.id}/{step_id}"[:255],
                context=context,
                user_id=parent.user_id,
                parent=lease,
            )
            try:
                return await self.run(wanted, handler, wait=timedelta(), linger=linger)
            except LeaseHeld:
                raise RunSuspended(f"another worker has child run {wanted.id}", workflow_state_id=wanted.id) from None
            except RunPaused:
                raise RunSuspended(f"child run {wanted.id} is paused", workflow_state_id=wanted.id) from None

        return start


@dataclass(frozen=True, slots=True)
class _Held:
    """A run for the keeper of its lease."""

    lease: Lease
    _switch: StopSwitch
    clock: DatabaseClock

    def renewed(self, request: str | None, now: datetime) -> None:
        self._switch.notice(request)
        self.clock.set(now)

    def stop(self, reason: OrchestratorStateError) -> None:
        self._switch.trip(reason)


_RUN_IDS: Final = UUID("8c5f6c58-0a55-4a62-9f0a-3f3f6f3f7b61")


def _require_same(row: Any, wanted: WantedRun) -> Any:
    """Return `row` if it is a run of what was asked for, and can be addressed."""
    if not is_id(row.id):
        raise corrupt_cells(["id"], row.id, workflow_id=row.workflow_id)
    if row.workflow_name != wanted.name:
        raise Conflict(
            f"run {row.id} is of {row.workflow_name!r}, not of {wanted.name!r}; give it another workflow_id",
            workflow_state_id=row.id,
        )
    return row
