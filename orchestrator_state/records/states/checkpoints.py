"""A checkpoint and its row, both ways."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol
from uuid import UUID

from orchestrator_state.arguments import as_instance
from orchestrator_state.domain import Checkpoint
from orchestrator_state.payloads import Payloads, decode_long, encode
from orchestrator_state.records.cells import CELLS, corrupt_cells, damaged_columns
from orchestrator_state.records.identities import Columns, checkpoint_identity
from orchestrator_state.records.states.columns import check_fields
from orchestrator_state.records.states.trusted import trusted


class CheckpointCells(Protocol):
    """A row that has all columns of `checkpoints`."""

    id: UUID
    workflow_state_id: UUID
    step_id: str
    timestamp: datetime
    snapshot: str
    snapshot_digest: str | None
    seq: int | None


def check_checkpoint(checkpoint: Checkpoint, payloads: Payloads) -> None:
    """Raise `InvalidPayload` or `PayloadTooLarge` for what cannot be stored, before any SQL."""
    check_fields(as_instance(checkpoint, Checkpoint, "checkpoint"))
    encode(checkpoint.snapshot, "snapshot", payloads.limits.of_snapshot)


def checkpoint_columns(checkpoint: Checkpoint, payloads: Payloads) -> Columns:
    check_fields(checkpoint)
    text = encode(checkpoint.snapshot, "snapshot", payloads.limits.of_snapshot)
    sealed = payloads.seal(text, checkpoint_identity(checkpoint.workflow_state_id, checkpoint.id))
    return {
        "id": checkpoint.id,
        "workflow_state_id": checkpoint.workflow_state_id,
        "step_id": checkpoint.step_id,
        "timestamp": checkpoint.timestamp,
        "snapshot": sealed.text,
        "snapshot_digest": sealed.digest,
    }


def checkpoint_from_row(row: CheckpointCells, text: str) -> Checkpoint:
    """`text` is the JSON of the whole snapshot. Raises `CorruptPayload`."""
    if damaged := damaged_columns(row, CELLS["checkpoints"]):
        raise corrupt_cells(damaged, row.workflow_state_id)
    fields = {
        "id": row.id,
        "workflow_state_id": row.workflow_state_id,
        "step_id": row.step_id,
        "timestamp": row.timestamp,
        "snapshot": decode_long(text, "snapshot"),
        "seq": row.seq,
    }
    return trusted(Checkpoint, fields)


def open_snapshot(row: CheckpointCells, payloads: Payloads) -> str:
    """The JSON in a row of `checkpoints`: of a snapshot, or of a delta. Raises `PayloadError`."""
    identity = checkpoint_identity(row.workflow_state_id, row.id)
    return payloads.open(row.snapshot, row.snapshot_digest, identity, "snapshot")
