"""Databases of the original software and of the first revision: taken over, and written to by both."""

import asyncio
import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from orchestrator_state import StateStore, StepStatus, WorkflowStatus, schema
from orchestrator_state.errors import ConfigurationError, SchemaOutOfDate
from tests.support.old_databases import (
    LONELY,
    ORIGINAL_TABLES,
    ROWS_OF_THE_FIRST_REVISION,
    RUNNING,
    make_first_revision,
    old_rows,
    opened,
    structure,
    upgrade,
)
from tests.support.raw_sql import SQLITE, contents, execute

SNAPSHOT = json.dumps(
    {
        "id": RUNNING,
        "workflow_id": "wf-1",
        "workflow_name": "Pipeline",
        "status": "Paused",
        "user_id": None,
        "started_at": "2026-01-01T08:00:00.123456789Z",
        "updated_at": "2026-01-01T08:30:00.123456789Z",
        "completed_at": None,
        "context": {"step": 1},
        "error": None,
        "steps": {
            "load": {
                "step_id": "load",
                "status": "Completed",
                "started_at": "2026-01-01T08:00:00.123456789Z",
                "completed_at": "2026-01-01T08:30:00Z",
                "outputs": None,
                "error": None,
                "retry_count": 0,
            }
        },
    }
)


async def test_an_upgrade_refuses_children_without_their_parent(empty_sqlite_url: str) -> None:
    """Only SQLite, with foreign keys off, lets anybody make them."""
    await make_first_revision(empty_sqlite_url)
    with closing(sqlite3.connect(empty_sqlite_url.removeprefix(SQLITE))) as connection, connection:
        connection.execute(f"DELETE FROM workflow_states WHERE id = '{RUNNING}'")
    before = contents(empty_sqlite_url)
    with pytest.raises(ConfigurationError, match="without their parent"):
        await upgrade(empty_sqlite_url)
    assert contents(empty_sqlite_url) == before


async def test_the_original_software_database_is_taken_over(empty_database_url: str) -> None:
    execute(empty_database_url, *ORIGINAL_TABLES, *ROWS_OF_THE_FIRST_REVISION)
    before = old_rows(empty_database_url)
    await upgrade(empty_database_url, in_place=True)
    async with StateStore.open(empty_database_url) as store:
        assert [state.workflow_name for state in await store.list_active_workflows()] == ["Größe 🚀"]
        state = await store.load_workflow_state(RUNNING)
        state.mark_completed()
        await store.save_workflow_state(state)
        assert (await store.load_workflow_state(RUNNING)).steps["load"].outputs == {"rows": 3}
    after = old_rows(empty_database_url)
    assert after["checkpoints"] == before["checkpoints"]
    assert after["step_states"][-1] == before["step_states"][-1]
    assert after["workflow_states"][1:] == before["workflow_states"][1:]


async def test_a_checkpoint_of_the_original_software_can_be_restored(empty_database_url: str) -> None:
    """Its snapshots spell statuses with a capital letter and times with nanoseconds."""
    execute(
        empty_database_url,
        *ORIGINAL_TABLES,
        f"""
        INSERT INTO workflow_states VALUES
            ('{RUNNING}', 'wf-1', 'Pipeline', 'running', NULL, '2026-01-01T08:00:00.123456789+00:00',
             '2026-01-01T09:00:00+00:00', NULL, '{{"step":2}}', NULL)
        """,
        f"""
        INSERT INTO checkpoints VALUES ('{LONELY}', '{RUNNING}', 'load', '2026-01-01T08:30:00.5+00:00', '{SNAPSHOT}')
        """,
    )
    await upgrade(empty_database_url, in_place=True)
    async with StateStore.open(empty_database_url) as store:
        restored = await store.restore_from_checkpoint(LONELY)
        assert (restored.status, restored.context) == (WorkflowStatus.PAUSED, {"step": 1})
        assert restored.steps["load"].status is StepStatus.COMPLETED
        await store.save_workflow_state(restored)
        assert (await store.load_workflow_state(RUNNING)).status is WorkflowStatus.PAUSED


