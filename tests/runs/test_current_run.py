"""`Run.current()`: the run of whoever is calling, for code deep inside a handler or a step."""

import asyncio
import multiprocessing
import threading
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state import ConfigurationError, Run, StateStore


def current() -> str:
    """Whose code is calling, for functions that have no run among their arguments."""
    return Run.current().workflow_id


async def current_soon() -> str:
    await asyncio.sleep(0)
    return Run.current().workflow_id


async def test_it_is_found_in_the_handler_in_its_steps_and_in_what_they_start(store: StateStore) -> None:
    async def nested() -> tuple[str, ...]:
        return await asyncio.gather(current_soon(), asyncio.create_task(current_soon()), asyncio.to_thread(current))

    async def in_transaction(session: AsyncSession) -> str:
        return await current_soon()

    async def handler(run: Run) -> Any:
        assert Run.current() is run
        return [
            await current_soon(),
            await run.step("async", current_soon),
            await run.step("sync", current),
            await run.step("nested", nested),
            await run.transact("transact", in_transaction),
        ]

    assert await store.run("n", handler, workflow_id="w") == ["w", "w", "w", ["w"] * 3, "w"]


async def test_runs_side_by_side_find_themselves(store: StateStore) -> None:
    together = asyncio.Barrier(5)

    async def meet() -> str:
        await together.wait()
        return current()

    async def handler(run: Run) -> list[str]:
        return [await run.step("meet", meet), current()]

    found = await asyncio.gather(*(store.run("n", handler, workflow_id=f"w-{n}") for n in range(5)))
    assert found == [[f"w-{n}"] * 2 for n in range(5)]


async def test_a_child_is_the_current_run_in_the_child_and_its_parent_after_it(store: StateStore) -> None:
    async def child(run: Run) -> str:
        assert Run.current() is run
        return await run.step("who", lambda: str(Run.current().parent_id))

    async def handler(run: Run) -> list[str]:
        return [await run.child("child", child), current()]

    found = await store.run("n", handler, workflow_id="w")
    state = await store.load_workflow_state_by_workflow_id("w")
    assert found == [str(state.id), "w"]


async def test_with_two_stores_it_is_the_innermost(store: StateStore) -> None:
    async def inner(run: Run) -> str:
        return current()

    async with StateStore.open(":memory:") as other:

        async def handler(run: Run) -> list[str]:
            return [await other.run("i", inner, workflow_id="inner"), current()]

        assert await store.run("n", handler, workflow_id="outer") == ["inner", "outer"]


async def test_a_step_that_is_replayed_has_found_what_its_function_found(store: StateStore) -> None:
    async def key() -> str:
        return Run.current().step_key

    async def handler(run: Run) -> str:
        return await run.step("s", key)

    found = await store.run("n", handler, workflow_id="w")
    state = await store.load_workflow_state_by_workflow_id("w")
    assert str(state.id) in found


async def test_a_step_is_still_refused_inside_a_step(store: StateStore) -> None:
    async def step() -> None:
        await Run.current().step("inner", current_soon)

    async def handler(run: Run) -> None:
        with pytest.raises(ConfigurationError, match="called a step of its own run"):
            await run.step("outer", step)

    await store.run("n", handler)


async def test_outside_a_run_there_is_none(store: StateStore) -> None:
    with pytest.raises(ConfigurationError, match="is for code that the handler"):
        Run.current()

    async def handler(run: Run) -> str:
        found: list[Any] = []

        def look() -> None:
            try:
                found.append(Run.current())
            except ConfigurationError as error:
                found.append(str(error))

        thread = threading.Thread(target=look)  # has no context of ours
        thread.start()
        thread.join()
        return str(found[0])

    assert "is for code that the handler" in await store.run("n", handler)


async def test_once_the_run_has_ended_there_is_none(store: StateStore) -> None:
    ended, kept = asyncio.Event(), []

    async def look() -> str:
        await ended.wait()
        return current()

    async def handler(run: Run) -> None:
        kept.append(asyncio.create_task(look()))

    async def held(run: Run) -> None:
        runs.append(run)
        await handler(run)

    runs: list[Run] = []
    for each in (handler, held):
        await store.run("n", each)
    ended.set()
    for task in kept:
        with pytest.raises(ConfigurationError, match="has ended"):
            await task


@pytest.mark.process
async def test_a_forked_process_finds_none_although_it_has_the_context(store: StateStore) -> None:
    async def handler(run: Run) -> str:
        def look(pipe: Any) -> None:
            try:
                current()
            except ConfigurationError as error:
                pipe.send(str(error))

        def fork() -> str:
            ours, theirs = multiprocessing.Pipe()
            child = multiprocessing.get_context("fork").Process(target=look, args=(theirs,))
            child.start()
            assert ours.poll(30)
            child.join()
            return str(ours.recv())

        return await run.step("fork", fork)

    assert "belongs to its process" in await store.run("n", handler)
