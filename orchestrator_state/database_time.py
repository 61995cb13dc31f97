"""The database's clock in SQL: what machines compare is written by no other, since a worker's may be an hour off.

It stands still within a statement, so that two columns can be given the same time. Postgres: `statement_timestamp()`;
`now()` stands still for a whole transaction, and `clock_timestamp()` never, so that no index serves it. SQLite: text in
the form in which timestamps are stored, to the millisecond.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from orchestrator_state.column_types import UtcTimestamp

_SQLITE_FORMAT = "'%Y-%m-%dT%H:%M:%f'"


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
    return f"(strftime({_SQLITE_FORMAT}, 'now') || '000+00:00')"


@compiles(database_time_in, "postgresql")
def _postgres_time_in(element: database_time_in, compiler: SQLCompiler, **kw: Any) -> str:
    return f"(statement_timestamp() + make_interval(secs => {compiler.process(element.clauses, **kw)}))"


@compiles(database_time_in, "sqlite")
def _sqlite_time_in(element: database_time_in, compiler: SQLCompiler, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    return f"(strftime({_SQLITE_FORMAT}, 'now', {seconds} || ' seconds') || '000+00:00')"


@compiles(time_after, "postgresql")
def _postgres_time_after(element: time_after, compiler: SQLCompiler, **kw: Any) -> str:
    start, seconds = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"({start} + make_interval(secs => {seconds}))"


@compiles(time_after, "sqlite")
def _sqlite_time_after(element: time_after, compiler: SQLCompiler, **kw: Any) -> str:
    start, seconds = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"(strftime({_SQLITE_FORMAT}, {start}, {seconds} || ' seconds') || '000+00:00')"
