"""Upgrade and verify the schema, with Alembic, from code.

The migrations belong to the package and travel in its wheel. Their bookkeeping is the table
`orchestrator_state_version`, so that an application's own `alembic_version` is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Inspector, inspect, select
from sqlalchemy.exc import DBAPIError, PendingRollbackError

from orchestrator_state.concurrency import ProcessLock
from orchestrator_state.database import Database, database_errors, open_database, require_unicode, taken_name
from orchestrator_state.errors import ConfigurationError, SchemaOutOfDate, StoreUnavailable
from orchestrator_state.models import (
    VERSION_TABLE,
    checkpoints,
    metadata,
    schema_version,
    step_states,
    workflow_states,
)
from orchestrator_state.repositories.original import CHECKPOINTS, STEPS, WORKFLOWS, Survey, adopt, survey
from orchestrator_state.repositories.overview import creating_views
from orchestrator_state.settings import Settings

__all__ = [
    "head_revision",
    "migrations_directory",
    "view_statements",
]

# The newest of the migrations. Alembic would tell, but to load it takes far longer than to open a store.
_HEAD: Final = "20261201_budget"

_alembic_is_ours: Final = ProcessLock()  # what it migrates it holds in global variables

# Without all of these, a database is not the original software's.
_ORIGINAL_COLUMNS: Final = {
    "workflow_states": set(WORKFLOWS.columns.keys()),
    "step_states": set(STEPS.columns.keys()),
    "checkpoints": set(CHECKPOINTS.columns.keys()),
}


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

    `current` is None when our bookkeeping is empty: a new database, one of the original software, or one whose tables
    an application's own Alembic history made. That history owns the last (`foreign`): we verify it, and change nothing.
    A database of the original software (`original`) is changed by who says so, and by nobody else.
    """

    current: str | None
    head: str
    fits: bool
    foreign: bool = False
    original: bool = False


def migrations_directory() -> Path:
    """In a wheel the migrations lie inside the package, in a checkout beside it."""
    package = Path(__file__).resolve().parent
    inside = package / "migrations"
    return inside if inside.is_dir() else package.parent / "migrations"


def head_revision() -> str:
    """The newest revision in the package."""
    return _HEAD


def view_statements(dialect: str) -> Sequence[str]:
    """The SQL that creates the views `workflow_overview` and `step_durations`; `dialect` is `postgresql` or `sqlite`.

    Our own migrations do so. An application whose Alembic history has our tables executes them in a revision of its
    own: `for statement in view_statements(op.get_context().dialect.name): op.execute(statement)`. Nothing of this
    package reads the views. A revision that changes our tables drops them before, and creates them again.
    """
    if dialect not in ("postgresql", "sqlite"):
        raise ConfigurationError("dialect must be 'postgresql' or 'sqlite'")
    return creating_views(dialect)


@cache
def _known_revisions() -> frozenset[str]:
    from alembic.script import ScriptDirectory

    return frozenset(script.revision for script in ScriptDirectory(str(migrations_directory())).walk_revisions())


async def inspect_schema(database: Database) -> SchemaState:
    """Look at the schema without changing anything."""
    with database_errors(opening=True):
        async with database.reader.connect() as connection:
            return await connection.run_sync(state_of, database.schema)


async def verify(database: Database) -> None:
    """Raise `SchemaOutOfDate` unless the tables are those this version of the package works with."""
    state = await inspect_schema(database)
    if not state.fits:
        raise _out_of_date(state)


async def ensure(database: Database, settings: Settings) -> None:
    """Upgrade if need be. On our own Postgres engine that takes a connection of its own, without timeouts."""
    try:
        if (await inspect_schema(database)).fits:
            return
    except StoreUnavailable as error:
        if not error.locked:  # by another's migration, for which `upgrade` waits
            raise
    if not database.limits_statements:
        await upgrade(database)
        return
    migration = open_database(settings, for_migration=True)
    try:
        await upgrade(migration)
    finally:
        await migration.close()


async def upgrade(database: Database, revision: str = "head", *, in_place: bool = False) -> None:
    """Migrate up to `revision` in one transaction. Several processes may do so at once: one does it, the others wait.

    Raises `SchemaOutOfDate` when the database is already newer than this version of the package, and when it is one of
    the original software: `in_place` says that this is to become ours. Its ids, times and statuses are written in our
    forms then; if a row cannot be read, that is a `ConfigurationError` which names it, and nothing is changed.
    """
    await _run(database, "upgrade", revision, in_place=in_place)


async def downgrade(database: Database, revision: str) -> None:
    """Migrate down to `revision` (`base` for none at all) in one transaction. What the older schema lacks is lost."""
    await _run(database, "downgrade", revision)


