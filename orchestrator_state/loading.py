"""Load what is recorded of a claimed run, and fall back to a checkpoint where it is damaged."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any
from uuid import UUID

from orchestrator_state import hooks
from orchestrator_state.codecs import decode, encode
from orchestrator_state.domain import Checkpoint, StepState, WorkflowState
from orchestrator_state.errors import CheckpointNotFound, CorruptPayload, PayloadError
from orchestrator_state.mapping import step_columns
from orchestrator_state.run_context import ContextHistory, Encoded, Patch, apply_all, join, split
from orchestrator_state.run_repository import Lease, StepRecord, step_record
from orchestrator_state.state_schema import FIRST
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
    damaged = tuple(step.step_id for step in steps if not _has_sound_outputs(step) or not _has_sound_patch(step))
    if damaged or not (_is_object(row.context) and _is_object(_initial(row))):
        snapshot, seq = await _newest_sound_snapshot(transactions, row)
        hooks.logger.warning("run %s: damaged steps %s are taken from checkpoint %s", row.id, damaged, seq)
        hooks.tell(hook, hooks.FellBack(workflow_state_id=row.id, step_ids=damaged, seq=seq))
        return await _repaired(transactions, row, lease, steps, damaged, snapshot)
    history, effective = _history(row, steps)
    if history.was_edited:
        await transactions.write(lambda uow: uow.runs.start_context_anew(lease, join(effective)))
    return steps, history


def _history(row: Any, steps: Sequence[StepRecord]) -> tuple[ContextHistory, Encoded]:
    """The context's way, and where it has led to."""
    patches = _patches(steps)
    stored = split(row.context, "context")
    effective = apply_all(stored, (patches[at] for at in sorted(patches) if at > row.context_position))
    return ContextHistory(_initial(row), effective, patches), effective


def _patches(steps: Sequence[StepRecord]) -> dict[int, Patch]:
    return {step.position: Patch.from_json(step.context_patch) for step in steps if step.context_patch}


def _initial(row: Any) -> str:
    """Until the context is written over, it is the first one."""
    text: str = row.context if row.initial_context is None else row.initial_context
    return text


def _has_sound_outputs(step: StepRecord) -> bool:
    try:
        decode(step.outputs, "outputs")
    except PayloadError:
        return False
    return True


def _has_sound_patch(step: StepRecord) -> bool:
    try:
        _patches([step])
    except PayloadError:
        return False
    return True


def _is_object(text: str) -> bool:
    try:
        return isinstance(decode(text, "context"), dict)
    except PayloadError:
        return False


async def _newest_sound_snapshot(transactions: Transactions, row: Any) -> tuple[WorkflowState | None, int | None]:
    """The newest checkpoint that holds this workflow's state, at the version of its row."""
    for checkpoint_id in await transactions.read(lambda uow: uow.checkpoints.list_ids(row.id)):
        try:
            checkpoint = await transactions.read(
                partial(_get_checkpoint, checkpoint_id=checkpoint_id, version=row.schema_version or FIRST)
            )
            state = WorkflowState.from_snapshot(checkpoint.snapshot)
            if state.id == row.id:
                return state, checkpoint.seq
        except (PayloadError, CheckpointNotFound):
            continue
    return None, None


async def _get_checkpoint(uow: UnitOfWork, checkpoint_id: UUID, version: int) -> Checkpoint:
    return await uow.checkpoints.get_as_of(checkpoint_id, version)


async def _repaired(
    transactions: Transactions,
    row: Any,
    lease: Lease,
    steps: Sequence[StepRecord],
    damaged: Sequence[str],
    snapshot: WorkflowState | None,
) -> tuple[Sequence[StepRecord], ContextHistory]:
    """Put the checkpoint's steps in the place of damaged ones, and find a context. Without it they are forgotten."""
    known = snapshot.steps if snapshot is not None else {}
    mended = [
        _from_snapshot(step, known[step.step_id], row.schema_version) if step.step_id in damaged else step
        for step in steps
        if step.step_id not in damaged or step.step_id in known
    ]
    history, effective = _found_context(row, steps, mended, snapshot)
    text, position = join(effective), max((step.position for step in mended), default=-1)
    starts_anew = history.was_edited or not _is_object(_initial(row))

    async def write(uow: UnitOfWork) -> None:
        await uow.runs.replace_steps(lease, damaged, [step for step in mended if step.step_id in damaged])
        if starts_anew:
            await uow.runs.start_context_anew(lease, text)
        else:
            await uow.runs.fold_context(lease, text, position)

    await transactions.write(write)
    return mended, history


def _found_context(
    row: Any, steps: Sequence[StepRecord], mended: Sequence[StepRecord], snapshot: WorkflowState | None
) -> tuple[ContextHistory, Encoded]:
    """Like `_history`, where something is lost.

    What a step that runs again did to the context is forgotten: the context is what the others make of the first one.
    If some of that cannot be read, the run starts with the stored context, or else with the checkpoint's. Raises
    `CorruptPayload` if there is none.
    """
    if _is_object(_initial(row)):
        readable = [step for step in steps if _has_sound_patch(step)]
        if _is_object(row.context) and (found := _history(row, readable))[0].was_edited:
            return found
        patches = _patches(mended)
        effective = apply_all(split(_initial(row), "context"), (patches[at] for at in sorted(patches)))
        return ContextHistory(_initial(row), effective, patches), effective
    if snapshot is None or not isinstance(snapshot.context, dict):
        raise CorruptPayload("the stored context is no JSON object, and no checkpoint has one", path="context")
    effective = {key: encode(item, "context") for key, item in snapshot.context.items()}
    return ContextHistory("{}", effective, {}), effective


def _from_snapshot(damaged: StepRecord, step: StepState, version: int | None) -> StepRecord:
    columns = step_columns(step, f"steps[{step.step_id!r}]")
    patch = damaged.context_patch if _has_sound_patch(damaged) else None
    return StepRecord(
        step_id=step.step_id, position=damaged.position, context_patch=patch, schema_version=version, **columns
    )
