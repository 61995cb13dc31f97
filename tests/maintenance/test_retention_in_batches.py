"""Clean-up works in short transactions beside writers, can be interrupted anywhere, and tells how far it is."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from orchestrator_state import DeletionProgress, StateStore, WorkflowNotFound, WorkflowState
from orchestrator_state.domain import utc_now
from orchestrator_state.maintenance import retention
from orchestrator_state.models import signals
from tests.support.engines import own_engine
from tests.support.raw_sql import execute, fetch
from tests.support.statements import Traffic, traffic_of
from tests.support.workflows import LONG_AGO, a_workflow, checkpointed, saved

CUTOFF = LONG_AGO + timedelta(days=1)
TABLES = ("workflow_states", "step_states", "checkpoints", "signals")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_WORKFLOWS", 4)
    monkeypatch.setattr(retention, "_ROWS", 10)


async def finished(store: StateStore, count: int, *step_ids: str, checkpoints: int = 0) -> list[WorkflowState]:
    """Workflows that are old enough, the oldest first."""
    states = [
        a_workflow(*step_ids, status="failed", updated_at=LONG_AGO + timedelta(seconds=number))
        for number in range(count)
    ]
    async with store.begin() as uow:
        for state in states:
            await uow.workflows.save(state)
    for state in states:
        for _ in range(checkpoints):
            await checkpointed(store, state, snapshot={})
    return states


def rows(url: str) -> int:
    return sum(len(fetch(url, f"SELECT 1 FROM {table}")) for table in TABLES)


class Seen:
    """A `progress` that remembers, and counts what the store had written by then."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self.progress: list[DeletionProgress] = []
        self.rows: list[int] = [0]
        self.commits: list[int] = []

    def __call__(self, progress: DeletionProgress) -> None:
        self.progress.append(progress)
        written = self._traffic.rows_written
        self.rows.append(sum(rows for what, rows in written.items() if what.startswith("delete")))
        self.commits.append(self._traffic.commits)

    @property
    def largest_transaction(self) -> int:
        return max(after - before for before, after in zip(self.rows, self.rows[1:], strict=False))


async def test_no_transaction_deletes_more_rows_than_a_batch_has(store: StateStore, database_url: str) -> None:
    await finished(store, 3, "load", "split", checkpoints=3)
    (big,) = await finished(store, 1, *map(str, range(8)), checkpoints=9)
    kept = await saved(store, "load")
    with traffic_of(store) as traffic:
        seen = Seen(traffic)
        assert await store.delete_old_states(CUTOFF, progress=seen) == 4
    assert seen.largest_transaction <= 10
    assert seen.commits[-1] == len(seen.commits)
    assert rows(database_url) == 2
    assert await store.list_active_workflows() == [kept]
    with pytest.raises(WorkflowNotFound):
        await store.load_workflow_state(big.id)


async def test_the_steps_of_one_workflow_go_together_however_many_they_are(
    store: StateStore, database_url: str
) -> None:
    await finished(store, 2, *map(str, range(25)), checkpoints=2)
    with traffic_of(store) as traffic:
        assert await store.delete_old_states(CUTOFF) == 2
    written = {what: number for what, number in traffic.rows_written.items() if number}
    assert written == {
        "delete step_states": 50,
        "delete checkpoints": 4,
        "delete workflow_states": 2,
        "insert requests": 5,
    }
    assert rows(database_url) == 0


async def test_the_signals_of_one_workflow_go_in_many_transactions_and_the_workflow_with_the_last(
    store: StateStore, database_url: str
) -> None:
    (big,) = await finished(store, 1, "load", checkpoints=2)
    sent = {"workflow_state_id": big.id, "name": "go", "payload": "null", "sent_at": utc_now()}
    async with store.begin() as uow:
        await uow.session.execute(signals.insert(), [sent | {"id": uuid4(), "seq": seq} for seq in range(95)])
    with traffic_of(store) as traffic:
        seen = Seen(traffic)
        assert await store.delete_old_states(CUTOFF, progress=seen) == 1
    assert seen.largest_transaction <= 10
    assert [progress.deleted for progress in seen.progress[:9]] == [0] * 9
    assert rows(database_url) == 0


async def test_a_batch_takes_nine_statements_however_much_is_in_it(store: StateStore) -> None:
    counts = []
    for number in (1, 3):
        await finished(store, number, "load", checkpoints=1)
        with traffic_of(store) as traffic:
            assert await store.delete_old_states(CUTOFF) == number
        counts.append((len(traffic.statements), traffic.commits))
    assert counts == [(9, 1), (9, 1)]


async def test_progress_is_told_after_each_commit_and_ends_at_the_number_that_is_returned(store: StateStore) -> None:
    await finished(store, 10)
    with traffic_of(store) as traffic:
        seen = Seen(traffic)
        assert await store.delete_old_states(CUTOFF, progress=seen) == 10
    told = [progress.deleted for progress in seen.progress]
    assert told == sorted(told)
    assert told[0] == 4
    assert seen.progress[-1] == DeletionProgress(deleted=10, total=10)
    assert {progress.total for progress in seen.progress} == {10}


async def test_a_cancelled_deletion_has_deleted_what_it_told_and_is_resumed_by_another_call(
    store: StateStore, database_url: str
) -> None:
    states = await finished(store, 10, "load")
    told: list[int] = []

    async def delete() -> None:
        task = asyncio.current_task()
        assert task is not None

        def cancel(progress: DeletionProgress) -> None:
            told.append(progress.deleted)
            if len(told) == 2:
                task.cancel()

        await store.delete_old_states(CUTOFF, progress=cancel)

    with pytest.raises(asyncio.CancelledError):
        await delete()
    assert len(told) == 2
    left = {str(row[0]) for row in fetch(database_url, "SELECT id FROM workflow_states")}
    assert left == {str(state.id) for state in states[told[-1] :]}
    assert len(fetch(database_url, "SELECT 1 FROM step_states")) == len(left)
    assert await store.delete_old_states(CUTOFF) == 10 - told[-1]
    assert rows(database_url) == 0


