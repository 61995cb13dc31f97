"""What an engine, or a session, of the application's must be like for a unit of work to be one transaction.

An application may set up its engine in ways that make every statement a transaction of its own, or all tasks share one
connection. SQLAlchemy says nothing then: what was rolled back stays, and one task's read rolls back another's unit.
"""

from __future__ import annotations

from contextlib import suppress
from operator import methodcaller
from typing import Any, Final, cast

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.pool import AssertionPool, SingletonThreadPool, StaticPool

from orchestrator_state.database.internals import begun_connections, sqlite3_of
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
_STREAMS: Final = (
    "the engine's execution options have stream_results or yield_per, with which no statement of it can be awaited; "
    "give them to the statements that need them, and not to the engine"
)
_TRANSLATES: Final = (
    "the engine's schema_translate_map sends tables without a schema elsewhere, the store's too, but not their "
    "migrations; give the engine without that map, and on Postgres db_schema="
)
_WATCHED: Final = "orchestrator_state.watched"
_TEXTS: Final = "orchestrator_state.texts"  # connection info: how the application reads them


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
    options = engine.get_execution_options()
    if options.get("stream_results") or options.get("yield_per"):
        raise ConfigurationError(_STREAMS)
    if (options.get("schema_translate_map") or {}).get(None):
        raise ConfigurationError(_TRANSLATES)


def require_fit_connection(connection: Connection) -> str | None:
    """Raise `ConfigurationError` for what only a connection shows. Returns the path of a SQLite file."""
    if connection.dialect.name != "sqlite":
        return None
    files = connection.exec_driver_sql("PRAGMA database_list").all()
    path: str = next(file for _, name, file in files if name == "main")
    if not path:
        raise ConfigurationError(f"the engine's database is in memory, and not one for all; {_USE_ANOTHER_POOL}")
    raw = sqlite3_of(connection)
    if getattr(raw, "autocommit", None) is True:
        raise ConfigurationError("the engine's driver has autocommit=True and ignores rollbacks; leave it out")
    if raw.isolation_level is None and getattr(connection.dialect, "skip_autocommit_rollback", False):
        raise ConfigurationError("the engine has skip_autocommit_rollback and would roll nothing back; leave it out")
    _refuse_converters(connection)
    return path


def _refuse_converters(connection: Connection) -> None:
    """The driver's converter of timestamps, which cannot read ours, shows in a column that was declared as one."""
    connection.exec_driver_sql("CREATE TEMPORARY TABLE orchestrator_state_probe (at TIMESTAMP)")
    try:
        connection.exec_driver_sql("SELECT at FROM orchestrator_state_probe UNION ALL SELECT 'now'").all()
    except ValueError:
        connection.invalidate()  # SQLAlchemy 2.0 leaves the query open on it, and so the table cannot be dropped
        raise ConfigurationError(
            "the engine's driver has detect_types=PARSE_DECLTYPES and cannot read the store's timestamps; leave it out"
        ) from None
    connection.exec_driver_sql("DROP TABLE orchestrator_state_probe")


def autocommits(connection: Connection) -> bool:
    """Whether each statement on it is a transaction of its own."""
    return connection.dialect.detect_autocommit_setting(cast(Any, connection.connection.dbapi_connection))


def roll_back_when_cancelled(engine: Engine) -> None:
    """Let go of SQLite's lock when a statement is cancelled, before SQLAlchemy closes its connection.

    SQLite keeps the transaction of a connection that is closed while a cursor of it lives, here as long as somebody has
    the exception, or until the garbage collector finds that cursor. If that has rows left, a rollback alone keeps the
    lock for reading.
    """
    event.listen(engine, "handle_error", _roll_back_if_cancelled)


def _roll_back_if_cancelled(context: ExceptionContext) -> None:
    connection = context.connection
    if isinstance(context.original_exception, Exception) or connection is None or connection.closed:
        return
    if not connection.invalidated:
        with suppress(Exception):
            cursor = getattr(context.execution_context, "cursor", None)  # `context.cursor` is never set
            if cursor is not None:
                cursor.close()
            cast(Any, connection.connection.dbapi_connection).rollback()


def read_what_is_no_text(engine: Engine) -> None:
    """Let statements on this view of the application's SQLite engine read texts that are not UTF-8, as surrogates.

    The driver refuses such a row, and the rest of the page with it. Its connections are set back after each statement:
    what the application itself reads on them is none of our business.
    """
    event.listen(engine, "before_cursor_execute", _read_leniently)
    event.listen(engine, "after_cursor_execute", _read_as_before)
    event.listen(engine, "handle_error", lambda context: _read_as_before(context.connection))


def _read_leniently(connection: Connection, *_: Any) -> None:
    raw = sqlite3_of(connection)
    connection.info.setdefault(_TEXTS, raw.text_factory)
    raw.text_factory = methodcaller("decode", "utf-8", "surrogateescape")


def _read_as_before(connection: Connection | None, *_: Any) -> None:
    if connection is not None and not connection.invalidated and _TEXTS in connection.info:
        sqlite3_of(connection).text_factory = connection.info.pop(_TEXTS)


def begin_before_savepoints(bind: Engine | Connection) -> None:
    """Begin a transaction before a SAVEPOINT on SQLite that comes first in one.

    Python's driver does not. The savepoint's release would commit, whatever becomes of the transaction around it.
    """
    if bind.dialect.name == "sqlite" and not event.contains(bind, "savepoint", _begin_before_savepoint):
        event.listen(bind, "savepoint", _begin_before_savepoint)


def _begin_before_savepoint(connection: Connection, _name: str) -> None:
    if not (sqlite3_of(connection).in_transaction or autocommits(connection)):
        connection.exec_driver_sql("BEGIN")


def refuse_autocommit(session: AsyncSession) -> None:
    """Raise `ConfigurationError` now, or when its transaction begins, if a session's connection autocommits."""
    sync_session = session.sync_session
    if _WATCHED in sync_session.info:
        return
    sync_session.info[_WATCHED] = True
    event.listen(sync_session, "after_begin", _refuse_autocommit)
    if isinstance(sync_session.bind, Connection):  # on which a session may begin with a savepoint
        begin_before_savepoints(sync_session.bind)
    for connection in begun_connections(sync_session):
        _require_transaction(connection)


def _refuse_autocommit(_session: Session, _transaction: SessionTransaction, connection: Connection) -> None:
    _require_transaction(connection)


def _require_transaction(connection: Connection) -> None:
    if not autocommits(connection):
        begin_before_savepoints(connection)
        return
    if connection.dialect.name == "sqlite" and sqlite3_of(connection).in_transaction:
        return  # SQLAlchemy's recipe: the driver begins nothing, and an event does
    raise ConfigurationError(_NO_TRANSACTION)
