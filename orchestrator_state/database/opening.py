"""What a store is opened on: a path or URL, or an engine that the application owns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, TypeVar

from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator_state import hooks
from orchestrator_state.database import adopted
from orchestrator_state.database.engine import Database
from orchestrator_state.database.errors import database_errors
from orchestrator_state.database.postgres.database import PostgresDatabase, open_postgres
from orchestrator_state.database.sqlite.database import SqliteDatabase, open_sqlite
from orchestrator_state.database.sqlite.file import OpenFiles
from orchestrator_state.database.sqlite.source import open_source
from orchestrator_state.database.urls import SqliteLocation, locate
from orchestrator_state.errors import ConfigurationError
from orchestrator_state.settings import Settings

_Answer = TypeVar("_Answer")


def open_database(settings: Settings, hook: hooks.Hook | None = None, *, for_migration: bool = False) -> Database:
    """Make the engines for `settings.database_url`. Connects to nothing yet.

    `hook` is told of refused logins. `for_migration` makes an engine without a pool and without statement timeouts: a
    migration takes what it takes.
    """
    location = locate(settings.database_url)
    if isinstance(location, SqliteLocation):
        return open_sqlite(location, settings)
    return open_postgres(location, settings, hook, for_migration=for_migration)


class Source:
    """A database that is read and never written to, whoever's it is. It is an async context manager."""

    def __init__(self, settings: Settings) -> None:
        """Connects to nothing yet. The tables are those on the user's search path, whatever `settings` say of ours."""
        location = locate(settings.database_url)
        self._database: Database | None = None
        self._options: dict[str, Any] = {}
        if isinstance(location, SqliteLocation):
            if location.path is None:
                raise ConfigurationError("a database in memory holds nothing that could be read; give a file or a URL")
            location.require_file()
            self._engine = open_source(location.path, settings)
        else:
            own = settings.model_copy(update={"db_schema": None})
            self._database = open_postgres(location, own, None, for_migration=True)
            self._engine = self._database.writer
            self._options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}

    async def read(self, function: Callable[..., _Answer], *arguments: Any) -> _Answer:
        """What `function` returns, which is called with a connection and `arguments`: it sees one snapshot."""
        with database_errors(opening=True):
            async with self._engine.connect() as connection:
                if self._options:
                    await connection.execution_options(**self._options)
                async with connection.begin():
                    return await connection.run_sync(function, *arguments)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await (self._database.close() if self._database is not None else self._engine.dispose())


async def adopt_engine(engine: AsyncEngine, settings: Settings) -> Database:
    """Use an engine that the application owns: its pool, its connections, its life time.

    Raises `ConfigurationError` if a unit of work on it would not be one transaction.
    """
    settings.refuse("password", "give the password to the application's engine, which makes the connections")
    adopted.require_fit(engine)
    try:
        with database_errors(opening=True):
            async with engine.connect() as connection:
                path = await connection.run_sync(adopted.require_fit_connection)
                autocommits = await connection.run_sync(adopted.autocommits)
    except exc.ArgumentError:
        raise ConfigurationError(
            "SQLAlchemy refuses the engine's options; is its isolation_level one of this database's?"
        ) from None
    if engine.dialect.name == "sqlite":
        file = OpenFiles(path, beside=False) if path else None
        return SqliteDatabase(engine, settings, owned=False, adopted_file=file)
    return PostgresDatabase(engine, settings, owned=False, autocommits=autocommits)
