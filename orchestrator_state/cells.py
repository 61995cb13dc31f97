"""Find the cells of a row that hold no value of their column's type.

SQLite keeps anything in any column, and Postgres has moments that Python has not. Such a cell is damage to the one row
that it is in: it is read without an error (see `column_types`), and found here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from functools import cache
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Boolean, Column, Integer, Table, and_
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from orchestrator_state.column_types import DAMAGED_ID, DAMAGED_TIME, Identifier, UtcTimestamp
from orchestrator_state.errors import CorruptPayload
from orchestrator_state.models import workflow_states

# They grow by one in statements for many runs. Where Postgres cannot count on, it writes none of these.
_COUNTS: Final = ("version", "lease_token", "attempts", "checkpoint_seq")
_FURTHEST_COUNT: Final = 2**30  # no run comes so far
_HEX: Final = "[0-9a-f]"
_CANONICAL: Final = "-".join(_HEX * digits for digits in (8, 4, 4, 4, 12))


def is_time(value: object) -> bool:
    return isinstance(value, datetime) and value != DAMAGED_TIME


def is_id(value: object) -> bool:
    return isinstance(value, UUID) and value != DAMAGED_ID


def is_integer(value: object) -> bool:
    return type(value) is int


def is_count(value: object) -> bool:
    return type(value) is int and value < _FURTHEST_COUNT


def is_text(value: object) -> bool:
    # One that is not UTF-8 comes with its wrong bytes as surrogates.
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value))


def damaged_columns(row: Any, table: Table) -> list[str]:
    """The columns of a row of `table`, payloads and digests aside, that hold no value of their type."""
    return [name for name, is_sound in _checks(table) if not is_sound(getattr(row, name))]


def plain_columns(table: Table) -> list[Column[Any]]:
    """All columns but payloads and digests."""
    return [column for column in table.c if not _is_payload(column)]


def damaged_among(values: Iterable[Any], table: Table) -> list[str]:
    """Like `damaged_columns`, for the values of the `plain_columns`."""
    return [name for (name, is_sound), value in zip(_checks(table), values, strict=True) if not is_sound(value)]


def require_sound(row: Any, table: Table) -> None:
    """Raise `CorruptPayload` with the `path` of the first damaged column of a row of workflows."""
    damaged = damaged_columns(row, table)
    if damaged:
        raise unreadable(damaged, row.id)


def unreadable(columns: Iterable[str], workflow_state_id: UUID) -> CorruptPayload:
    named = list(columns)
    return CorruptPayload(
        f"the stored {', '.join(named)} cannot be read: mend it in the database, then `store.resume`",
        path=named[0],
        workflow_state_id=workflow_state_id,
    )


class is_addressable(FunctionElement[bool]):  # noqa: N801 - reads as a phrase in a statement
    """Whether a column of ids holds one in the form that it is looked for in; in Postgres always."""

    type = Boolean()
    inherit_cache = True


@compiles(is_addressable)
def _always(_element: is_addressable, _compiler: SQLCompiler, **_options: Any) -> str:
    return "true"


@compiles(is_addressable, "sqlite")
def _is_canonical(element: is_addressable, compiler: SQLCompiler, **options: Any) -> str:
    return f"({compiler.process(element.clauses, **options)} GLOB '{_CANONICAL}')"


class counts_on(FunctionElement[bool]):  # noqa: N801 - reads as a phrase in a statement
    """Whether `COUNTS` of a workflow's row can grow; in SQLite always, as it makes another number of one too large."""

    type = Boolean()
    inherit_cache = True


@compiles(counts_on)
def _are_small(element: counts_on, compiler: SQLCompiler, **options: Any) -> str:
    return f"(greatest({compiler.process(element.clauses, **options)}) < {_FURTHEST_COUNT})"


@compiles(counts_on, "sqlite")
def _always_on(_element: counts_on, _compiler: SQLCompiler, **_options: Any) -> str:
    return "true"


COUNTS: Final = tuple(workflow_states.c[name] for name in _COUNTS)
IS_WRITABLE: Final = and_(is_addressable(workflow_states.c.id), counts_on(*COUNTS))
"""Whether a statement for many runs can write to a workflow's row: others are passed over."""


@cache
def _checks(table: Table) -> list[tuple[str, Callable[[object], bool]]]:
    return [(column.name, _check(column)) for column in plain_columns(table)]


def _is_payload(column: Column[Any]) -> bool:
    return column.name.endswith("_digest") or f"{column.name}_digest" in column.table.c


def _check(column: Column[Any]) -> Callable[[object], bool]:
    is_sound = _check_of_type(column)
    return (lambda value: value is None or is_sound(value)) if column.nullable else is_sound


def _check_of_type(column: Column[Any]) -> Callable[[object], bool]:
    if column.type is UtcTimestamp:
        return is_time
    if column.type is Identifier:
        return is_id
    if column.name in _COUNTS:
        return is_count
    return is_integer if isinstance(column.type, Integer) else is_text
