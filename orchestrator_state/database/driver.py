"""A pooled connection, used past SQLAlchemy: one call of the driver that is a transaction by itself.

For connections that we opened ourselves: an application's engine may have events and settings that this would miss.
Each function runs in SQLAlchemy's greenlet, where a connection may have to be opened.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import asyncpg
from sqlalchemy import Engine, PoolProxiedConnection
from sqlalchemy.util import await_only

from orchestrator_state.database.errors import (
    SQLITE_ROLLED_BACK,
    database_errors,
    is_out_of_step,
    spends_connection,
    sqlite_code,
)

_Result = TypeVar("_Result")


def fetch(engine: Engine, sql: str, arguments: Sequence[Any], *, committing: bool) -> Sequence[Any]:
    """Send Postgres one statement, which is a transaction by itself, and return its rows."""
    pooled = _checked_out(engine)
    try:
        with database_errors(committing=committing):
            return _answer(pooled, sql, arguments)
    finally:
        pooled.close()


def query(engine: Engine, sql: str, arguments: Sequence[Any]) -> Sequence[Any]:
    """Run one query on a SQLite connection, in one hop to its thread, and return its rows."""
    pooled = _checked_out(engine)
    connection: Any = pooled.driver_connection
    try:
        with database_errors():
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
            _invalidate(pooled, error)
        elif is_out_of_step(error) or not isinstance(error, asyncpg.PostgresError):
            pooled.invalidate()  # else the server's own words: the connection is as good as it says
        raise


def _invalidate(pooled: Any, error: BaseException) -> None:
    """As SQLAlchemy does when its own calls find a connection broken: those made before it are not used again either.

    Else each of them would have to fail once, by a restart or a failover that all of them went through.
    """
    pooled._pool._invalidate(pooled, error)  # noqa: SLF001


def in_one_hop(engine: Engine, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
    """Run `work` and commit, all in the thread of a SQLite connection."""
    pooled = _checked_out(engine)
    connection: Any = pooled.driver_connection
    try:
        with database_errors(committing=True):
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
    with database_errors():
        return engine.raw_connection()
