"""Workers in the background of a test."""

import asyncio
from typing import Any

import pytest

from orchestrator_state import ConfigurationError, Run, WorkflowStatus
from orchestrator_state.testing import RunsLeft
from orchestrator_state.testing.bench import Bench
from orchestrator_state.testing.bench import bench as make_bench
from tests.support.running import Gate, row_of


async def asks(run: Run[Any]) -> Any:
    return await run.wait_for("answer")


async def test_a_run_that_is_started_is_claimed_without_being_waited_for(bench: Bench) -> None:
    gate = Gate()

    async def works(run: Run[Any]) -> None:
        await run.step("work", gate)

    bench.worker({"works": works})
    await bench.worker.until_idle()
    await bench.store.start("works", workflow_id="a")
    idle = asyncio.create_task(bench.worker.until_idle())
    await gate.reached.wait()
    assert not idle.done()
    gate.opened.set()
    await idle
    assert (await row_of(bench.store, "a")).status == WorkflowStatus.COMPLETED


async def test_idle_is_who_waits_for_a_signal(bench: Bench) -> None:
    bench.worker({"asks": asks})
    await bench.store.start("asks", workflow_id="a")
    await bench.worker.until_idle()
    row = await row_of(bench.store, "a")
    assert row.lease_expires_at is None, "it was let go of"
    await bench.store.signal(row.id, "answer", 42)
    await bench.worker.until_idle()
    assert await bench.store.run("asks", asks, workflow_id="a") == 42


async def test_two_workers_are_idle_when_neither_has_work_for_the_other(bench: Bench) -> None:
    async def second(run: Run[Any]) -> str:
        return "second"

    async def first(run: Run[Any]) -> None:
        async def start() -> None:
            await bench.store.start("second", workflow_id="b")

        await run.step("start", start)

    bench.worker({"second": second})
    bench.worker({"first": first})
    await bench.store.start("first", workflow_id="a")
    await bench.worker.until_idle()
    assert [(await row_of(bench.store, each)).status for each in ("a", "b")] == [WorkflowStatus.COMPLETED] * 2


async def test_who_waits_in_vain_is_told_why(bench: Bench) -> None:
    gate = Gate()

    async def hangs(run: Run[Any]) -> None:
        await run.step("hang", gate)

    bench.worker({"hangs": hangs})
    await bench.store.start("hangs", workflow_id="a")
    with pytest.raises(TimeoutError, match="1 runs are under way"):
        await bench.worker.until_idle(timeout=0.2)
    gate.opened.set()


async def test_there_is_something_to_wait_for(bench: Bench) -> None:
    with pytest.raises(ConfigurationError, match="make one"):
        await bench.worker.until_idle()


async def test_a_worker_that_was_stopped_is_idle(bench: Bench) -> None:
    bench.worker({"asks": asks}).stop()
    await bench.worker.until_idle()


async def test_steps_that_are_cut_off_are_told_of(databases_for_tests: Any, tmp_path: Any) -> None:
    gate = Gate()

    async def hangs(run: Run[Any]) -> None:
        await run.step("hang", gate)

    async def use() -> None:
        async with make_bench(databases_for_tests, tmp_path, {}) as bench:
            bench.worker({"hangs": hangs}, grace=0)
            await bench.store.start("hangs", workflow_id="a")
            await gate.reached.wait()

    with pytest.warns(RunsLeft, match="1 run"):
        await use()
    assert gate.cancelled
    assert asyncio.all_tasks() == {asyncio.current_task()}
