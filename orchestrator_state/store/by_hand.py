"""State by hand: what is saved, checkpointed and restored without a run."""

from __future__ import annotations

import contextlib
from uuid import UUID

from orchestrator_state.arguments import as_instance, as_listener, as_uuid
from orchestrator_state.domain import Checkpoint, WorkflowState
from orchestrator_state.errors import InvalidPayload, NewerSchemaVersion, StaleVersion, StoreUnavailable, concerning
from orchestrator_state.records.states import (
    check_checkpoint,
    loaded_from,
    rebase,
    same_rows,
    show_in_place_of,
    snapshot_of,
)
from orchestrator_state.repositories import OnDamaged
from orchestrator_state.state_schema import FIRST
from orchestrator_state.store.base import StoreCalls
from orchestrator_state.transactions import StoreUnit, Transactions


class StatesByHand(StoreCalls):
    """Save, load and checkpoint workflow state that the application drives itself."""

    async def save_workflow_state(self, state: WorkflowState) -> None:
        """Insert `state`, or update the rows that changed since it was loaded or saved, in one transaction.

        Raises `StaleVersion` if somebody else saved it meanwhile, `LeaseHeld` if it is a run that a worker has, and
        `InvalidPayload` for what cannot be stored; then nothing is written.
        """
        await save(self._transactions, as_instance(state, WorkflowState, "state"))

    async def load_workflow_state(self, workflow_state_id: UUID | str) -> WorkflowState:
        """Return the workflow with all its steps, as of one moment. Raises `WorkflowNotFound`."""
        return await load(self._transactions, workflow_state_id)

    async def load_workflow_state_by_workflow_id(self, workflow_id: str) -> WorkflowState:
        """Return the most recently updated state of that `workflow_id`. Raises `WorkflowNotFound`."""
        return await self._transactions.read(lambda uow: uow.workflows.get_by_workflow_id(workflow_id))

    async def list_active_workflows(self, *, on_damaged: OnDamaged | None = None) -> list[WorkflowState]:
        """Return all pending, running and paused workflows with their steps, most recently updated first.

        One that cannot be read, because it is damaged or written with another key, does not hide the others: it is
        left out, and `on_damaged` is called with its error, whose `workflow_state_id` says which it is. By default the
        error is logged. If nothing can be read at all, the first error is raised.
        """
        listener = as_listener(on_damaged, "on_damaged")
        return await self._transactions.read(lambda uow: uow.workflows.list_active(listener))

    async def create_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Insert `checkpoint`, which is given its `seq`, and prune the workflow's to the newest `keep_checkpoints`.

        One transaction. Raises `WorkflowNotFound`, or `AlreadyExists` if the checkpoint was created before.
        """
        await create_checkpoint(self._transactions, checkpoint)

    async def get_checkpoint(self, checkpoint_id: UUID | str) -> Checkpoint:
        """Return a checkpoint, with its snapshot. Raises `CheckpointNotFound`."""
        return await self._transactions.read(lambda uow: uow.checkpoints.get(checkpoint_id))

    async def get_latest_checkpoint(self, workflow_state_id: UUID | str) -> Checkpoint | None:
        """Return the checkpoint with the highest `seq`, or None."""
        return await self._transactions.read(lambda uow: uow.checkpoints.find_latest(workflow_state_id))

    async def restore_from_checkpoint(self, checkpoint_id: UUID | str) -> WorkflowState:
        """Return the workflow as it was at that checkpoint. Nothing is written: saving it rolls the workflow back.

        It carries the live row's version, so that the save is refused if the workflow moved on in between. Raises
        `CheckpointNotFound`, or `InvalidPayload` if the snapshot is not a state of its workflow.
        """
        return await restore(self._transactions, as_uuid(checkpoint_id, "checkpoint_id"))


async def save(transactions: Transactions, state: WorkflowState) -> None:
    """See `StateStore.save_workflow_state`. After an unknown outcome the row tells whether it was this save."""
    written: list[WorkflowState] = []

    async def save(uow: StoreUnit) -> None:
        await uow.workflows.save(state)
        written[:] = [snapshot_of(state)]

    async def landed() -> bool:
        live, mine = await load(transactions, state.id), written[0]
        if live.version > mine.version:
            raise StoreUnavailable(
                "the connection was lost during the commit, and others have saved since: load it again",
                outcome_unknown=True,
            )
        if not same_rows(live, mine):
            return False
        state.version, state.updated_at, state._saved = live.version, live.updated_at, live._saved
        return True

    with concerning(workflow_state_id=state.id):
        await transactions.write_or_compare(save, StaleVersion, landed)


async def load(transactions: Transactions, workflow_state_id: UUID | str) -> WorkflowState:
    """See `StateStore.load_workflow_state`."""
    return await transactions.read(lambda uow: uow.workflows.get(workflow_state_id))


async def create_checkpoint(transactions: Transactions, checkpoint: Checkpoint) -> None:
    """See `StateStore.create_checkpoint`."""
    check_checkpoint(checkpoint, transactions.payloads)
    keep = transactions.settings.keep_checkpoints

    async def create(uow: StoreUnit) -> int | None:
        await uow.checkpoints.add(checkpoint)
        await uow.checkpoints.prune(checkpoint.workflow_state_id, keep=keep)
        return checkpoint.seq

    with concerning(workflow_state_id=checkpoint.workflow_state_id):
        checkpoint.seq = await transactions.write_once("checkpoint", create)


async def restore(transactions: Transactions, checkpoint_id: UUID) -> WorkflowState:
    """See `StateStore.restore_from_checkpoint`."""
    with concerning(checkpoint_id=checkpoint_id):
        return await _restored(transactions, checkpoint_id)


async def _restored(transactions: Transactions, checkpoint_id: UUID) -> WorkflowState:
    checkpoint = await transactions.read(lambda uow: uow.checkpoints.get(checkpoint_id))
    live = await load(transactions, checkpoint.workflow_state_id)
    restored = WorkflowState.from_snapshot(checkpoint.snapshot)
    if restored.id != live.id:
        raise InvalidPayload("the snapshot is another workflow's state", path="snapshot.id")
    await rebase(restored, live, transactions.payloads)
    version = loaded_from(live).stamps.get(None) or FIRST
    known = transactions.schemas.version_of(live.workflow_name)
    if known is not None and version < known:
        with contextlib.suppress(NewerSchemaVersion):  # a snapshot by hand, of today's version
            old = await transactions.read(lambda uow: uow.past.get_checkpoint(checkpoint_id, version))
            show_in_place_of(restored, WorkflowState.from_snapshot(old.snapshot), version)
    return restored
