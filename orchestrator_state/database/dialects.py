"""What SQLite and Postgres say in different words, as one word of SQL for both.

The time is the database's: what machines compare is written by no other clock, since a worker's may be an hour off.
It stands still within a statement, so that two columns can be given the same time. Postgres: `statement_timestamp()`;
`now()` stands still for a whole transaction, and `clock_timestamp()` never, so that no index serves it. SQLite: text in
the form in which timestamps are stored, to the millisecond.

Whether a cell holds a value of its column's type has to be asked, since SQLite keeps anything in any column.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import BigInteger, Boolean, ColumnElement, Integer, Table, Text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import SQLCoreOperations
from sqlalchemy.sql.functions import FunctionElement

from orchestrator_state.column_types import POSTGRES_END, POSTGRES_FIRST, UtcTimestamp
from orchestrator_state.damaged import FURTHEST_COUNT
from orchestrator_state.domain import LARGEST_COUNT

_SQLITE_FORMAT: Final = "'%Y-%m-%dT%H:%M:%f'"
_DIGITS: Final = "[0-9][0-9]"
_SQLITE_DATE: Final = f"{2 * _DIGITS}-{_DIGITS}-{_DIGITS}"
_SQLITE_NOW: Final = f"(strftime({_SQLITE_FORMAT}, 'now') || '000+00:00')"
_WHOLE: Final = "'integer'"
_HEX: Final = "[0-9a-f]"
_CANONICAL: Final = "-".join(_HEX * digits for digits in (8, 4, 4, 4, 12))


def conflict_aware_insert(dialect: str, table: Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that knows ON CONFLICT, for the dialect of that name."""
    return sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)


# --- times -------------------------------------------------------------------------------------------------------


class database_now(FunctionElement[Any]):  # noqa: N801 - it stands in SQL expressions, like func.now()
    """The present time."""

    type = UtcTimestamp
    inherit_cache = True


class database_time_in(FunctionElement[Any]):  # noqa: N801
    """The time a number of seconds from now: `database_time_in(bindparam("seconds"))`."""

    type = UtcTimestamp
    inherit_cache = True

    def __init__(self, seconds: ColumnElement[float]) -> None:
        super().__init__(seconds)


class is_moment(FunctionElement[bool]):  # noqa: N801
    """Whether a stored time is one that can be read; NULL is none."""

    type = Boolean()
    inherit_cache = True


class lies_ahead(FunctionElement[bool]):  # noqa: N801
    """Whether a stored time is one, is yet to come, and no later than a `limit`: true or false, never NULL."""

    type = Boolean()
    inherit_cache = True

    def __init__(self, moment: SQLCoreOperations[Any], limit: ColumnElement[Any]) -> None:
        super().__init__(moment, limit)


class time_after(FunctionElement[Any]):  # noqa: N801
    """The time a number of seconds after another: `time_after(column, bindparam("seconds"))`."""

    type = UtcTimestamp
    inherit_cache = True

    def __init__(self, start: SQLCoreOperations[Any], seconds: ColumnElement[float]) -> None:
        super().__init__(start, seconds)


class utc_day(FunctionElement[str]):  # noqa: N801
    """The day of a stored time, in UTC, as text: `2026-01-31`."""

    type = Text()
    inherit_cache = True


@compiles(utc_day, "postgresql")
def _postgres_day(element: utc_day, compiler: SQLCompiler, **kw: Any) -> str:
    return f"to_char({compiler.process(element.clauses, **kw)} AT TIME ZONE 'UTC', 'YYYY-MM-DD')"


@compiles(utc_day, "sqlite")
def _sqlite_day(element: utc_day, compiler: SQLCompiler, **kw: Any) -> str:
    return f"substr({compiler.process(element.clauses, **kw)}, 1, 10)"


@compiles(database_now, "postgresql")
def _postgres_now(_element: database_now, _compiler: SQLCompiler, **_: Any) -> str:
    return "statement_timestamp()"


@compiles(database_now, "sqlite")
def _sqlite_now(_element: database_now, _compiler: SQLCompiler, **_: Any) -> str:
    return _SQLITE_NOW


