"""The counters of a workflow's row, of which damage may have made anything."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Column, ColumnElement, Integer, Table, and_, case, cast, func, select

from orchestrator_state.damaged import FURTHEST_COUNT
from orchestrator_state.database import counts_on, is_addressable
from orchestrator_state.models import workflow_states
from orchestrator_state.records import GROWING_COUNTS

COUNTS: Final = tuple(workflow_states.c[name] for name in GROWING_COUNTS)
IS_WRITABLE: Final = and_(is_addressable(workflow_states.c.id), counts_on(*COUNTS))
"""Whether a statement for many runs can write to a workflow's row: others are passed over."""


def next_count(counter: Column[Any], numbered: Table) -> ColumnElement[int]:
    """The number after the last of a workflow's: `counter` says which that was, unless its cell was damaged.

    Of the rows of `numbered` that hang on the workflow one may be further on; a damaged one does not count.
    """
    seq = numbered.c.seq
    of_workflow = numbered.c.workflow_state_id == workflow_states.c.id
    greatest = select(func.max(seq)).where(of_workflow, seq < FURTHEST_COUNT).correlate(workflow_states)
    last = cast(func.coalesce(greatest.scalar_subquery(), 0), Integer)
    number = cast(counter, Integer)  # SQLite makes one of whatever the cell holds
    return case((and_(number >= last, number < FURTHEST_COUNT), number), else_=last) + 1
