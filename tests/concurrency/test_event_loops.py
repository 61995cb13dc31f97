"""A store belongs to the event loop it was opened in. Another one is told so at once, and the owner goes on."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state import ConfigurationError, Run, StateStore, Worker
from tests.support.calls import calls_of_stores, names_of
from tests.support.cases import case
from tests.support.running import Gate
from tests.support.states import a_state


async def handler(run: Run) -> int:
    return await run.step("load", lambda: 1)


async def unit(store: StateStore) -> None:
    async with store.begin() as uow:
        await uow.workflows.save(a_state())


async def work(store: StateStore) -> None:
    await Worker(store, {"n": handler}, handle_signals=False).run()


async def enter(store: StateStore) -> None:
    async with store:
        pass


async def work_beside(store: StateStore) -> None:
    async with Worker(store, {"n": handler}):
        raise AssertionError("the worker was not refused before the block")


async def listen(store: StateStore) -> None:
    async with store.listening(lambda: None):
        pass


async def take_a_session(store: StateStore) -> None:
    store.unit_of_work(AsyncSession())


CALLS: dict[str, Callable[[StateStore], Awaitable[Any]]] = {
    **calls_of_stores(),
    "begin": unit,
    "unit_of_work": take_a_session,
    "listening": listen,
    "Worker.run": work,
    "async with Worker": work_beside,
    "async with": enter,
    "close": lambda store: store.close(),
}
NOT_CALLED = {"open", "namespace", "payloads", "recovery", "retention_duty"}
"""They begin nothing that a loop is needed for."""


def test_all_calls_are_tried_here() -> None:
    assert names_of(StateStore) - NOT_CALLED == CALLS.keys() - {"Worker.run", "async with Worker", "async with"}


def in_another_loop(call: Callable[[], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with asyncio.timeout(30):
            return await call()

    return asyncio.run(main())


async def test_a_call_in_another_loop_is_refused_at_once_and_harms_nobody(store: StateStore) -> None:
    gate = Gate()

    async def slow(run: Run) -> int:
        await run.step("load", gate)
        return await run.step("load", lambda: 2)

    running = asyncio.create_task(store.run("n", slow, workflow_id="mine"))
    await gate.reached.wait()
    for name, call in CALLS.items():
        with case(name), pytest.raises(ConfigurationError, match="another event loop"):
            await asyncio.to_thread(in_another_loop, partial(call, store))
    gate.opened.set()
    assert await running == 2
    await store.save_workflow_state(a_state())
    assert len(await store.list_active_workflows()) == 1


def without_a_loop(call: Callable[[], Awaitable[Any]]) -> None:
    """As another framework than asyncio, or code that drives coroutines by itself, would begin it."""
    next(call().__await__())


async def test_a_call_where_no_loop_of_asyncio_runs_is_refused(store: StateStore) -> None:
    for name, call in CALLS.items():
        with case(name), pytest.raises(ConfigurationError, match="no event loop"):
            await asyncio.to_thread(without_a_loop, partial(call, store))


async def test_to_open_a_store_where_no_loop_of_asyncio_runs_is_refused(database_url: str) -> None:
    async def opened() -> None:
        await StateStore.open(database_url)

    with pytest.raises(ConfigurationError, match="no event loop"):
        await asyncio.to_thread(without_a_loop, opened)


async def test_many_threads_with_loops_of_their_own_harm_nobody(store: StateStore) -> None:
    with ThreadPoolExecutor(8) as threads:
        loop = asyncio.get_running_loop()
        calls = [
            loop.run_in_executor(threads, in_another_loop, lambda n=number: store.run("n", handler, workflow_id=f"{n}"))
            for number in range(24)
        ]
        mine = [store.run("n", handler, workflow_id=f"mine {number}") for number in range(24)]
        outcomes = await asyncio.gather(*calls, *mine, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ConfigurationError] * 24 + [int] * 24


async def test_a_step_asked_for_in_another_loop_is_refused_before_its_function_is_called(store: StateStore) -> None:
    called = []

    async def asks_elsewhere(run: Run) -> str:
        try:
            await asyncio.to_thread(in_another_loop, lambda: run.step("load", lambda: called.append(1)))
        except ConfigurationError as error:
            return str(error)
        return "done"

    assert "another event loop" in await store.run("n", asks_elsewhere, workflow_id="w")
    assert called == []


async def test_a_unit_that_is_used_in_another_loop_says_so_and_goes_on_in_its_own(store: StateStore) -> None:
    state = a_state()
    async with store.begin() as uow:
        with pytest.raises(ConfigurationError, match="another event loop"):
            await asyncio.to_thread(in_another_loop, lambda: uow.workflows.save(a_state("other")))
        await uow.workflows.save(state)
    assert [found.id for found in await store.list_active_workflows()] == [state.id]


def test_a_store_that_outlives_its_loop_says_what_to_do(sqlite_url: str) -> None:
    async def open_store() -> StateStore:
        store = await StateStore.open(sqlite_url)
        await store.save_workflow_state(a_state())
        return store

    store = asyncio.run(open_store())
    for call in (store.list_active_workflows, store.close):
        with pytest.raises(ConfigurationError, match=r"has ended.*asyncio\.run"):
            asyncio.run(call())


def test_a_closed_store_may_be_closed_again_in_any_loop(sqlite_url: str) -> None:
    async def open_and_close() -> StateStore:
        async with StateStore.open(sqlite_url) as store:
            return store

    store = asyncio.run(open_and_close())
    asyncio.run(store.close())


async def test_a_store_may_be_used_from_any_thread_by_way_of_its_loop(store: StateStore) -> None:
    loop = asyncio.get_running_loop()

    def save() -> None:
        state = a_state()
        asyncio.run_coroutine_threadsafe(store.save_workflow_state(state), loop).result(10)

    await asyncio.to_thread(save)
    assert len(await store.list_active_workflows()) == 1
