"""What a store is opened on: a path or URL, or an engine that the application owns."""

from __future__ import annotations

from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator_state import hooks
from orchestrator_state.database import adopted
from orchestrator_state.database.engine import Database
from orchestrator_state.database.errors import database_errors
from orchestrator_state.database.postgres.database import PostgresDatabase, open_postgres
from orchestrator_state.database.sqlite.database import SqliteDatabase, open_sqlite
from orchestrator_state.database.sqlite.file import OpenFiles
from orchestrator_state.database.urls import SqliteLocation, locate
from orchestrator_state.errors import ConfigurationError
from orchestrator_state.settings import Settings


def open_database(settings: Settings, hook: hooks.Hook | None = None, *, for_migration: bool = False) -> Database:
    """Make the engines for `settings.database_url`. Connects to nothing yet.

    `hook` is told of refused logins. `for_migration` makes an engine without a pool and without statement timeouts: a
    migration takes what it takes.
    """
    location = locate(settings.database_url)
    if isinstance(location, SqliteLocation):
        return open_sqlite(location, settings)
    return open_postgres(location, settings, hook, for_migration=for_migration)


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