async def test_others_write_while_much_is_deleted(
    store: StateStore, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch waits here until another has written since the last one: for ever, if the deletion kept it from it."""
    await finished(store, 40, "load")
    saves: list[int] = []
    done = asyncio.Event()
    write_once = store._transactions.write_once

    async def after_a_save(*arguments: Any) -> Any:
        before = len(saves)
        while len(saves) == before:  # noqa: ASYNC110 - what changes it is another store
            await asyncio.sleep(0)
        return await write_once(*arguments)

    monkeypatch.setattr(store._transactions, "write_once", after_a_save)
    async with StateStore.open(database_url) as other:
        state = await saved(other, "load")

        async def write() -> None:
            while not done.is_set():
                state.context = {"saves": len(saves)}
                await other.save_workflow_state(state)
                saves.append(len(saves))

        writer = asyncio.create_task(write())
        after_each_batch: list[int] = []
        deleted = await store.delete_old_states(CUTOFF, progress=lambda _: after_each_batch.append(len(saves)))
        done.set()
        await writer
    assert deleted == 40
    assert len(after_each_batch) > 2
    assert after_each_batch == sorted({*after_each_batch})
    assert await store.load_workflow_state(state.id) == state


async def test_what_another_transaction_holds_is_passed_over_and_left_for_the_next_time(
    postgres_url: str,
) -> None:
    async with StateStore.open(postgres_url) as store, StateStore.open(postgres_url) as other:
        states = await finished(store, 10, "load")
        async with other._transactions.begin() as uow:
            await uow.runs.lock(states[3].id)
            assert await store.delete_old_states(CUTOFF) == 9
        assert await store.load_workflow_state(states[3].id) == states[3]
        assert await store.delete_old_states(CUTOFF) == 1


async def test_a_workflow_that_is_resumed_before_its_turn_is_kept_with_its_steps_and_newest_checkpoints(
    database_url: str,
) -> None:
    async with StateStore.open(database_url, keep_checkpoints=100) as store:
        (state,) = await finished(store, 1, "load", "split", checkpoints=25)
        newest = await store.get_latest_checkpoint(state.id)

        def resume(_: DeletionProgress) -> None:
            execute(database_url, f"UPDATE workflow_states SET status = 'pending' WHERE id = '{state.id}'")

        assert await store.delete_old_states(CUTOFF, progress=resume) == 0
        assert set((await store.load_workflow_state(state.id)).steps) == {"load", "split"}
        assert await store.get_latest_checkpoint(state.id) == newest
        assert len(fetch(database_url, "SELECT 1 FROM checkpoints")) == 15


async def test_children_go_without_the_databases_cascade(sqlite_url: str) -> None:
    engine = own_engine(sqlite_url)
    try:
        async with StateStore.open(engine=engine) as store:
            states = await finished(store, 6, "load", checkpoints=12)
            kept = await saved(store, "load")
            assert await store.delete_old_states(CUTOFF) == len(states)
            assert await store.list_active_workflows() == [kept]
    finally:
        await engine.dispose()
    assert rows(sqlite_url) == 2


# --- checkpoints ---


async def test_every_workflow_keeps_its_newest_checkpoints(store: StateStore, database_url: str) -> None:
    states = [await saved(store) for _ in range(9)]
    newest = {}
    for number, state in enumerate(states):
        made = [await checkpointed(store, state, snapshot={"n": n}) for n in range(min(number, 10))]
        newest[state.id] = {checkpoint.id for checkpoint in made[-3:]}
    surplus = sum(max(0, number - 3) for number in range(9))
    with traffic_of(store) as traffic:
        seen = Seen(traffic)
        assert await store.prune_checkpoints(keep=3, progress=seen) == surplus
    assert seen.largest_transaction <= 10
    assert seen.progress[-1] == DeletionProgress(deleted=surplus, total=surplus)
    left = fetch(database_url, "SELECT workflow_state_id, id FROM checkpoints")
    assert {(str(owner), str(checkpoint_id)) for owner, checkpoint_id in left} == {
        (str(owner), str(checkpoint_id)) for owner, ids in newest.items() for checkpoint_id in ids
    }
    assert await store.prune_checkpoints(keep=3) == 0


async def test_the_checkpoints_of_one_workflow_are_pruned_a_batch_at_a_time_from_the_oldest(
    database_url: str,
) -> None:
    async with StateStore.open(database_url, keep_checkpoints=100) as store:
        state, beside = await saved(store), await saved(store)
        made = [await checkpointed(store, state, snapshot={"n": n}) for n in range(27)]
        await checkpointed(store, beside, snapshot={})
        with traffic_of(store) as traffic:
            assert await store.cleanup_old_checkpoints(state.id, keep=2) == 25
        assert traffic.commits == 3
        latest = await store.get_latest_checkpoint(state.id)
        assert latest is not None
        assert latest.id == made[-1].id
        assert await store.cleanup_old_checkpoints(state.id, keep=0) == 2
        assert await store.get_latest_checkpoint(beside.id) is not None


async def test_checkpoints_of_another_namespace_are_left_alone(store: StateStore, database_url: str) -> None:
    async with StateStore.open(database_url, namespace="other") as other:
        await checkpointed(other, await saved(other))
        assert await store.prune_checkpoints(keep=0) == 0
        assert await other.prune_checkpoints(keep=0) == 1
