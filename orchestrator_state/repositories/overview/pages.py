"""Which runs a page lists: found by their indexes, in statements that read as many rows as the page has.

A list is ordered by when its runs started, the newest first, since nothing changes that: a run that moves meanwhile
neither comes twice nor is passed over. Where several statuses are wanted, the newest of each are looked up by
themselves: an index has them in that order only within one status.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Select,
    Subquery,
    and_,
    false,
    literal,
    select,
    tuple_,
    union_all,
)

from orchestrator_state.column_types import StoredIdentifierKey
from orchestrator_state.database import has_attributes, holds_text, moment_of
from orchestrator_state.domain import WorkflowStatus
from orchestrator_state.models import WorkflowRow
from orchestrator_state.records.overview import STATUSES, RunQuery
from orchestrator_state.repositories.overview.condition import condition

_KEY: Final[tuple[Any, ...]] = (WorkflowRow.started_at, WorkflowRow.id)
Place = tuple[Any, Any]
"""When a run started, and its id, as the database has them."""


def page_of(query: RunQuery, namespace: str, after: Place | None, limit: int) -> Subquery:
    """The ids, and times of start, of the next runs."""
    wanted = [WorkflowRow.namespace == namespace, *_conditions(query)]
    if after is not None:
        wanted.append(tuple_(*_KEY) < tuple_(moment_of(after[0]), literal(after[1], StoredIdentifierKey)))
    statuses = _statuses(query)
    each = [()] if statuses is None else [_of_status(status, query) for status in statuses]
    branches = [_newest(and_(*wanted, *conditions), limit) for conditions in each or [(false(),)]]
    if len(branches) == 1:
        (wanted_rows,) = branches
    else:
        both = union_all(*(select(branch.subquery()) for branch in branches)).subquery("branches")
        wanted_rows = select(both).order_by(both.c.started_at.desc(), both.c.id.desc()).limit(limit)
    return wanted_rows.subquery("page")


def _of_status(status: WorkflowStatus, query: RunQuery) -> tuple[ColumnElement[bool], ...]:
    """Of this status; and, where that does not tell, in one of the conditions."""
    is_told = len([each for each in STATUSES if status in STATUSES[each]]) == 1
    if query.conditions is None or is_told:
        return (WorkflowRow.status == status,)
    return WorkflowRow.status == status, condition(query.stuck_for).in_(sorted(query.conditions))


def _newest(wanted: ColumnElement[bool], limit: int) -> Select[Any]:
    return select(*_KEY).where(wanted).order_by(*(column.desc() for column in _KEY)).limit(limit)


def _statuses(query: RunQuery) -> Sequence[WorkflowStatus] | None:
    """Those that are to be looked up by themselves; None if it may be any, damaged ones included."""
    wanted = query.statuses
    if query.conditions is not None:
        of_conditions = frozenset[WorkflowStatus]().union(*(STATUSES[each] for each in query.conditions))
        wanted = of_conditions if wanted is None else of_conditions & wanted
    return None if wanted is None else sorted(wanted)


def _conditions(query: RunQuery) -> Iterator[ColumnElement[bool]]:
    for column in ("workflow_name", "workflow_id", "user_id", "parent_id"):
        value: str | UUID | None = getattr(query, {"workflow_name": "name", "parent_id": "parent"}.get(column, column))
        if value is not None:
            yield getattr(WorkflowRow, column) == value
    for name, (first, end) in query.ranges.items():
        moment = getattr(WorkflowRow, name)
        if first is not None:
            yield moment >= first
        if end is not None:
            yield moment < end
    if query.attributes:
        yield has_attributes(WorkflowRow.attributes, query.attributes)
    if query.error_contains is not None:
        yield holds_text(WorkflowRow.error, query.error_contains)
