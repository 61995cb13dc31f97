"""Statements as the driver itself takes them, and one call of the driver that is a transaction by itself.

SQLAlchemy's way through a statement, from the session to the rows, takes longer than the database takes over a small
one. A statement that is executed for every step is compiled once, and given to the driver on a pooled connection.

For connections that we opened ourselves: an application's engine may have events and settings that this would miss.
Each function runs in SQLAlchemy's greenlet, where a connection may have to be opened.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property, partial
from operator import itemgetter
from typing import Any, Final, TypeVar

import asyncpg
from sqlalchemy import Dialect, Engine, Executable, PoolProxiedConnection, SelectBase
from sqlalchemy.sql.compiler import SQLCompiler

from orchestrator_state.database.compiled import compiled_once, kind_of
from orchestrator_state.database.errors import (
    SQLITE_ROLLED_BACK,
    database_errors,
    is_out_of_step,
    spends_connection,
    sqlite_code,
)
from orchestrator_state.database.internals import await_only, invalidate_with_older_ones

_Result = TypeVar("_Result")
# They keep nothing of a block: each step passes through two of them.
_CALLING: Final = database_errors()
_COMMITTING: Final = database_errors(committing=True)


class DriverStatement:
    """A compiled statement: its text, and its parameters in the driver's order and form."""

    def __init__(self, statement: Executable, dialect: Dialect, schema: str | None) -> None:
        options: dict[str, Any] = {}
        if schema is not None:
            options = {"schema_translate_map": {None: schema}, "render_schema_translate": True}
        compiled: SQLCompiler = statement.compile(dialect=dialect, **options)  # type: ignore[attr-defined]
        self.sql: Final = compiled.string
        self._constants: Final = {name: value for name, value in compiled.params.items() if value is not None}
        names = tuple(compiled.positiontup or ())
        # Of one name, or none, `itemgetter` would make no tuple.
        self._picked: Final = itemgetter(*names) if len(names) > 1 else partial(_picked, names)
        self._sent_as: Final[list[tuple[int, Callable[[Any], Any]]]] = [
            (index, convert)
            for index, name in enumerate(names)
            if (convert := compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect)) is not None
        ]
        selected = statement.selected_columns if isinstance(statement, SelectBase) else ()
        self._conversions: Final[list[tuple[int, Callable[[Any], Any]]]] = [
            (index, convert)
            for index, column in enumerate(selected)
            if (convert := column.type.dialect_impl(dialect).result_processor(dialect, None)) is not None
        ]

    def arguments(self, values: Mapping[str, Any]) -> list[Any]:
        """What to send for `values`, which name every parameter."""
        if self._constants:
            values = {**self._constants, **values}
        arguments = list(self._picked(values))
        for index, convert in self._sent_as:
            arguments[index] = convert(arguments[index])
        return arguments

    def converted(self, rows: Sequence[Any]) -> Sequence[Any]:
        """A query's rows with Python's values in the place of the driver's."""
        if not self._conversions:
            return rows
        found = []
        for row in rows:
            values = list(row)
            for index, convert in self._conversions:
                if values[index] is not None:
                    values[index] = convert(values[index])
            found.append(values)
        return found


def _picked(names: Sequence[str], values: Mapping[str, Any]) -> Sequence[Any]:
    return [values[name] for name in names]


class DriverStatements(dict[Executable, DriverStatement]):
    """The compiled statements of one database, each compiled when it is first wanted."""

    def __init__(self, dialect: Dialect, schema: str | None) -> None:
        super().__init__()
        self._dialect, self._schema = dialect, schema
        self._compile = partial(DriverStatement, dialect=dialect, schema=schema)

    @cached_property
    def _kind(self) -> Hashable:
        """Only at the first statement, since a dialect knows its server when it has connected for the first time."""
        return kind_of(self._dialect), self._schema

    def __missing__(self, statement: Executable) -> DriverStatement:
        compiled = self[statement] = compiled_once(self._kind, statement, self._compile)
        return compiled


def fetch(engine: Engine, sql: str, arguments: Sequence[Any], *, committing: bool) -> Sequence[Any]:
    """Send Postgres one statement, which is a transaction by itself, and return its rows."""
    pooled = _checked_out(engine)
    try:
        with _COMMITTING if committing else _CALLING:
            return _answer(pooled, sql, arguments)
    finally:
        pooled.close()


def query(engine: Engine, sql: str, arguments: Sequence[Any]) -> Sequence[Any]:
    """Run one query on a SQLite connection, in one hop to its thread, and return its rows."""
    pooled = _checked_out(engine)
    connection: Any = pooled.driver_connection
    try:
        with _CALLING:
            rows: Sequence[Any] = _done(pooled, connection.query(sql, arguments))
            return rows
    finally:
        pooled.close()


def _answer(pooled: PoolProxiedConnection, sql: str, arguments: Sequence[Any]) -> Sequence[Any]:
    connection: Any = pooled.driver_connection
    try:
        rows: Sequence[Any] = await_only(connection.fetch(sql, *arguments))
        return rows
    except BaseException as error:
        if spends_connection(error):
            connection.terminate()  # there is nobody left to say goodbye to
            invalidate_with_older_ones(pooled, error)
        elif is_out_of_step(error) or not isinstance(error, asyncpg.PostgresError):
            pooled.invalidate()  # else the server's own words: the connection is as good as it says
        raise


def in_one_hop(engine: Engine, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
    """Run `work` and commit, all in the thread of a SQLite connection."""
    pooled = _checked_out(engine)
    connection: Any = pooled.driver_connection
    try:
        with _COMMITTING:
            result: _Result = _done(pooled, connection.transaction(work))
            return result
    finally:
        pooled.close()


def _done(pooled: PoolProxiedConnection, transaction: Any) -> Any:
    try:
        return await_only(transaction)
    except sqlite3.Error as error:
        if sqlite_code(error) in SQLITE_ROLLED_BACK:
            pooled.invalidate()
        raise


def _checked_out(engine: Engine) -> PoolProxiedConnection:
    with _CALLING:
        return engine.raw_connection()