async def test_a_database_taken_over_is_no_different_from_a_new_one(
    database_url: str, request: pytest.FixtureRequest, backend: str
) -> None:
    """A later revision must find the same types and names of constraints in either."""
    taken_over = str(request.getfixturevalue(f"empty_{backend}_url"))
    execute(taken_over, *ORIGINAL_TABLES, *ROWS_OF_THE_FIRST_REVISION)
    await upgrade(taken_over, in_place=True)
    assert await structure(taken_over) == await structure(database_url)


async def test_software_of_the_first_revision_goes_on_writing_after_the_upgrade(empty_database_url: str) -> None:
    await make_first_revision(empty_database_url)
    await upgrade(empty_database_url)
    execute(
        empty_database_url,
        *(
            statement.replace("6f1e8a52", "7a7a7a7a").replace("cccccccc", "eeeeeeee")
            for statement in ROWS_OF_THE_FIRST_REVISION
        ),
        f"UPDATE workflow_states SET status = 'paused', context = '[2]' WHERE id = '{RUNNING}'",
        f"""
        INSERT INTO step_states (workflow_state_id, step_id, status, outputs, retry_count)
        VALUES ('{RUNNING}', 'score', 'completed', '7', 3)
        ON CONFLICT (workflow_state_id, step_id) DO UPDATE SET
            status = excluded.status, outputs = excluded.outputs, retry_count = excluded.retry_count
        """,
        f"""
        INSERT INTO checkpoints (id, workflow_state_id, step_id, timestamp, snapshot)
        VALUES ('{LONELY}', '{RUNNING}', 'late', '2026-01-01T10:00:00+00:00', '5')
        """,
    )
    async with StateStore.open(empty_database_url) as store:
        state = await store.load_workflow_state(RUNNING)
        assert (state.status, state.context, state.steps["score"].outputs) == ("paused", [2], 7)
        latest = await store.get_latest_checkpoint(RUNNING)
        assert latest is not None
        assert latest.step_id == "late"
        theirs = await store.load_workflow_state(RUNNING.replace("6f1e8a52", "7a7a7a7a"))
        assert list(theirs.steps) == ["load", "score", "write"]
        await store.save_workflow_state(theirs)


# --- nothing is taken over without a word ---


@pytest.mark.parametrize("migrate", [None, True, False])
async def test_opening_it_names_the_commands_and_changes_nothing(empty_database_url: str, migrate: bool | None) -> None:
    execute(empty_database_url, *ORIGINAL_TABLES, *ROWS_OF_THE_FIRST_REVISION)
    before = contents(empty_database_url)
    with pytest.raises(SchemaOutOfDate, match=r"original Rust crate.*import.*db upgrade --in-place"):
        await StateStore.open(empty_database_url, migrate=migrate)
    with pytest.raises(SchemaOutOfDate, match="original Rust crate"):
        await upgrade(empty_database_url)
    assert contents(empty_database_url) == before


async def test_a_look_at_the_file_leaves_every_byte_of_it(empty_sqlite_url: str) -> None:
    execute(empty_sqlite_url, *ORIGINAL_TABLES, *ROWS_OF_THE_FIRST_REVISION)
    file = Path(empty_sqlite_url.removeprefix(SQLITE))
    before = await asyncio.to_thread(file.read_bytes)
    with pytest.raises(SchemaOutOfDate):
        await StateStore.open(empty_sqlite_url)
    async with opened(empty_sqlite_url) as database:
        assert (await schema.inspect_schema(database)).original
        assert (await schema.survey_original(database)).runs == 3
    assert await asyncio.to_thread(file.read_bytes) == before


