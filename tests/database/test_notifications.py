"""A worker that would look for work in an hour learns at once that there is some.

On Postgres by LISTEN/NOTIFY, and on SQLite of what is written in its own process.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta

import pytest

from orchestrator_state import Event, Run, StateStore, Worker
from orchestrator_state.hooks import RunEnded

Idle = Callable[[], AbstractAsyncContextManager[None]]


async def handler(run: Run) -> None:
    if run.context.get("waits"):
        await run.wait_for("go")


class Ends:
    """A hook that knows when a run was completed."""

    def __init__(self) -> None:
        self.completed = asyncio.Event()

    def on_event(self, event: Event) -> None:
        if isinstance(event, RunEnded) and event.outcome == "completed":
            self.completed.set()


class IdleWorker(Worker):
    """Knows when it has looked for work and waits for news."""

    idle: asyncio.Event

    async def _wait_for_news(self) -> None:
        self.idle.set()
        await super()._wait_for_news()


@pytest.fixture
def ends() -> Ends:
    return Ends()


@pytest.fixture
async def store(database_url: str, ends: Ends) -> AsyncIterator[StateStore]:
    async with StateStore.open(database_url, hook=ends) as store:
        yield store


@pytest.fixture
def idle_worker(store: StateStore, ends: Ends) -> Idle:
    """A worker that has looked for work and found none; what the block does must let it complete a run."""

    @asynccontextmanager
    async def idle() -> AsyncIterator[None]:
        worker = IdleWorker(store, {"run": handler}, poll=timedelta(hours=1), handle_signals=False)
        worker.idle = asyncio.Event()
        async with worker:
            await worker.idle.wait()
            ends.completed.clear()
            yield
            async with asyncio.timeout(60):
                await ends.completed.wait()

    return idle


async def test_a_run_that_is_started(store: StateStore, idle_worker: Idle) -> None:
    async with idle_worker():
        await store.start("run")


async def test_a_run_that_is_signalled(store: StateStore, idle_worker: Idle) -> None:
    state = await store.start("run", context={"waits": True})
    assert (await store.recover({"run": handler})).suspended
    async with idle_worker():
        await store.signal(state.id, "go")


async def test_a_run_that_is_resumed(store: StateStore, idle_worker: Idle) -> None:
    state = await store.start("run")
    await store.pause(state.id)
    async with idle_worker():
        await store.resume(state.id)


async def test_a_run_that_its_worker_lets_go_of(store: StateStore, database_url: str, idle_worker: Idle) -> None:
    under_way = asyncio.Event()

    async def stuck(_: Run) -> None:
        under_way.set()
        await asyncio.Event().wait()

    async with StateStore.open(database_url) as other:
        first = asyncio.create_task(other.run("run", stuck, workflow_id="w-1"))
        await under_way.wait()
        async with idle_worker():
            first.cancel()


async def test_a_run_that_is_forked(store: StateStore, idle_worker: Idle) -> None:
    async def labelled(run: Run) -> None:
        await run.checkpoint("here")

    await store.run("run", labelled, workflow_id="w-1")
    checkpoint = await store.get_latest_checkpoint((await store.load_workflow_state_by_workflow_id("w-1")).id)
    assert checkpoint
    async with idle_worker():
        await store.fork(checkpoint.id)
