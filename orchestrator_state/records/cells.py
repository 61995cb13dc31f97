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

from sqlalchemy import Boolean, Column, ColumnElement, Integer, Table, and_, case, cast, func, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from orchestrator_state.column_types import DAMAGED_ID, DAMAGED_TIME, Identifier, UtcTimestamp
from orchestrator_state.domain import LARGEST_COUNT, StepStatus, WorkflowStatus
from orchestrator_state.errors import CorruptPayload
from orchestrator_state.models import workflow_states

# They grow by one in statements for many runs. Those are for rows in which all of these can grow.
_COUNTS: Final = ("version", "lease_token", "attempts", "checkpoint_seq")
_FURTHER_COUNTS: Final = ("signal_seq", "faults", "position", "seq")
_STATUSES: Final = {"workflow_states": frozenset(WorkflowStatus), "step_states": frozenset(StepStatus)}
_FURTHEST_COUNT: Final = 2**30  # no run comes so far
_WHOLE: Final = "'integer'"
_LONGEST_NAME: Final = 255
_HEX: Final = "[0-9a-f]"
_CANONICAL: Final = "-".join(_HEX * digits for digits in (8, 4, 4, 4, 12))


def is_time(value: object) -> bool:
    return isinstance(value, datetime) and value != DAMAGED_TIME


def is_id(value: object) -> bool:
    return isinstance(value, UUID) and value != DAMAGED_ID


def is_integer(value: object) -> bool:
    return type(value) is int


def is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < _FURTHEST_COUNT


def is_text(value: object) -> bool:
    # One that is not UTF-8 comes with its wrong bytes as surrogates.
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value))


def is_step_id(value: object) -> bool:
    return is_text(value) and len(str(value)) <= _LONGEST_NAME


def is_name(value: object) -> bool:
    return is_text(value) and value != ""


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


def damaged_in(groups: Iterable[str], row: Any, table: Table) -> list[str]:
    """Which of the columns of `groups`, a few names each, hold no value of their type."""
    names = {name for group in groups for name in group.split(", ")}
    return [name for name, is_sound in _checks(table) if name in names and not is_sound(getattr(row, name))]


def unclaimable_columns(row: Any) -> list[str]:
    """What keeps a row of workflows from being claimed by whoever knows it: it is unwritable, or in no known status."""
    is_known = row.status in _STATUSES[workflow_states.name]
    return unwritable_columns(row) or ([] if is_known else ["status"])


def unwritable_columns(row: Any) -> list[str]:
    """What keeps a row of workflows from being written to: a damaged id, or counts that cannot grow."""
    if not is_id(row.id):
        return ["id"]
    return [name for name in _COUNTS if not is_count(getattr(row, name))]


def unreadable(columns: Iterable[str], workflow_state_id: UUID, **about: object) -> CorruptPayload:
    named = list(columns)
    return CorruptPayload(
        f"the stored {', '.join(named)} cannot be read: mend it in the database, then `store.resume`",
        path=named[0],
        workflow_state_id=workflow_state_id,
        **about,
    )


class is_addressable(FunctionElement[bool]):  # noqa: N801 - reads as a phrase in a statement
    """Whether a column of ids holds one in the form that it is looked for in."""

    type = Boolean()
    inherit_cache = True


@compiles(is_addressable)
def _is_there(element: is_addressable, compiler: SQLCompiler, **options: Any) -> str:
    return f"({compiler.process(element.clauses, **options)} IS NOT NULL)"


@compiles(is_addressable, "sqlite")
def _is_canonical(element: is_addressable, compiler: SQLCompiler, **options: Any) -> str:
    return f"({compiler.process(element.clauses, **options)} GLOB '{_CANONICAL}')"


class is_stored_name(FunctionElement[bool]):  # noqa: N801 - reads as a phrase in a statement
    """Whether a column of names holds a text, and not an empty one."""

    type = Boolean()
    inherit_cache = True


