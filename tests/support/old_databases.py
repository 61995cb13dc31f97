"""Databases as older software left them, and ways to move them between revisions and to look at the result."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, inspect

from orchestrator_state import schema
from orchestrator_state.database import Database, open_database
from orchestrator_state.models import metadata
from orchestrator_state.settings import Settings
from tests.support.raw_sql import SQLITE, Rows, execute, fetch

FIRST = "20261122_initial"

RUNNING = "6f1e8a52-0000-4000-8000-000000000001"
FINISHED = "6f1e8a52-0000-4000-8000-000000000002"
LONELY = "6f1e8a52-0000-4000-8000-000000000003"

# The times of the checkpoints run against their insertion and their ids; two of them tie.
ROWS_OF_THE_FIRST_REVISION = (
    f"""
    INSERT INTO workflow_states
        (id, workflow_id, workflow_name, status, user_id, started_at, updated_at, completed_at, context, error)
    VALUES
        ('{RUNNING}', 'wf-1', 'Größe 🚀', 'running', 'u-1', '2026-01-01T08:00:00.000000+00:00',
         '2026-01-01T09:00:00.000001+00:00', NULL, '{{"a": [1, 2.5, null]}}', NULL),
        ('{FINISHED}', 'it''s; DROP TABLE', 'Done', 'completed', NULL, '2026-01-02T08:00:00.000000+00:00',
         '2026-01-02T09:00:00.000000+00:00', '2026-01-02T09:00:00.000000+00:00', '{{}}', NULL),
        ('{LONELY}', 'wf-3', 'Alone', 'failed', 'u-1', '2026-01-03T08:00:00.000000+00:00',
         '2026-01-03T09:00:00.000000+00:00', NULL, 'null', 'it broke')
    """,
    f"""
    INSERT INTO step_states
        (workflow_state_id, step_id, status, started_at, completed_at, outputs, error, retry_count)
    VALUES
        ('{RUNNING}', 'load', 'completed', '2026-01-01T08:00:00.000000+00:00',
         '2026-01-01T08:30:00.000000+00:00', '{{"rows": 3}}', NULL, 0),
        ('{RUNNING}', 'score', 'running', '2026-01-01T08:30:00.000000+00:00', NULL, NULL, NULL, 2),
        ('{RUNNING}', 'write', 'pending', NULL, NULL, NULL, NULL, NULL),
        ('{FINISHED}', 'load', 'skipped', NULL, NULL, 'null', 'no need', 1)
    """,
    f"""
    INSERT INTO checkpoints (id, workflow_state_id, step_id, timestamp, snapshot)
    VALUES
        ('cccccccc-0000-4000-8000-000000000001', '{RUNNING}', 'third', '2026-01-01T08:03:00.000000+00:00', '3'),
        ('cccccccc-0000-4000-8000-000000000003', '{RUNNING}', 'second', '2026-01-01T08:02:00.500000+00:00', '2'),
        ('cccccccc-0000-4000-8000-000000000002', '{RUNNING}', 'first', '2026-01-01T08:02:00.500000+00:00', '1'),
        ('cccccccc-0000-4000-8000-000000000004', '{FINISHED}', 'only', '2026-01-02T08:30:00.000000+00:00', '{{}}')
    """,
)

COLUMNS_OF_THE_FIRST_REVISION = {
    "workflow_states": "id, workflow_id, workflow_name, status, user_id, started_at, updated_at, completed_at, "
    "context, error",
    "step_states": "workflow_state_id, step_id, status, started_at, completed_at, outputs, error, retry_count",
    "checkpoints": "id, workflow_state_id, step_id, timestamp, snapshot",
}

# As the original software makes its tables, on both databases.
ORIGINAL_TABLES = (
    """
    CREATE TABLE IF NOT EXISTS workflow_states (
        id UUID PRIMARY KEY,
        workflow_id VARCHAR(255) NOT NULL,
        workflow_name VARCHAR(255) NOT NULL,
        status VARCHAR(50) NOT NULL,
        user_id VARCHAR(255),
        started_at TIMESTAMP WITH TIME ZONE NOT NULL,
        updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
        completed_at TIMESTAMP WITH TIME ZONE,
        context TEXT NOT NULL,
        error TEXT
    )
    """,
    "CREATE INDEX IF NOT EXISTS idx_workflow_id_status ON workflow_states(workflow_id, status)",
    "CREATE INDEX IF NOT EXISTS idx_status ON workflow_states(status)",
    "CREATE INDEX IF NOT EXISTS idx_user_id ON workflow_states(user_id)",
    "CREATE INDEX IF NOT EXISTS idx_updated_at ON workflow_states(updated_at DESC)",
    """
    CREATE TABLE IF NOT EXISTS step_states (
        workflow_state_id UUID NOT NULL,
        step_id VARCHAR(255) NOT NULL,
        status VARCHAR(50) NOT NULL,
        started_at TIMESTAMP WITH TIME ZONE,
        completed_at TIMESTAMP WITH TIME ZONE,
        outputs TEXT,
        error TEXT,
        retry_count INTEGER DEFAULT 0,
        PRIMARY KEY (workflow_state_id, step_id),
        FOREIGN KEY (workflow_state_id) REFERENCES workflow_states(id) ON DELETE CASCADE
    )
    """,
    "CREATE INDEX IF NOT EXISTS idx_step_workflow_state ON step_states(workflow_state_id)",
    """
    CREATE TABLE IF NOT EXISTS checkpoints (
        id UUID PRIMARY KEY,
        workflow_state_id UUID NOT NULL,
        step_id VARCHAR(255) NOT NULL,
        timestamp TIMESTAMP WITH TIME ZONE NOT NULL,
        snapshot TEXT NOT NULL,
        FOREIGN KEY (workflow_state_id) REFERENCES workflow_states(id) ON DELETE CASCADE
    )
    """,
    "CREATE INDEX IF NOT EXISTS idx_checkpoint_workflow_timestamp ON checkpoints(workflow_state_id, timestamp DESC)",
    "CREATE INDEX IF NOT EXISTS idx_checkpoint_id ON checkpoints(id)",
)


@cache
def an_original_file() -> Path:
    """An empty database of the original software, for who only reads it."""
    path = Path(tempfile.mkdtemp()) / "original.db"
    execute(f"{SQLITE}{path}", *ORIGINAL_TABLES)
    return path


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    database = open_database(Settings.load(database_url=url))
    try:
        yield database
    finally:
        await database.close()


async def upgrade(url: str, revision: str = "head", *, in_place: bool = False) -> None:
    async with opened(url) as database:
        await schema.upgrade(database, revision, in_place=in_place)


async def downgrade(url: str, revision: str) -> None:
    async with opened(url) as database:
        await schema.downgrade(database, revision)


async def make_first_revision(url: str) -> None:
    """Make a database of the first revision with workflows, steps and checkpoints."""
    await upgrade(url, FIRST)
    execute(url, *ROWS_OF_THE_FIRST_REVISION)


def old_rows(url: str) -> dict[str, Rows]:
    """What the first revision has room for."""
    return {
        table: fetch(url, f"SELECT {columns} FROM {table} ORDER BY 1, 2")
        for table, columns in COLUMNS_OF_THE_FIRST_REVISION.items()
    }


async def structure(url: str) -> dict[str, Any]:
    """Our tables as the database describes them: columns, keys, constraints and their names, indexes."""

    def reflect(connection: Connection) -> dict[str, Any]:
        inspector = inspect(connection)
        return {
            name: {
                "columns": [
                    (column["name"], str(column["type"]), column["nullable"], (column["default"] or "").strip("'"))
                    for column in inspector.get_columns(name)
                ],
                "primary key": inspector.get_pk_constraint(name),
                "foreign keys": inspector.get_foreign_keys(name),
                "unique": inspector.get_unique_constraints(name),
                "checks": sorted(inspector.get_check_constraints(name), key=repr),
            }
            for name in (table.name for table in metadata.sorted_tables)
            if name != "orchestrator_state_version" and inspector.has_table(name)
        }

    async with opened(url) as database, database.reader.connect() as connection:
        reflected = await connection.run_sync(reflect)
    # Reflection leaves DESC out on SQLite; the statement itself does not.
    query = (
        "SELECT tbl_name, name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
        if url.startswith(SQLITE)
        else "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
    )
    return reflected | {"indexes": {name: sql for table, name, sql in fetch(url, query) if table in reflected}}
