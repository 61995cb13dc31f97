"""What happens to the checkpoints of a workflow that something else is done to.

Checkpoints that older software has inserted are numbered. Those that only refer to the steps on record, the deltas,
are made whole before what they refer to changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy import BindParameter, ColumnElement, Select, bindparam, exists, select, update

from orchestrator_state.errors import CorruptPayload
from orchestrator_state.models import CheckpointRow, StepRow, WorkflowRow, checkpoints
from orchestrator_state.payloads import Payloads, Sealed
from orchestrator_state.records import Delta, DeltaBase, RunHeader, SealedStep, StoredRun, checkpoint_identity
from orchestrator_state.records.states import open_snapshot
from orchestrator_state.repositories.base import Repository
from orchestrator_state.repositories.expressions import IN_NAMESPACE, NEWEST_CHECKPOINT_FIRST

_OF_ID: Final[BindParameter[UUID]] = bindparam("workflow_state_id")
_UNNUMBERED: Final = (
    select(CheckpointRow.id)
    .where(CheckpointRow.workflow_state_id == _OF_ID, CheckpointRow.seq.is_(None))
    .order_by(CheckpointRow.timestamp, CheckpointRow.id)
)
_WORKFLOW: Final = select(WorkflowRow).where(WorkflowRow.id == _OF_ID, IN_NAMESPACE)
_STEPS: Final = select(StepRow).where(StepRow.workflow_state_id == _OF_ID).order_by(StepRow.position, StepRow.step_id)
_DELTAS: Final = select(CheckpointRow).where(
    CheckpointRow.workflow_state_id == _OF_ID, CheckpointRow.position.is_not(None)
)
_SET_CHECKPOINT: Final = update(CheckpointRow).where(CheckpointRow.id == bindparam("of_id"))
_SET_WORKFLOW: Final = update(WorkflowRow).where(WorkflowRow.id == bindparam("of_id"))
"""Both set the columns that they are given values for."""


def has_unnumbered_checkpoints(workflow_state_id: ColumnElement[UUID]) -> ColumnElement[bool]:
    """Whether older software inserted checkpoints since the last numbering; a column named `has_unnumbered`."""
    return (
        exists()
        .where(CheckpointRow.workflow_state_id == workflow_state_id, CheckpointRow.seq.is_(None))
        .label("has_unnumbered")
    )


def superseded(
    workflow_state_id: ColumnElement[UUID],
    keep: ColumnElement[int],
    newest_first: Sequence[ColumnElement[Any]] = NEWEST_CHECKPOINT_FIRST,
) -> Select[UUID]:
    """The ids of all but the newest `keep` checkpoints of a workflow: the rule of all pruning.

    Whoever prunes deletes these: `CheckpointRepository.prune`, and the commit of a step on either database, where all
    are numbered, so that `LAST_NUMBERED_FIRST` is order enough.
    """
    of_workflow = select(checkpoints.c.id).where(checkpoints.c.workflow_state_id == workflow_state_id)
    return of_workflow.order_by(*newest_first).offset(keep)


def whole_text(row: Any, base: DeltaBase | None, payloads: Payloads) -> str:
    """The JSON of the whole snapshot in a row of `checkpoints`. Raises `PayloadError`."""
    text = open_snapshot(row, payloads)
    return text if row.position is None or base is None else base.whole(Delta.from_json(text))


class CheckpointedRepository(Repository):
    """See above."""

    async def _number_checkpoints(self, workflow_state_id: UUID, free: int) -> int:
        """Number what older software inserted since, from `free` on, and return the next number."""
        for row in await self._rows(_UNNUMBERED, {"workflow_state_id": workflow_state_id}):
            await self._execute(_SET_CHECKPOINT, {"of_id": row.id, "seq": free})
            free += 1
        await self._execute(_SET_WORKFLOW, {"of_id": workflow_state_id, "checkpoint_seq": free})
        return free

    async def _delta_base(self, workflow_state_id: UUID) -> DeltaBase:
        """What the deltas of a workflow refer to. Raises `WorkflowNotFound`."""
        of_workflow = {"workflow_state_id": workflow_state_id}
        rows = await self._rows_with_blobs(_WORKFLOW, of_workflow | {"namespace": self._namespace})
        if not rows:
            raise self._workflow_not_found(workflow_state_id)
        steps = [SealedStep.of(row) for row in await self._rows_with_blobs(_STEPS, of_workflow)]
        row = rows[0]
        header = RunHeader(row.id, row.workflow_id, row.workflow_name, row.user_id, row.started_at)
        return DeltaBase(header, StoredRun.of(row), steps, self._payloads)

    async def _make_whole(self, workflow_state_id: UUID) -> None:
        """Before finished steps or the first context change: let the deltas of the workflow not refer to them."""
        await self._replace_deltas(await self._whole_deltas(workflow_state_id))

    async def _whole_deltas(self, workflow_state_id: UUID) -> list[tuple[UUID, Sealed]]:
        """By checkpoint, what is to stand in the place of a workflow's deltas.

        One that does not fit what it refers to is left, to be refused when it is read.
        """
        rows = await self._rows_with_blobs(_DELTAS, {"workflow_state_id": workflow_state_id})
        base = await self._delta_base(workflow_state_id) if rows else None
        whole: list[tuple[UUID, Sealed]] = []  # all are sealed before any is written: their blobs move together
        for row in rows:
            try:
                text = whole_text(row, base, self._payloads)
            except CorruptPayload:
                continue
            whole.append((row.id, self._payloads.seal(text, checkpoint_identity(workflow_state_id, row.id))))
        return whole

    async def _replace_deltas(self, whole: Sequence[tuple[UUID, Sealed]]) -> None:
        for checkpoint_id, sealed in whole:
            whole_row = {"snapshot": sealed.text, "snapshot_digest": sealed.digest, "position": None}
            await self._execute(_SET_CHECKPOINT, {"of_id": checkpoint_id} | whole_row)
