"""`run.step(…, executor=)`: sync functions that other threads and processes call."""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator_state import (
    AbnormalExit,
    ConfigurationError,
    ExecutorUnavailable,
    OutcomeUnknown,
    Retry,
    Run,
    StateStore,
    Worker,
    WorkflowStatus,
)
from tests.support import elsewhere
from tests.support.children import FORKS
from tests.support.running import becomes, row_of, steps_of

pytestmark = pytest.mark.process

AT_ONCE = Retry(attempts=3, wait_initial=0, wait_jitter=0)


def new_pool(workers: int = 2) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=FORKS)


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with new_pool() as pool:
        yield pool


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "file")


@contextmanager
def held(file: str) -> Iterator[str]:
    """While this block lasts, `elsewhere.wait_for(file)` does."""
    Path(file).touch()
    try:
        yield file
    finally:
        Path(file).unlink(missing_ok=True)


def is_there(file: str) -> bool:
    return Path(file).exists()


def let_go(file: str) -> None:
    Path(file).unlink()


async def exists(file: str) -> None:
    while not is_there(file):  # noqa: ASYNC110 - another process makes it
        await asyncio.sleep(0.01)


class Watched(ThreadPoolExecutor):
    """One thread, and the futures of its calls."""

    def __init__(self) -> None:
        super().__init__(1)
        self.futures: list[Future[Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.futures.append(super().submit(fn, *args, **kwargs))
        return self.futures[-1]

    async def has(self, calls: int) -> None:
        while len(self.futures) < calls:  # noqa: ASYNC110 - a thread of the store's gives it the call
            await asyncio.sleep(0.01)


class Unmarked(Executor):
    """Hands on to `threads`, and tells nobody when a call begins: as a cluster's."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self.threads = threads

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self.threads.submit(fn, *args, **kwargs)


class Inline(Executor):
    """Calls at once, in the thread that gives it the call. It marks no beginning."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001
            future.set_exception(error)
        return future


class Refusing(Executor):
    """Raises `error` instead of taking a call."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        raise self.error


class Renewed(Executor):
    """A process pool, and another one when it is broken: as in the documents."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool = new_pool(1)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        with self._lock:
            try:
                return self._pool.submit(fn, *args, **kwargs)
            except BrokenExecutor:
                self._pool = new_pool(1)
                return self._pool.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._pool.shutdown(wait, cancel_futures=cancel_futures)


# --- what it does ------------------------------------------------------------------------------------------------


async def test_a_function_is_called_in_another_process_and_once(
    store: StateStore, pool: ProcessPoolExecutor, file: str
) -> None:
    errors = [RuntimeError("again")]

    async def handler(run: Run) -> Any:
        found = [
            await run.step("where", elsewhere.where, 7, executor=pool),
            await run.with_options(executor=pool).step("keywords", elsewhere.keyed, 7, times=3, timeout="mine"),
            await run.step("count", elsewhere.count, file, executor=pool),
        ]
        if errors:
            raise errors.pop()
        return found

    with pytest.raises(RuntimeError, match="again"):
        await store.run("n", handler, workflow_id="w")
    (seven, process), keywords, calls = await store.run("n", handler, workflow_id="w")
    assert (seven, keywords, calls) == (7, [21, "mine"], 1)
    assert process != os.getpid()


async def test_the_key_is_given_as_an_argument(store: StateStore, pool: ProcessPoolExecutor) -> None:
    async def handler(run: Run) -> Any:
        given = [await run.step("s", elsewhere.where, run.key_of("s"), executor=pool) for _ in range(2)]
        here = await run.step("s", lambda: run.step_key)
        assert run.key_of("s") == here.replace("#3", "#4")
        return [key for key, _ in given] + [here]

    first, second, third = await store.run("n", handler)
    assert (second, third) == (f"{first}#2", f"{first}#3")


async def test_a_thread_pool_has_the_context_and_may_return_an_awaitable(store: StateStore) -> None:
    async def soon() -> str:
        return threading.current_thread().name

    def begin() -> Any:
        return soon()

    def call() -> Any:
        assert Run.current().step_key
        return [threading.current_thread().name, Run.current().workflow_id]

    async def handler(run: Run) -> Any:
        with ThreadPoolExecutor(1, "mine") as threads:
            return [
                await run.step("s", call, executor=threads),
                await run.step("awaitable", begin, executor=threads),
            ]

    assert await store.run("n", handler, workflow_id="w") == [["mine_0", "w"], threading.current_thread().name]


async def test_an_executor_of_ones_own_will_do(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        return await run.step("s", elsewhere.where, 1, executor=Inline(), timeout=30)

    assert await store.run("n", handler) == [1, os.getpid()]


async def test_another_process_has_no_current_run(store: StateStore, pool: ProcessPoolExecutor) -> None:
    async def handler(run: Run) -> Any:
        with ProcessPoolExecutor(1, mp_context=FORKS) as other:
            return [await run.step("s", elsewhere.current_run, executor=each) for each in (pool, other)]

    for found in await store.run("n", handler):
        assert found.startswith("Run.current() is for code")


@pytest.mark.parametrize("executor", [1, "pool", ThreadPoolExecutor], ids=str)
async def test_what_is_no_executor_is_refused_before_anything(store: StateStore, executor: Any) -> None:
    async def handler(run: Run) -> None:
        with pytest.raises(ConfigurationError, match="executor must be a concurrent"):
            await run.step("s", elsewhere.where, executor=executor)
        with pytest.raises(ConfigurationError, match="executor must be a concurrent"):
            run.with_options(executor=executor)

    await store.run("n", handler, workflow_id="w")
    assert await steps_of(store, "w") == {}


async def test_an_async_function_is_refused_before_anything(store: StateStore, pool: ProcessPoolExecutor) -> None:
    async def soon() -> None: ...

    async def handler(run: Run) -> None:
        with pytest.raises(ConfigurationError, match="only a sync one"):
            await run.step("s", soon, executor=pool)
        with pytest.raises(ConfigurationError, match="only a sync one"):
            await run.with_options(executor=pool).step("s", soon)

    await store.run("n", handler, workflow_id="w")
    assert await steps_of(store, "w") == {}


# --- failures of the step ----------------------------------------------------------------------------------------


async def test_what_the_function_raises_is_the_steps_failure_and_retried(
    store: StateStore, pool: ProcessPoolExecutor, file: str
) -> None:
    async def handler(run: Run) -> Any:
        with pytest.raises(ValueError, match="call 1"):
            await run.step("once", elsewhere.fail_until, 9, f"{file}-once", executor=pool)
        with pytest.raises(AbnormalExit):
            await run.step("exit", elsewhere.leave, executor=pool)
        return await run.step("again", elsewhere.fail_until, 3, file, executor=pool, retry=AT_ONCE)

    assert await store.run("n", handler, workflow_id="w") == 3
    steps = await steps_of(store, "w")
    assert [(key, steps[key].status, steps[key].retry_count) for key in sorted(steps)] == [
        ("again", "completed", 2),
        ("exit", "failed", 1),
        ("once", "failed", 1),
    ]


async def test_what_cannot_be_sent_fails_the_step(store: StateStore, pool: ProcessPoolExecutor) -> None:
    async def handler(run: Run) -> list[str]:
        errors = []
        calls = [
            partial(run.step, "local", lambda: None),
            partial(run.step, "lock", elsewhere.where, threading.Lock()),
            partial(run.step, "run", elsewhere.where, run),
            partial(run.step, "result", elsewhere.return_what_cannot_be_sent),
        ]
        for call in calls:
            try:
                await call(executor=pool)
            except Exception as error:  # noqa: BLE001
                errors.append(type(error).__name__)
        return errors

    errors = await store.run("n", handler, workflow_id="w")
    assert len(errors) == 4
    assert "BrokenProcessPool" not in errors
    assert {step.status for step in (await steps_of(store, "w")).values()} == {"failed"}


async def test_a_process_that_dies_is_the_failure_of_the_step_that_was_called_in_it(
    store: StateStore, file: str
) -> None:
    async def handler(run: Run) -> Any:
        with new_pool(1) as pool:
            await run.step("dies", elsewhere.die_until, 9, file, executor=pool, retry=AT_ONCE)

    with pytest.raises(BrokenProcessPool):
        await store.run("n", handler, workflow_id="w")
    assert (await row_of(store, "w")).status == WorkflowStatus.FAILED
    assert elsewhere.count(file) == 2, "a pool that is broken is not fed any more"


async def test_a_pool_that_renews_itself_is_given_the_call_again(store: StateStore, file: str) -> None:
    async def handler(run: Run) -> Any:
        pool = Renewed()
        try:
            return await run.step("dies", elsewhere.die_until, 3, file, executor=pool, retry=AT_ONCE)
        finally:
            pool.shutdown()

    assert await store.run("n", handler, workflow_id="w") == 3


async def test_an_exception_that_cannot_be_loaded_breaks_the_pool_and_fails_the_step(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        with new_pool(1) as pool:
            await run.step("odd", elsewhere.raise_what_cannot_be_loaded, executor=pool)

    with pytest.raises(BrokenProcessPool):
        await store.run("n", handler, workflow_id="w")
    assert (await row_of(store, "w")).status == WorkflowStatus.FAILED


# --- what is not its failure -------------------------------------------------------------------------------------


async def is_left(store: StateStore, handler: Any) -> ExecutorUnavailable:
    """Run it, and see that it is left as it was, without a failure on record."""
    with pytest.raises(ExecutorUnavailable) as raised:
        await store.run("n", handler, workflow_id="w")
    row = await row_of(store, "w")
    assert (row.status, row.lease_expires_at, row.error) == (WorkflowStatus.RUNNING, None, None)
    assert not await steps_of(store, "w")
    return raised.value


async def goes_on(store: StateStore) -> None:
    """With an executor that works it comes to its end."""

    async def handler(run: Run) -> Any:
        return await run.step("s", elsewhere.where, "done", executor=Inline())

    assert (await store.run("n", handler, workflow_id="w"))[0] == "done"


async def test_a_run_is_left_by_a_step_whose_executor_was_shut_down(store: StateStore) -> None:
    pool = new_pool(1)
    pool.shutdown()

    async def handler(run: Run) -> Any:
        with pytest.raises(asyncio.CancelledError) as stopped:
            await run.step("s", elsewhere.where, executor=pool, retry=AT_ONCE)
        raise stopped.value

    error = await is_left(store, handler)
    assert (error.workflow_state_id, error.step_id) == ((await row_of(store, "w")).id, "s")
    assert "RuntimeError" in str(error)
    await goes_on(store)


@pytest.mark.parametrize("error", [BrokenProcessPool("broken"), OSError("no memory"), Exception("closed")], ids=repr)
async def test_a_run_is_left_by_a_step_whose_executor_takes_no_calls(store: StateStore, error: Exception) -> None:
    async def handler(run: Run) -> Any:
        await run.step("s", elsewhere.where, executor=Refusing(error), on_unknown="retry")

    assert type(error).__name__ in str(await is_left(store, handler))
    await goes_on(store)


async def test_a_call_that_has_not_begun_when_the_pool_breaks_is_not_the_steps_failure(
    store: StateStore, file: str
) -> None:
    """One place, and a queue of two, of which the pool takes one for under way already."""

    async def handler(run: Run) -> Any:
        with new_pool(1) as pool, held(file):
            first = asyncio.ensure_future(asyncio.wrap_future(pool.submit(elsewhere.wait_for, file)))
            await exists(f"{file}.begun")
            killer = [pool.submit(elsewhere.where) for _ in range(2)]
            step = asyncio.create_task(run.step("s", elsewhere.where, executor=pool))
            while len(pool._pending_work_items) < 4:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            for process in pool._processes.values():
                process.kill()
            await asyncio.gather(first, *map(asyncio.wrap_future, killer), return_exceptions=True)
            await step

    await is_left(store, handler)
    await goes_on(store)


async def test_a_call_that_the_pool_drops_is_not_the_steps_failure(store: StateStore, file: str) -> None:
    async def handler(run: Run) -> Any:
        with Watched() as pool, held(file):
            pool.submit(elsewhere.wait_for, file)
            step = asyncio.create_task(run.step("s", elsewhere.where, executor=pool))
            await pool.has(2)
            pool.shutdown(wait=False, cancel_futures=True)
            await step

    await is_left(store, handler)
    await goes_on(store)


async def test_a_worker_leaves_the_run_to_another_whose_executor_works(store: StateStore) -> None:
    pools: list[Executor] = [Refusing(RuntimeError("shut down")), Inline()]

    async def handler(run: Run) -> Any:
        return await run.step("s", elsewhere.where, 1, executor=pools.pop(0))

    await store.start("n", workflow_id="w")
    async with Worker(store, {"n": handler}, poll=0.05):
        await becomes(lambda row: row.status == WorkflowStatus.COMPLETED, store, "w")
    assert (await row_of(store, "w")).attempts == 0


async def test_a_step_with_an_intent_that_was_not_called_is_found_out_about_all_the_same(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        refusing = Refusing(RuntimeError("shut down"))
        return await run.step("s", elsewhere.where, executor=refusing, on_unknown="raise")

    with pytest.raises(ExecutorUnavailable):
        await store.run("n", handler, workflow_id="w")
    with pytest.raises(OutcomeUnknown):
        await store.run("n", handler, workflow_id="w")


# --- time limits and cancellation --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, new_pool])
async def test_a_time_limit_does_not_count_the_wait_in_the_pools_queue(
    store: StateStore, file: str, kind: Callable[[int], Executor]
) -> None:
    async def handler(run: Run) -> Any:
        with kind(1) as pool, held(file):
            ahead = [pool.submit(elsewhere.wait_for, file) for _ in range(3)]
            await exists(f"{file}.begun")
            step = asyncio.create_task(run.step("s", elsewhere.where, 1, executor=pool, timeout=0.5))
            await asyncio.sleep(1)  # for longer than the limit: it has not begun
            assert not step.done()
            let_go(file)
            found = await step
            assert all(future.result(30) is None for future in ahead)
            return found

    assert (await store.run("n", handler))[0] == 1


async def test_a_call_that_hangs_past_its_limit_fails_the_step_and_is_retried(
    store: StateStore, pool: ProcessPoolExecutor, file: str
) -> None:
    async def handler(run: Run) -> Any:
        with held(file), pytest.raises(TimeoutError):
            await run.step("s", elsewhere.wait_for, file, executor=pool, timeout=0.3)
        return await run.step("s", elsewhere.where, 1, executor=pool, timeout=30)

    assert (await store.run("n", handler, workflow_id="w"))[0] == 1
    steps = await steps_of(store, "w")
    assert (steps["s"].status, steps["s#2"].status) == ("failed", "completed")


async def test_where_the_beginning_is_not_told_a_time_limit_counts_from_the_hand_over(
    store: StateStore, file: str
) -> None:
    async def handler(run: Run) -> Any:
        with Watched() as threads, held(file):
            threads.submit(elsewhere.wait_for, file)
            with pytest.raises(TimeoutError):
                await run.step("s", elsewhere.count, f"{file}-calls", executor=Unmarked(threads), timeout=0.2)
            while not threads.futures[1].cancelled():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    await store.run("n", handler)
    assert not is_there(f"{file}-calls")


async def test_a_run_that_is_cancelled_takes_back_a_call_that_has_not_begun(store: StateStore, file: str) -> None:
    with Watched() as pool, held(file):
        pool.submit(elsewhere.wait_for, file)

        async def handler(run: Run) -> None:
            await run.step("s", elsewhere.count, f"{file}-calls", executor=pool)

        running = asyncio.create_task(store.run("n", handler, workflow_id="w"))
        await pool.has(2)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        while not pool.futures[1].cancelled():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not is_there(f"{file}-calls")
    row = await row_of(store, "w")
    assert (row.status, row.lease_expires_at) == (WorkflowStatus.RUNNING, None)
    assert not await steps_of(store, "w")


async def test_a_run_that_is_cancelled_does_not_wait_for_a_call_that_has_begun(
    store: StateStore, pool: ProcessPoolExecutor, file: str
) -> None:
    async def handler(run: Run) -> None:
        await run.step("s", elsewhere.wait_for, file, executor=pool)

    with held(file):
        running = asyncio.create_task(store.run("n", handler, workflow_id="w"))
        await exists(f"{file}.begun")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert not await steps_of(store, "w")


async def test_a_call_that_is_handed_over_after_its_run_was_cancelled_is_taken_back(store: StateStore) -> None:
    entered, go_on = threading.Event(), threading.Event()
    futures: list[Future[Any]] = []

    class Slow(Executor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            entered.set()
            go_on.wait(60)
            futures.append(Future())
            return futures[0]

    async def handler(run: Run) -> None:
        await run.step("s", elsewhere.where, executor=Slow())

    running = asyncio.create_task(store.run("n", handler))
    assert await asyncio.to_thread(entered.wait, 60)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    go_on.set()
    while not (futures and futures[0].cancelled()):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