async def survey_original(database: Database) -> Survey:
    """What there is in a database of the original software. Looks at every row, and changes nothing."""
    with database_errors(opening=True):
        async with database.reader.connect() as connection:
            if database.schema:
                await connection.execution_options(schema_translate_map={None: database.schema})
            return await connection.run_sync(survey)


async def run_in_migration(run: Callable[[Connection], None]) -> None:
    """Run `run` on a connection of its own inside a migration's transaction, for `migrations/env.py`.

    Raises `SchemaOutOfDate` for a database of the original software.
    """

    def run_on_ours(connection: Connection) -> None:
        if (state := state_of(connection)).original:
            raise _out_of_date(state)
        run(connection)

    database = open_database(Settings.load(), for_migration=True)
    try:
        async with database.migrating() as connection:
            await connection.run_sync(run_on_ours)
    finally:
        await database.close()


async def _run(database: Database, direction: str, revision: str, *, in_place: bool = False) -> None:
    import alembic.command  # noqa: F401 - here, so that nobody waits for the lock while it is loaded

    async with database.migrating() as connection, _alembic_is_ours.held():
        await connection.run_sync(_alembic, direction, revision, in_place)


def _alembic(connection: Connection, direction: str, revision: str, in_place: bool) -> None:  # noqa: FBT001
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    state = state_of(connection)
    if direction == "upgrade" and state.fits and (state.foreign or revision in ("head", state.head)):
        return  # as who has waited for another's migration finds it: the next one waits while this one has the lock
    if state.foreign or _is_newer(state) or (state.original and not in_place):
        raise _out_of_date(state)
    if state.original:
        adopt(connection)
    elif state.current is None and direction == "upgrade":
        _refuse_strangers(inspect(connection))
    config = Config()
    config.set_main_option("script_location", str(migrations_directory()).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        getattr(command, direction)(config, revision)
    except CommandError:
        raise ConfigurationError(
            f"there is no way to {direction} to revision {revision!r} from here; see `orchestrator-state db current`"
        ) from None
    except PendingRollbackError as error:
        # Alembic cleared up after what had ended the transaction, such as a cancellation, which is what is to be told.
        raise (error.__context__ or error) from None
    except DBAPIError as error:
        if (name := taken_name(connection, error)) is not None:
            raise _in_the_way(name) from None
        raise


def _refuse_strangers(inspector: Inspector) -> None:
    """The original software's tables can be taken over. Others of the same name, as LangGraph's `checkpoints`, not."""
    for name in _ORIGINAL_COLUMNS:
        if inspector.has_table(name):
            raise _in_the_way(name)


def _in_the_way(name: str) -> ConfigurationError:
    return ConfigurationError(
        f"something that is not ours is called {name!r} where our tables would be; rename it, or give them a place of "
        "their own: db_schema= on Postgres, another file on SQLite. Nothing was changed"
    )


def state_of(connection: Connection, schema: str | None = None) -> SchemaState:
    """Without `schema`, the tables are those on the connection's search path."""
    require_unicode(connection)
    inspector = inspect(connection)
    current = None
    if inspector.has_table(VERSION_TABLE, schema):
        # A map to None would mean the default schema, whatever the search path says.
        options = {"schema_translate_map": {None: schema}} if schema else {}
        current = connection.execute(select(schema_version.c.version_num), execution_options=options).scalar()
    if current is not None:
        return SchemaState(current, head_revision(), fits=current == head_revision())
    found = {
        table: _column_names(inspector, table.name, schema) for table in (workflow_states, step_states, checkpoints)
    }
    # The original software's tables, which the first revision takes over, have no such column.
    foreign = "version" in found[workflow_states]
    return SchemaState(
        None,
        head_revision(),
        fits=all(found[table].issuperset(table.columns.keys()) for table in found),
        foreign=foreign,
        original=not foreign and all(_ORIGINAL_COLUMNS[table.name] <= found[table] for table in found),
    )


def _column_names(inspector: Inspector, table: str, schema: str | None) -> set[str]:
    if not inspector.has_table(table, schema):
        return set()
    return {column["name"] for column in inspector.get_columns(table, schema)}


def _is_newer(state: SchemaState) -> bool:
    return state.current is not None and state.current not in _known_revisions()


def _out_of_date(state: SchemaState) -> SchemaOutOfDate:
    if state.foreign:
        message = (
            "the tables belong to the application's own Alembic history; bring them up to date there, with "
            "`alembic revision --autogenerate`"
        )
    elif state.original:
        message = (
            "the database is one of the original Rust crate; nothing was changed. Import it into a database of its own "
            "with `orchestrator-state import`, or make it ours where it stands with "
            "`orchestrator-state db upgrade --in-place`; `orchestrator-state db current` shows what is in it"
        )
    elif _is_newer(state):
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