@compiles(database_time_in, "postgresql")
def _postgres_time_in(element: database_time_in, compiler: SQLCompiler, **kw: Any) -> str:
    return f"(statement_timestamp() + make_interval(secs => {compiler.process(element.clauses, **kw)}))"


@compiles(database_time_in, "sqlite")
def _sqlite_time_in(element: database_time_in, compiler: SQLCompiler, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    return f"(strftime({_SQLITE_FORMAT}, 'now', {seconds} || ' seconds') || '000+00:00')"


@compiles(is_moment, "postgresql")
def _postgres_is_moment(element: is_moment, compiler: SQLCompiler, **kw: Any) -> str:
    moment = compiler.process(element.clauses, **kw)
    first, end = (compiler.process(limit) for limit in (POSTGRES_FIRST, POSTGRES_END))
    return f"(({moment} >= {first} AND {moment} < {end}) IS TRUE)"


@compiles(is_moment, "sqlite")
def _sqlite_is_moment(element: is_moment, compiler: SQLCompiler, **kw: Any) -> str:
    # To the second: it knows fewer ways to write what comes after that than there are. A number would be a day to it.
    moment = compiler.process(element.clauses, **kw)
    return f"(({moment} GLOB '{_SQLITE_DATE}*' AND julianday(substr({moment}, 1, 19)) IS NOT NULL) IS TRUE)"


@compiles(lies_ahead, "postgresql")
def _postgres_lies_ahead(element: lies_ahead, compiler: SQLCompiler, **kw: Any) -> str:
    moment, limit = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"(({moment} > statement_timestamp() AND {moment} <= {limit}) IS TRUE)"


@compiles(lies_ahead, "sqlite")
def _sqlite_lies_ahead(element: lies_ahead, compiler: SQLCompiler, **kw: Any) -> str:
    # What is no time may be a text that sorts between two of them. The date tells: this is asked of each that sleeps.
    moment, limit = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"(({moment} > {_SQLITE_NOW} AND {moment} <= {limit} AND {moment} GLOB '{_SQLITE_DATE}T*') IS TRUE)"


@compiles(time_after, "postgresql")
def _postgres_time_after(element: time_after, compiler: SQLCompiler, **kw: Any) -> str:
    start, seconds = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"({start} + make_interval(secs => {seconds}))"


@compiles(time_after, "sqlite")
def _sqlite_time_after(element: time_after, compiler: SQLCompiler, **kw: Any) -> str:
    start, seconds = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"(strftime({_SQLITE_FORMAT}, {start}, {seconds} || ' seconds') || '000+00:00')"


# --- what a cell holds -------------------------------------------------------------------------------------------


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
    """Whether all of the given counts can grow."""

    type = Boolean()
    inherit_cache = True


@compiles(counts_on)
def _are_small(element: counts_on, compiler: SQLCompiler, **options: Any) -> str:
    greatest = f"greatest({compiler.process(element.clauses, **options)})"
    return f"({greatest} < {FURTHEST_COUNT} AND {_none_is_null(element, compiler, **options)})"


def _none_is_null(element: counts_on, compiler: SQLCompiler, **options: Any) -> str:
    counts = (compiler.process(count, **options) for count in element.clauses)
    return f"({' AND '.join(f'{count} IS NOT NULL' for count in counts)})"


@compiles(counts_on, "sqlite")
def _are_small_numbers(element: counts_on, compiler: SQLCompiler, **options: Any) -> str:
    counts = [compiler.process(count, **options) for count in element.clauses]
    return f"({' AND '.join(f'(typeof({count}) = {_WHOLE} AND {count} < {FURTHEST_COUNT})' for count in counts)})"


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


class stored_bytes(FunctionElement[int]):  # noqa: N801 - reads as a phrase in a statement
    """How long a text is as it is stored, as far as the database can tell without reading it."""

    type = BigInteger()
    inherit_cache = True


@compiles(stored_bytes)
def _octet_length(element: stored_bytes, compiler: SQLCompiler, **options: Any) -> str:
    return f"octet_length({compiler.process(element.clauses, **options)})"


@compiles(stored_bytes, "sqlite")
def _length(element: stored_bytes, compiler: SQLCompiler, **options: Any) -> str:
    return f"length(CAST({compiler.process(element.clauses, **options)} AS BLOB))"
