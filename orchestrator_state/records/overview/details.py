"""A run and what it has done so far, step by step, without its payloads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from orchestrator_state.domain import StepStatus
from orchestrator_state.records.cells import CELLS, damaged_columns
from orchestrator_state.records.overview.runs import RunSummary
from orchestrator_state.records.overview.surroundings import kind_of, readable

_CELLS: Final = CELLS["step_states"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSummary:
    """A step on record, without its payloads. A cell that is damaged is None here, and its column in `damaged`."""

    id: str
    kind: str | None
    """What was called, if not a function by `run.step`: `signal`, `sleep`, `child`, `transact`, `checkpoint`."""
    status: StepStatus | None
    position: int | None
    """Its place in the order in which the steps were first saved."""
    started_at: datetime | None
    ended_at: datetime | None
    until: datetime | None
    """Of a wait that has a time limit: when that is over."""
    retry_count: int
    has_error: bool
    """Whether an error is on record for it, which a payload-free summary does not show."""
    stored_bytes: int
    damaged: tuple[str, ...]

    @property
    def duration(self) -> timedelta | None:
        """How long it took; None while it runs."""
        if self.started_at is None or self.ended_at is None:
            return None
        return self.ended_at - self.started_at


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDetails(RunSummary):
    """A run and a part of its timeline."""

    timeline: tuple[StepSummary, ...]
    """Steps in the order in which they were first saved: the last ones, or those before `steps_cursor`."""
    earlier: str | None
    """The `steps_cursor` of the steps before these. None: there are none."""


def step_summary_of(row: Any) -> StepSummary:
    """Of a row that has the columns of `step_states`, payloads aside, and `has_error` and `stored_bytes`."""
    damaged = damaged_columns(row, _CELLS)

    def sound(name: str) -> Any:
        return None if name in damaged else getattr(row, name)

    step_id = readable(row.step_id)
    return StepSummary(
        id=step_id,
        kind=kind_of(step_id, row.kind),
        status=None if "status" in damaged else StepStatus(row.status),
        position=sound("position"),
        started_at=sound("started_at"),
        ended_at=sound("completed_at"),
        until=sound("waits_until"),
        retry_count=sound("retry_count") or 0,
        has_error=bool(row.has_error),
        stored_bytes=int(row.stored_bytes),
        damaged=tuple(damaged),
    )


def details_of(run: RunSummary, timeline: Sequence[StepSummary], earlier: str | None) -> RunDetails:
    said = {each.name: getattr(run, each.name) for each in fields(RunSummary)}
    return RunDetails(**said, timeline=tuple(timeline), earlier=earlier)


def fingerprint_of_steps(namespace: str, run: UUID) -> str:
    """What a cursor of the timeline of one run holds, and no other."""
    return f"steps of {run} in {namespace}"
