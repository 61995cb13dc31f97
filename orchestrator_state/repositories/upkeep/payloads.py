"""Every payload of a namespace as it is stored: neither opened nor decoded, table by table and page by page."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Select,
    String,
    Table,
    bindparam,
    false,
    func,
    literal,
    not_,
    or_,
    select,
    tuple_,
    type_coerce,
    update,
)
from sqlalchemy.sql import Update

from orchestrator_state.column_types import StoredIdentifier, StoredIdentifierKey, StoredText, StoredTextKey
from orchestrator_state.database import is_stored_name, stored_bytes
from orchestrator_state.models import checkpoints, questions, requests, signals, step_states, workflow_states
from orchestrator_state.records import (
    CELLS,
    PAYLOAD_COLUMNS,
    Columns,
    SignalPlace,
    checkpoint_identity,
    question_identity,
    step_identity,
    workflow_identity,
)
from orchestrator_state.repositories.base import Repository, rowcount
from orchestrator_state.repositories.expressions import OUTDATED

Key = tuple[Any, ...]
Ids = Mapping[str, Any]

# A page is fetched whole: the sizes of its rows are asked for before.
PAGE_BYTES: Final = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PayloadTable:
    """A table with payloads; its rows are ordered by `key`. `identity` names the payload of a row's ids and column."""

    table: Table
    key: tuple[str, ...]
    further_ids: tuple[str, ...] = ()
    further_names: tuple[str, ...] = ()
    """Texts that a payload is bound to, and that are no ids."""
    identity: Callable[[Ids, str], str]
    outdates: bool = False
    """Whether older software changes the payloads of its rows, and not their digests."""

    @property
    def name(self) -> str:
        return self.table.name

    @property
    def columns(self) -> tuple[str, ...]:
        return PAYLOAD_COLUMNS.get(self.name, ())


PAYLOAD_TABLES: Final = (
    PayloadTable(
        table=workflow_states,
        key=("id",),
        identity=lambda ids, column: workflow_identity(ids["id"], column),
        outdates=True,
    ),
    PayloadTable(
        table=step_states,
        key=("workflow_state_id", "step_id"),
        identity=lambda ids, column: step_identity(ids["workflow_state_id"], ids["step_id"], column),
        outdates=True,
    ),
    PayloadTable(
        table=checkpoints,
        key=("id",),
        further_ids=("workflow_state_id",),
        identity=lambda ids, _: checkpoint_identity(ids["workflow_state_id"], ids["id"]),
    ),
    PayloadTable(
        table=signals,
        key=("id",),
        further_ids=("workflow_state_id",),
        further_names=("name",),
        identity=lambda ids, _: SignalPlace(ids["workflow_state_id"], ids["id"], "", "").identity,
    ),
    PayloadTable(
        table=questions,
        key=("id",),
        further_ids=("workflow_state_id",),
        identity=lambda ids, _: question_identity(ids["workflow_state_id"], ids["id"]),
    ),
)
CHECKED_TABLES: Final = (*PAYLOAD_TABLES, PayloadTable(table=requests, key=("id",), identity=lambda _ids, _: ""))
"""Also what has no payloads, but cells that can be damaged."""


class StoredPayload(NamedTuple):
    column: str
    text: str | None
    digest: str | None
    identity: str


class PayloadRow(NamedTuple):
    """The payloads of a row, without those that are NULL and have no digest. Ids are as the driver returns them."""

    source: PayloadTable
    ids: Ids
    names: Mapping[str, str]
    key: Key
    outdated: bool
    payloads: Sequence[StoredPayload]
    damaged_cells: Sequence[str]
    """Other columns of it that hold no value of their type."""
    is_orphan: bool
    """Whether there is no workflow that it belongs to."""


class PayloadRepository(Repository):
    """Pages of rows, and replacing their payloads."""

    async def count(self, source: PayloadTable) -> int:
        statement = _within_namespace(source, select(func.count()))
        (counted,) = await self._row(statement, {"namespace": self._namespace})
        return int(counted)

    async def page(
        self, source: PayloadTable, after: Key | None, max_rows: int, *, strays: bool = False
    ) -> Sequence[PayloadRow]:
        """The next rows in the order of their keys, some 2 MiB of them; with those of no namespace, if `strays`.

        They come from one statement, so that text, digest and age of a row fit together.
        """
        is_first = after is None
        parameters = {"namespace": self._namespace, "size": max_rows} | _numbered(after or ())
        sizes = await self._rows(_sizes(source, is_first=is_first, strays=strays), parameters)
        parameters["size"] = fitting([size for (size,) in sizes])
        rows = await self._rows(_page(source, is_first=is_first, strays=strays), parameters)
        return [_payload_row(source, row) for row in rows]

    async def replace(self, row: PayloadRow, texts: Mapping[str, str], columns: Columns) -> bool:
        """Set payload `columns` of a row, if the payloads are still those of `texts`. Nothing else of it changes.

        What was absent has to be absent still: it may be a copy of what is replaced.
        """
        absent = frozenset(row.source.columns) - {payload.column for payload in row.payloads}
        statement = _replacement(row.source, frozenset(texts), absent)
        old = {f"old_{column}": text for column, text in texts.items()}
        new = {f"new_{column}": value for column, value in columns.items()}
        return rowcount(await self._execute(statement, _numbered(row.key) | old | new)) == 1

    async def lock(self, source: PayloadTable, keys: Collection[Key]) -> set[Key]:
        """Lock those of the rows that nobody else has locked, and return their keys.

        Who never waits for a row cannot be part of a deadlock, whose victim would be somebody's work.
        """
        key = _key(source)
        wanted = key[0].in_([only for (only,) in keys]) if len(key) == 1 else tuple_(*key).in_(list(keys))
        statement = select(*key).where(wanted).with_for_update(skip_locked=True, key_share=True)
        return {tuple(row) for row in await self._rows(statement)}


