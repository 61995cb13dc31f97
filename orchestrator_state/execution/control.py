"""What anybody may ask of a run from outside: signal, pause, resume, cancel, fork, rewind."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any
from uuid import UUID, uuid4, uuid5

from orchestrator_state.arguments import as_flag, as_signal_name, as_stored_name, as_uuid
from orchestrator_state.domain import ACTIVE, WorkflowState, WorkflowStatus, utc_now
from orchestrator_state.errors import (
    CheckpointNotFound,
    InvalidPayload,
    InvalidTransition,
    WorkflowNotFound,
    concerning,
)
from orchestrator_state.execution.leases import Leaseholder, LeaseKeeper
from orchestrator_state.payloads import Sealed
from orchestrator_state.records import FINAL, NO_ERROR, FoundRun, SignalPlace
from orchestrator_state.records.states import rebase
from orchestrator_state.repositories import lease_held
from orchestrator_state.repositories.runs import CANCEL, PAUSE
from orchestrator_state.state_schema import FIRST
from orchestrator_state.transactions import StoreUnit, Transactions


class RunControl:
    """Each call is one transaction, done once however often it is repeated.

    A live owner is asked and acts at its next step; a run without one changes now.
    """

    def __init__(self, transactions: Transactions, keeper: LeaseKeeper) -> None:
        self._transactions = transactions
        self._keeper = keeper

    async def signal(self, workflow_state_id: UUID | str, name: str, payload: Any, *, once: bool) -> None:
        target = as_uuid(workflow_state_id, "workflow_state_id")
        name = as_signal_name(name)
        is_only = as_flag(once, "once")
        encoded = await self._transactions.payloads.encode_aside(payload, "payload")
        signal_id = uuid4()
        place = SignalPlace(target, signal_id, self._transactions.settings.namespace, name)
        prepared = await place.prepared(self._transactions.payloads, encoded)
        sending = partial(
            send_signal, workflow_state_id=target, signal_id=signal_id, name=name, payload=prepared, once=is_only
        )
        with concerning(workflow_state_id=target):
            await self._transactions.write_once("signal", sending)

    async def pause(self, workflow_state_id: UUID | str) -> None:
        target = as_uuid(workflow_state_id, "workflow_state_id")

        async def pause(uow: StoreUnit) -> None:
            run = await _locked(uow, target)
            if run.status == WorkflowStatus.PAUSED or await _is_being_cancelled(uow, run):
                return
            if run.status not in (WorkflowStatus.PENDING, WorkflowStatus.RUNNING):
                raise _illegal(run.id, run.status, "be paused", {WorkflowStatus.PENDING, WorkflowStatus.RUNNING})
            if run.lease_is_free:
                await uow.runs.set_status(run.id, {"status": WorkflowStatus.PAUSED.value})
            else:
                await uow.runs.leave_request(run.id, PAUSE)

        with concerning(workflow_state_id=target):
            await self._transactions.write_once("pause", pause)

    async def resume(self, workflow_state_id: UUID | str) -> None:
        target = as_uuid(workflow_state_id, "workflow_state_id")

        async def resume(uow: StoreUnit) -> None:
            run = await _locked(uow, target)
            if await _is_being_cancelled(uow, run):
                return
            if run.status in (WorkflowStatus.PENDING, WorkflowStatus.RUNNING):
                if run.request == PAUSE:
                    await uow.runs.leave_request(run.id, None)
                if run.faults and run.lease_is_free:
                    await uow.runs.wake(run.id)  # somebody has mended what it was left alone for
                return
            if run.status not in (WorkflowStatus.PAUSED, WorkflowStatus.FAILED):
                raise _illegal(run.id, run.status, "be resumed", {WorkflowStatus.PAUSED, WorkflowStatus.FAILED})
            await uow.runs.set_status(run.id, _ANEW)
            if run.status == WorkflowStatus.FAILED:
                await uow.lineage.revive_descendants(run.id)

        with concerning(workflow_state_id=target):
            await self._transactions.write_once("resume", resume)

    async def cancel(self, workflow_state_id: UUID | str, *, force: bool) -> None:
        target = as_uuid(workflow_state_id, "workflow_state_id")
        is_forced = as_flag(force, "force")

        async def cancel(uow: StoreUnit) -> Sequence[Leaseholder]:
            unfinished = await cancel_run(uow, workflow_state_id=target, force=is_forced)
            # Under the rows' locks: whoever has them now is who they are taken from.
            return self._keeper.holders_of(unfinished) if is_forced else ()

        with concerning(workflow_state_id=target):
            self._keeper.revoke(await self._transactions.write_once("cancel", cancel))

    async def fork(self, checkpoint_id: UUID | str, workflow_id: str | None) -> WorkflowState:
        origin = as_uuid(checkpoint_id, "checkpoint_id")
        # Of a name there is one fork of a checkpoint, also for a process that does not know whether it has made it.
        name = None if workflow_id is None else as_stored_name(workflow_id, "workflow_id")
        fork_id = uuid4() if name is None else uuid5(origin, name)

        async def fork(uow: StoreUnit) -> WorkflowState:
            run = await _locked_owner(uow, origin)
            if name is not None and (made := await uow.workflows.find(fork_id)) is not None:
                return made
            # At the version of the patches that come with it: a resume upcasts them together.
            checkpoint = await uow.past.get_checkpoint(origin, run.stored.schema_version or FIRST)
            state = WorkflowState.from_snapshot(checkpoint.snapshot)
            source = state.id
            if source != checkpoint.workflow_state_id:
                raise InvalidPayload("the snapshot is another workflow's state", path="snapshot.id")
            now = utc_now()
            state.id, state.version, state.status = fork_id, 0, WorkflowStatus.PENDING
            state.workflow_id = name or f"{state.workflow_id[:210]}-fork-{fork_id}"
            state.started_at = state.updated_at = now
            state.completed_at = state.error = None
            await uow.past.save_state(state, run.stored.schema_version or FIRST)
            await uow.lineage.note_fork(fork_id, source, checkpoint.seq, _finished(state))
            return await uow.workflows.get(fork_id)

        with concerning(checkpoint_id=origin):
            return await self._transactions.write_once("fork", fork)

    async def rewind(self, checkpoint_id: UUID | str) -> WorkflowState:
        origin = as_uuid(checkpoint_id, "checkpoint_id")

        async def rewind(uow: StoreUnit) -> WorkflowState:
            run = await _locked_owner(uow, origin)
            if not run.lease_is_free:
                raise lease_held(run.id, run)
            checkpoint = await uow.past.get_checkpoint(origin, run.stored.schema_version or FIRST)
            state = WorkflowState.from_snapshot(checkpoint.snapshot)
            if state.id != run.id:
                raise InvalidPayload("the snapshot is another workflow's state", path="snapshot.id")
            if checkpoint.seq is not None:
                await uow.history.forget_checkpoints_after(run.id, checkpoint.seq)
            await uow.history.keep_initial_context(run.id)
            await rebase(state, await uow.past.get_state(run.id), self._transactions.payloads)
            state.status = WorkflowStatus.PENDING
            state.completed_at = state.error = None
            await uow.past.save_state(state, run.stored.schema_version or FIRST)
            await uow.history.forget_patches(run.id, keep=_finished(state))
            await uow.runs.set_status(run.id, _ANEW | {"result": None})
            await uow.lineage.revive_descendants(run.id, was_cancelled=run.status == WorkflowStatus.CANCELLED)
            return await uow.workflows.get(run.id)

        with concerning(checkpoint_id=origin):
            return await self._transactions.write_once("rewind", rewind)


async def send_signal(
    uow: StoreUnit, *, workflow_state_id: UUID, signal_id: UUID, name: str, payload: str | Sealed, once: bool
) -> None:
    """See `StateStore.signal`; in the transaction of `uow`."""
    status = await uow.signals.send(workflow_state_id, signal_id, name, payload, once=once)
    if status is None:
        raise _not_found(workflow_state_id)
    if status not in ACTIVE:
        raise _illegal(workflow_state_id, status, "be signalled", ACTIVE)


async def cancel_run(uow: StoreUnit, *, workflow_state_id: UUID, force: bool) -> Sequence[UUID]:
    """See `StateStore.cancel`; in the transaction of `uow`. Returns the ids of the runs that were unfinished."""
    run = await _locked(uow, workflow_state_id)
    if run.status in ACTIVE:
        await _cancel(uow, run, force=force)
    elif run.status != WorkflowStatus.CANCELLED:
        raise _illegal(run.id, run.status, "be cancelled", ACTIVE)
    descendants = await uow.lineage.cancel_descendants(run.id, force=force)
    return [run.id, *descendants] if run.status in ACTIVE else descendants


_ANEW = {
    "status": WorkflowStatus.PENDING.value,
    "attempts": 0,
    "completed_at": None,
    "wake_at": None,
    **NO_ERROR,
}


def _finished(state: WorkflowState) -> list[str]:
    """The steps whose change of the context is in `state`. The others may have been finished since."""
    return [step_id for step_id, step in state.steps.items() if step.status in FINAL]


async def _locked(uow: StoreUnit, workflow_state_id: UUID) -> FoundRun:
    run = await uow.runs.lock(workflow_state_id)
    if run is None:
        raise _not_found(workflow_state_id)
    return run


async def _locked_owner(uow: StoreUnit, checkpoint_id: UUID) -> FoundRun:
    """Raises `CheckpointNotFound`, also if its workflow is deleted with it before it is locked."""
    run = await uow.runs.lock(await uow.past.get_owner(checkpoint_id))
    if run is None:
        raise CheckpointNotFound(f"there is no checkpoint {checkpoint_id}", checkpoint_id=checkpoint_id)
    return run


async def _cancel(uow: StoreUnit, run: FoundRun, *, force: bool = False) -> None:
    if run.lease_is_free or force:
        await uow.runs.set_status(run.id, {"status": WorkflowStatus.CANCELLED.value})
        if run.parent_id is not None:
            await uow.runs.wake(run.parent_id)
    else:
        await uow.runs.leave_request(run.id, CANCEL)


async def _is_being_cancelled(uow: StoreUnit, run: FoundRun) -> bool:
    """Whether a cancel was asked of the run's owner: it outranks what is asked after it."""
    if run.request != CANCEL or run.status not in ACTIVE:
        return False
    if run.lease_is_free:
        await _cancel(uow, run)
    return True


def _not_found(workflow_state_id: UUID) -> WorkflowNotFound:
    return WorkflowNotFound(f"there is no workflow with id {workflow_state_id}", workflow_state_id=workflow_state_id)


def _illegal(workflow_state_id: UUID, status: str, what: str, allowed: Collection[WorkflowStatus]) -> InvalidTransition:
    expected = tuple(sorted(str(status) for status in allowed))
    return InvalidTransition(
        f"run {workflow_state_id} is {status} and cannot {what}; only {', '.join(expected)} ones can",
        workflow_state_id=workflow_state_id,
        expected=expected,
        found=str(status),
    )
