"""Checkpoints without their snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from orchestrator_state.records.cells import CELLS, damaged_columns
from orchestrator_state.records.overview.surroundings import readable

_CELLS: Final = CELLS["checkpoints"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSummary:
    """A checkpoint without its snapshot. A cell that is damaged is None here, and its column in `damaged`."""

    id: UUID
    """That of a damaged cell is `dada0bad-0bad-0bad-0bad-0bad0bad0bad`, which no checkpoint has."""
    workflow_state_id: UUID
    step_id: str
    """The step after which it was made, or the name that it was given."""
    seq: int | None
    """The order within the workflow. None: software of an earlier version has made it."""
    created_at: datetime | None
    stored_bytes: int
    damaged: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPage:
    """Some checkpoints of a workflow, the newest first."""

    checkpoints: tuple[CheckpointSummary, ...]
    next: str | None
    """The `cursor` of the next page; None if this is the last."""

    def __iter__(self) -> Iterator[CheckpointSummary]:
        return iter(self.checkpoints)

    def __len__(self) -> int:
        return len(self.checkpoints)


def checkpoint_summary_of(row: Any) -> CheckpointSummary:
    """Of a row that has the columns of `checkpoints`, the snapshot aside, and `stored_bytes`."""
    damaged = damaged_columns(row, _CELLS)
    return CheckpointSummary(
        id=row.id,
        workflow_state_id=row.workflow_state_id,
        step_id=readable(row.step_id),
        seq=None if "seq" in damaged else row.seq,
        created_at=None if "timestamp" in damaged else row.timestamp,
        stored_bytes=int(row.stored_bytes),
        damaged=tuple(damaged),
    )


def fingerprint_of_checkpoints(namespace: str, run: UUID) -> str:
    """What a cursor of the checkpoints of one workflow holds, and no other."""
    return f"checkpoints of {run} in {namespace}"
