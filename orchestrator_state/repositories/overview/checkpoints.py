"""The checkpoints of one workflow, without their snapshots, from the newest backwards."""

from __future__ import annotations

import contextlib
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, Select, func, literal, select, tuple_, type_coerce

from orchestrator_state.column_types import StoredIdentifier, StoredIdentifierKey, StoredTextKey
from orchestrator_state.damaged import FURTHEST_COUNT
from orchestrator_state.models import CheckpointRow, checkpoints
from orchestrator_state.records import CELLS
from orchestrator_state.repositories.overview.timelines import bytes_in

# Rows without a number come from software older than the numbering, which goes on writing after an upgrade.
_NUMBER: Final[ColumnElement[Any]] = func.coalesce(CheckpointRow.seq, FURTHEST_COUNT)
_KEY: Final[tuple[Any, ...]] = (_NUMBER, CheckpointRow.id)
_COLUMNS: Final[tuple[Any, ...]] = (
    *(getattr(CheckpointRow, name) for name in CELLS["checkpoints"]),
    bytes_in(checkpoints).label("stored_bytes"),
    _NUMBER.label("number"),
    type_coerce(CheckpointRow.id, StoredIdentifier).label("id_key"),
)


def checkpoints_of(run: UUID, after: tuple[Any, ...] | None, limit: int, *, on_sqlite: bool) -> Select[Any]:
    """`after` is the place of the checkpoint that the page before ended with."""
    rows = select(*_COLUMNS).where(CheckpointRow.workflow_state_id == run)
    if after is not None:
        found = after[1] if on_sqlite else UUID(after[1])
        rows = rows.where(tuple_(*_KEY) < tuple_(_number(after[0]), literal(found, StoredIdentifierKey)))
    return rows.order_by(*(column.desc() for column in _KEY)).limit(limit)


def _number(cell: str | bytes) -> ColumnElement[Any]:
    """SQLite keeps anything in any column, and compares a number with no text that says one."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return literal(kind(cell))
    return literal(cell, StoredTextKey)
