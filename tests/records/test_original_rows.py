"""Rows of the original software, in tables that were upgraded and that it goes on writing to."""

from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID, uuid4

import pytest

from orchestrator_state import (
    CorruptPayload,
    InvalidPayload,
    StateStore,
    StepState,
    StepStatus,
    WorkflowState,
    WorkflowStatus,
)
from tests.support.raw_sql import execute, fetch
from tests.support.workflows import checkpointed, saved

# The original software stores nine digits of a second in SQLite. Postgres keeps six.
ORIGINAL_TIME: Final = {"sqlite": "2026-11-22T21:37:53.123456789+00:00", "postgres": "2026-11-22T21:37:53.123456+00:00"}


def original_workflow(state_id: UUID, backend: str, *, status: str = "running", context: str = '{"a":1}') -> str:
    """An INSERT with the original's columns only, its ids as text and its timestamps in its own form."""
    time = ORIGINAL_TIME[backend]
    return (
        "INSERT INTO workflow_states"
        " (id, workflow_id, workflow_name, status, user_id, started_at, updated_at, completed_at, context, error)"
        f" VALUES ('{state_id}', 'original', 'Pipeline', '{status}', NULL, '{time}', '{time}', NULL, '{context}', NULL)"
    )


def original_step(state_id: UUID, step_id: str, *, status: str = "pending", outputs: str = "NULL") -> str:
    return (
        "INSERT INTO step_states"
        " (workflow_state_id, step_id, status, started_at, completed_at, outputs, error, retry_count)"
        f" VALUES ('{state_id}', '{step_id}', '{status}', NULL, NULL, {outputs}, NULL, 0)"
    )


def original_checkpoint(checkpoint_id: UUID, state_id: UUID, second: int, *, snapshot: str = "{}") -> str:
    return (
        "INSERT INTO checkpoints (id, workflow_state_id, step_id, timestamp, snapshot)"
        f" VALUES ('{checkpoint_id}', '{state_id}', 'load', '2026-11-22T21:37:{second:02d}+00:00', '{snapshot}')"
    )


def an_original(database_url: str, backend: str) -> UUID:
    """A workflow of two steps, inserted the way the original software does."""
    state_id = uuid4()
    execute(
        database_url,
        original_workflow(state_id, backend),
        original_step(state_id, "load", status="completed", outputs="""'{"rows":[1,2.5]}'"""),
        original_step(state_id, "split"),
    )
    return state_id


async def test_an_original_row_is_loaded(store: StateStore, database_url: str, backend: str) -> None:
    state_id = an_original(database_url, backend)
    expected = WorkflowState(
        id=state_id,
        workflow_id="original",
        workflow_name="Pipeline",
        status=WorkflowStatus.RUNNING,
        started_at=datetime(2026, 11, 22, 21, 37, 53, 123_456, tzinfo=UTC),
        updated_at=datetime(2026, 11, 22, 21, 37, 53, 123_456, tzinfo=UTC),
        context={"a": 1},
        steps={
            "load": StepState(step_id="load", status=StepStatus.COMPLETED, outputs={"rows": [1, 2.5]}),
            "split": StepState(step_id="split"),
        },
        version=1,
    )
    assert await store.load_workflow_state(state_id) == expected
    assert await store.load_workflow_state_by_workflow_id("original") == expected
    assert await store.list_active_workflows() == [expected]


async def test_an_original_row_takes_its_place_among_ours_in_the_list(
    store: StateStore, database_url: str, backend: str
) -> None:
    original = an_original(database_url, backend)
    at = datetime(2026, 11, 22, 21, 37, 53, tzinfo=UTC)
    older = await saved(store, updated_at=at + timedelta(microseconds=123_455))
    newer = await saved(store, updated_at=at + timedelta(microseconds=123_457))
    assert [state.id for state in await store.list_active_workflows()] == [newer.id, original, older.id]


async def test_an_original_row_is_updated(store: StateStore, database_url: str, backend: str) -> None:
    state = await store.load_workflow_state(an_original(database_url, backend))
    state.steps["split"].mark_completed(["text"])
    state.steps["score"] = StepState(step_id="score")
    state.mark_completed()
    await store.save_workflow_state(state)
    assert state.version == 2
    assert await store.load_workflow_state(state.id) == state


async def test_an_unchanged_original_row_is_not_written(store: StateStore, database_url: str, backend: str) -> None:
    state = await store.load_workflow_state(an_original(database_url, backend))
    before = state.model_copy(deep=True)
    await store.save_workflow_state(state)
    assert state == before


async def test_a_null_retry_count_reads_as_zero(store: StateStore, database_url: str, backend: str) -> None:
    state_id = an_original(database_url, backend)
    execute(database_url, "UPDATE step_states SET retry_count = NULL")
    state = await store.load_workflow_state(state_id)
    assert [step.retry_count for step in state.steps.values()] == [0, 0]


