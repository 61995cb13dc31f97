"""Clean-up deletes what is finished and old enough, with all that hangs on it, and nothing else."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from orchestrator_state import StateStore, WorkflowNotFound
from orchestrator_state.maintenance import retention
from tests.support.cases import case
from tests.support.raw_sql import fetch
from tests.support.workflows import LONG_AGO, a_workflow, checkpointed, saved

MOMENT = timedelta(microseconds=1)


async def test_finished_workflows_are_deleted_and_active_ones_are_not(store: StateStore) -> None:
    states = {
        status: await saved(store, status=status, updated_at=LONG_AGO)
        for status in ("pending", "running", "paused", "completed", "failed", "cancelled")
    }
    assert await store.delete_old_states(older_than=LONG_AGO + MOMENT) == 3
    for status in ("completed", "failed", "cancelled"):
        with pytest.raises(WorkflowNotFound):
            await store.load_workflow_state(states[status].id)
    for status in ("pending", "running", "paused"):
        assert await store.load_workflow_state(states[status].id) == states[status]


async def test_only_what_was_updated_before_the_cutoff_is_deleted(store: StateStore) -> None:
    older, same, younger = [
        await saved(store, status="completed", updated_at=LONG_AGO + n * MOMENT) for n in (-1, 0, 1)
    ]
    assert await store.delete_old_states(older_than=LONG_AGO) == 1
    with pytest.raises(WorkflowNotFound):
        await store.load_workflow_state(older.id)
    assert await store.load_workflow_state(same.id) == same
    assert await store.load_workflow_state(younger.id) == younger


async def test_the_cutoff_may_be_in_any_time_zone(store: StateStore) -> None:
    await saved(store, status="completed", updated_at=LONG_AGO)
    kathmandu = timezone(timedelta(hours=5, minutes=45))
    assert await store.delete_old_states(older_than=LONG_AGO.astimezone(kathmandu)) == 0
    assert await store.delete_old_states(older_than=(LONG_AGO + MOMENT).astimezone(kathmandu)) == 1


@pytest.mark.parametrize("cutoff", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
async def test_the_cutoff_may_be_the_first_or_the_last_moment(store: StateStore, cutoff: datetime) -> None:
    await saved(store, status="completed")
    assert await store.delete_old_states(older_than=cutoff) == (cutoff.year == 9999)


async def test_the_age_counts_from_the_last_update_and_not_from_the_start(store: StateStore) -> None:
    await saved(store, status="completed", started_at=LONG_AGO, completed_at=LONG_AGO, updated_at=datetime.now(UTC))
    assert await store.delete_old_states(older_than=LONG_AGO + MOMENT) == 0


async def test_steps_and_checkpoints_go_with_their_workflow_and_others_stay(
    store: StateStore, database_url: str
) -> None:
    old = await saved(store, "load", "split", status="completed")
    kept = await saved(store, "load")
    for state in (old, kept):
        await checkpointed(store, state)
    old.updated_at = LONG_AGO
    await store.save_workflow_state(old)

    assert await store.delete_old_states(older_than=LONG_AGO + MOMENT) == 1

    for table, column in (("workflow_states", "id"), ("step_states", "workflow_state_id")):
        assert [str(row[0]) for row in fetch(database_url, f"SELECT {column} FROM {table}")] == [str(kept.id)]
    assert len(fetch(database_url, "SELECT id FROM checkpoints")) == 1
    assert await store.get_latest_checkpoint(old.id) is None
    assert await store.load_workflow_state(kept.id) == kept


async def test_all_are_deleted_however_many_batches_it_takes(
    store: StateStore, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_WORKFLOWS", 20)
    kept = await saved(store)
    for count in (0, 19, 20, 21, 45):
        async with store.begin() as uow:
            for _ in range(count):
                await uow.workflows.save(a_workflow("load", status="completed", updated_at=LONG_AGO))
        with case(count):
            assert await store.delete_old_states(older_than=LONG_AGO + MOMENT) == count
            assert await store.delete_old_states(older_than=LONG_AGO + MOMENT) == 0
            assert len(fetch(database_url, "SELECT id FROM workflow_states")) == 1
            assert fetch(database_url, "SELECT step_id FROM step_states") == []
            assert await store.list_active_workflows() == [kept]


async def test_a_unit_may_delete_a_few_at_a_time_from_the_oldest(store: StateStore) -> None:
    states = [await saved(store, status="failed", updated_at=LONG_AGO + n * MOMENT) for n in range(5)]
    async with store.begin() as uow:
        assert await uow.workflows.delete_finished(older_than=datetime.now(UTC), limit=2) == 2
        assert await uow.workflows.find(states[1].id) is None
        assert await uow.workflows.find(states[2].id) == states[2]
