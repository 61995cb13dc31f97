"""Count the rows of the original software, and rewrite those whose forms are not ours, where they stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, Table, and_, update
from sqlalchemy.exc import IntegrityError

from orchestrator_state.errors import ConfigurationError
from orchestrator_state.records.original import (
    OriginalFlaw,
    RawRow,
    RawRun,
    as_id,
    as_time,
    id_form,
    is_plain_id,
    is_plain_time,
    named,
    read_run,
    time_form,
)
from orchestrator_state.repositories.original.reading import (
    CHECKPOINTS,
    STEPS,
    WORKFLOWS,
    bound,
    read_page,
    read_strays,
)

_RUNS_AT_ONCE: Final = 200
_LISTED: Final = 20
_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "workflow_states": ("id",),
    "step_states": ("workflow_state_id", "step_id"),
    "checkpoints": ("id",),
}
_IDS: Final = frozenset({"id", "workflow_state_id"})
_TIMES: Final = frozenset({"started_at", "updated_at", "completed_at", "timestamp"})


@dataclass(slots=True, kw_only=True)
class Survey:
    """What there is in a database of the original software, in which forms, and what of it cannot be read."""

    runs: int = 0
    steps: int = 0
    checkpoints: int = 0
    ids: Counter[str] = field(default_factory=Counter)
    """How many ids there are of each form, in all three tables."""
    times: Counter[str] = field(default_factory=Counter)
    flawed: int = 0
    """Rows that cannot be read; of what the first 20 are in `flaws`."""
    flaws: list[OriginalFlaw] = field(default_factory=list)

    def note(self, flaw: OriginalFlaw) -> None:
        self.flawed += 1
        if len(self.flaws) < _LISTED:
            self.flaws.append(flaw)


def survey(connection: Connection) -> Survey:
    """Look at every row."""
    found = Survey()
    for raw in _runs(connection):
        found.runs += 1
        found.steps += len(raw.steps)
        found.checkpoints += len(raw.checkpoints)
        for _, row in _rows_of(raw):
            found.ids.update(id_form(row[column]) for column in _IDS & row.keys())
            found.times.update(time_form(row[column]) for column in _TIMES & row.keys() if row[column] is not None)
        run = read_run(raw)
        for flaw in [run] if isinstance(run, OriginalFlaw) else run.flaws:
            found.note(flaw)
    for flaw in read_strays(connection):
        found.note(flaw)
    return found


def adopt(connection: Connection) -> None:
    """Write ids, times and statuses as we write them, in a transaction that the caller commits.

    Raises `ConfigurationError`, which names rows that cannot be read, before anything is changed. Texts of JSON stay as
    they are, and so do times that our queries compare rightly.
    """
    found = survey(connection)
    if found.flawed:
        rows = "; ".join(f"{flaw.table} {flaw.id}: {flaw.reason}" for flaw in found.flaws)
        more = f"; and {found.flawed - len(found.flaws)} more" if found.flawed > len(found.flaws) else ""
        raise ConfigurationError(f"rows of the original software cannot be read, so nothing was changed: {rows}{more}")
    for raw in _runs(connection):
        for table, row in _rows_of(raw):
            _rewrite(connection, table, row)


def _runs(connection: Connection) -> Iterator[RawRun]:
    page = read_page(connection, None, _RUNS_AT_ONCE)
    yield from page.runs
    while page.last is not None:
        page = read_page(connection, page.last, _RUNS_AT_ONCE)
        yield from page.runs


def _rows_of(raw: RawRun) -> Iterator[tuple[Table, RawRow]]:
    yield WORKFLOWS, raw.workflow
    for table, rows in ((STEPS, raw.steps), (CHECKPOINTS, raw.checkpoints)):
        for row in rows:
            yield table, row


def _rewrite(connection: Connection, table: Table, row: RawRow) -> None:
    changed: dict[str, Any] = {}
    for column in _IDS & row.keys():
        if not is_plain_id(row[column]):
            changed[column] = str(as_id(row[column]))
    for column in _TIMES & row.keys():
        if row[column] is not None and not is_plain_time(row[column]):
            changed[column] = as_time(row[column]).isoformat(timespec="microseconds")
    if "status" in row and row["status"] != row["status"].lower():
        changed["status"] = row["status"].lower()
    if not changed:
        return
    keys = _KEYS[table.name]
    is_it = and_(*(table.c[key] == bound(row[key]) for key in keys))
    try:
        connection.execute(update(table).where(is_it).values(changed))
    except IntegrityError:
        ids = named(*(row[key] for key in keys))
        message = f"{table.name} has two rows of one id, in different forms: {ids}; nothing was changed"
        raise ConfigurationError(message) from None
