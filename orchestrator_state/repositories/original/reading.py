"""Read the original software's tables page by page, whatever stands in them.

Other than ours, its rows on SQLite may spell an id in several forms, and a step may spell its run's id in another form
than the run does. All functions take the connection of a transaction that only reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    MetaData,
    Table,
    Text,
    Uuid,
    bindparam,
    func,
    literal_column,
    select,
)
from sqlalchemy.types import NullType

from orchestrator_state.column_types import Identifier, PostgresTimestamp, StoredTextKey
from orchestrator_state.payloads import is_unicode
from orchestrator_state.records.original import OriginalFlaw, RawRow, RawRun, Unreadable, as_id, named, spellings

# Read as the driver gives it on SQLite: our own types take what is no id, or no time, for damage and hide what it was.
_RawId: Final = Uuid(as_uuid=True).with_variant(NullType(), "sqlite")
_RawTime: Final = PostgresTimestamp().with_variant(NullType(), "sqlite")
_Raw: Final = Text().with_variant(NullType(), "sqlite")

_tables: Final = MetaData()


def _table(name: str, **columns: Any) -> Table:
    return Table(name, _tables, *(Column(column, kind) for column, kind in columns.items()))


WORKFLOWS: Final = _table(
    "workflow_states",
    id=_RawId,
    workflow_id=_Raw,
    workflow_name=_Raw,
    status=_Raw,
    user_id=_Raw,
    started_at=_RawTime,
    updated_at=_RawTime,
    completed_at=_RawTime,
    context=_Raw,
    error=_Raw,
)
STEPS: Final = _table(
    "step_states",
    workflow_state_id=_RawId,
    step_id=_Raw,
    status=_Raw,
    started_at=_RawTime,
    completed_at=_RawTime,
    outputs=_Raw,
    error=_Raw,
    retry_count=NullType(),
)
CHECKPOINTS: Final = _table(
    "checkpoints",
    id=_RawId,
    workflow_state_id=_RawId,
    step_id=_Raw,
    timestamp=_RawTime,
    snapshot=_Raw,
)
_STRAYS_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True, repr=False)
class Page:
    """Some runs, as they were at one moment."""

    runs: Sequence[RawRun]
    last: Any
    """The id to go on after, as it stands in its row; None at the end."""


def bound(value: Any) -> ColumnElement[Any]:
    """An id as the driver gave it, to be compared with its column."""
    if isinstance(value, UUID):
        return bindparam(None, value, type_=Identifier)
    if isinstance(value, str) and not is_unicode(value):
        return bindparam(None, value, type_=StoredTextKey)
    return bindparam(None, value, type_=NullType())


def read_page(connection: Connection, after: Any, limit: int) -> Page:
    """Up to `limit` runs after that id, with their steps and checkpoints. A run without an id is in no page."""
    wanted = select(WORKFLOWS).where(WORKFLOWS.c.id.is_not(None)).order_by(WORKFLOWS.c.id).limit(limit)
    if after is not None:
        wanted = wanted.where(WORKFLOWS.c.id > bound(after))
    rows = [row._asdict() for row in connection.execute(wanted)]
    of_each = _forms_in_rows(rows)
    steps = _children(connection, STEPS, of_each)
    checkpoints = _children(connection, CHECKPOINTS, of_each)
    runs = [RawRun(row, steps[index], checkpoints[index]) for index, row in enumerate(rows)]
    return Page(runs, rows[-1]["id"] if len(rows) == limit else None)


def _forms_in_rows(rows: Sequence[RawRow]) -> dict[Any, int]:
    """Which run a step belongs to, by the forms in which it may name it."""
    places: dict[Any, int] = {}
    for index, row in enumerate(rows):
        for form in forms_of(row["id"]):
            places.setdefault(form, index)
    for index, row in enumerate(rows):  # two rows that spell one id: to each what is spelled as it is
        places[row["id"]] = index
    return places


def forms_of(raw: Any) -> list[Any]:
    """The forms in which another row may refer to the id that stands there as `raw`."""
    try:
        known = as_id(raw)
    except Unreadable:
        return [raw]
    return [raw] if isinstance(raw, UUID) else [raw, *(form for form in spellings(known) if form != raw)]


def _children(connection: Connection, table: Table, places: dict[Any, int]) -> dict[int, list[RawRow]]:
    found: dict[int, list[RawRow]] = {index: [] for index in places.values()}
    if not places:
        return found
    column = table.c.workflow_state_id
    for row in connection.execute(select(table).where(column.in_([bound(form) for form in places]))):
        found[places[row.workflow_state_id]].append(row._asdict())
    return found


def count_runs(connection: Connection) -> int:
    """How many rows `read_page` will return in all."""
    return connection.execute(select(func.count(WORKFLOWS.c.id))).scalar_one()


def read_strays(connection: Connection) -> list[OriginalFlaw]:
    """Runs without an id, and steps and checkpoints of runs that are not there: only SQLite lets anybody make them.

    They are told by the run's id, each once.
    """
    found = []
    without = connection.execute(select(func.count()).where(WORKFLOWS.c.id.is_(None))).scalar_one()
    if without:
        found.append(OriginalFlaw("workflow_states", "NULL", f"id: is no UUID ({without} rows)"))
    for table in (STEPS, CHECKPOINTS):
        found += _strays_of(connection, table)
    return found


def _strays_of(connection: Connection, table: Table) -> list[OriginalFlaw]:
    column = table.c.workflow_state_id
    of_run = select(literal_column("1")).where(WORKFLOWS.c.id == column).exists()
    found: list[OriginalFlaw] = []
    after: Any = None
    while True:
        lost = select(column, func.count().label("rows")).where(~of_run).group_by(column).order_by(column)
        if after is not None:
            lost = lost.where(column > bound(after))
        rows = connection.execute(lost.limit(_STRAYS_AT_ONCE)).all()
        for row in rows:
            if row.workflow_state_id is None or not _is_there(connection, row.workflow_state_id):
                reason = f"its run is not there ({row.rows} rows)"
                found.append(OriginalFlaw(table.name, named(row.workflow_state_id), reason))
        if len(rows) < _STRAYS_AT_ONCE:
            return found
        after = rows[-1].workflow_state_id


def _is_there(connection: Connection, raw: Any) -> bool:
    spelled = select(WORKFLOWS.c.id).where(WORKFLOWS.c.id.in_([bound(form) for form in forms_of(raw)])).limit(1)
    return connection.execute(spelled).first() is not None