@pytest.mark.parametrize(
    ("damage", "path"),
    [
        ("UPDATE workflow_states SET context = 's3cret'", "context"),
        ("UPDATE step_states SET outputs = '{s3cret' WHERE step_id = 'load'", "steps['load'].outputs"),
    ],
)
async def test_a_damaged_payload_is_named_and_not_quoted(
    store: StateStore, database_url: str, backend: str, damage: str, path: str
) -> None:
    state_id = an_original(database_url, backend)
    execute(database_url, damage)
    with pytest.raises(CorruptPayload) as refused:
        await store.load_workflow_state(state_id)
    assert refused.value.path == path
    assert str(refused.value) == f"the stored {path} is not valid JSON"


# --- checkpoints ---


def original_checkpoints(database_url: str, state_id: UUID, *seconds: int) -> list[UUID]:
    ids = [uuid4() for _ in seconds]
    rows = zip(ids, seconds, strict=True)
    execute(database_url, *(original_checkpoint(checkpoint_id, state_id, second) for checkpoint_id, second in rows))
    return ids


async def test_the_latest_original_checkpoint_is_the_one_with_the_latest_time(
    store: StateStore, database_url: str, backend: str
) -> None:
    state_id = an_original(database_url, backend)
    ids = original_checkpoints(database_url, state_id, 10, 30, 20)
    latest = await store.get_latest_checkpoint(state_id)
    assert latest is not None
    assert (latest.id, latest.step_id, latest.snapshot, latest.seq) == (ids[1], "load", {}, None)
    assert latest.timestamp == datetime(2026, 11, 22, 21, 37, 30, tzinfo=UTC)


async def test_an_original_checkpoint_written_after_ours_is_the_latest(
    store: StateStore, database_url: str, backend: str
) -> None:
    state = await store.load_workflow_state(an_original(database_url, backend))
    await checkpointed(store, state)
    [theirs] = original_checkpoints(database_url, state.id, 10)
    latest = await store.get_latest_checkpoint(state.id)
    assert latest is not None
    assert latest.id == theirs


async def test_our_checkpoint_created_after_an_original_one_is_the_latest(
    store: StateStore, database_url: str, backend: str
) -> None:
    state = await store.load_workflow_state(an_original(database_url, backend))
    original_checkpoints(database_url, state.id, 10)
    ours = await checkpointed(store, state)
    assert await store.get_latest_checkpoint(state.id) == ours


async def test_our_checkpoint_survives_its_own_pruning_whatever_the_original_left(
    store: StateStore, database_url: str, backend: str
) -> None:
    state = await store.load_workflow_state(an_original(database_url, backend))
    original_checkpoints(database_url, state.id, *range(20))
    ours = await checkpointed(store, state)
    async with store.begin() as uow:
        kept = await uow.checkpoints.list(state.id)
    assert (kept[0].id, len(kept)) == (ours.id, 10)


async def test_original_checkpoints_are_pruned_from_the_oldest(
    store: StateStore, database_url: str, backend: str
) -> None:
    state_id = an_original(database_url, backend)
    ids = original_checkpoints(database_url, state_id, 10, 30, 20)
    assert await store.cleanup_old_checkpoints(state_id, keep=2) == 1
    async with store.begin() as uow:
        assert [checkpoint.id for checkpoint in await uow.checkpoints.list(state_id)] == [ids[1], ids[2]]


async def test_an_original_snapshot_is_restored_if_it_is_ours_and_refused_if_not(
    store: StateStore, database_url: str, backend: str
) -> None:
    state_id = an_original(database_url, backend)
    [checkpoint_id] = original_checkpoints(database_url, state_id, 10)
    with pytest.raises(InvalidPayload):
        await store.restore_from_checkpoint(checkpoint_id)


# --- deletion ---


async def test_an_old_finished_original_row_is_deleted_with_its_children(
    store: StateStore, database_url: str, backend: str
) -> None:
    running = an_original(database_url, backend)
    finished = uuid4()
    execute(
        database_url,
        original_workflow(finished, backend, status="completed"),
        original_step(finished, "load"),
        original_checkpoint(uuid4(), finished, 10),
    )
    at = datetime(2026, 11, 22, 21, 37, 53, 123_456, tzinfo=UTC)
    # SQLite keeps nine digits of the second, so the row is younger than `at` by a part of a microsecond.
    assert await store.delete_old_states(older_than=at) == 0
    assert await store.delete_old_states(older_than=at + timedelta(microseconds=1)) == 1
    assert fetch(database_url, "SELECT count(*) FROM workflow_states") == [(1,)]
    assert fetch(database_url, "SELECT count(*) FROM step_states") == [(2,)]
    assert fetch(database_url, "SELECT count(*) FROM checkpoints") == [(0,)]
    assert (await store.load_workflow_state(running)).id == running
