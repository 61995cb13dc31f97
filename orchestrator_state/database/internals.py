"""What we use of SQLAlchemy, asyncpg and aiosqlite that their documents do not promise.

Here and nowhere else, so that an upgrade which moves one of these names is mended in one place. The test of this file
says which of them has moved.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sqlite3
from collections.abc import Callable, Coroutine
from typing import Any, Final, cast

import aiosqlite
import asyncpg
from sqlalchemy import Connection, Engine, Pool, PoolProxiedConnection, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.engine.base import OptionEngine
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.orm.session import SessionTransactionState
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, QueuePool
from sqlalchemy.util import LRUCache, await_only, greenlet_spawn

__all__ = [
    "UNSENDABLE",
    "EngineBeside",
    "LRUCache",
    "PlacesPool",
    "ThreadedConnection",
    "await_only",
    "begun_connections",
    "greenlet_spawn",
    "has_committed",
    "has_prepared",
    "hear_errors",
    "invalidate_with_older_ones",
    "is_entangled",
    "is_heard",
    "pool_limit",
    "socket_of",
    "sqlite3_of",
    "transaction_of",
]

_HEARD: Final = ("before_cursor_execute", "after_cursor_execute", "begin", "commit")
_OURS: Final[set[Callable[[ExceptionContext], None]]] = set()  # that hear errors

# --- SQLAlchemy --------------------------------------------------------------------------------------------------


def is_heard(engine: Engine) -> bool:
    """Whether somebody else listens to the statements, transactions or errors of `engine`, or has them logged."""
    if engine._has_events and any(getattr(engine.dispatch, name) for name in _HEARD):  # noqa: SLF001 - once, perhaps
        return True
    if not _OURS.issuperset(engine.dialect.dispatch.handle_error):
        return True
    return engine.logger.isEnabledFor(logging.INFO)


def hear_errors(engine: Engine, listener: Callable[[ExceptionContext], None]) -> None:
    """Let a listener of ours hear the errors of `engine`, which is no reason to take SQLAlchemy's way.

    SQLAlchemy keeps them on the dialect, one for all views of an engine: there is none that only we listen to.
    """
    _OURS.add(listener)
    event.listen(engine, "handle_error", listener)


def begun_connections(session: Session) -> list[Connection]:
    """Those on which the transaction of `session` has begun. To ask the session for one would make it connect."""
    begun = session.get_transaction()
    return [connection for connection, *_ in begun._connections.values()] if begun else []  # noqa: SLF001


def has_prepared(transaction: SessionTransaction) -> bool:
    """Whether a commit has come as far as to send COMMIT: all listeners that come before it have returned."""
    return transaction._state is SessionTransactionState.PREPARED  # noqa: SLF001


def has_committed(transaction: SessionTransaction) -> bool:
    """Whether the database has committed, also if a listener that heard of it has raised."""
    return transaction._state is SessionTransactionState.COMMITTED  # noqa: SLF001


def invalidate_with_older_ones(pooled: PoolProxiedConnection, error: BaseException) -> None:
    """As SQLAlchemy does when its own calls find a connection broken: those made before it are not used again either.

    Else each of them would have to fail once, by a restart or a failover that all of them went through.
    """
    pool: Any = cast(Any, pooled)._pool  # noqa: SLF001
    pool._invalidate(pooled, error)  # noqa: SLF001


def pool_limit(pool: Pool) -> int | None:
    """How many connections `pool` makes at most; None if it does not say."""
    size = pool.size() + pool._max_overflow if isinstance(pool, QueuePool) else 0  # noqa: SLF001
    return size if size > 0 else None


class PlacesPool(AsyncAdaptedQueuePool):
    """What was returned last is taken first: but no place whose connection was lost, while others have theirs.

    A server without a connection to spare would refuse the one for that place again and again.
    """

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        if record.dbapi_connection is None and not self._pool.empty():
            self._dec_overflow()  # the place is free; nobody waits for one while the queue has some
        else:
            super()._do_return_conn(record)


class EngineBeside(OptionEngine):
    """Hears the events of the engine that it stands beside, those of its connections included; its pool is its own."""

    def __init__(self, engine: Engine) -> None:
        self._own_pool = engine.pool.recreate()
        super().__init__(engine, {})

    @property
    def pool(self) -> Pool:
        return self._own_pool

    @pool.setter
    def pool(self, pool: Pool) -> None:
        self._own_pool = pool


# --- asyncpg, and what SQLAlchemy puts around it -----------------------------------------------------------------

UNSENDABLE: Final[type[Exception]] = asyncpg.exceptions._base.DataError  # noqa: SLF001
"""Raised about a value, before anything is sent. `asyncpg.DataError` is the server's."""


def transaction_of(dbapi_connection: Any) -> object | None:
    """The transaction that SQLAlchemy has begun on one of its connections to Postgres; None if it has none."""
    transaction: object | None = dbapi_connection._transaction  # noqa: SLF001
    return transaction


def is_entangled(driver: asyncpg.Connection[Any]) -> bool:
    """Whether a connection is inside a transaction, or asyncpg believes so.

    After a BEGIN that was refused it would begin each further one with SAVEPOINT, in vain.
    """
    return driver.is_in_transaction() or driver._top_xact is not None  # noqa: SLF001


def socket_of(driver: asyncpg.Connection[Any]) -> socket.socket | None:
    """The open socket of a connection; None if it has lost it."""
    transport: asyncio.Transport | None = driver._transport  # noqa: SLF001
    opened: socket.socket | None = transport.get_extra_info("socket") if transport else None
    return opened


# --- aiosqlite ---------------------------------------------------------------------------------------------------


def sqlite3_of(connection: Connection) -> sqlite3.Connection:
    """The connection of the standard library's, below aiosqlite and SQLAlchemy."""
    driver: Any = connection.connection.driver_connection
    raw: sqlite3.Connection = driver._conn  # noqa: SLF001
    return raw


class ThreadedConnection(aiosqlite.Connection):
    """A connection that lives in a thread of its own, and lets any function run there."""

    was_abandoned = False
    """Whether a call was cancelled that may go on in the thread."""

    def __init__(self, open_file: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(open_file, iter_chunk_size=64)
        # As SQLAlchemy does with its own: a store that was left open must not keep the interpreter from exiting.
        self._thread.daemon = True

    @property
    def raw(self) -> sqlite3.Connection:
        """For use in the connection's thread."""
        return self._conn

    def hop(self, function: Callable[[], None]) -> Coroutine[Any, Any, None]:
        """Run `function` in the connection's thread."""
        return self._execute(function)

    def hop_unasked(self, function: Callable[[], None]) -> None:
        """Run `function` in the connection's thread, after what runs there now, without waiting for it."""
        self._tx.put_nowait((None, function))

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """At DEBUG aiosqlite logs what it calls, arguments included, and what that raises: so there is neither."""

        def call() -> tuple[Any, Exception | None]:
            try:
                return fn(*args, **kwargs), None
            except Exception as error:  # noqa: BLE001 - raised below
                return None, error

        try:
            result, error = await super()._execute(call)  # type: ignore[no-untyped-call]
        except asyncio.CancelledError:
            self.was_abandoned = True
            raise
        if error is None:
            return result
        try:
            raise error
        finally:
            del error  # whose traceback holds this frame
