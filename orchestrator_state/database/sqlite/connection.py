"""aiosqlite with one hop to the connection's thread per statement, where SQLAlchemy's way of using it takes four.

A hop costs more than a small statement: two switches of thread and a turn of the event loop. SQLAlchemy opens a
cursor, executes, fetches and closes, each in a hop of its own; and it rolls back whenever a connection returns to the
pool, whether or not there is anything to roll back.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Self, TypeVar
from weakref import WeakSet

from orchestrator_state.database.errors import sqlite_code
from orchestrator_state.database.internals import ThreadedConnection
from orchestrator_state.database.sqlite.file import OpenFiles, SqliteFile

_Result = TypeVar("_Result")

_PAUSE: Final = 0.01  # seconds
# A table of this name without this column is of the software that ours comes from, or of somebody else's: a look at it
# must leave the file as it is, and the mode of its journal stays.
_IS_ANOTHERS: Final = "SELECT sum(name = 'version') = 0 FROM pragma_table_info('workflow_states')"


def connect(
    opened: WeakSet[SqliteConnection],
    file: SqliteFile,
    pragmas: Mapping[str, object],
    _database: str,
    *,
    timeout: float,
    **arguments: Any,
) -> SqliteConnection:
    """Like `aiosqlite.connect`, for SQLAlchemy's `async_creator_fn`; notes the connection in `opened`."""
    made: list[sqlite3.Connection] = []

    def open_file() -> sqlite3.Connection:
        file.before_opening()
        raw: sqlite3.Connection = sqlite3.connect(file.uri, uri=True, timeout=timeout, **arguments)
        made.append(raw)
        # Reading first: a file that is not a database must be refused before anything could be written to it.
        raw.execute("PRAGMA schema_version")
        if not raw.execute(_IS_ANOTHERS).fetchone()[0]:
            _turn_to_wal(raw, timeout)
        for pragma, value in pragmas.items():
            raw.execute(f"PRAGMA {pragma}={value}")  # a PRAGMA takes no parameters; both sides are constants
        raw.execute("PRAGMA schema_version")  # the first reading in WAL mode makes the files beside the database
        connection.files = file.opened()
        return raw

    connection = SqliteConnection(open_file)
    connection.made = made
    opened.add(connection)
    return connection


def _turn_to_wal(raw: sqlite3.Connection, timeout: float) -> None:
    """Where several connections meet at a new file, SQLite may refuse this at once, whatever the time to wait."""
    gives_up = time.monotonic() + timeout
    while True:
        try:
            raw.execute("PRAGMA journal_mode=WAL").fetchall()  # it is written with the last row, or refused there
        except sqlite3.OperationalError as error:
            if sqlite_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > gives_up:
                raise
            time.sleep(_PAUSE)
        else:
            return


async def wait_until_closed(opened: WeakSet[SqliteConnection]) -> None:
    """Wait for connections that are being closed: a thread that outlives the event loop fails aloud."""
    loop = asyncio.get_running_loop()
    closings = [closing for connection in opened if (closing := connection.closing) and closing.get_loop() is loop]
    if closings:
        await asyncio.wait(closings)


