"""Many abandoned runs are claimed and loaded a page at a time, and each of them fares as if it were alone."""

import asyncio
from datetime import timedelta

import pytest

from orchestrator_state import Run, StateStore, Worker, WorkflowState
from orchestrator_state.execution import recovery
from tests.support.raw_sql import execute, fetch
from tests.support.running import vanish
from tests.support.statements import traffic_of


async def report(run: Run) -> object:
    return [await run.step(f"s{number}", lambda number: number, number) for number in range(3)]


async def left_behind(store: StateStore, count: int) -> list[WorkflowState]:
    """Runs of `report` whose worker vanished after two steps."""

    async def two_steps(run: Run) -> None:
        await run.step("s0", lambda: 0)
        await run.step("s1", lambda: 1)
        vanish()

    states = []
    for number in range(count):
        with pytest.raises(asyncio.CancelledError):
            await store.run("report", two_steps, workflow_id=f"w-{number}")
        states.append(await store.load_workflow_state_by_workflow_id(f"w-{number}"))
    return states


@pytest.mark.parametrize("count", [1, 9])
async def test_the_steps_of_all_claimed_runs_are_read_with_one_statement(store: StateStore, count: int) -> None:
    await left_behind(store, count)
    with traffic_of(store) as traffic:
        recovered = await store.recover({"report": report}, concurrency=20)
    assert len(recovered.completed) == count
    reads = [statement for statement in traffic.statements if statement.startswith("SELECT step_states")]
    assert len(reads) == 1


async def test_a_worker_fills_all_its_places_with_one_look(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_PAGE", 4)
    await left_behind(store, 10)
    called = 0
    everybody = asyncio.Event()

    async def handler(_: Run) -> None:
        nonlocal called
        called += 1
        if called == 10:
            everybody.set()
        await everybody.wait()

    async with Worker(store, {"report": handler}, concurrency=10, poll=3600), asyncio.timeout(60):
        await everybody.wait()


async def test_no_more_are_claimed_than_there_are_places(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_PAGE", 4)
    await left_behind(store, 10)
    under_way, most = 0, 0

    async def handler(run: Run) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await run.step("s2", lambda: 2)
        under_way -= 1

    assert len((await store.recover({"report": handler}, concurrency=6)).completed) == 10
    assert 1 < most <= 6


async def test_a_damaged_run_is_mended_and_those_beside_it_notice_nothing(store: StateStore, database_url: str) -> None:
    states = await left_behind(store, 5)
    execute(
        database_url,
        f"UPDATE step_states SET outputs = '9' WHERE workflow_state_id = '{states[2].id}' AND step_id = 's1'",
    )
    recovered = await store.recover({"report": report}, concurrency=20)
    assert [run.workflow_state_id for run in recovered.fell_back] == [states[2].id]
    assert len(recovered.completed) == 5
    for state in states:
        assert await store.run("report", report, workflow_id=state.workflow_id) == [0, 1, 2]


async def test_runs_whose_steps_cannot_be_read_are_let_go_for_the_next_worker(database_url: str) -> None:
    async with StateStore.open(database_url, retry_timeout=timedelta(seconds=1)) as store:
        await left_behind(store, 5)
        execute(database_url, "ALTER TABLE step_states RENAME TO elsewhere")
        recovered = await store.recover({"report": report}, concurrency=20)
        execute(database_url, "ALTER TABLE elsewhere RENAME TO step_states")
        assert len({run.workflow_state_id for run in recovered.runs}) == 5
        assert recovered.completed == []
        assert len(fetch(database_url, "SELECT 1 FROM workflow_states WHERE lease_expires_at IS NULL")) == 5
        execute(database_url, "UPDATE workflow_states SET wake_at = NULL")
        assert len((await store.recover({"report": report})).completed) == 5
