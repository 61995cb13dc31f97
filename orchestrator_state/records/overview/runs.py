"""What an operator sees of a run: no payload, so that neither keys nor blobs are asked for, nor does damage hide it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from orchestrator_state.concurrency import ProcessIdentity
from orchestrator_state.domain import WorkflowStatus
from orchestrator_state.records.cells import CELLS, damaged_columns
from orchestrator_state.records.overview.conditions import RunCondition
from orchestrator_state.records.overview.surroundings import CurrentStep, Surroundings, readable

_CELLS: Final = CELLS["workflow_states"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOwner:
    """The process that has a run, or had it last."""

    id: UUID
    """One store in one process."""
    host: str | None
    """None: software of an earlier version has the run, or the cell is damaged. So it is with `pid`."""
    pid: int | None
    lease_expires_at: datetime
    """By the database's clock. In the past, it does not own the run any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """A run without its payloads, as of one moment.

    A cell that is damaged hides nothing else: its column stands in `damaged`, and here is None instead, or of a name
    what can be read of it. A damaged id is `dada0bad-0bad-0bad-0bad-0bad0bad0bad`, which no run has.
    """

    id: UUID
    workflow_id: str
    name: str
    user_id: str | None
    status: WorkflowStatus | None
    condition: RunCondition | None
    """None: its status is damaged."""
    error_type: str | None
    """The class of what it failed of."""
    attributes: Mapping[str, Any]
    """What it is to be found by."""

    current_steps: tuple[CurrentStep, ...]
    """What is under way, waits included: at most 100, the oldest first."""
    waits_for_signals: tuple[str, ...]
    waits_for_children: tuple[UUID, ...]
    """Its child runs that are unfinished: at most 100."""
    wakes_at: datetime | None
    """When the clock wakes it, if nothing else does before. None: it waits without a limit, or not at all."""
    unread_signals: Mapping[str, int]
    """How many signals nobody has taken, by their names: at most 100."""

    owner: RunOwner | None
    """Who has it, or had it until it vanished. None: it was let go of, or nobody had it."""
    attempts: int
    """How often in a row it was taken from an owner that vanished before finishing a step."""
    steps: int
    finished_steps: int
    """Of `steps`: completed or skipped."""
    stored_bytes: int
    """In the database, as it is stored: rows, steps, checkpoints and signals, but not what is in a blob store."""

    parent_id: UUID | None
    forked_from: UUID | None
    started_at: datetime | None
    updated_at: datetime | None
    finished_at: datetime | None
    damaged: tuple[str, ...]
    """Columns of its row that hold no value of their type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPage:
    """Some runs, the newest first. `for run in page` goes through these."""

    runs: tuple[RunSummary, ...]
    next: str | None
    """The `cursor` of the page after this one; None: this is the last."""

    def __iter__(self) -> Iterator[RunSummary]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)


def summary_of(row: Any, around: Surroundings) -> RunSummary:
    """Of a row that has the columns of `workflow_states`, payloads aside, and `condition` and `wakes_at`."""
    damaged = damaged_columns(row, _CELLS)

    def sound(name: str) -> Any:
        return None if name in damaged else getattr(row, name)

    return RunSummary(
        id=row.id,
        workflow_id=readable(row.workflow_id),
        name=readable(row.workflow_name),
        user_id=None if row.user_id is None else readable(row.user_id),
        status=None if "status" in damaged else WorkflowStatus(row.status),
        condition=None if row.condition is None else RunCondition(row.condition),
        error_type=sound("error_type"),
        attributes=sound("attributes") or {},
        current_steps=around.current_steps,
        waits_for_signals=around.signals,
        waits_for_children=around.children,
        wakes_at=row.wakes_at,
        unread_signals=around.unread,
        owner=_owner_of(sound("lease_owner"), sound("lease_process"), sound("lease_expires_at")),
        attempts=sound("attempts") or 0,
        steps=around.steps,
        finished_steps=around.finished_steps,
        stored_bytes=around.stored_bytes + (row.own_bytes or 0),
        parent_id=sound("parent_id"),
        forked_from=sound("forked_from_id"),
        started_at=sound("started_at"),
        updated_at=sound("updated_at"),
        finished_at=sound("completed_at"),
        damaged=tuple(damaged),
    )


def _owner_of(owner: UUID | None, process: str | None, expires_at: datetime | None) -> RunOwner | None:
    if owner is None or expires_at is None:
        return None
    identity = ProcessIdentity.parse(process)
    host, pid = (None, None) if identity is None else (identity.host or None, identity.pid)
    return RunOwner(id=owner, host=host, pid=pid, lease_expires_at=expires_at)