class SqliteConnection(ThreadedConnection):
    files: OpenFiles | None = None
    """Looked at whenever something was read or committed, before anybody is told of it."""
    made: Sequence[sqlite3.Connection] = ()
    """The one that the thread has opened, also if whoever asked for it was cancelled and never told."""
    _closing: asyncio.Future[Any] | None = None

    @property
    def closing(self) -> asyncio.Future[Any] | None:
        """Done when the thread is."""
        return self._closing

    def stop(self) -> asyncio.Future[Any] | None:
        """Close in the connection's thread, after what runs there now, and only once.

        SQLAlchemy closes the connection of a call that is cancelled, and if that is cancelled too, closes it by force.
        aiosqlite would forget the open file, with its locks, and wait for ever for a thread that has ended. It also
        forgets a file that was being opened.
        """
        if self._closing is None:
            self.hop_unasked(self._close_file)
            self._closing = super().stop()
        return self._closing

    def _close_file(self) -> None:
        for connection in self.made:
            connection.close()

    async def close(self) -> None:
        closing = self.stop()
        if closing is not None:
            await asyncio.shield(closing)

    def cursor(self) -> Any:
        return _Cursor(self)

    async def rollback(self) -> None:
        # A call whose caller was cancelled may still be running in the thread, and may be the BEGIN.
        if self.was_abandoned or self.in_transaction:
            await super().rollback()
            self.was_abandoned = False

    async def commit(self) -> None:
        def run() -> None:
            self.raw.commit()
            self.require_same_files(written=True)

        await self.hop(run)

    def require_same_files(self, *, written: bool = False) -> None:
        if self.files is not None:
            self.files.require_same(written=written)

    async def query(self, sql: str, arguments: Sequence[Any]) -> list[Any]:
        """The rows of one query, in one hop."""
        rows: list[Any] = []

        def run() -> None:
            cursor = self.raw.cursor()
            try:
                rows.extend(_fetched(cursor.execute(sql, arguments)))
            finally:
                cursor.close()
            self.require_same_files()

        await self.hop(run)
        return rows

    async def transaction(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Run `work` in the connection's thread, in a transaction of its own, all in one hop.

        Once begun it comes to its end in that thread, whatever becomes of the caller.
        """
        results: list[_Result] = []

        def run() -> None:
            raw = self.raw
            raw.execute("BEGIN IMMEDIATE")
            try:
                results.append(work(raw))
                raw.execute("COMMIT")
            except BaseException:
                raw.rollback()  # nothing, if SQLite has rolled back by itself
                raise
            self.require_same_files(written=True)

        await self.hop(run)
        return results[0]


class _Cursor:
    """What SQLAlchemy asks of a cursor. The rows are fetched with the statement, as SQLAlchemy would at once."""

    description: Any = None
    rowcount = -1
    lastrowid: int | None = None

    def __init__(self, connection: SqliteConnection) -> None:
        self._connection = connection
        self._rows: list[Any] = []

    async def __aenter__(self) -> Self:
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        """SQLAlchemy 2.0 awaits a new cursor, 2.1 enters it."""
        return self.__aenter__().__await__()

    def execute(self, sql: str, parameters: Any = ()) -> Coroutine[Any, Any, None]:
        return self._run(sqlite3.Cursor.execute, sql, parameters)

    def executemany(self, sql: str, rows: Any) -> Coroutine[Any, Any, None]:
        return self._run(sqlite3.Cursor.executemany, sql, rows)

    async def fetchall(self) -> list[Any]:
        return self._rows

    async def close(self) -> None:
        self._rows = []

    def _run(self, method: Callable[..., Any], sql: str, parameters: Any) -> Coroutine[Any, Any, None]:
        def run() -> None:
            cursor = self._connection.raw.cursor()
            try:
                method(cursor, sql, parameters)
                self._rows = _fetched(cursor) if cursor.description else []
                self.description, self.rowcount, self.lastrowid = cursor.description, cursor.rowcount, cursor.lastrowid
            finally:
                cursor.close()
            self._connection.require_same_files()

        return self._connection.hop(run)


def _fetched(cursor: sqlite3.Cursor) -> list[Any]:
    """The rows; bytes that are not UTF-8 as surrogates, for who uses the row to tell that it is damaged.

    sqlite3 refuses such a text in a message that quotes it, before it moves on from the row: so the row can be
    fetched once more. To decode all of them leniently from the start costs more than the rest of the fetch.
    """
    rows: list[Any] = []
    try:
        rows.extend(cursor)
    except sqlite3.OperationalError as error:
        if hasattr(error, "sqlite_errorcode"):
            raise
        connection = cursor.connection
        connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
        try:
            rows.extend(cursor)
        finally:
            connection.text_factory = str
    return rows
