"""Checkpoints, of which a delta is put together with what it refers to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any, Final
from uuid import UUID

from sqlalchemy import BigInteger, Executable, Insert, bindparam, delete, select, update

from orchestrator_state.arguments import as_count, as_instance, as_uuid
from orchestrator_state.database import conflict_aware_insert, unless_committed
from orchestrator_state.domain import Checkpoint
from orchestrator_state.errors import AlreadyExists, CheckpointNotFound, CorruptPayload, PayloadError
from orchestrator_state.models import CheckpointRow, WorkflowRow, checkpoints
from orchestrator_state.payloads import Payloads
from orchestrator_state.records import DeltaBase
from orchestrator_state.records.states import checkpoint_columns, checkpoint_from_row
from orchestrator_state.repositories.base import rowcount
from orchestrator_state.repositories.checkpointed import (
    CheckpointedRepository,
    has_unnumbered_checkpoints,
    superseded,
    whole_text,
)
from orchestrator_state.repositories.counts import next_count
from orchestrator_state.repositories.expressions import IN_NAMESPACE, NEWEST_CHECKPOINT_FIRST, OF_WORKFLOW

_CHECKPOINTS: Final = (
    select(CheckpointRow).join(WorkflowRow, WorkflowRow.id == CheckpointRow.workflow_state_id).where(IN_NAMESPACE)
)
CHECKPOINT_BY_ID: Final = _CHECKPOINTS.where(CheckpointRow.id == bindparam("id"))
CHECKPOINTS_OF: Final = _CHECKPOINTS.where(CheckpointRow.workflow_state_id == bindparam("workflow_state_id")).order_by(
    *NEWEST_CHECKPOINT_FIRST
)
_LATEST_CHECKPOINT_OF: Final = CHECKPOINTS_OF.limit(1)

# The row lock makes concurrent writers of one workflow take their numbers in turn.
_NEXT_SEQ: Final = (
    update(WorkflowRow)
    .where(*OF_WORKFLOW)
    .values({WorkflowRow.checkpoint_seq: next_count(WorkflowRow.checkpoint_seq, CheckpointRow)})
    .returning(
        WorkflowRow.checkpoint_seq,
        WorkflowRow.workflow_name,
        WorkflowRow.schema_version,
        has_unnumbered_checkpoints(bindparam("of_id", type_=WorkflowRow.id.type)),
    )
)

HELD_WORKFLOW: Final = (
    select(WorkflowRow.id)
    .where(WorkflowRow.id == bindparam("workflow_state_id"), IN_NAMESPACE)
    .with_for_update(read=True, key_share=True)
)
"""Keeps out who locks the row for more than an update, as all do that ask something of a run. No step's commit does."""

_DELETE_SUPERSEDED: Final = delete(CheckpointRow).where(
    CheckpointRow.id.in_(superseded(bindparam("workflow_state_id"), bindparam("keep", type_=BigInteger)))
)


@cache
def _insert_checkpoint(dialect: str) -> Insert:
    return conflict_aware_insert(dialect, checkpoints).on_conflict_do_nothing(index_elements=["id"])


class CheckpointReader(CheckpointedRepository):
    """Reads checkpoints."""

    async def _checkpoints(
        self, statement: Executable, parameters: Mapping[str, Any], version: int | None = None
    ) -> Sequence[Checkpoint]:
        """The checkpoints of one workflow that `statement` selects, at today's schema version or at that of the past.

        What deltas refer to is read by a second statement. A change in between makes the deltas whole, or deletes
        them: so what does not fit is read once more.
        """
        parameters = {**parameters, "namespace": self._namespace}
        rows = await self._rows_with_blobs(statement, parameters)
        try:
            return await self._whole(rows, version)
        except CorruptPayload:
            again = await self._rows_with_blobs(statement, parameters)
            if [(row.id, row.position) for row in again] == [(row.id, row.position) for row in rows]:
                raise
            return await self._whole(again, version)

    async def _whole(self, rows: Sequence[Any], version: int | None) -> Sequence[Checkpoint]:
        base = None
        if any(row.position is not None for row in rows):
            base = await self._delta_base(rows[0].workflow_state_id)
        return [await self._upcast(row, base, version) for row in rows]

    async def _upcast(self, row: Any, base: DeltaBase | None, version: int | None) -> Checkpoint:
        texts = (row.snapshot,) if base is None else (row.snapshot, *base.texts)
        length = self._payloads.length(texts)
        try:
            checkpoint = await self._payloads.aside.call(partial(_checkpoint, row, base, self._payloads), length)
            checkpoint.snapshot = self._schemas.upcast_snapshot(checkpoint.snapshot, row.schema_version, version)
        except PayloadError as error:
            raise error.concerning(workflow_state_id=row.workflow_state_id, checkpoint_id=row.id) from None
        return checkpoint

    def _not_found(self, checkpoint_id: UUID | str) -> CheckpointNotFound:
        return CheckpointNotFound(
            f"there is no checkpoint {checkpoint_id} in namespace {self._namespace!r}", checkpoint_id=checkpoint_id
        )


