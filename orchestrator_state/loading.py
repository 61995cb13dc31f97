"""Load what is recorded of a claimed run, and fall back to a checkpoint where it is damaged."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any
from uuid import UUID

from orchestrator_state import hooks
from orchestrator_state.codecs import decode, encode
from orchestrator_state.domain import Checkpoint, StepState, WorkflowState
from orchestrator_state.errors import CorruptPayload, PayloadError
from orchestrator_state.mapping import step_columns
from orchestrator_state.run_context import ContextHistory, Encoded, Patch, apply_all, join, split
from orchestrator_state.run_repository import Lease, StepRecord, step_record
from orchestrator_state.transactions import Transactions
from orchestrator_state.unit_of_work import UnitOfWork


async def load_history(
    transactions: Transactions, row: Any, lease: Lease, hook: hooks.Hook
) -> tuple[Sequence[StepRecord], ContextHistory]:
    """Return the recorded steps and the context's way through them: one statement, unless there is damage.

    Steps that cannot be read are taken from the newest checkpoint that can; those it does not have run again.
    """
    steps: Sequence[StepRecord] = [
        step_record(step) for step in await transactions.read(lambda uow: uow.runs.list_steps(row.id))
    ]
    damaged = tuple(step.step_id for step in steps if not _is_sound(step))
    context_is_sound = _context_is_sound(row)
    if damaged or not context_is_sound:
        snapshot, seq = await _newest_sound_snapshot(transactions, row.id)
        hooks.logger.warning("run %s: damaged steps %s are taken from checkpoint %s", row.id, damaged, seq)
        hooks.tell(hook, hooks.FellBack(workflow_state_id=row.id, step_ids=damaged, seq=seq))
        steps = await _repair(transactions, lease, steps, damaged, snapshot)
        if not context_is_sound:
            if snapshot is None:
                raise CorruptPayload("the stored context is damaged, and there is no checkpoint", path="context")
            context = await _store_context(transactions, lease, snapshot)
            return steps, ContextHistory(context, split(context, "context"), {})
    return steps, await _history(transactions, row, lease, steps)


async def _history(transactions: Transactions, row: Any, lease: Lease, steps: Sequence[StepRecord]) -> ContextHistory:
    patches = {step.position: Patch.from_json(step.context_patch) for step in steps if step.context_patch}
    stored = split(row.context, "context")
    effective = apply_all(stored, (patches[at] for at in sorted(patches) if at > row.context_position))
    history = ContextHistory(row.initial_context or row.context, effective, patches)
    if history.was_edited:
        await transactions.write(lambda uow: uow.runs.start_context_anew(lease, join(effective)))
    return history


def _is_sound(step: StepRecord) -> bool:
    try:
        decode(step.outputs, "outputs")
        if step.context_patch:
            Patch.from_json(step.context_patch)
    except PayloadError:
        return False
    return True


def _context_is_sound(row: Any) -> bool:
    try:
        split(row.context, "context")
        split(row.initial_context or "{}", "context")
        decode(row.context, "context")
    except PayloadError:
        return False
    return True


async def _newest_sound_snapshot(
    transactions: Transactions, workflow_state_id: Any
) -> tuple[WorkflowState | None, int | None]:
    """The newest checkpoint that holds this workflow's state."""
    for checkpoint_id in await transactions.read(lambda uow: uow.checkpoints.list_ids(workflow_state_id)):
        try:
            checkpoint = await transactions.read(partial(_find_checkpoint, checkpoint_id=checkpoint_id))
            if checkpoint is not None:
                state = WorkflowState.from_snapshot(checkpoint.snapshot)
                if state.id == workflow_state_id:
                    return state, checkpoint.seq
        except PayloadError:
            continue
    return None, None


async def _find_checkpoint(uow: UnitOfWork, checkpoint_id: UUID) -> Checkpoint | None:
    return await uow.checkpoints.find(checkpoint_id)


async def _repair(
    transactions: Transactions,
    lease: Lease,
    steps: Sequence[StepRecord],
    damaged: Sequence[str],
    snapshot: WorkflowState | None,
) -> Sequence[StepRecord]:
    """Put the checkpoint's steps in the place of damaged ones; forget those that it does not have."""
    known = snapshot.steps if snapshot is not None else {}
    mended = [
        _from_snapshot(step, known[step.step_id]) if step.step_id in damaged else step
        for step in steps
        if step.step_id not in damaged or step.step_id in known
    ]

    async def write(uow: UnitOfWork) -> None:
        await uow.runs.replace_steps(lease, damaged, [step for step in mended if step.step_id in damaged])

    if damaged:
        await transactions.write(write)
    return mended


def _from_snapshot(damaged: StepRecord, step: StepState) -> StepRecord:
    columns = step_columns(step, f"steps[{step.step_id!r}]")
    return StepRecord(step_id=step.step_id, position=damaged.position, context_patch=None, **columns)


async def _store_context(transactions: Transactions, lease: Lease, snapshot: WorkflowState) -> str:
    context: Encoded = {key: encode(item, "context") for key, item in dict(snapshot.context).items()}
    text = join(context)
    await transactions.write(lambda uow: uow.runs.start_context_anew(lease, text))
    return text
