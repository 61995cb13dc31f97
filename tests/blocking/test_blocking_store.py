"""A store for threads that block: the same calls and errors, from any number of threads, and never from its own."""

import asyncio
import pickle
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any
from uuid import uuid4

import pytest

from orchestrator_state import (
    ConfigurationError,
    Run,
    StaleVersion,
    StateStore,
    StoreUnavailable,
    WorkflowNotFound,
    WorkflowState,
)
from orchestrator_state.blocking import BlockingStore
from tests.support.calls import arguments_of, calls_of_stores
from tests.support.cases import case
from tests.support.states import a_state

PATIENCE = 30.0

about: ContextVar[str] = ContextVar("about", default="nothing")


def called(store: BlockingStore, name: str) -> Any:
    return getattr(store, name)(**arguments_of(getattr(StateStore, name)))


def test_state_is_saved_and_loaded_and_controlled(blocking_store: BlockingStore) -> None:
    state = a_state()
    blocking_store.save_workflow_state(state)
    assert blocking_store.load_workflow_state(state.id).workflow_id == state.workflow_id
    assert [found.id for found in blocking_store.list_active_workflows()] == [state.id]
    started = blocking_store.start("n", workflow_id="w", context={"a": 1})
    blocking_store.signal(started.id, "go", {"b": 2})
    blocking_store.pause(started.id)
    blocking_store.resume(started.id)
    blocking_store.cancel(started.id)
    assert blocking_store.load_workflow_state_by_workflow_id("w").status == "cancelled"
    assert blocking_store.verify().damage == []
    blocking_store.health_check()


def test_what_one_store_wrote_the_other_kind_reads(database_url: str) -> None:
    with BlockingStore.open(database_url) as store:
        store.start("n", workflow_id="w")

    async def load() -> WorkflowState:
        async with StateStore.open(database_url) as other:
            return await other.load_workflow_state_by_workflow_id("w")

    assert asyncio.run(load()).workflow_name == "n"


def test_an_async_handler_runs_in_the_loop_and_its_sync_steps_in_threads(blocking_store: BlockingStore) -> None:
    async def handler(run: Run) -> list[str]:
        async def here() -> str:
            return threading.current_thread().name

        return [await run.step("a", here), await run.step("b", lambda: threading.current_thread().name)]

    assert blocking_store.run("n", handler) == ["orchestrator_state blocking", "orchestrator_state step"]


def test_errors_keep_their_class_and_show_where_they_were_raised(blocking_store: BlockingStore) -> None:
    with pytest.raises(WorkflowNotFound) as missing:
        blocking_store.load_workflow_state(uuid4())
    assert "get" in {frame.name for frame in traceback.extract_tb(missing.value.__traceback__)}

    async def failing(run: Run) -> None:
        await run.step("a", lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError) as failed:
        blocking_store.run("n", failing)
    assert "<lambda>" in {frame.name for frame in traceback.extract_tb(failed.value.__traceback__)}
    state = a_state()
    blocking_store.save_workflow_state(state)
    stale = blocking_store.load_workflow_state(state.id)
    state.mark_running()
    blocking_store.save_workflow_state(state)
    stale.mark_paused()
    with pytest.raises(StaleVersion):
        blocking_store.save_workflow_state(stale)


def test_bad_arguments_are_refused_in_the_words_of_the_other_store(blocking_store: BlockingStore) -> None:
    with pytest.raises(TypeError, match="save_workflow_state"):
        blocking_store.save_workflow_state()  # type: ignore[call-arg]
    with pytest.raises(ConfigurationError, match="handler must be a function"):
        blocking_store.run("n", 3)  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="handlers must be a mapping"):
        blocking_store.recover([])  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="at least one handler"):
        blocking_store.worker({})
    with pytest.raises(ConfigurationError, match="generator"):
        blocking_store.run("n", lambda run: (yield))


def test_what_cannot_be_opened_is_refused_and_leaves_no_thread() -> None:
    before = threading.active_count()
    for database in ("ftp://somewhere", 3, "/no/such/directory/x.db", "postgresql://nobody@127.0.0.1:1/none"):
        with case(str(database)), pytest.raises((ConfigurationError, StoreUnavailable)):
            BlockingStore.open(database)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError):
        BlockingStore.open(":memory:", pool_max=0)
    assert threading.active_count() == before


