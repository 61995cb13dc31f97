"""The drivers by hand: one connection, set up as the store sets up its own, and held from call to call.

That is a stricter yardstick than an application's own code would be, which takes its connection from a pool.
SQL is written once, with `$1` for a parameter and the few things that are spelled differently filled in here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final, Protocol
from uuid import UUID

import aiosqlite
import asyncpg

POSTGRES_SETTINGS: Final = {"jit": "off"}
SQLITE_PRAGMAS: Final = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")


class RawDriver(Protocol):
    """What the questions need of a driver, and nothing that costs anything."""

    async def fetch(self, sql: str, *args: Any) -> Sequence[Any]: ...

    async def execute(self, sql: str, *args: Any) -> int:
        """Return the number of rows written."""

    def transaction(self) -> AbstractAsyncContextManager[None]: ...

    def identifier(self, value: UUID) -> Any: ...

    def timestamp(self, value: datetime) -> Any: ...


class RawPostgres:
    def __init__(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self._connection = connection

    async def fetch(self, sql: str, *args: Any) -> Sequence[Any]:
        rows: Sequence[Any] = await self._connection.fetch(sql, *args)
        return rows

    async def execute(self, sql: str, *args: Any) -> int:
        return int((await self._connection.execute(sql, *args)).rpartition(" ")[2])

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        async with self._connection.transaction():
            yield

    def identifier(self, value: UUID) -> Any:
        return value

    def timestamp(self, value: datetime) -> Any:
        return value


class RawSqlite:
    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    async def fetch(self, sql: str, *args: Any) -> Sequence[Any]:
        return list(await self._connection.execute_fetchall(sql, _by_number(args)))

    async def execute(self, sql: str, *args: Any) -> int:
        return (await self._connection.execute(sql, _by_number(args))).rowcount

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        await self._connection.execute("BEGIN IMMEDIATE")
        yield
        await self._connection.execute("COMMIT")

    def identifier(self, value: UUID) -> Any:
        return str(value)

    def timestamp(self, value: datetime) -> Any:
        return value.astimezone(UTC).isoformat(timespec="microseconds")


def _by_number(args: Sequence[Any]) -> dict[str, Any]:
    """`$1` is a name to SQLite, and Python 3.12 warns of one that is filled in by its place."""
    return {str(number): arg for number, arg in enumerate(args, 1)}


def sqlite_file(url: str) -> str:
    return url.removeprefix("sqlite:///")


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[RawDriver]:
    """Open a raw connection to the database that the store opens with the same URL."""
    if url.startswith("postgresql:"):
        connection = await asyncpg.connect(url, server_settings=POSTGRES_SETTINGS)
        try:
            yield RawPostgres(connection)
        finally:
            await connection.close()
    else:
        async with aiosqlite.connect(sqlite_file(url), isolation_level=None) as file:
            for pragma in SQLITE_PRAGMAS:
                await file.execute(f"PRAGMA {pragma}")
            yield RawSqlite(file)
