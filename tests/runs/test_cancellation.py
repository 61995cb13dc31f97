"""A call that is cancelled at any moment leaves nothing behind."""

import asyncio
import gc
import sqlite3
import threading
import time
from collections.abc import Awaitable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state import Checkpoint, StateStore, WorkflowState
from orchestrator_state.database.sqlite import connection
from orchestrator_state.database.sqlite.file import SqliteFile
from orchestrator_state.models import workflow_states
from tests.support.chance import dice
from tests.support.held import comes_true, no_task_is_left, nothing_is_held
from tests.support.postgres_server import Postgres
from tests.support.states import a_state

pytestmark = pytest.mark.slow

CANCELLATIONS = 120
CALLS = {"save", "load", "checkpoint", "unit"}


async def save(store: StateStore, state: WorkflowState) -> None:
    state.context += 1
    await store.save_workflow_state(state)


async def load(store: StateStore, state: WorkflowState) -> None:
    await store.load_workflow_state(state.id)


async def checkpoint(store: StateStore, state: WorkflowState) -> None:
    await store.create_checkpoint(Checkpoint(workflow_state_id=state.id, step_id="s", snapshot=state.context))


async def unit(store: StateStore, state: WorkflowState) -> None:
    async with store.begin() as uow:
        await uow.workflows.save(a_state())
        await uow.checkpoints.add(Checkpoint(workflow_state_id=state.id, step_id="s", snapshot=1))
        async with uow.session.begin_nested():
            await uow.session.execute(select(workflow_states.c.id))
        await asyncio.sleep(0)


async def leak(session: AsyncSession, begun: asyncio.Event) -> None:
    """As a program has it that forgets that it may be cancelled."""
    await session.execute(update(workflow_states).values(error=None))
    begun.set()
    await asyncio.Event().wait()


async def run_and_cancel(work: Awaitable[None], moment: float, *, again: bool = False) -> bool:
    """Cancel `work` after a while, perhaps `again` while it cleans up; return whether it was still under way."""
    task = asyncio.ensure_future(work)
    until = time.monotonic() + moment
    while time.monotonic() < until:  # noqa: ASYNC110 - a timer is not exact enough for a call of half a millisecond
        await asyncio.sleep(0)
    task.cancel()
    if again:
        await asyncio.sleep(0)
        task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return True
    return False


@pytest.fixture
def no_garbage_collector() -> Iterator[None]:
    """What is only released when the collector happens to come by, is not released."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage_collector")
async def test_a_call_cancelled_at_any_moment_leaves_nothing_behind(
    database_url: str, backend: str, postgres: Postgres
) -> None:
    chance = dice()
    server = postgres if backend == "postgres" else None
    outcomes: set[tuple[str, bool]] = set()
    options: dict[str, Any] = {"pool_min": 1, "pool_max": 3, "lock_timeout": timedelta(seconds=10)}
    async with StateStore.open(database_url, retry_timeout=timedelta(seconds=10), **options) as store:
        state = a_state()
        await store.save_workflow_state(state)
        number = 0
        # More often, if by chance some call always came to its end before it was cancelled.
        while number < CANCELLATIONS or {name for name, cancelled in outcomes if cancelled} != CALLS:
            number += 1
            work = chance.choice([save, load, checkpoint, checkpoint, unit])
            begun = time.monotonic()
            await work(store, state)
            duration = time.monotonic() - begun
            before = state.version
            cancelled = await run_and_cancel(work(store, state), chance.uniform(0, duration))
            outcomes.add((work.__name__, cancelled))
            # Cancelled in its commit, a save may or may not have happened; the memory claims no more than what is sure.
            there = (await store.load_workflow_state(state.id)).version
            assert before <= state.version <= there <= before + 1
            if cancelled and state.version != there:
                state = await store.load_workflow_state(state.id)
            if number % 25 == 0:
                assert await comes_true(lambda: nothing_is_held(store, database_url, server) and no_task_is_left())
        assert await comes_true(lambda: nothing_is_held(store, database_url, server) and no_task_is_left())
        state = await store.load_workflow_state(state.id)
        await save(store, state)
        assert (await store.load_workflow_state(state.id)).context == state.context


async def test_many_calls_cancelled_together_leave_nothing_behind(
    database_url: str, backend: str, postgres: Postgres
) -> None:
    """Here some are cancelled while they wait for a connection, a lock, or their turn, and some twice."""
    chance = dice()
    async with StateStore.open(database_url, pool_min=1, pool_max=3) as store:
        state = a_state()
        await store.save_workflow_state(state)
        for _ in range(5):
            works = [chance.choice([load, checkpoint, unit])(store, state) for _ in range(30)]
            await asyncio.gather(
                *(run_and_cancel(work, chance.uniform(0, 0.05), again=chance.random() < 0.3) for work in works)
            )
        # Not the tasks: cancelled again while it closes a connection, the driver leaves one behind that holds nothing.
        server = postgres if backend == "postgres" else None
        assert await comes_true(lambda: nothing_is_held(store, database_url, server))
        await save(store, state)
        await asyncio.gather(*(checkpoint(store, state) for _ in range(5)))
        latest = await store.get_latest_checkpoint(state.id)
        assert latest is not None
        async with store.begin() as uow:
            kept = [each.seq for each in await uow.checkpoints.list(state.id)]
        assert kept == list(range(kept[0] or 0, (kept[0] or 0) - len(kept), -1))


async def test_a_file_that_was_being_opened_for_a_cancelled_call_is_closed(tmp_path: Path) -> None:
    """Not by the garbage collector, which does it whenever it comes by, and warns of it since Python 3.13."""
    made: list[sqlite3.Connection] = []
    opening, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slowly(*arguments: Any, **options: Any) -> sqlite3.Connection:
        made.append(sqlite3.Connection(*arguments, **options))
        loop.call_soon_threadsafe(opening.set)
        go_on.wait()
        return made[0]

    file, threads = SqliteFile(tmp_path / "w.db"), WeakSet[connection.SqliteConnection]()

    async def connect() -> None:
        await connection.connect(threads, file, {}, "", timeout=5, factory=slowly, check_same_thread=False)

    task = asyncio.create_task(connect())
    await opening.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    go_on.set()
    await connection.wait_until_closed(threads)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        made[0].execute("SELECT 1")


async def test_the_harness_sees_a_program_that_leaks_when_cancelled(
    database_url: str, backend: str, postgres: Postgres
) -> None:
    server = postgres if backend == "postgres" else None
    begun = asyncio.Event()
    async with StateStore.open(database_url, pool_min=1) as store:
        await store.save_workflow_state(a_state())
        session = AsyncSession(store._transactions.database.writer)
        task = asyncio.create_task(leak(session, begun))
        await begun.wait()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert not await comes_true(lambda: nothing_is_held(store, database_url, server), within=0.5)
        await session.close()