async def test_a_database_with_some_of_its_tables_is_somebody_elses(empty_database_url: str) -> None:
    execute(empty_database_url, ORIGINAL_TABLES[0])
    with pytest.raises(ConfigurationError, match=r"'workflow_states'.*rename") as refused:
        await upgrade(empty_database_url, in_place=True)
    assert not isinstance(refused.value, SchemaOutOfDate)


async def test_forms_that_are_not_ours_are_rewritten_in_place(empty_sqlite_url: str) -> None:
    run = UUID(RUNNING)
    execute(
        empty_sqlite_url,
        *ORIGINAL_TABLES,
        f"""
        INSERT INTO workflow_states VALUES
            (x'{run.hex}', 'wf-1', 'Pipeline', 'Running', NULL, '2026-01-01 08:00:00.123456789 UTC',
             '2026-01-01T10:00:00+01:00', NULL, '{{"step":2}}', NULL),
            ('{LONELY.upper()}', 'wf-2', 'Pipeline', 'completed', NULL, '2026-01-01T08:00:00.123456789+00:00',
             '2026-01-01T09:00:00Z', '2026-01-01T09:00:00Z', '{{}}', NULL)
        """,
        f"INSERT INTO step_states VALUES (x'{run.hex}', 'load', 'COMPLETED', NULL, NULL, '[1]', NULL, 0)",
        f"INSERT INTO checkpoints VALUES (x'{run.hex}', x'{run.hex}', 'load', '2026-01-01 08:30:00 UTC', '1')",
    )
    async with opened(empty_sqlite_url) as database:
        found = await schema.survey_original(database)
    assert found.ids == {"blob": 4, "other text": 1}
    assert found.times == {"… UTC": 2, "other text": 3, "RFC 3339 in UTC": 1}
    await upgrade(empty_sqlite_url, in_place=True)
    async with StateStore.open(empty_sqlite_url) as store:
        state = await store.load_workflow_state(run)
        assert (state.status, state.steps["load"].outputs) == ("running", [1])
        assert state.started_at == datetime(2026, 1, 1, 8, 0, 0, 123_456, tzinfo=UTC)
        assert state.updated_at == datetime(2026, 1, 1, 9, tzinfo=UTC)
        assert (await store.load_workflow_state(LONELY)).workflow_id == "wf-2"
        latest = await store.get_latest_checkpoint(run)
        assert latest is not None
        assert (latest.id, latest.snapshot) == (run, 1)
        assert (await store.verify(load=True)).is_sound


async def test_rows_that_cannot_be_read_are_named_and_nothing_is_upgraded(empty_database_url: str) -> None:
    execute(
        empty_database_url,
        *ORIGINAL_TABLES,
        *ROWS_OF_THE_FIRST_REVISION,
        f"UPDATE workflow_states SET context = '{{s3cret' WHERE id = '{LONELY}'",
        "UPDATE step_states SET status = 'dreaming' WHERE step_id = 'score'",
    )
    before = contents(empty_database_url)
    with pytest.raises(ConfigurationError, match="nothing was changed") as refused:
        await upgrade(empty_database_url, in_place=True)
    for named in (f"workflow_states {LONELY}", f"step_states {RUNNING} score"):
        assert named in str(refused.value)
    assert "s3cret" not in str(refused.value)
    assert contents(empty_database_url) == before


async def test_two_rows_of_one_id_are_not_upgraded(empty_sqlite_url: str) -> None:
    execute(
        empty_sqlite_url,
        *ORIGINAL_TABLES,
        *ROWS_OF_THE_FIRST_REVISION,
        f"INSERT INTO workflow_states SELECT x'{UUID(LONELY).hex}', workflow_id, workflow_name, status, user_id, "
        f"started_at, updated_at, completed_at, context, error FROM workflow_states WHERE id = '{LONELY}'",
    )
    before = contents(empty_sqlite_url)
    with pytest.raises(ConfigurationError, match="two rows of one id"):
        await upgrade(empty_sqlite_url, in_place=True)
    assert contents(empty_sqlite_url) == before
