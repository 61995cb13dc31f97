"""Branches whose handler is gone: `asyncio.wait` and `as_completed` leave their tasks alone when they are cancelled."""

import asyncio
import gc
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from orchestrator_state import ConfigurationError, Run, RunCancelled, RunPaused, StateStore
from tests.support.cases import case
from tests.support.held import comes_true
from tests.support.running import Effect, row_of, steps_of

Heard = list[dict[str, Any]]
Branches = list["asyncio.Task[Any]"]


@pytest.fixture
async def heard() -> AsyncIterator[Heard]:
    """What asyncio tells the log, such as the exception of a task at whose result nobody has looked."""
    told: Heard = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    yield told
    asyncio.get_running_loop().set_exception_handler(None)


async def by_wait(branches: Branches) -> None:
    await asyncio.wait(branches)


async def by_as_completed(branches: Branches) -> None:
    for each in asyncio.as_completed(branches):
        await each


async def is_suspended(store: StateStore, _workflow_id: str, handler: Callable[[Run], Awaitable[Any]]) -> None:
    assert len((await store.recover({"n": handler})).suspended) == 1


async def begun(store: StateStore, workflow_id: str, handler: Callable[[Run], Awaitable[Any]]) -> asyncio.Task[Any]:
    """The run, whose handler has come to its first `await`."""
    called = asyncio.Event()

    async def noted(run: Run) -> Any:
        called.set()
        return await handler(run)

    task = asyncio.create_task(store.run("n", noted, workflow_id=workflow_id))
    await called.wait()
    return task


async def is_asked(ask: str, store: StateStore, workflow_id: str, handler: Callable[[Run], Awaitable[Any]]) -> None:
    task = await begun(store, workflow_id, handler)
    await getattr(store, ask)((await row_of(store, workflow_id)).id)
    with suppress(RunCancelled, RunPaused):
        await task


async def is_cancelled(store: StateStore, workflow_id: str, handler: Callable[[Run], Awaitable[Any]]) -> None:
    await is_asked("cancel", store, workflow_id, handler)


async def is_paused(store: StateStore, workflow_id: str, handler: Callable[[Run], Awaitable[Any]]) -> None:
    await is_asked("pause", store, workflow_id, handler)


async def is_left(store: StateStore, workflow_id: str, handler: Callable[[Run], Awaitable[Any]]) -> None:
    """Its caller is cancelled, as a worker that stops is."""
    task = await begun(store, workflow_id, handler)
    while "sleep" not in await steps_of(store, workflow_id):  # noqa: ASYNC110 - the run's commit, after which it waits
        await asyncio.sleep(0.02)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_the_branches_of_a_run_that_was_stopped_end_with_it_and_are_no_mistake_of_the_handlers(
    store: StateStore, heard: Heard
) -> None:
    ends = (is_suspended, is_cancelled, is_paused, is_left)  # the last is one that a worker would take up
    for end, join in itertools.product(ends, (by_wait, by_as_completed)):
        with case(name := f"{end.__name__} {join.__name__}"):
            await assert_branches_end(store, name, join, end)
    gc.collect()
    assert heard == []


async def assert_branches_end(
    store: StateStore,
    workflow_id: str,
    join: Callable[[Branches], Awaitable[None]],
    end: Callable[..., Awaitable[None]],
) -> None:
    branches: Branches = []

    async def handler(run: Run) -> None:
        for wait in (run.wait_for("a"), run.sleep(3600)):
            branches.append(asyncio.create_task(wait))
        await join(branches)

    await store.start("n", workflow_id=workflow_id)
    await end(store, workflow_id, handler)
    assert await comes_true(lambda: all(branch.done() for branch in branches))
    assert all(branch.cancelled() for branch in branches)


async def test_a_branch_in_plain_code_does_not_go_on_with_a_run_that_was_stopped(
    store: StateStore, heard: Heard
) -> None:
    branches: Branches = []
    go_on = asyncio.Event()

    async def plain(run: Run) -> None:
        await go_on.wait()
        await run.step("after", Effect())

    async def handler(run: Run) -> None:
        branches.append(asyncio.create_task(plain(run)))
        await asyncio.wait([*branches, asyncio.create_task(run.wait_for("a"))])

    await store.start("n", workflow_id="w")
    await is_cancelled(store, "w", handler)
    go_on.set()
    await asyncio.wait(branches)
    assert branches[0].cancelled()
    assert heard == []


async def test_a_branch_that_its_handler_forgot_is_told_so_when_the_run_is_over(store: StateStore) -> None:
    """And does not wait, and look into the database, for ever."""
    branches: Branches = []

    async def handler(run: Run) -> str:
        branches.append(asyncio.create_task(run.wait_for("never")))
        await run.step("s", asyncio.sleep, 0.1)
        return "done"

    assert await store.run("n", handler, workflow_id="w") == "done"
    async with asyncio.timeout(60):
        with pytest.raises(ConfigurationError, match="must await all its steps"):
            await branches[0]
