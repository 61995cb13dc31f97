"""The steps of one run, without their payloads, from the last one backwards."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, FromClause, Select, func, literal, select, tuple_

from orchestrator_state.column_types import StoredTextKey
from orchestrator_state.database import stored_bytes
from orchestrator_state.models import StepRow, step_states
from orchestrator_state.records import CELLS
from orchestrator_state.repositories.expressions import payload_columns

_KEY: Final[tuple[Any, ...]] = (StepRow.position, StepRow.step_id)


def bytes_in(table: FromClause) -> ColumnElement[int]:
    """What the payloads of a row take."""
    parts = [func.coalesce(stored_bytes(column), 0) for column in payload_columns(table)]
    return sum(parts[1:], parts[0])


_CELLS: Final[tuple[Any, ...]] = (
    *(getattr(StepRow, name) for name in CELLS["step_states"]),
    StepRow.error.is_not(None).label("has_error"),
    bytes_in(step_states).label("stored_bytes"),
)


def timeline(run: UUID, before: tuple[Any, ...] | None, limit: int, *, on_sqlite: bool) -> Select[Any]:
    """`before` is the place of the step that the page before ended with."""
    rows = select(*_CELLS).where(StepRow.workflow_state_id == run)
    if before is not None:
        # SQLite keeps anything in any column.
        position = literal(before[0], StoredTextKey) if on_sqlite else literal(int(before[0]))
        rows = rows.where(tuple_(*_KEY) < tuple_(position, literal(before[1], StoredTextKey)))
    return rows.order_by(*(column.desc() for column in _KEY)).limit(limit)
