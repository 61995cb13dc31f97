"""A clock that is moved: what waits for a time is due, and a worker at work keeps its leases."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from orchestrator_state import ConfigurationError, Retry, Run, StateStore, WorkflowStatus
from orchestrator_state.testing.bench import Bench
from tests.support.running import Effect, Failing, Gate, row_of


async def sleeps(run: Run[Any]) -> str:
    await run.sleep(timedelta(days=14))
    return "slept"


async def status_of(store: StateStore, workflow_id: str) -> str:
    return str((await row_of(store, workflow_id)).status)


async def test_a_run_that_was_let_go_of_sleeps_until_the_clock_has_passed_its_time(bench: Bench) -> None:
    bench.worker({"sleeps": sleeps})
    await bench.store.start("sleeps", workflow_id="a")
    await bench.worker.until_idle()
    await bench.clock.advance(timedelta(days=13, hours=23))
    await bench.worker.until_idle()
    assert await status_of(bench.store, "a") == WorkflowStatus.RUNNING
    await bench.clock.advance(hours=1)
    await bench.worker.until_idle()
    assert await status_of(bench.store, "a") == WorkflowStatus.COMPLETED


async def test_a_run_in_memory_sleeps_until_the_clock_has_passed_its_time(bench: Bench) -> None:
    running = asyncio.create_task(bench.store.run("sleeps", sleeps, workflow_id="a"))
    async with asyncio.timeout(60):
        while not running.done():
            await bench.clock.advance(days=1)  # it may still be about to begin its sleep
        assert await running == "slept"


async def test_a_wait_for_a_signal_ends_in_time(bench: Bench) -> None:
    async def waits(run: Run[Any]) -> str:
        try:
            await run.wait_for("approval", timeout=timedelta(days=3))
        except TimeoutError:
            return "late"
        return "in time"

    bench.worker({"waits": waits})
    for workflow_id in ("a", "b"):
        await bench.store.start("waits", workflow_id=workflow_id)
    await bench.worker.until_idle()
    await bench.clock.advance(days=2)
    await bench.store.signal((await row_of(bench.store, "a")).id, "approval", True)
    await bench.worker.until_idle()
    await bench.clock.advance(days=2)
    await bench.worker.until_idle()
    assert [await bench.store.run("waits", waits, workflow_id=each) for each in ("a", "b")] == ["in time", "late"]


async def test_the_pause_before_a_step_is_called_again_passes(bench: Bench) -> None:
    fails = Failing(ValueError("no"), ValueError("no"))

    async def tries(run: Run[Any]) -> None:
        await run.step("call", fails, retry=Retry(attempts=3, wait_initial=3600, wait_max=7200))

    bench.worker({"tries": tries})
    await bench.store.start("tries", workflow_id="a")
    for calls in (1, 2, 3):
        await bench.worker.until_idle()
        assert fails.calls == calls
        await bench.clock.advance(hours=3)
    await bench.worker.until_idle()
    assert await status_of(bench.store, "a") == WorkflowStatus.COMPLETED


async def test_a_pause_is_not_over_before_its_time(bench: Bench) -> None:
    fails = Failing(ValueError("no"))

    async def tries(run: Run[Any]) -> None:
        await run.step("call", fails, retry=Retry(attempts=3, wait_initial=3600, wait_max=7200))

    bench.worker({"tries": tries}, grace=0)
    await bench.store.start("tries", workflow_id="a")
    await bench.worker.until_idle()
    await bench.clock.advance(minutes=30)
    await bench.worker.until_idle()
    assert fails.calls == 1
    await bench.clock.advance(hours=1)
    await bench.worker.until_idle()
    assert fails.calls == 2


async def test_a_worker_at_work_keeps_its_lease_and_one_that_is_gone_loses_it(bench: Bench) -> None:
    gate = Gate()

    async def works(run: Run[Any]) -> Any:
        return await run.step("work", gate, "done")

    running = asyncio.create_task(bench.store.run("works", works, workflow_id="a"))
    await gate.reached.wait()
    before = await row_of(bench.store, "a")
    await bench.clock.advance(days=365)
    after = await row_of(bench.store, "a")
    assert after.lease_token == before.lease_token
    assert after.lease_expires_at > await bench.clock.now()
    assert not (await bench.store.recover({"works": works})).runs
    gate.opened.set()
    assert await running == "done"


async def test_what_the_database_writes_is_of_the_moved_time(bench: Bench) -> None:
    moment = datetime(2199, 7, 1, 12, tzinfo=UTC)
    await bench.clock.move_to(moment)
    await bench.store.start("sleeps", workflow_id="a")
    row = await row_of(bench.store, "a")
    assert row.started_at == row.updated_at
    assert timedelta() <= row.started_at - moment < timedelta(minutes=2)


async def test_the_clock_goes_on(bench: Bench) -> None:
    await bench.clock.advance(days=1)
    first = await bench.clock.now()
    await asyncio.sleep(0.01)
    assert first < await bench.clock.now() < first + timedelta(hours=1)


@pytest.mark.parametrize(
    "wrong", [{"duration": -1}, {"days": -1}, {"duration": "1"}, {"days": float("nan")}, {"days": 10**6}]
)
async def test_the_clock_goes_forward_only(bench: Bench, wrong: dict[str, Any]) -> None:
    before = await bench.clock.now()
    with pytest.raises(ConfigurationError):
        await bench.clock.advance(**wrong)
    assert await bench.clock.now() - before < timedelta(minutes=1)


async def test_a_moment_needs_a_time_zone(bench: Bench) -> None:
    with pytest.raises(ConfigurationError, match="time zone"):
        await bench.clock.move_to(datetime(2100, 1, 1))  # noqa: DTZ001


async def test_jumps_at_the_same_moment_add_up(bench: Bench) -> None:
    before = await bench.clock.now()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(5):
            tasks.create_task(bench.clock.advance(days=1))
    assert timedelta(days=5) <= await bench.clock.now() - before < timedelta(days=5, minutes=1)


async def test_other_uses_of_the_function_are_answered_as_ever(bench: Bench, backend: str) -> None:
    if backend == "sqlite":
        query = (
            "SELECT strftime('%Y', '2024-02-29'), strftime('%d', '2024-02-29', 'start of month'), strftime('%J', NULL)"
        )
        expected: tuple[Any, ...] = ("2024", "01", None)
    else:
        query, expected = (
            "SELECT pg_catalog.statement_timestamp() > statement_timestamp() - interval '1 second'",
            (True,),
        )
    async with bench.store.begin() as uow:
        assert tuple((await uow.session.execute(text(query))).one()) == expected


async def test_the_time_stands_still_within_a_statement(bench: Bench, backend: str) -> None:
    now = "strftime('%f', 'now')" if backend == "sqlite" else "statement_timestamp()"
    rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)"
    query = f"{rows} SELECT count(DISTINCT {now}) FROM n WHERE i <> length(CAST({now} AS text)) * 100000"
    async with bench.store.begin() as uow:
        assert (await uow.session.execute(text(query))).scalar_one() == 1


async def test_finished_runs_grow_old(bench: Bench) -> None:
    async def ends(run: Run[Any]) -> None:
        await run.step("one", Effect())

    await bench.store.run("ends", ends, workflow_id="a")
    assert await bench.store.delete_old_states(await bench.clock.now() - timedelta(days=30)) == 0
    await bench.clock.advance(days=31)
    assert await bench.store.delete_old_states(await bench.clock.now() - timedelta(days=30)) == 1


async def test_a_sleep_is_over_after_just_its_time_however_slow_the_claim_was(bench: Bench) -> None:
    claims, is_slow = bench.store._executor.keeper, asyncio.Event()
    hold = claims.hold

    def hold_late(run: Any) -> float:
        is_slow.set()
        return hold(run) - 5.0  # as if the answer of the claim had taken so many seconds

    claims.hold = hold_late  # type: ignore[method-assign]
    bench.worker({"sleeps": sleeps})
    await bench.store.start("sleeps", workflow_id="a")
    await bench.worker.until_idle()
    assert is_slow.is_set()
    await bench.clock.advance(days=14)
    await bench.worker.until_idle()
    assert await status_of(bench.store, "a") == WorkflowStatus.COMPLETED