@compiles(is_stored_name)
def _is_not_empty(element: is_stored_name, compiler: SQLCompiler, **options: Any) -> str:
    return f"(({compiler.process(element.clauses, **options)} <> '') IS TRUE)"


@compiles(is_stored_name, "sqlite")
def _is_text_not_empty(element: is_stored_name, compiler: SQLCompiler, **options: Any) -> str:
    name = compiler.process(element.clauses, **options)
    return f"(typeof({name}) = 'text' AND {name} <> '')"


class counts_on(FunctionElement[bool]):  # noqa: N801 - reads as a phrase in a statement
    """Whether `COUNTS` of a workflow's row can grow."""

    type = Boolean()
    inherit_cache = True


@compiles(counts_on)
def _are_small(element: counts_on, compiler: SQLCompiler, **options: Any) -> str:
    greatest = f"greatest({compiler.process(element.clauses, **options)})"
    return f"({greatest} < {_FURTHEST_COUNT} AND {_none_is_null(element, compiler, **options)})"


def _none_is_null(element: counts_on, compiler: SQLCompiler, **options: Any) -> str:
    counts = (compiler.process(count, **options) for count in element.clauses)
    return f"({' AND '.join(f'{count} IS NOT NULL' for count in counts)})"


@compiles(counts_on, "sqlite")
def _are_small_numbers(element: counts_on, compiler: SQLCompiler, **options: Any) -> str:
    counts = [compiler.process(count, **options) for count in element.clauses]
    return f"({' AND '.join(f'(typeof({count}) = {_WHOLE} AND {count} < {_FURTHEST_COUNT})' for count in counts)})"


class one_more(FunctionElement[int]):  # noqa: N801 - reads as a phrase in a statement
    """A count and one. It fails as Postgres does where a column cannot hold that.

    SQLite would go on with a floating point number, of which it loses the last digits.
    """

    type = Integer()
    inherit_cache = True


@compiles(one_more)
def _next(element: one_more, compiler: SQLCompiler, **options: Any) -> str:
    return f"({compiler.process(element.clauses, **options)} + 1)"


@compiles(one_more, "sqlite")
def _next_or_none(element: one_more, compiler: SQLCompiler, **options: Any) -> str:
    count = compiler.process(element.clauses, **options)
    # The absolute value of the smallest number is none. Statements cannot raise errors otherwise, outside of triggers.
    failing = f"abs(-{2**63 - 1} - 1)"
    return f"CASE WHEN typeof({count}) = {_WHOLE} AND {count} < {LARGEST_COUNT} THEN {count} + 1 ELSE {failing} END"


COUNTS: Final = tuple(workflow_states.c[name] for name in _COUNTS)
IS_WRITABLE: Final = and_(is_addressable(workflow_states.c.id), counts_on(*COUNTS))
"""Whether a statement for many runs can write to a workflow's row: others are passed over."""


def next_count(counter: Column[Any], numbered: Table) -> ColumnElement[int]:
    """The number after the last of a workflow's: `counter` says which that was, unless its cell was damaged.

    Of the rows of `numbered` that hang on the workflow one may be further on; a damaged one does not count.
    """
    seq = numbered.c.seq
    of_workflow = numbered.c.workflow_state_id == workflow_states.c.id
    greatest = select(func.max(seq)).where(of_workflow, seq < _FURTHEST_COUNT).correlate(workflow_states)
    last = cast(func.coalesce(greatest.scalar_subquery(), 0), Integer)
    number = cast(counter, Integer)  # SQLite makes one of whatever the cell holds
    return case((and_(number >= last, number < _FURTHEST_COUNT), number), else_=last) + 1


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
    if column.name in _COUNTS + _FURTHER_COUNTS:
        return is_count
    if isinstance(column.type, Integer):
        return is_integer
    if column.name == "status":
        return _STATUSES[column.table.name].__contains__
    return is_name if column.name == "namespace" else is_text
