"""What a store sends to its database, counted behind the public door."""

import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final
from unittest.mock import patch

from sqlalchemy import event

from orchestrator_state import StateStore
from orchestrator_state.database import driver
from orchestrator_state.database.driver import DriverStatement
from orchestrator_state.database.sqlite import database as sqlite_database
from orchestrator_state.database.sqlite.connection import _Connection

_WRITES: Final = {"INSERT": "INTO", "UPDATE": "UPDATE", "DELETE": "FROM"}


@dataclass
class Traffic:
    """What went over the connections of a store, in order, without the BEGINs."""

    statements: list[str] = field(default_factory=list)
    rows_written: Counter[str] = field(default_factory=Counter)
    """By `"update step_states"` and the like; not of what was given to the driver past SQLAlchemy."""
    commits: int = 0
    _pool: Any = None
    hops: int = 0
    """Calls in the threads of SQLite connections."""

    def _note(self, _: Any, cursor: Any, statement: str, parameters: Any, __: Any, executemany: bool) -> None:
        words = statement.split()
        verb = words[0].upper()
        if verb == "BEGIN":
            return
        self.statements.append(statement)
        if verb in _WRITES:
            table = words[words.index(_WRITES[verb]) + 1].strip('"')
            # Drivers do not agree on the row count of an executemany; each set of parameters here is one row.
            self.rows_written[f"{verb.lower()} {table}"] += len(parameters) if executemany else cursor.rowcount

    def _note_commit(self, _: Any) -> None:
        self.commits += 1

    def _answered(self, pooled: Any, sql: str, arguments: Any) -> Any:
        """In the place of `driver._answer`."""
        if pooled._pool is not self._pool:
            return _answer(pooled, sql, arguments)
        self.statements.append(sql)
        self.commits += any(verb in sql for verb in _WRITES)
        return _answer(pooled, sql, arguments)

    async def _traced(self, connection: _Connection, work: Callable[[sqlite3.Connection], Any]) -> Any:
        """In the place of `_Connection.transaction`."""

        def noted(raw: sqlite3.Connection) -> Any:
            raw.set_trace_callback(self.statements.append)
            try:
                return work(raw)
            finally:
                raw.set_trace_callback(None)

        result = await _transaction(connection, noted)
        self.commits += 1
        return result

    async def _queried(self, connection: _Connection, sql: str, arguments: Any) -> Any:
        """In the place of `_Connection.query`."""
        self.statements.append(sql)
        return await _query(connection, sql, arguments)

    async def _hopped(self, connection: _Connection, *arguments: Any, **options: Any) -> Any:
        """In the place of `_Connection._execute`."""
        self.hops += 1
        return await _execute(connection, *arguments, **options)


def _method(function: Callable[..., Any]) -> Callable[..., Any]:
    """Unlike a bound method, a function in a class is given the instance."""

    def method(*arguments: Any, **options: Any) -> Any:
        return function(*arguments, **options)

    return method


_transaction: Final = _Connection.transaction
_answer: Final = driver._answer
_query: Final = _Connection.query
_execute: Final = _Connection._execute


@contextmanager
def traffic_of(store: StateStore) -> Iterator[Traffic]:
    """Record everything that the store sends inside the block.

    A unit on SQLite that was held up prolongs the leases of the others, by one statement more. What a call costs is
    not to depend on whether the machine stood still in it: here no unit counts as held up.
    """
    engine = store._transactions.database._pool.sync_engine
    traffic = Traffic(_pool=engine.pool)
    listeners: dict[str, Callable[..., Any]] = {
        "after_cursor_execute": traffic._note,
        "commit": traffic._note_commit,
    }
    for name, listener in listeners.items():
        event.listen(engine, name, listener)
    try:
        with (
            patch.object(_Connection, "transaction", _method(traffic._traced)),
            patch.object(driver, "_answer", traffic._answered),
            patch.object(_Connection, "query", _method(traffic._queried)),
            patch.object(_Connection, "_execute", _method(traffic._hopped)),
            patch.object(sqlite_database, "_SHORT", timedelta.max),
        ):
            yield traffic
    finally:
        for name, listener in listeners.items():
            event.remove(engine, name, listener)


_compile: Final = DriverStatement.__init__


def unfenced(self: DriverStatement, *arguments: Any) -> None:
    """In the place of `DriverStatement.__init__`, for negative controls: any token matches, at any place."""
    _compile(self, *arguments)
    fence = r"(workflow_states\.(?:lease_owner|lease_token|version) = [^ ]+(?! \+))"
    sql, found = re.subn(fence, r"(\1 OR 1 = 1)", self.sql)
    self.sql = sql  # type: ignore[misc]
    assert found in (0, 3), self.sql
