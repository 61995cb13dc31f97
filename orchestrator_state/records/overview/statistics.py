"""How many runs there are, and how many ended lately."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from orchestrator_state.domain import WorkflowStatus
from orchestrator_state.records.cells import is_time
from orchestrator_state.records.overview.conditions import RunCondition


@dataclass(frozen=True, slots=True, kw_only=True)
class UnfinishedCount:
    """How many unfinished runs are of one status, and in one condition."""

    status: WorkflowStatus
    condition: RunCondition
    runs: int
    updated_at: datetime | None
    """When that of them was last written that has not been for the longest time. None: its cell is damaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedCount:
    """How many runs ended in one way lately."""

    status: WorkflowStatus
    last_hour: int
    last_day: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStats:
    """The runs of a namespace, counted."""

    unfinished: tuple[UnfinishedCount, ...]
    """All of them. What there is none of is left out."""
    finished: tuple[FinishedCount, ...]
    """By the database's clock. Those that ended earlier are not counted: there may be millions."""

    def count(self, condition: RunCondition | str) -> int:
        """How many unfinished runs are in that condition."""
        return sum(each.runs for each in self.unfinished if each.condition == condition)


def unfinished_count_of(row: Any) -> UnfinishedCount:
    return UnfinishedCount(
        status=WorkflowStatus(row.status),
        condition=RunCondition(row.condition),
        runs=row.runs,
        updated_at=row.updated_at if is_time(row.updated_at) else None,
    )


def finished_count_of(row: Any) -> FinishedCount:
    return FinishedCount(status=WorkflowStatus(row.status), last_hour=row.last_hour, last_day=row.last_day)
