"""What is written together: on Postgres in one statement, on SQLite, which has none for that, in several."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar, cast

from sqlalchemy import CursorResult, Executable, Result
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from orchestrator_state.database.compiled import shared_cache
from orchestrator_state.database.direct.driver import DriverStatements
from orchestrator_state.database.errors import database_errors

Outcome = tuple[Any, int]
"""The first row that a statement returned, and the number of rows that it wrote."""
Execute = Callable[[Executable, Mapping[str, Any]], Outcome]
ExecuteEach = Callable[[Executable, list[dict[str, Any]]], None]
_Answer = TypeVar("_Answer")
_Answer_co = TypeVar("_Answer_co", covariant=True)


class Batch(Protocol[_Answer_co]):
    """Says both ways how it is written. Whichever the database takes, it means the same."""

    def as_one_statement(self) -> tuple[Executable, Mapping[str, Any]]:
        """A statement and its parameters."""

    def answer(self, rows: Iterable[Any]) -> _Answer_co:
        """What the rows mean that the one statement has returned."""

    def write(self, execute: Execute, execute_each: ExecuteEach) -> _Answer_co:
        """Write statement by statement, each of which may depend on the outcome of those before."""


async def write_in(
    session: AsyncSession,
    batch: Batch[_Answer],
    execute: Callable[[Executable, Mapping[str, Any]], Awaitable[Result[Any]]],
) -> _Answer:
    """Write `batch` in the open transaction of `session`, if in one statement then by `execute`."""
    if session.get_bind().dialect.name == "sqlite":
        with database_errors():
            return await session.run_sync(_write_in_session, batch)
    return batch.answer(await execute(*batch.as_one_statement()))


def _write_in_session(session: Session, batch: Batch[_Answer]) -> _Answer:
    options = shared_cache(session.get_bind())

    def execute(statement: Executable, values: Mapping[str, Any]) -> Outcome:
        result = cast(CursorResult[Any], session.execute(statement, values, execution_options=options))
        return (result.first() if result.returns_rows else None), result.rowcount

    def execute_each(statement: Executable, values: list[dict[str, Any]]) -> None:
        session.execute(statement, values, execution_options=options)

    return batch.write(execute, execute_each)


def write_in_thread(connection: sqlite3.Connection, statements: DriverStatements, batch: Batch[_Answer]) -> _Answer:
    """Write `batch` in the open transaction of a SQLite connection, in whose thread this is called."""
    cursor = connection.cursor()

    def execute(statement: Executable, values: Mapping[str, Any]) -> Outcome:
        compiled = statements[statement]
        cursor.execute(compiled.sql, compiled.arguments(values))
        return cursor.fetchone(), cursor.rowcount

    def execute_each(statement: Executable, values: list[dict[str, Any]]) -> None:
        compiled = statements[statement]
        cursor.executemany(compiled.sql, map(compiled.arguments, values))

    try:
        return batch.write(execute, execute_each)
    finally:
        cursor.close()
