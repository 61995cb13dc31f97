"""Handlers that are plain functions: called in a thread of their own, and as durable as async ones."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from orchestrator_state import ConfigurationError, Run, RunCancelled, RunPaused
from orchestrator_state.blocking import BlockingRun, BlockingStore

PATIENCE = 30.0


class Totals(BaseModel):
    count: int = 0


def until(holds: Callable[[], bool]) -> None:
    gives_up = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < gives_up, "it never happens"
        time.sleep(0.01)


def rename(session: Session, name: str) -> str:
    session.execute(text("UPDATE workflow_states SET user_id = :name"), {"name": name})
    return name


async def rename_async(session: AsyncSession, name: str) -> str:
    return await session.run_sync(rename, name)


def test_each_call_of_a_run(blocking_store: BlockingStore) -> None:
    called = []

    async def twice(number: int) -> int:
        return number * 2

    def child(run: BlockingRun) -> int:
        return int(run.step("kid", lambda: run.context["n"]))

    async def async_child(run: Run) -> int:
        return await run.step("kid", lambda: run.context["n"])

    def handler(run: BlockingRun) -> list[Any]:
        called.append(run.attempts)
        run.context["log"] = []
        run.append("log", "a")
        return [
            run.step("a", lambda number: number + 1, 1),
            run.step("b", twice, 2),
            run.step("c", lambda: "3", returns=int),
            run.transact("d", rename, "Ada"),
            run.transact("e", rename_async, "Grace"),
            run.child("kid", child, context={"n": 5}),
            run.child("async kid", async_child, context={"n": 6}),
            run.checkpoint(),
            run.sleep(0.01),
            run.wait_for("go"),
            run.context["log"],
            (run.workflow_id, run.name, run.user_id, run.parent_id) == ("w", "n", None, None),
            run.step("key", lambda: run.step_key).endswith(":key"),
        ]

    state = blocking_store.start("n", workflow_id="w", context={})
    blocking_store.signal(state.id, "go", 7)
    result = blocking_store.run("n", handler, workflow_id="w")
    assert result == [2, 4, 3, "Ada", "Grace", 5, 6, None, None, 7, ["a"], True, True]
    assert blocking_store.run("n", handler, workflow_id="w") == result
    assert called == [0]
    assert blocking_store.load_workflow_state(state.id).user_id == "Grace"


def test_a_typed_state(blocking_store: BlockingStore) -> None:
    def handler(run: BlockingRun[Totals]) -> int:
        def count() -> None:
            run.state.count += 1

        run.step("a", count)
        run.state.count += 10
        run.step("b", count)
        return run.state.count

    assert blocking_store.run("n", handler, state=Totals, context=Totals(count=100)) == 112


def test_what_is_recorded_never_runs_again_and_the_context_is_as_it_was(blocking_store: BlockingStore) -> None:
    called: list[str] = []

    def handler(run: BlockingRun) -> dict[str, Any]:
        run.context["before"] = run.context.get("before", 0) + 1
        run.step("a", lambda: called.append("a"))
        run.context["between"] = run.context.get("between", 0) + 1
        run.step("b", lambda: called.append("b"))
        run.context["after"] = run.context.get("after", 0) + 1
        if called.count("b") and len(called) < 3:
            called.append("failed")
            raise ValueError("once")
        run.step("c", lambda: called.append("c"))
        return dict(run.context)

    with pytest.raises(ValueError, match="once"):
        blocking_store.run("n", handler, workflow_id="w", context={})
    assert blocking_store.run("n", handler, workflow_id="w") == {"before": 1, "between": 1, "after": 1}
    assert called == ["a", "b", "failed", "c"]


@pytest.mark.parametrize(("ask", "told"), [("pause", RunPaused), ("cancel", RunCancelled)])
def test_who_asks_for_it_stops_the_handler_at_its_next_step(
    blocking_store: BlockingStore, ask: str, told: type[Exception]
) -> None:
    reached, go_on = threading.Event(), threading.Event()
    ended: list[str] = []

    def slow() -> None:
        reached.set()
        assert go_on.wait(PATIENCE)

    def handler(run: BlockingRun) -> None:
        try:
            run.step("a", slow)
            run.step("b", ended.append, "b")
        except Exception:
            ended.append("seen as a failure")
            raise
        finally:
            with pytest.raises(asyncio.CancelledError):
                run.step("c", ended.append, "c")
            ended.append("cleaned up")

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(blocking_store.run, "n", handler, workflow_id="w")
        assert reached.wait(PATIENCE)
        state = blocking_store.load_workflow_state_by_workflow_id("w")
        getattr(blocking_store, ask)(state.id)
        go_on.set()
        with pytest.raises(told):
            running.result(PATIENCE)
    assert ended == ["cleaned up"]


def test_a_handler_that_is_busy_by_itself_is_left_and_its_next_call_stops_it(database_url: str) -> None:
    store = BlockingStore.open(database_url)
    reached, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    said: list[str] = []

    def handler(run: BlockingRun) -> None:
        run.step("a", lambda: 1)
        reached.set()
        assert go_on.wait(PATIENCE)
        try:
            run.step("b", said.append, "b")
        except BaseException as error:
            said.append(type(error).__name__)
            raise
        finally:
            ended.set()

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(store.run, "n", handler, workflow_id="w")
        assert reached.wait(PATIENCE)
        store.close()
        with pytest.raises(Exception, match="closed"):
            running.result(PATIENCE)
    with BlockingStore.open(database_url) as other:
        assert other.run("n", lambda run: run.step("b", lambda: 2), workflow_id="w") == 2
        go_on.set()
        assert ended.wait(PATIENCE)
    assert said == ["CancelledError"]


@pytest.mark.parametrize("error", [SystemExit(3), StopIteration(), KeyboardInterrupt(), asyncio.CancelledError()])
def test_whatever_a_handler_raises_is_its_failure(blocking_store: BlockingStore, error: BaseException) -> None:
    def handler(run: BlockingRun) -> None:
        run.step("a", lambda: 1)
        raise error

    with pytest.raises(Exception, match=type(error).__name__) as raised:
        blocking_store.run("n", handler, workflow_id="w")
    assert raised.value.__cause__ is error
    assert blocking_store.list_active_workflows() == []
    assert blocking_store.load_workflow_state_by_workflow_id("w").status == "failed"


def test_a_call_from_another_thread_than_the_handlers_is_refused(blocking_store: BlockingStore) -> None:
    def handler(run: BlockingRun) -> list[str]:
        said = []

        def nested() -> None:
            with pytest.raises(ConfigurationError, match="thread of its handler") as refused:
                run.step("inner", lambda: 1)
            said.append(str(refused.value))

        async def async_nested() -> None:
            nested()

        run.step("a", nested)
        run.step("b", async_nested)
        with ThreadPoolExecutor(1) as threads:
            threads.submit(nested).result(PATIENCE)
        return said

    assert len(blocking_store.run("n", handler)) == 3


def test_the_function_of_a_step_changes_the_context_as_in_an_async_handler(blocking_store: BlockingStore) -> None:
    def handler(run: BlockingRun) -> dict[str, Any]:
        def change() -> None:
            run.context["a"] = run.context.get("a", 0) + 1
            run.append("log", 1)

        run.context["log"] = []
        run.step("a", change)
        return dict(run.context)

    assert blocking_store.run("n", handler, context={}) == {"a": 1, "log": [1]}


def test_a_run_that_ended_takes_no_more_calls(blocking_store: BlockingStore) -> None:
    kept: list[BlockingRun] = []

    def handler(run: BlockingRun) -> None:
        kept.append(run)

    blocking_store.run("n", handler)
    with pytest.raises(ConfigurationError):
        kept[0].step("late", lambda: 1)


def test_a_handler_that_hands_out_a_coroutine_is_told_what_to_give(blocking_store: BlockingStore) -> None:
    async def handler(run: Run) -> int:
        return await run.step("a", lambda: 1)

    with pytest.raises(ConfigurationError, match="async def"):
        blocking_store.run("n", lambda run: handler(run))  # noqa: PLW0108
    with pytest.raises(ConfigurationError, match="without calling it"):
        blocking_store.run("n", handler(None))  # type: ignore[call-overload, arg-type]


def test_recover_takes_handlers_of_both_kinds_and_lets_go_of_those_that_wait(blocking_store: BlockingStore) -> None:
    async def is_async(run: Run) -> int:
        return await run.step("a", lambda: 1)

    def blocks(run: BlockingRun) -> int:
        run.step("a", lambda: 1)
        answer: int = run.wait_for("go")
        return answer

    handlers: dict[str, Any] = {"async": is_async, "blocks": blocks}
    blocking_store.start("async", workflow_id="a")
    waits = blocking_store.start("blocks", workflow_id="b")
    blocking_store.recover(handlers)
    assert blocking_store.load_workflow_state_by_workflow_id("a").status == "completed"
    assert blocking_store.load_workflow_state(waits.id).status == "running"
    until(lambda: not any("handler" in thread.name for thread in threading.enumerate()))
    blocking_store.signal(waits.id, "go", 2)
    blocking_store.recover(handlers)
    assert blocking_store.run("blocks", blocks, workflow_id="b") == 2


def test_a_worker_beside_other_code(blocking_store: BlockingStore) -> None:
    def handler(run: BlockingRun) -> int:
        return int(run.step("a", lambda: run.context["n"]))

    with blocking_store.worker({"n": handler}, poll=0.05) as worker:
        started = [blocking_store.start("n", workflow_id=f"{n}", context={"n": n}) for n in range(20)]
        until(lambda: not blocking_store.list_active_workflows())
        assert worker.health().state == "working"
    assert worker.health().state == "stopped"
    assert len(started) == 20
    assert [blocking_store.run("n", handler, workflow_id=f"{n}") for n in range(20)] == list(range(20))


def test_a_worker_in_its_own_thread_until_it_is_stopped(blocking_store: BlockingStore) -> None:
    worker = blocking_store.worker({"n": lambda run: run.step("a", lambda: 1)}, poll=0.05)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(worker.run)
        blocking_store.start("n", workflow_id="w")
        until(lambda: not blocking_store.list_active_workflows())
        worker.stop()
        running.result(PATIENCE)


def test_what_handlers_raise_is_in_the_report(blocking_store: BlockingStore) -> None:
    def fails(run: BlockingRun) -> None:
        run.step("a", lambda: 1 / 0)

    blocking_store.start("n", workflow_id="w")
    report = blocking_store.recover({"n": fails})
    assert [type(each.error) for each in report.runs] == [ZeroDivisionError]
