"""The history of the schema: up, down and step by step, on databases that hold rows of every kind."""

import asyncio
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from orchestrator_state import Checkpoint, SchemaOutOfDate, StateStore, StepState, WorkflowState, schema
from orchestrator_state.errors import ConfigurationError, Conflict
from orchestrator_state.models import metadata
from tests.support.old_databases import (
    FINISHED,
    FIRST,
    RUNNING,
    downgrade,
    make_first_revision,
    old_rows,
    opened,
    structure,
    upgrade,
)
from tests.support.raw_sql import contents, execute, fetch, tables

ROOT = Path(__file__).parents[2]
SCRIPTS = ScriptDirectory(str(schema.migrations_directory()))
HISTORY = [script.revision for script in SCRIPTS.walk_revisions()][::-1]


@pytest.fixture
async def populated_url(empty_database_url: str) -> str:
    """A database of the first revision with workflows, steps and checkpoints."""
    await make_first_revision(empty_database_url)
    return empty_database_url


def test_the_history_has_one_head() -> None:
    assert len(SCRIPTS.get_heads()) == 1
    assert SCRIPTS.get_heads() == [HISTORY[-1]] == [schema.head_revision()]


def test_a_revision_is_named_as_its_file() -> None:
    files = {path.stem for path in (schema.migrations_directory() / "versions").glob("*.py")}
    assert files == set(HISTORY)


async def test_an_upgrade_keeps_every_row(populated_url: str) -> None:
    before = old_rows(populated_url)
    await upgrade(populated_url)
    assert old_rows(populated_url) == before
    assert [len(rows) for rows in before.values()] == [3, 4, 4]


async def test_every_revision_can_be_gone_up_and_down_with_rows_in_the_tables(populated_url: str) -> None:
    before = old_rows(populated_url)
    way = [*HISTORY[1:], *HISTORY[-2::-1], *HISTORY[1:]]
    for here, there in zip([FIRST, *way], way, strict=False):
        await (upgrade if HISTORY.index(there) > HISTORY.index(here) else downgrade)(populated_url, there)
        assert old_rows(populated_url) == before, f"after {here} -> {there}"
        assert fetch(populated_url, "SELECT version_num FROM orchestrator_state_version") == [(there,)]
    await downgrade(populated_url, "base")
    assert tables(populated_url) == ["orchestrator_state_version"]


async def test_an_upgrade_numbers_the_checkpoints_in_the_order_of_their_times(populated_url: str) -> None:
    await upgrade(populated_url)
    numbered = fetch(populated_url, f"SELECT step_id, seq FROM checkpoints WHERE workflow_state_id = '{RUNNING}'")
    assert sorted(numbered, key=lambda row: row[1]) == [("first", 1), ("second", 2), ("third", 3)]
    last = fetch(populated_url, "SELECT workflow_name, checkpoint_seq FROM workflow_states ORDER BY id")
    assert last == [("Größe 🚀", 3), ("Done", 1), ("Alone", 0)]
    async with StateStore.open(populated_url) as store:
        latest = await store.get_latest_checkpoint(RUNNING)
        assert latest is not None
        assert (latest.step_id, latest.snapshot) == ("third", 3)
        fourth = Checkpoint(workflow_state_id=UUID(RUNNING), step_id="fourth", snapshot=4)
        await store.create_checkpoint(fourth)
        assert fourth.seq == 4


async def test_an_upgraded_workflow_loads_saves_and_is_deleted_with_its_children(populated_url: str) -> None:
    async with StateStore.open(populated_url, migrate=True) as store:
        state = await store.load_workflow_state(RUNNING)
        assert (state.version, state.workflow_name, state.context) == (1, "Größe 🚀", {"a": [1, 2.5, None]})
        assert [step.retry_count for step in state.steps.values()] == [0, 2, 0]
        state.mark_completed()
        await store.save_workflow_state(state)
        assert (await store.load_workflow_state(RUNNING)).version == 2
        assert await store.delete_old_states(state.updated_at.replace(year=2999)) == 3
    assert [len(rows) for rows in old_rows(populated_url).values()] == [0, 0, 0]


@pytest.mark.parametrize("direction", [upgrade, downgrade])
async def test_foreign_keys_are_enforced_after_a_migration(populated_url: str, direction: Any) -> None:
    """On a new connection, and on the very connection that the migration ran on."""
    if direction is downgrade:
        await upgrade(populated_url)
    orphan = f"INSERT INTO checkpoints (id, workflow_state_id, step_id, timestamp, snapshot) VALUES \
        ('{RUNNING}', 'dddddddd-0000-4000-8000-000000000000', 's', '2026-01-01T00:00:00.000000+00:00', '0')"
    async with opened(populated_url) as database:
        await getattr(schema, direction.__name__)(database, HISTORY[-1] if direction is upgrade else FIRST)
        with pytest.raises(IntegrityError):
            async with database.writing() as session:
                await session.execute(text(orphan))
    with pytest.raises(Exception, match=r"(?i)foreign key"):
        execute(populated_url, orphan)
    execute(populated_url, f"DELETE FROM workflow_states WHERE id = '{RUNNING}'")
    assert [len(rows) for rows in old_rows(populated_url).values()] == [2, 1, 1]


