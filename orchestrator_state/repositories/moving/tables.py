"""Which tables, and what of them, belong to a run that moves. Derived from the models: a new column comes along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec
from sqlalchemy import Boolean, Column, Integer, Table
from sqlalchemy.types import TypeEngine

from orchestrator_state.column_types import Attributes, Identifier, PostgresTimestamp
from orchestrator_state.models import current_steps, metadata, workflow_states
from orchestrator_state.payloads import is_unicode
from orchestrator_state.records import CELLS, PAYLOAD_COLUMNS

Row = Mapping[str, Any]
"""The values of a row, by column."""

# Whoever had the run has not moved with it.
_LEFT_BEHIND: Final[dict[str, Any]] = {"lease_owner": None, "lease_process": None, "lease_expires_at": None}


class MovedTable:
    """A table whose rows move: that of runs, or one whose rows belong to a run."""

    def __init__(self, table: Table, owner: str) -> None:
        self.table: Final = table
        self.owner: Final = owner
        """The column that names the run."""
        self.columns: Final = tuple(column.name for column in table.columns)
        types = [(column.name, _python_type(column)) for column in table.columns]
        self.row_type: Final = msgspec.defstruct(table.name, types, forbid_unknown_fields=True)
        self.outlives_run: Final = owner != "id" and not table.c[owner].foreign_keys
        """Whether its rows are there without their run, too."""
        cells, payloads = CELLS.get(table.name, {}), PAYLOAD_COLUMNS.get(table.name, ())
        texts = {name: _is_text_or_null for name in self.columns if name.endswith("_digest") or name in payloads}
        self._checks: Final = [{**cells, **texts}.get(name, _is_anything) for name in self.columns]

    @property
    def name(self) -> str:
        return self.table.name

    def damage_in(self, row: Sequence[Any]) -> list[str]:
        """The columns that hold no value of their type; payloads may hold any text."""
        each = zip(self.columns, row, self._checks, strict=True)
        return [name for name, value, is_sound in each if not is_sound(value)]

    def moved(self, row: Sequence[Any]) -> dict[str, Any]:
        """The row, as nobody's."""
        values = dict(zip(self.columns, row, strict=True))
        if self.owner != "id":
            return values
        attributes = values["attributes"]  # whose names have another order in each database
        return values | _LEFT_BEHIND | {"attributes": attributes and dict(sorted(attributes.items()))}


def _python_type(column: Column[Any]) -> Any:
    kind = _kind(column.type)
    return kind | None if column.nullable else kind


def _kind(type_: TypeEngine[Any]) -> Any:
    if isinstance(type_, type(Identifier)):
        return UUID
    if isinstance(type_, PostgresTimestamp):
        return datetime
    if isinstance(type_, type(Attributes)):
        return dict[str, Any]
    if isinstance(type_, Boolean):
        return bool
    return int if isinstance(type_, Integer) else str


def _is_text_or_null(value: object) -> bool:
    return value is None or (isinstance(value, str) and (value.isascii() or is_unicode(value)))


def _is_anything(_: object) -> bool:
    return True


_OWNED: Final = "workflow_state_id"
TABLES: Final = {
    workflow_states.name: MovedTable(workflow_states, "id"),
    **{
        table.name: MovedTable(table, _OWNED)
        for table in metadata.sorted_tables
        if _OWNED in table.c and table is not current_steps
    },
}
"""By name, that of the runs first. What is said of running steps is true of the worker that stays behind."""


@dataclass(frozen=True, slots=True)
class RunRows:
    """A run and all that belongs to it."""

    id: UUID
    rows: Mapping[str, Sequence[Row]]
    """By table."""

    @property
    def workflow(self) -> Row:
        """Its own row."""
        return self.rows[workflow_states.name][0]

    @classmethod
    def of(cls, workflow_state_id: UUID, rows: Mapping[str, Sequence[Row]]) -> RunRows:
        """With the rows of each table in the order of their keys, which is another one in each database."""
        return cls(workflow_state_id, {name: _in_order(rows[name], TABLES[name]) for name in rows})

    def equals(self, other: RunRows) -> bool:
        """Whether both are the same run in the same state; what outlives runs aside."""
        return all(
            self.rows.get(each.name, ()) == other.rows.get(each.name, ())
            for each in TABLES.values()
            if not each.outlives_run
        )


def _in_order(rows: Sequence[Row], moved: MovedTable) -> list[Row]:
    keys = [column.name for column in moved.table.primary_key]
    return sorted(rows, key=lambda row: [str(row[key]) for key in keys])
