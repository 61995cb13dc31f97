"""Upgrade and verify the schema, with Alembic, from code.

The migrations belong to the package and travel in its wheel. Their bookkeeping is the table
`orchestrator_state_version`, so that an application's own `alembic_version` is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Inspector, Table, inspect, select

from orchestrator_state.driver_errors import database_errors
from orchestrator_state.engine import Database, open_database
from orchestrator_state.errors import ConfigurationError, SchemaOutOfDate
from orchestrator_state.models import VERSION_TABLE, metadata, schema_version
from orchestrator_state.settings import Settings

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory


def _is_ours(_item: object, name: str | None, kind: str, *_: object) -> bool:
    """Tables of the application in the same database are none of our business."""
    return kind != "table" or name in metadata.tables


CONTEXT_OPTIONS: Final[dict[str, Any]] = {
    "target_metadata": metadata,
    "version_table": VERSION_TABLE,
    "include_object": _is_ours,
}


@dataclass(frozen=True, slots=True)
class SchemaState:
    """Which revision the database is at, which one the code needs, and whether the tables fit it.

    `current` is None when our bookkeeping is empty: a new database, or one whose tables an application's own Alembic
    history made; `fits` tells the two apart.
    """

    current: str | None
    head: str
    fits: bool


def migrations_directory() -> Path:
    """In a wheel the migrations lie inside the package, in a checkout beside it."""
    package = Path(__file__).resolve().parent
    inside = package / "migrations"
    return inside if inside.is_dir() else package.parent / "migrations"


def _scripts() -> ScriptDirectory:
    from alembic.script import ScriptDirectory  # costs 100 ms, and only a look at the schema needs it

    return ScriptDirectory(str(migrations_directory()))


@cache
def head_revision() -> str:
    """The newest revision in the package."""
    head = _scripts().get_current_head()
    if head is None:
        raise ConfigurationError("the package holds no migrations; install it again")
    return head


@cache
def _known_revisions() -> frozenset[str]:
    return frozenset(script.revision for script in _scripts().walk_revisions())


async def inspect_schema(database: Database) -> SchemaState:
    """Look at the schema without changing anything."""
    with database_errors():
        async with database.reader.connect() as connection:
            return await connection.run_sync(_inspect)


async def verify(database: Database) -> None:
    """Raise `SchemaOutOfDate` unless the tables are those this version of the package works with."""
    state = await inspect_schema(database)
    if not state.fits:
        raise _out_of_date(state)


async def ensure(database: Database, settings: Settings) -> None:
    """Upgrade if need be. On our own Postgres engine that takes a connection of its own, without timeouts."""
    if (await inspect_schema(database)).fits:
        return
    if database.is_sqlite or not database.owned:
        await upgrade(database)
        return
    migration = open_database(settings, for_migration=True)
    try:
        await upgrade(migration)
    finally:
        await migration.close()


async def upgrade(database: Database, revision: str = "head") -> None:
    """Migrate up to `revision` in one transaction. Several processes may do so at once: one does it, the others wait.

    Raises `SchemaOutOfDate` when the database is already newer than this version of the package.
    """
    await _run(database, "upgrade", revision)


async def downgrade(database: Database, revision: str) -> None:
    """Migrate down to `revision` (`base` for none at all) in one transaction. What the older schema lacks is lost."""
    await _run(database, "downgrade", revision)


async def run_in_migration(run: Callable[[Connection], None], settings: Settings | None = None) -> None:
    """Run `run` on a connection of its own inside a migration's transaction, for `migrations/env.py`."""
    settings = settings or Settings.load()
    database = open_database(settings, for_migration=True)
    try:
        async with database.migrating() as connection:
            await connection.run_sync(run)
    finally:
        await database.close()


async def _run(database: Database, direction: str, revision: str) -> None:
    async with database.migrating() as connection:
        await connection.run_sync(_alembic, direction, revision)


def _alembic(connection: Connection, direction: str, revision: str) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    _refuse_newer(connection)
    config = Config()
    config.set_main_option("script_location", str(migrations_directory()).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        getattr(command, direction)(config, revision)
    except CommandError:
        raise ConfigurationError(
            f"there is no way to {direction} to revision {revision!r} from here; see `orchestrator-state db current`"
        ) from None


def _inspect(connection: Connection) -> SchemaState:
    schema = connection.get_execution_options().get("schema_translate_map", {}).get(None)
    inspector = inspect(connection)
    current = None
    if inspector.has_table(VERSION_TABLE, schema):
        current = connection.execute(select(schema_version.c.version_num)).scalar()
    if current is not None:
        return SchemaState(current, head_revision(), fits=current == head_revision())
    fits = all(_has_columns(inspector, table, schema) for table in metadata.sorted_tables)
    return SchemaState(None, head_revision(), fits)


def _has_columns(inspector: Inspector, table: Table, schema: str | None) -> bool:
    if not inspector.has_table(table.name, schema):
        return False
    return {column.name for column in table.columns} <= {
        column["name"] for column in inspector.get_columns(table.name, schema)
    }


def _refuse_newer(connection: Connection) -> None:
    state = _inspect(connection)
    if state.current is not None and state.current not in _known_revisions():
        raise _out_of_date(state)


def _out_of_date(state: SchemaState) -> SchemaOutOfDate:
    if state.current is not None and state.current not in _known_revisions():
        message = (
            f"the database is at schema revision {state.current!r}, which this version of orchestrator_state "
            "does not know; upgrade the package"
        )
    else:
        found = f"at schema revision {state.current!r}" if state.current else "without the tables of orchestrator_state"
        message = (
            f"the database is {found} and needs {state.head!r}; run `orchestrator-state db upgrade`, "
            "or open the store with migrate=True"
        )
    return SchemaOutOfDate(message, expected=state.head, found=state.current)
