"""A clock that a test moves: the database's, by which runs sleep, wait and lease."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

from sqlalchemy import text

from orchestrator_state.arguments import as_pause
from orchestrator_state.database import LATEST_WAKING, Database
from orchestrator_state.errors import ConfigurationError
from orchestrator_state.execution import LeaseKeeper
from orchestrator_state.transactions import StoreUnit, Transactions


class MovableTime(Protocol):
    """How the present time of one database is moved."""

    async def install(self, database: Database) -> None:
        """Before the database is used."""

    async def move(self, uow: StoreUnit, ahead: timedelta) -> None:
        """From the end of this transaction on, the present is so far ahead of the true one."""


class Clock:
    """The clock of a test's database. It goes on as any other, and `advance` lets it jump.

    What waits for a time is due when the clock has passed it: `run.sleep`, the timeout of `run.wait_for`, the pause
    before a step is called again, the rest of a run after a fault, and the lease of a worker that is gone. A worker at
    work keeps its leases. What your own code reads (`datetime.now()`, `time.time()`) does not move, nor does the time
    limit of a step.
    """

    def __init__(
        self, transactions: Transactions, keeper: LeaseKeeper, time: MovableTime, in_turn: asyncio.Lock
    ) -> None:
        self._transactions = transactions
        self._keeper = keeper
        self._time = time
        self._ahead = timedelta()
        self._in_turn = in_turn
        self.on_jump: Final[list[Callable[[], object]]] = []
        """Called when it has been moved."""

    async def now(self) -> datetime:
        """The present time, in UTC."""
        return await self._transactions.read(lambda uow: uow.leases.database_time())

    async def advance(
        self,
        duration: timedelta | float | None = None,
        *,
        days: float = 0,
        hours: float = 0,
        minutes: float = 0,
        seconds: float = 0,
    ) -> None:
        """Move the clock on: `advance(timedelta(days=14))`, `advance(days=14)`, or a number of seconds.

        What is due by then goes on; `worker.until_idle()` waits until that has been done.
        """
        try:
            by = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        except (OverflowError, TypeError, ValueError):
            raise ConfigurationError("days, hours, minutes and seconds are numbers that make a duration") from None
        by += as_pause(0 if duration is None else duration, "duration")
        if by < timedelta():
            raise ConfigurationError("the clock of a database does not go backwards; give a positive duration")
        async with self._in_turn:
            if by > LATEST_WAKING - await self.now():
                raise ConfigurationError(f"the clock cannot be moved past {LATEST_WAKING:%Y-%m-%d}")
            await self._jump(by)

    async def move_to(self, moment: datetime) -> None:
        """Move the clock on to `moment`, which has a time zone and is yet to come."""
        if getattr(moment, "tzinfo", None) is None:
            raise ConfigurationError("moment is a datetime with a time zone")
        await self.advance(moment - await self.now())

    async def _jump(self, by: timedelta) -> None:
        before, after = self._ahead, self._ahead + by

        async def move(uow: StoreUnit) -> None:
            await self._time.move(uow, after)

        self._ahead = after
        try:
            await self._keeper.jump(move, by)
        except BaseException:
            self._ahead = before
            raise
        for tell in self.on_jump:
            tell()


class PostgresTime:
    """Postgres finds our function of the time before its own: the connections' `search_path` says so.

    So the package's statements are as they always are, and the clock is that of all processes that use the schema.
    """

    def __init__(self, schema: str) -> None:
        self._schema = schema

    async def install(self, database: Database) -> None:
        """It was made with the schema."""

    async def move(self, uow: StoreUnit, ahead: timedelta) -> None:
        """See `MovableTime`."""
        await uow.session.execute(text(f'UPDATE "{self._schema}".moved_clock SET ahead = :ahead'), {"ahead": ahead})  # noqa: S608 - a name of ours


def functions_of_time(schema: str) -> list[str]:
    """What `PostgresTime` needs in `schema`, whose name is one of ours."""
    table = f'"{schema}".moved_clock'
    present = f"SELECT pg_catalog.statement_timestamp() + ahead FROM {table}"  # noqa: S608
    function = f'FUNCTION "{schema}".statement_timestamp() RETURNS timestamptz LANGUAGE sql STABLE'
    return [
        f"CREATE TABLE {table} (ahead interval NOT NULL)",
        f"INSERT INTO {table} VALUES ('0')",  # noqa: S608
        f"CREATE {function} AS '{present}'",
    ]


class SqliteTime:
    """A function of ours in the place of SQLite's `strftime`, on each connection; of this process alone.

    For all but the present it asks SQLite, on a connection of its own. As in SQLite, the present stands still within a
    statement.
    """

    def __init__(self) -> None:
        self._ahead = timedelta()
        self._sqlite = sqlite3.connect(":memory:", check_same_thread=False)
        self._in_turn = threading.Lock()

    async def install(self, database: Database) -> None:
        """See `MovableTime`."""
        await database.prepare_connections(self._prepare)

    async def move(self, uow: StoreUnit, ahead: timedelta) -> None:
        """See `MovableTime`. Nobody else writes meanwhile, so it can be seen a little early by readers alone."""
        self._ahead = ahead

    def close(self) -> None:
        """When all that was open on the database is closed."""
        self._sqlite.close()

    def _prepare(self, adapted: Any) -> None:
        connection = adapted.driver_connection
        present = _Present(self)

        def install() -> None:
            connection.raw.set_trace_callback(present.forget)
            connection.raw.create_function("strftime", -1, present.strftime, deterministic=True)

        adapted.run_async(lambda _: connection.hop(install))

    def now(self) -> str:
        """The present, as SQLite reads it."""
        return f"{datetime.now(UTC) + self._ahead:%Y-%m-%d %H:%M:%S.%f}"

    def ask(self, *arguments: Any) -> Any:
        """What SQLite's own `strftime` says."""
        marks = ", ".join("?" * len(arguments))
        with self._in_turn:
            [answer] = self._sqlite.execute(f"SELECT strftime({marks})", arguments).fetchone()
        return answer


class _Present:
    """The present of one connection, which stands still within a statement."""

    def __init__(self, time: SqliteTime) -> None:
        self._time = time
        self._now: str | None = None

    def forget(self, _statement: str) -> None:
        self._now = None

    def strftime(self, *arguments: Any) -> Any:
        form, moment, *modifiers = arguments if len(arguments) > 1 else (*arguments, "now")
        if isinstance(moment, str) and moment.lower() == "now":
            self._now = self._now or self._time.now()
            moment = self._now
        return self._time.ask(form, moment, *modifiers)
