"""Heavy steps on a real Dask cluster, by the executor of its client: scheduler, worker and client on the loopback."""

import asyncio
import logging
import operator
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster

from orchestrator_state import ExecutorUnavailable, Retry, Run, StateStore, WorkflowStatus
from tests.support import elsewhere
from tests.support.running import row_of, steps_of

pytestmark = [pytest.mark.process, pytest.mark.slow]

AT_ONCE = Retry(attempts=3, wait_initial=0, wait_jitter=0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """One worker process of two threads. What it logs of failing functions is none of the tests' business.

    The port of its dashboard is any: another process may have a cluster of its own.
    """
    options = {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": None, "silence_logs": logging.CRITICAL}
    with LocalCluster(n_workers=1, threads_per_worker=2, host="127.0.0.1", **options) as cluster:  # type: ignore[no-untyped-call]
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster, set_as_default=False) as client:  # type: ignore[no-untyped-call]
        yield client


@pytest.fixture
def executor(client: Client) -> Executor:
    executor: Executor = client.get_executor()  # type: ignore[no-untyped-call]
    return executor


async def test_a_function_is_called_on_the_cluster_and_once(store: StateStore, executor: Executor) -> None:
    errors = [RuntimeError("again")]

    async def handler(run: Run) -> Any:
        found = [
            await run.step("where", elsewhere.where, run.key_of("where"), executor=executor),
            await run.with_options(executor=executor).step("keyword", elsewhere.keyed, 2, times=4, timeout="mine"),
            await run.step("lambda", lambda one, two: one + two, 1, 2, executor=executor),
        ]
        if errors:
            raise errors.pop()
        return found

    with pytest.raises(RuntimeError, match="again"):
        await store.run("n", handler, workflow_id="w")
    before = (await steps_of(store, "w"))["where"].outputs
    (key, process), keyword, three = await store.run("n", handler, workflow_id="w")
    assert (keyword, three) == ([8, "mine"], 3)
    assert str(process) in before
    assert process != os.getpid()
    assert key.endswith("where")


async def test_equal_calls_of_two_steps_are_two_calls(store: StateStore, executor: Executor, tmp_path: Path) -> None:
    """Dask would take them for one, and so would it a retry."""
    file = str(tmp_path / "calls")

    async def handler(run: Run) -> list[int]:
        return [await run.step(step_id, elsewhere.count, file, executor=executor) for step_id in ("a", "b")]

    assert await store.run("n", handler) == [1, 2]


async def test_what_the_function_raises_is_the_steps_failure_and_retried(
    store: StateStore, executor: Executor, tmp_path: Path
) -> None:
    async def handler(run: Run) -> int:
        file = str(tmp_path / "calls")
        return await run.step("s", elsewhere.fail_until, 3, file, executor=executor, retry=AT_ONCE)

    assert await store.run("n", handler, workflow_id="w") == 3
    assert (await steps_of(store, "w"))["s"].retry_count == 2


async def test_what_cannot_be_sent_fails_the_step(store: StateStore, executor: Executor) -> None:
    async def handler(run: Run) -> None:
        await run.step("s", operator.is_, threading.Lock(), None, executor=executor)

    with pytest.raises(TypeError, match="serialize"):
        await store.run("n", handler, workflow_id="w")
    assert (await row_of(store, "w")).status == WorkflowStatus.FAILED


async def test_a_time_limit_and_a_cancellation_do_not_wait_for_the_cluster(
    store: StateStore, executor: Executor, tmp_path: Path
) -> None:
    file = tmp_path / "held"
    file.touch()

    async def handler(run: Run) -> None:
        with pytest.raises(TimeoutError):
            await run.step("s", elsewhere.wait_for, str(file), executor=executor, timeout=0.2)
        hanging = asyncio.create_task(run.step("t", elsewhere.wait_for, str(file), executor=executor))
        await asyncio.sleep(0.2)
        hanging.cancel()
        await asyncio.wait({hanging})
        assert hanging.cancelled()

    try:
        await store.run("n", handler)
    finally:
        file.unlink()


@pytest.mark.parametrize("what", ["executor", "client"])
async def test_a_run_is_left_by_a_step_whose_cluster_is_gone(
    store: StateStore, client: Client, executor: Executor, what: str
) -> None:
    async def handler(run: Run) -> None:
        await run.step("s", elsewhere.where, executor=executor)

    await asyncio.to_thread(executor.shutdown if what == "executor" else client.close)
    with pytest.raises(ExecutorUnavailable):
        await store.run("n", handler, workflow_id="w")
    assert (await row_of(store, "w")).status == WorkflowStatus.RUNNING


async def test_a_run_is_left_by_a_step_whose_client_is_closed_under_it(
    store: StateStore, client: Client, executor: Executor, tmp_path: Path
) -> None:
    file = tmp_path / "held"
    file.touch()

    async def handler(run: Run) -> None:
        await run.step("s", elsewhere.wait_for, str(file), executor=executor)

    try:
        running = asyncio.create_task(store.run("n", handler, workflow_id="w"))
        while not file.with_name("held.begun").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.to_thread(client.close)
        with pytest.raises(ExecutorUnavailable):
            await running
    finally:
        file.unlink()
    assert (await row_of(store, "w")).status == WorkflowStatus.RUNNING
