"""Runs are counted, and checkpoints listed, without a payload, whatever is damaged."""

from typing import Any
from uuid import UUID, uuid4

import pytest

from orchestrator_state import (
    CheckpointNotFound,
    CheckpointSummary,
    InvalidPayload,
    Run,
    StateStore,
    WorkflowNotFound,
    WorkflowState,
)
from orchestrator_state.records.overview import STUCK_FOR
from orchestrator_state.repositories.overview.counting import FINISHED_LATELY, unfinished
from tests.repositories.test_run_list_plans import POSTGRES_ROWS, SQLITE_ROWS, analyze, plan_of
from tests.support.payload_samples import encrypted
from tests.support.raw_sql import SQLITE, execute
from tests.support.running import LONG_AGO, change_row
from tests.support.workflows import checkpointed


async def waits(run: Run) -> Any:
    return await run.wait_for("go")


async def ends(run: Run) -> None:
    for name in ("one", "two", "three"):
        await run.checkpoint(name)


async def fails(_: Run) -> None:
    raise ValueError("no")


async def filled(store: StateStore) -> None:
    for name in ("waits", "waits", "ends", "fails"):
        await store.start(name)
    await store.recover({"waits": waits, "ends": ends, "fails": fails})
    await store.start("waits")
    paused = await store.start("waits")
    await store.pause(paused.id)


async def test_unfinished_runs_are_counted_by_condition_and_those_that_ended_lately_by_status(
    store: StateStore,
) -> None:
    assert (await store.stats()).unfinished == ()
    await filled(store)
    old = await store.start("ends")
    await store.cancel(old.id)
    await change_row(store, old.id, updated_at=LONG_AGO)
    stats = await store.stats()
    assert [(each.status, each.condition, each.runs) for each in stats.unfinished] == [
        ("paused", "paused", 1),
        ("pending", "runnable", 1),
        ("running", "waiting", 2),
    ]
    assert [(each.status, each.last_hour, each.last_day) for each in stats.finished] == [
        ("completed", 1, 1),
        ("failed", 1, 1),
    ]
    assert (stats.count("waiting"), stats.count("stuck")) == (2, 0)
    listed = [run async for run in _listed(store, condition="waiting")]
    assert stats.unfinished[2].updated_at == min(run.updated_at for run in listed)


async def _listed(store: StateStore, **filters: Any) -> Any:
    for run in await store.list_runs(**filters):
        yield run


async def test_other_namespaces_are_not_counted_and_keys_are_not_needed(database_url: str) -> None:
    async with StateStore.open(database_url, payloads=encrypted("k1"), namespace="other") as store:
        await filled(store)
    async with StateStore.open(database_url) as store:
        assert (await store.stats()).unfinished == ()
    async with StateStore.open(database_url, namespace="other") as store:
        assert (await store.stats()).count("waiting") == 2


@pytest.mark.slow
async def test_runs_that_ended_long_ago_are_not_read(store: StateStore, database_url: str) -> None:
    execute(database_url, SQLITE_ROWS if database_url.startswith(SQLITE) else POSTGRES_ROWS)
    await analyze(store)
    queries: list[Any] = [unfinished(STUCK_FOR), FINISHED_LATELY]
    for query in queries:
        plan = await plan_of(store, query.params(namespace="default"))
        assert "SCAN workflow_states" not in plan, plan
        assert "Seq Scan on workflow_states" not in plan, plan


async def pages(store: StateStore, run: UUID, limit: int) -> list[CheckpointSummary]:
    found: list[CheckpointSummary] = []
    cursor = None
    while True:
        page = await store.list_checkpoints(run, limit=limit, cursor=cursor)
        assert len(page) <= limit
        found += page
        cursor = page.next
        if cursor is None:
            return found


async def test_checkpoints_are_listed_the_newest_first_page_by_page_without_keys(database_url: str) -> None:
    async with StateStore.open(database_url, payloads=encrypted("k1")) as store:
        run = await store.start("ends")
        await store.recover({"ends": ends})
    async with StateStore.open(database_url) as store:
        found = await pages(store, run.id, 2)
        assert [(each.seq, each.step_id) for each in found] == [(3, "three"), (2, "two"), (1, "one")]
        assert found == [*await store.list_checkpoints(run.id)]
        assert all(each.created_at and each.stored_bytes and not each.damaged for each in found)


async def test_a_damaged_checkpoint_is_listed_among_the_others(store: StateStore, database_url: str) -> None:
    state = WorkflowState(workflow_id="w", workflow_name="n")
    await store.save_workflow_state(state)
    ids = [(await checkpointed(store, state)).id for _ in range(6)]
    damages = ["seq = NULL", "snapshot = '{'"]
    if database_url.startswith(SQLITE):
        damages += ["seq = 'zzz'", "seq = x'ff00'", "seq = 2.5", "timestamp = 'zzz'"]
    for checkpoint, damage in zip(ids, damages, strict=False):
        execute(database_url, f"UPDATE checkpoints SET {damage} WHERE id = '{checkpoint}'")
    for limit in (1, 2, 4, 500):
        found = await pages(store, state.id, limit)
        assert sorted(each.id for each in found) == sorted(ids), limit
    damaged = {("seq",), ("timestamp",)} if len(damages) > 2 else set()
    assert {each.damaged for each in await store.list_checkpoints(state.id)} == {()} | damaged


async def test_a_checkpoint_is_read_by_its_id(store: StateStore) -> None:
    run = await store.start("ends")
    await store.recover({"ends": ends})
    newest = (await store.list_checkpoints(run.id, limit=1)).checkpoints[0]
    assert (await store.get_checkpoint(newest.id)) == await store.get_latest_checkpoint(run.id)
    with pytest.raises(CheckpointNotFound):
        await store.get_checkpoint(uuid4())


async def test_what_cannot_be_listed_is_said(store: StateStore) -> None:
    run, other = await store.start("ends"), await store.start("ends")
    await store.recover({"ends": ends})
    cursor = (await store.list_checkpoints(run.id, limit=1)).next
    with pytest.raises(InvalidPayload, match="cursor"):
        await store.list_checkpoints(other.id, cursor=cursor)
    with pytest.raises(InvalidPayload, match="limit"):
        await store.list_checkpoints(run.id, limit=0)
    with pytest.raises(WorkflowNotFound):
        await store.list_checkpoints(uuid4())
