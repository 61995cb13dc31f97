"""The database's clock in SQL: what machines compare is written by no other, since a worker's may be an hour off.

It stands still within a statement, so that two columns can be given the same time. Postgres: `statement_timestamp()`;
`now()` stands still for a whole transaction, and `clock_timestamp()` never, so that no index serves it. SQLite: text in
the form in which timestamps are stored, to the millisecond.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Boolean, ColumnElement
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from orchestrator_state.column_types import POSTGRES_END, POSTGRES_FIRST, UtcTimestamp

_SQLITE_FORMAT = "'%Y-%m-%dT%H:%M:%f'"
_DIGITS = "[0-9][0-9]"
_SQLITE_DATE = f"{2 * _DIGITS}-{_DIGITS}-{_DIGITS}"
_SQLITE_NOW = f"(strftime({_SQLITE_FORMAT}, 'now') || '000+00:00')"


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

    def __init__(self, moment: ColumnElement[Any], limit: ColumnElement[Any]) -> None:
        super().__init__(moment, limit)


class time_after(FunctionElement[Any]):  # noqa: N801
    """The time a number of seconds after another: `time_after(column, bindparam("seconds"))`."""

    type = UtcTimestamp
    inherit_cache = True

    def __init__(self, start: ColumnElement[Any], seconds: ColumnElement[float]) -> None:
        super().__init__(start, seconds)


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
