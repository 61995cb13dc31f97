"""The database of a test: a copy of an empty SQLite file, or a schema of our own on a Postgres server."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote
from uuid import uuid4

from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state.database import Database, locate, open_database
from orchestrator_state.errors import ConfigurationError
from orchestrator_state.models import metadata
from orchestrator_state.settings import Settings
from orchestrator_state.store import StateStore
from orchestrator_state.testing.clock import MovableTime, PostgresTime, SqliteTime, functions_of_time

_PREFIX: Final = "orchestrator_state_test_"
_OURS: Final = re.compile(rf"{_PREFIX}[0-9a-f]{{32}}")
_KEPT: Final = frozenset({*(table.name for table in metadata.sorted_tables), "moved_clock"})
_VERSION: Final = "orchestrator_state_version"


@dataclass(frozen=True, slots=True)
class Place:
    """A database with no rows, for one test."""

    url: str = field(repr=False)
    time: MovableTime
    options: dict[str, Any] = field(default_factory=dict)
    """For `StateStore.open`."""


class Databases(Protocol):
    """Where the tests of one process have their databases."""

    def lent(self, directory: Path) -> Any:
        """A context manager: a `Place`, which may have files in `directory`, for the time of the block."""

    def close(self) -> None:
        """Remove what was made for all tests."""


def databases(url: str | None, directory: Path) -> Databases:
    """`url` is of a Postgres server; None is SQLite. `directory` is for what all tests share."""
    if url is None:
        return SqliteDatabases(directory)
    if not hasattr(locate(url), "dsn"):
        raise ConfigurationError("the URL for tests is of Postgres; on SQLite each test has a file of its own, without")
    return PostgresDatabases(url)


class SqliteDatabases:
    """Copies of a file that was migrated once."""

    def __init__(self, directory: Path) -> None:
        self._template = directory / "template.db"

    @asynccontextmanager
    async def lent(self, directory: Path) -> AsyncIterator[Place]:
        """See `Databases.lent`."""
        if not self._template.exists():
            made = self._template.with_name("made.db")
            async with StateStore.open(made):
                pass
            made.rename(self._template)
        path = directory / "orchestrator_state.db"
        await asyncio.to_thread(shutil.copyfile, self._template, path)
        time = SqliteTime()
        try:
            yield Place(str(path), time, {"synchronous": "NORMAL"})
        finally:
            time.close()

    def close(self) -> None:
        """Its directory is removed by pytest."""


class PostgresDatabases:
    """One schema, with a name that nobody else has: made for the first test, emptied after each, dropped at the end.

    Nothing outside of it is touched: it alone is on the `search_path` of the tests' connections.
    """

    def __init__(self, url: str) -> None:
        self._schema = f"{_PREFIX}{uuid4().hex}"
        self._url = url
        path = quote(f"{self._schema},pg_catalog")
        self._url_of_tests = f"{url}{'&' if '?' in url else '?'}search_path={path}"
        self._is_made = False

    @asynccontextmanager
    async def lent(self, directory: Path) -> AsyncIterator[Place]:
        """See `Databases.lent`."""
        if not self._is_made:
            await self._make()
        options = {"db_schema": self._schema, "pool_min": 1}
        try:
            yield Place(self._url_of_tests, PostgresTime(self._schema), options)
        finally:
            await self._do(self._empty)

    def close(self) -> None:
        """Drop the schema. In a thread: there may be an event loop in this one."""
        if self._is_made:
            with ThreadPoolExecutor(1) as thread:
                thread.submit(asyncio.run, self._do(self._drop)).result()

    async def _make(self) -> None:
        self._is_made = True  # perhaps in part: it is dropped in any case
        async with StateStore.open(self._url, migrate=True, db_schema=self._schema, pool_min=1):
            pass
        await self._do(self._add_functions)

    async def _do(self, work: Any) -> None:
        database: Database = open_database(Settings.load(database_url=self._url, pool_min=1, pool_max=1))
        try:
            async with database.writing() as session:
                await work(session)
        finally:
            await database.close()

    async def _add_functions(self, session: AsyncSession) -> None:
        for statement in functions_of_time(self._schema):
            await session.execute(text(statement))

    async def _empty(self, session: AsyncSession) -> None:
        """Delete the rows of our tables, and drop those that a test has made beside them."""
        connection = await session.connection()
        found = await connection.run_sync(self._tables)
        for name in found - _KEPT:
            quoted = connection.dialect.identifier_preparer.quote(name)
            await session.execute(text(f'DROP TABLE "{self._schema}".{quoted} CASCADE'))
        for table in reversed(metadata.sorted_tables):
            if table.name in found and table.name != _VERSION:
                await session.execute(text(f'DELETE FROM "{self._schema}".{table.name}'))  # noqa: S608 - names of ours
        await session.execute(text(f"UPDATE \"{self._schema}\".moved_clock SET ahead = '0'"))  # noqa: S608

    def _tables(self, connection: Connection) -> frozenset[str]:
        return frozenset(inspect(connection).get_table_names(schema=self._schema))

    async def _drop(self, session: AsyncSession) -> None:
        if not _OURS.fullmatch(self._schema):
            raise ConfigurationError("only a schema that was made for tests is dropped")
        await session.execute(text(f'DROP SCHEMA IF EXISTS "{self._schema}" CASCADE'))