def test_many_threads_share_a_store(blocking_store: BlockingStore) -> None:
    def work(number: int) -> Any:
        return blocking_store.run("n", lambda run: run.step("a", lambda: number), workflow_id=f"{number}")

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(work, range(64))) == list(range(64))


def test_the_context_variables_of_the_thread_are_those_of_handler_and_steps(blocking_store: BlockingStore) -> None:
    def ask(value: str) -> list[str]:
        about.set(value)

        async def handler(run: Run) -> list[str]:
            return [about.get(), await run.step("a", about.get)]

        return blocking_store.run("n", handler)

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(ask, ["x", "y"])) == [["x", "x"], ["y", "y"]]
    assert about.get() == "nothing"


def test_a_step_in_a_thread_may_use_the_store_that_blocks(blocking_store: BlockingStore) -> None:
    def ask() -> int:
        return len(blocking_store.list_active_workflows())

    async def handler(run: Run) -> int:
        return await run.step("a", ask)

    assert blocking_store.run("n", handler) == 1


def test_each_call_in_the_thread_of_the_loop_is_refused_at_once(blocking_store: BlockingStore) -> None:
    def unit() -> None:
        with blocking_store.begin():
            pass

    calls: dict[str, Callable[[], Any]] = {
        name: lambda name=name: called(blocking_store, name)  # type: ignore[misc]
        for name in calls_of_stores()
    }
    calls |= {"begin": unit, "close": blocking_store.close, "worker": lambda: blocking_store.worker({"n": print})}
    refused = []

    async def handler(run: Run) -> None:
        for name, call in calls.items():
            with case(name), pytest.raises(ConfigurationError, match="would wait for itself"):
                call()
            refused.append(name)

    blocking_store.run("n", handler)
    assert refused == list(calls)
    assert blocking_store.list_active_workflows() == []


def test_each_call_of_a_closed_store_is_refused(database_url: str) -> None:
    store = BlockingStore.open(database_url)
    store.close()
    store.close()
    for name in calls_of_stores():
        with case(name), pytest.raises(ConfigurationError, match="closed"):
            called(store, name)
    with pytest.raises(ConfigurationError, match="closed"), store.begin():
        pass
    with pytest.raises(ConfigurationError, match="closed"), store:
        pass


def test_closing_ends_the_calls_of_other_threads_and_the_loop(database_url: str) -> None:
    store = BlockingStore.open(database_url)
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        go_on.wait(PATIENCE)

    async def handler(run: Run) -> None:
        await run.step("a", wait)

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(store.run, "n", handler, workflow_id="w")
        assert begun.wait(PATIENCE)
        store.close()
        with pytest.raises(StoreUnavailable):
            running.result(PATIENCE)
    go_on.set()
    assert "orchestrator_state blocking" not in {thread.name for thread in threading.enumerate()}
    with BlockingStore.open(database_url) as other:  # its lease was let go of

        async def ends(run: Run) -> int:
            return await run.step("a", lambda: 1)

        assert other.run("n", ends, workflow_id="w") == 1


def test_many_threads_may_close_a_store(database_url: str) -> None:
    store = BlockingStore.open(database_url)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda _: store.close(), range(16))) == [None] * 16


def test_a_store_that_is_dropped_ends_its_thread(sqlite_url: str) -> None:
    store = BlockingStore.open(sqlite_url)
    thread = store._opened.loop._thread
    del store
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_store_is_not_pickled(blocking_store: BlockingStore) -> None:
    with pytest.raises(ConfigurationError):
        pickle.dumps(blocking_store)


async def test_a_store_that_blocks_works_where_a_loop_runs(database_url: str) -> None:
    """As in a notebook, whose cells run in the thread of a loop."""
    with BlockingStore.open(database_url) as store:
        assert store.run("n", lambda run: run.step("a", lambda: 1)) == 1
        assert await asyncio.to_thread(store.list_active_workflows) == []
