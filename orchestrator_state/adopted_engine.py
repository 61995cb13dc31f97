"""What an engine, or a session, of the application's must be like for a unit of work to be one transaction.

An application may set up its engine in ways that make every statement a transaction of its own, or all tasks share one
connection. SQLAlchemy says nothing then: what was rolled back stays, and one task's read rolls back another's unit.
"""

from __future__ import annotations

import sqlite3
from typing import Any, Final, cast

from sqlalchemy import Connection, Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.pool import AssertionPool, SingletonThreadPool, StaticPool

from orchestrator_state.errors import ConfigurationError

_DRIVERS: Final = (("sqlite", "aiosqlite"), ("postgresql", "asyncpg"))
_ONE_CONNECTION: Final = (StaticPool, SingletonThreadPool, AssertionPool)
_USE_ANOTHER_POOL: Final = (
    "leave out `poolclass`, or use AsyncAdaptedQueuePool or NullPool; for a database in memory, open the store with "
    "StateStore.open(':memory:')"
)
_NO_TRANSACTION: Final = (
    "this session's connection commits every statement by itself (AUTOCOMMIT), so a unit of work on it could not be "
    "rolled back; use an engine or a session without isolation_level='AUTOCOMMIT'"
)
_WATCHED: Final = "orchestrator_state.watched"


def require_fit(engine: object) -> None:
    """Raise `ConfigurationError` for an engine that the store cannot work on, as far as that shows from outside."""
    if not isinstance(engine, (AsyncEngine, Engine)):
        raise ConfigurationError(f"engine is a {type(engine).__name__}; give an AsyncEngine")
    found = (engine.dialect.name, engine.dialect.driver)
    if found not in _DRIVERS:
        raise ConfigurationError(
            f"an engine on {found[0]}+{found[1]} is not supported; use sqlite+aiosqlite or postgresql+asyncpg"
        )
    if isinstance(engine, Engine):
        raise ConfigurationError("engine is not asynchronous; make it with create_async_engine")
    if isinstance(engine.pool, _ONE_CONNECTION):
        raise ConfigurationError(
            f"a {type(engine.pool).__name__} has one connection for all: what one task reads would roll back what "
            f"another writes; {_USE_ANOTHER_POOL}"
        )


def require_fit_connection(connection: Connection) -> str | None:
    """Raise `ConfigurationError` for what only a connection shows. Returns the path of a SQLite file."""
    if connection.dialect.name != "sqlite":
        return None
    files = connection.exec_driver_sql("PRAGMA database_list").all()
    path: str = next(file for _, name, file in files if name == "main")
    if not path:
        raise ConfigurationError(f"the engine's database is in memory, and not one for all; {_USE_ANOTHER_POOL}")
    raw = _sqlite3_of(connection)
    if getattr(raw, "autocommit", None) is True:
        raise ConfigurationError("the engine's driver has autocommit=True and ignores rollbacks; leave it out")
    if raw.isolation_level is None and getattr(connection.dialect, "skip_autocommit_rollback", False):
        raise ConfigurationError("the engine has skip_autocommit_rollback and would roll nothing back; leave it out")
    return path


def autocommits(connection: Connection) -> bool:
    """Whether each statement on it is a transaction of its own."""
    return connection.dialect.detect_autocommit_setting(cast(Any, connection.connection.dbapi_connection))


def refuse_autocommit(session: AsyncSession) -> None:
    """Raise `ConfigurationError` now, or when its transaction begins, if a session's connection autocommits."""
    sync_session = session.sync_session
    if _WATCHED in sync_session.info:
        return
    sync_session.info[_WATCHED] = True
    event.listen(sync_session, "after_begin", _refuse_autocommit)
    begun = sync_session.get_transaction()
    for connection, *_ in begun._connections.values() if begun else ():  # noqa: SLF001 - else it would connect
        _require_transaction(connection)


def _refuse_autocommit(_session: Session, _transaction: SessionTransaction, connection: Connection) -> None:
    _require_transaction(connection)


def _require_transaction(connection: Connection) -> None:
    if not autocommits(connection):
        return
    if connection.dialect.name == "sqlite" and _sqlite3_of(connection).in_transaction:
        return  # SQLAlchemy's recipe: the driver begins nothing, and an event does
    raise ConfigurationError(_NO_TRANSACTION)


def _sqlite3_of(connection: Connection) -> sqlite3.Connection:
    """The connection of the standard library's, below aiosqlite and SQLAlchemy."""
    driver: Any = connection.connection.driver_connection
    return cast(sqlite3.Connection, getattr(driver, "_conn", driver))