class CheckpointRepository(CheckpointReader):
    """Checkpoints, ordered by `seq`: a number per workflow that only grows, whatever the clocks do."""

    async def add(self, checkpoint: Checkpoint) -> None:
        """Insert `checkpoint` with the workflow's next `seq`, which it is given once the transaction commits.

        Raises `InvalidPayload` before any SQL, `WorkflowNotFound`, or `AlreadyExists` if the id is taken.
        """
        columns = checkpoint_columns(as_instance(checkpoint, Checkpoint, "checkpoint"), self._payloads)
        row = await self._row(_NEXT_SEQ, {"of_id": checkpoint.workflow_state_id, "of_namespace": self._namespace})
        if row is None:
            raise self._workflow_not_found(checkpoint.workflow_state_id)
        seq: int = row.checkpoint_seq
        if row.has_unnumbered:
            seq = await self._number_checkpoints(checkpoint.workflow_state_id, seq)
        # Without a schema a snapshot is of the same version as what it was made from.
        version = self._schemas.version_of(row.workflow_name) or row.schema_version
        stamped = columns | {"seq": seq, "schema_version": version}
        added = await self._execute(_insert_checkpoint(self._dialect), stamped)
        if rowcount(added) == 0:
            raise AlreadyExists(f"there is a checkpoint {checkpoint.id} already", checkpoint_id=checkpoint.id)
        before = checkpoint.seq

        def forget() -> None:
            checkpoint.seq = before

        unless_committed(self._session, forget)
        checkpoint.seq = seq

    async def find(self, checkpoint_id: UUID | str) -> Checkpoint | None:
        """A checkpoint, or None."""
        return await self._one(CHECKPOINT_BY_ID, id=as_uuid(checkpoint_id, "checkpoint_id"))

    async def get(self, checkpoint_id: UUID | str) -> Checkpoint:
        """Raises `CheckpointNotFound`."""
        of_id = as_uuid(checkpoint_id, "checkpoint_id")
        checkpoint = await self.find(of_id)
        if checkpoint is None:
            raise self._not_found(of_id)
        return checkpoint

    async def find_latest(self, workflow_state_id: UUID | str) -> Checkpoint | None:
        """The checkpoint of the highest `seq`, or None."""
        return await self._one(_LATEST_CHECKPOINT_OF, workflow_state_id=as_uuid(workflow_state_id, "workflow_state_id"))

    async def list(self, workflow_state_id: UUID | str) -> list[Checkpoint]:
        """Newest first."""
        of_workflow = {"workflow_state_id": as_uuid(workflow_state_id, "workflow_state_id")}
        return [*await self._checkpoints(CHECKPOINTS_OF, of_workflow)]

    async def prune(self, workflow_state_id: UUID | str, *, keep: int) -> int:
        """Delete all but the newest `keep` checkpoints of a workflow. Returns how many were deleted.

        Waits for a rewind, which deletes the newest: counted among those to keep, they would take all others along.
        """
        of_workflow = {"workflow_state_id": as_uuid(workflow_state_id, "workflow_state_id")}
        kept = as_count(keep, "keep")
        if await self._row(HELD_WORKFLOW, of_workflow | {"namespace": self._namespace}) is None:
            return 0
        return await self._delete(_DELETE_SUPERSEDED, of_workflow | {"keep": kept})

    async def _one(self, statement: Executable, **parameters: Any) -> Checkpoint | None:
        return next(iter(await self._checkpoints(statement, parameters)), None)


def _checkpoint(row: Any, base: DeltaBase | None, payloads: Payloads) -> Checkpoint:
    return checkpoint_from_row(row, whole_text(row, base, payloads))
