"""Connections that the caller's code has had, in a unit of work or in `run.transact`: put in order for who comes next.

What a session sets outlives its transaction: `SET search_path`, `SET ROLE`, `SET synchronous_commit`, a PRAGMA. On the
next call, or the next run's commit, it would be somebody else's: who is refused a table that is there, or is told that
something is durable which is not. So such a connection is put back to how it was made before it is used again, or, if
that is not certain, replaced by a new one. The connections of an application's engine are the application's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import asyncpg
from sqlalchemy import Connection, Engine, event, exc, func, select, true
from sqlalchemy.engine.interfaces import AdaptedConnection
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.pool import ConnectionPoolEntry

from orchestrator_state.database.compiled import keep_compiled_apart
from orchestrator_state.database.errors import database_errors
from orchestrator_state.database.internals import await_only, begun_connections
from orchestrator_state.database.sessions.session import StoreSession
from orchestrator_state.database.sqlite.connection import SqliteConnection

_LENT: Final = "orchestrator_state.lent"
_POSTGRES: Final = "RESET SESSION AUTHORIZATION; RESET ROLE; DISCARD TEMP; "
_IN_THE_WAY: Final = ("session_authorization", "role", "search_path")
_SQLITE: Final = {"query_only": "OFF", "ignore_check_constraints": "OFF"}


def lend(session: AsyncSession) -> None:
    """The caller's code is about to have `session`, and every connection that it has or takes."""
    session.sync_session.info[_LENT] = True
    for connection in begun_connections(session.sync_session):
        _mark(connection)
    if not isinstance(session.sync_session, StoreSession):
        event.listen(session.sync_session, "after_begin", _note)


def _note(session: Session, _: SessionTransaction, connection: Connection) -> None:
    if _LENT in session.info:
        _mark(connection)


def _mark(connection: Connection) -> None:
    connection.info[_LENT] = True
    keep_compiled_apart(connection)


event.listen(StoreSession, "after_begin", _note)


async def settings_in_force(session: AsyncSession) -> Sequence[str]:
    """Those of the open transaction that say which tables a name means, and who may write to them."""
    if session.get_bind().dialect.name == "sqlite":
        return ()
    with database_errors():
        current = await session.execute(select(*(func.current_setting(name) for name in _IN_THE_WAY)))
    return current.one()


async def put_in_force(session: AsyncSession, settings: Sequence[str]) -> None:
    """Back to `settings`, whatever was set since, for the rest of the open transaction."""
    with database_errors():
        if session.get_bind().dialect.name == "sqlite":
            await (await session.connection()).exec_driver_sql("PRAGMA query_only=OFF")
            return
        again = zip(_IN_THE_WAY, settings, strict=True)
        await session.execute(select(*(func.set_config(name, value, true()) for name, value in again)))


def put_back_postgres(engine: Engine) -> None:
    """Let the connections of `engine`, which we made, be put back."""
    _before_use(engine, _put_back_postgres)


def put_back_sqlite(engine: Engine, pragmas: Mapping[str, object]) -> None:
    """The same; `pragmas` are those that they were made with."""
    _before_use(engine, partial(_put_back_sqlite, pragmas={**pragmas, **_SQLITE}))


def _before_use(engine: Engine, put_back: Callable[[Any], None]) -> None:
    def checked_out(dbapi_connection: AdaptedConnection, entry: ConnectionPoolEntry, _: object) -> None:
        if not entry.info.pop(_LENT, False):
            return
        try:
            put_back(dbapi_connection.driver_connection)
        except Exception:  # noqa: BLE001 - whatever it is, the pool can open another
            raise exc.DisconnectionError from None

    event.listen(engine, "checkout", checked_out)


def _put_back_postgres(driver: asyncpg.Connection[asyncpg.Record]) -> None:
    """In one round trip. Prepared statements stay: the driver goes on to use them."""
    await_only(driver.execute(_POSTGRES + driver.get_reset_query()))


def _put_back_sqlite(driver: SqliteConnection, pragmas: Mapping[str, object]) -> None:
    def run() -> None:
        raw = driver.raw
        for pragma, value in pragmas.items():
            raw.execute(f"PRAGMA {pragma}={value}")  # a PRAGMA takes no parameters; both sides are constants
        if len(raw.execute("PRAGMA database_list").fetchall()) > 1:  # tables that hide ours, or another file
            raise exc.DisconnectionError

    await_only(driver.hop(run))