def fitting(sizes: Sequence[int | None], most: int = PAGE_BYTES) -> int:
    """How many of the first are no more than `most` bytes, a page, together; one at least, if there is one."""
    within = 0
    for number, size in enumerate(sizes):
        within += size or 0
        if within > most:
            return max(1, number)
    return len(sizes)


def _payload_row(source: PayloadTable, row: Any) -> PayloadRow:
    outdated, *values = row
    ids_of, names_of = source.key + source.further_ids, source.further_names
    ids = dict(zip(ids_of, values, strict=False))
    names = dict(zip(names_of, values[len(ids_of) :], strict=False))
    stored_to = len(ids_of) + len(names_of) + 2 * len(source.columns)
    stored = values[len(ids_of) + len(names_of) : stored_to]
    cells = zip(CELLS[source.name].items(), values[stored_to:], strict=True)
    damaged = [name for (name, is_sound), value in cells if not is_sound(value)]
    payloads = [
        StoredPayload(column, text, digest, source.identity(ids, column))
        for column, text, digest in zip(source.columns, stored[::2], stored[1::2], strict=True)
        if text is not None or digest is not None
    ]
    key = tuple(values[: len(source.key)])
    return PayloadRow(source, ids, names, key, bool(outdated), payloads, damaged, is_orphan=outdated is None)


def _column(source: PayloadTable, name: str) -> ColumnElement[Any]:
    column = source.table.c[name]
    return column if name == "step_id" else type_coerce(column, StoredIdentifier)


def _key(source: PayloadTable) -> list[ColumnElement[Any]]:
    return [_column(source, name) for name in source.key]


def _key_parameters(source: PayloadTable) -> list[ColumnElement[Any]]:
    types = [StoredTextKey if name == "step_id" else StoredIdentifierKey for name in source.key]
    return [bindparam(f"key_{at}", type_=kind) for at, kind in enumerate(types)]


@cache
def _sizes(source: PayloadTable, *, is_first: bool, strays: bool) -> Select[Any]:
    key, after = _key(source), _key_parameters(source)
    length: ColumnElement[Any] = sum(
        (func.coalesce(stored_bytes(source.table.c[name]), 0) for name in source.columns), literal(0)
    )
    statement = select(length)
    if not is_first:
        statement = statement.where(key[0] > after[0] if len(key) == 1 else tuple_(*key) > tuple_(*after))
    return _within_namespace(source, statement, strays=strays).order_by(*key).limit(bindparam("size"))


@cache
def _page(source: PayloadTable, *, is_first: bool, strays: bool) -> Select[Any]:
    key, after = _key(source), _key_parameters(source)
    statement = select(
        _of_workflow(source, OUTDATED if source.outdates else false()),
        *key,
        *(_column(source, name) for name in source.further_ids),
        *(type_coerce(source.table.c[name], StoredText) for name in source.further_names),
        *(
            type_coerce(source.table.c[name], StoredText)
            for column in source.columns
            for name in (column, f"{column}_digest")
        ),
        *(source.table.c[name] for name in CELLS[source.name]),
    )
    if not is_first:
        statement = statement.where(key[0] > after[0] if len(key) == 1 else tuple_(*key) > tuple_(*after))
    return _within_namespace(source, statement, strays=strays).order_by(*key).limit(bindparam("size"))


def _within_namespace(source: PayloadTable, statement: Select[Any], *, strays: bool = False) -> Select[Any]:
    wanted = bindparam("namespace", type_=String())
    own = source.table.c.get("namespace")
    named = _of_workflow(source, workflow_states.c.namespace) if own is None else own
    within = named == wanted
    if strays:
        within = func.coalesce(named, wanted) == wanted if own is None else or_(within, not_(is_stored_name(own)))
    return statement.select_from(source.table).where(within)


def _of_workflow(source: PayloadTable, column: ColumnElement[Any]) -> ColumnElement[Any]:
    """A column of the workflow that a row belongs to; itself for a row that belongs to none.

    Looked up row by row: of a join SQLite makes a sort of all that comes after the page, for each page.
    """
    owner = source.table.c.get("workflow_state_id")
    if owner is None:
        return column
    return select(column).where(workflow_states.c.id == owner).correlate(source.table).scalar_subquery()


@cache
def _replacement(source: PayloadTable, columns: frozenset[str], absent: frozenset[str]) -> Update:
    c = source.table.c
    of_row = [column == parameter for column, parameter in zip(_key(source), _key_parameters(source), strict=True)]
    unchanged = [c[name] == bindparam(f"old_{name}", type_=c[name].type) for name in sorted(columns)]
    unchanged += [c[name].is_(None) for name in sorted(absent)]
    names = [name for column in sorted(columns) for name in (column, f"{column}_digest")]
    values = {name: bindparam(f"new_{name}", type_=c[name].type) for name in names}
    return update(source.table).where(*of_row, *unchanged).values(values)


def _numbered(key: Key) -> Columns:
    return {f"key_{at}": value for at, value in enumerate(key)}
