"""Runs, counted: the unfinished ones one by one, of the finished ones those that ended lately.

Both are read by the index of namespace, status and `updated_at`, so that what ended long ago costs nothing.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Float, Select, case, func, literal, select

from orchestrator_state.database import database_time_in
from orchestrator_state.domain import ACTIVE, FINISHED
from orchestrator_state.models import WorkflowRow
from orchestrator_state.repositories.expressions import IN_NAMESPACE
from orchestrator_state.repositories.overview.condition import condition

_HOUR: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)


def unfinished(stuck_for: timedelta) -> Select[Any]:
    each = (
        select(WorkflowRow.status, condition(stuck_for).label("condition"), WorkflowRow.updated_at)
        .where(IN_NAMESPACE, WorkflowRow.status.in_(sorted(ACTIVE)))
        .subquery()
    )
    return (
        select(
            each.c.status, each.c.condition, func.count().label("runs"), func.min(each.c.updated_at).label("updated_at")
        )
        .group_by(each.c.status, each.c.condition)
        .order_by(each.c.status, each.c.condition)
    )


def _ago(age: timedelta) -> ColumnElement[Any]:
    return database_time_in(literal(-age.total_seconds(), Float()))


# A run that is over is not written any more, but by a resume of a failed one.
FINISHED_LATELY: Final = (
    select(
        WorkflowRow.status,
        func.sum(case((WorkflowRow.updated_at >= _ago(_HOUR), 1), else_=0)).label("last_hour"),
        func.count().label("last_day"),
    )
    .where(IN_NAMESPACE, WorkflowRow.status.in_(sorted(FINISHED)), WorkflowRow.updated_at >= _ago(_DAY))
    .group_by(WorkflowRow.status)
    .order_by(WorkflowRow.status)
)
