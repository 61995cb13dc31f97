"""The counters of a workflow's row, of which damage may have made anything."""

from __future__ import annotations

from typing import Final

from sqlalchemy import ColumnElement, Integer, and_, case, cast, func, select
from sqlalchemy.orm import QueryableAttribute

from orchestrator_state.damaged import FURTHEST_COUNT
from orchestrator_state.database import counts_on, is_addressable
from orchestrator_state.models import CheckpointRow, SignalRow, WorkflowRow
from orchestrator_state.records import GROWING_COUNTS

COUNTS: Final = tuple(getattr(WorkflowRow, name) for name in GROWING_COUNTS)
IS_WRITABLE: Final = and_(is_addressable(WorkflowRow.id), counts_on(*COUNTS))
"""Whether a statement for many runs can write to a workflow's row: others are passed over."""


def next_count(counter: QueryableAttribute[int], numbered: type[CheckpointRow | SignalRow]) -> ColumnElement[int]:
    """The number after the last of a workflow's: `counter` says which that was, unless its cell was damaged.

    Of the rows `numbered` that hang on the workflow one may be further on; a damaged one does not count.
    """
    of_workflow = numbered.workflow_state_id == WorkflowRow.id
    greatest = select(func.max(numbered.seq)).where(of_workflow, numbered.seq < FURTHEST_COUNT).correlate(WorkflowRow)
    last = cast(func.coalesce(greatest.scalar_subquery(), 0), Integer)
    number = cast(counter, Integer)  # SQLite makes one of whatever the cell holds
    return case((and_(number >= last, number < FURTHEST_COUNT), number), else_=last) + 1