async def test_a_downgrade_keeps_what_the_old_schema_has_room_for(database_url: str) -> None:
    async with StateStore.open(database_url, namespace="tenant") as store:
        state = WorkflowState(workflow_id="wf", workflow_name="Pipeline", user_id="u", context={"deep": [{"é": 1}]})
        state.steps["a"] = StepState(step_id="a")
        state.steps["a"].mark_running()
        state.mark_cancelled()
        await store.save_workflow_state(state)
        await store.create_checkpoint(Checkpoint(workflow_state_id=state.id, step_id="a", snapshot=state.to_snapshot()))
    before = old_rows(database_url)
    await downgrade(database_url, FIRST)
    after = old_rows(database_url)
    assert after["step_states"] == before["step_states"]
    assert after["checkpoints"] == before["checkpoints"]
    (old,), (new,) = before["workflow_states"], after["workflow_states"]
    assert (old[3], new[3]) == ("cancelled", "failed"), "the first revision knows no cancelled workflows"
    assert old[:3] + old[4:] == new[:3] + new[4:]


async def test_the_first_revision_comes_back_exactly_by_a_downgrade(populated_url: str) -> None:
    before = await structure(populated_url)
    await upgrade(populated_url)
    await downgrade(populated_url, FIRST)
    assert await structure(populated_url) == before


async def fits(url: str) -> bool:
    async with opened(url) as database:
        return (await schema.inspect_schema(database)).fits


def test_alembic_upgrades_from_the_checkout(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    command.upgrade(Config(ROOT / "alembic.ini"), "head")
    assert asyncio.run(fits(empty_database_url))
    command.downgrade(Config(ROOT / "alembic.ini"), "base")
    assert tables(empty_database_url) == ["orchestrator_state_version"]


def test_the_sql_that_alembic_prints_makes_the_schema_when_somebody_else_runs_it(empty_postgres_url: str) -> None:
    """`alembic upgrade head --sql`, for a database that only its administrator may change."""
    printed = StringIO()
    command.upgrade(Config(ROOT / "alembic.ini", output_buffer=printed), "head", sql=True)
    statements = printed.getvalue().removeprefix("BEGIN;").removesuffix("COMMIT;\n\n").split(";\n")
    execute(empty_postgres_url, *statements)
    assert asyncio.run(fits(empty_postgres_url))


def test_alembic_finds_no_difference_between_the_models_and_the_migrations(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`alembic check`, with the checkout's alembic.ini."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    command.check(Config(ROOT / "alembic.ini"))


async def test_the_migrations_make_what_the_models_describe(
    database_url: str, request: pytest.FixtureRequest, backend: str
) -> None:
    """More than Alembic compares: defaults, checks, names of constraints, descending indexes."""
    from_the_models = str(request.getfixturevalue(f"empty_{backend}_url"))
    async with opened(from_the_models) as database, database.migrating() as connection:
        await connection.run_sync(metadata.create_all)
    assert await structure(database_url) == await structure(from_the_models)


@pytest.mark.parametrize("migrate", [None, True, False])
async def test_a_database_newer_than_the_code_is_refused_and_left_alone(
    database_url: str, *, migrate: bool | None
) -> None:
    execute(database_url, "UPDATE orchestrator_state_version SET version_num = '20991231_future'")
    before = contents(database_url)
    with pytest.raises(SchemaOutOfDate, match="upgrade the package") as refused:
        await StateStore.open(database_url, migrate=migrate)
    assert (refused.value.found, refused.value.expected) == ("20991231_future", HISTORY[-1])
    for move in (upgrade(database_url), downgrade(database_url, FIRST), downgrade(database_url, "base")):
        with pytest.raises(SchemaOutOfDate, match="20991231_future"):
            await move
    assert contents(database_url) == before


async def test_a_revision_that_does_not_exist_is_refused(populated_url: str) -> None:
    before = contents(populated_url)
    for move in (upgrade(populated_url, "nonsense"), downgrade(populated_url, "nonsense")):
        with pytest.raises(ConfigurationError, match="nonsense"):
            await move
    assert contents(populated_url) == before


async def test_an_upgrade_that_fails_half_way_changes_nothing(populated_url: str) -> None:
    """The row is refused by a constraint of the second table, when the first has been rebuilt already."""
    execute(populated_url, f"UPDATE step_states SET status = 'unheard of' WHERE workflow_state_id = '{FINISHED}'")
    before = contents(populated_url)
    with pytest.raises(Conflict):
        await upgrade(populated_url)
    assert contents(populated_url) == before


async def test_a_column_that_the_application_added_survives_the_upgrade(populated_url: str) -> None:
    execute(
        populated_url,
        "ALTER TABLE workflow_states ADD COLUMN cost INTEGER",
        f"UPDATE workflow_states SET cost = 42 WHERE id = '{RUNNING}'",
    )
    await upgrade(populated_url)
    assert fetch(populated_url, f"SELECT cost FROM workflow_states WHERE id = '{RUNNING}'") == [(42,)]
