"""A store from its opening to its end: exit, close, and a small pool."""

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state import Checkpoint, ConfigurationError, Run, StateStore, StoreUnavailable
from tests.support.forked_programs import ForkedPrograms
from tests.support.held import checked_out, comes_true
from tests.support.postgres_server import Postgres
from tests.support.running import row_of
from tests.support.states import a_state

pytestmark = pytest.mark.process

# --- Exit -------------------------------------------------------------------------------------------------------

LEFT_OPEN = """
import asyncio, sys, warnings
from orchestrator_state import StateStore, WorkflowState

warnings.simplefilter("ignore")

async def main():
    store = await StateStore.open(sys.argv[1])
    await store.save_workflow_state(WorkflowState(workflow_id="left", workflow_name="n"))
    if sys.argv[2] == "in a unit":
        unit = store.begin()
        uow = await unit.__aenter__()
        await uow.workflows.save(WorkflowState(workflow_id="unfinished", workflow_name="n"))
        globals()["unit"] = unit
    globals()["store"] = store
    print("saved", flush=True)

if sys.argv[2] == "in a unit":
    loop = asyncio.new_event_loop()  # never closed either
    loop.run_until_complete(main())
else:
    asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["after a call", "in a unit"])
def test_a_store_left_open_does_not_keep_the_interpreter_from_ending(
    forked_programs: ForkedPrograms, database_url: str, tmp_path: Path, how: str
) -> None:
    done = forked_programs.run(LEFT_OPEN, database_url, how, cwd=tmp_path, env=os.environ)
    assert (done.returncode, done.stdout) == (0, "saved\n"), done.stderr

    async def names() -> list[str]:
        async with StateStore.open(database_url) as store:
            return [state.workflow_id for state in await store.list_active_workflows()]

    assert asyncio.run(names()) == ["left"]


# --- Close ------------------------------------------------------------------------------------------------------


async def test_a_store_may_be_closed_twice_and_refuses_every_call_afterwards(database_url: str) -> None:
    store = await StateStore.open(database_url)
    state = a_state()
    await store.save_workflow_state(state)
    await store.close()
    await store.close()
    checkpoint = Checkpoint(workflow_state_id=state.id, step_id="s", snapshot=1)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.save_workflow_state(state),
        lambda: store.load_workflow_state(state.id),
        lambda: store.load_workflow_state_by_workflow_id("w"),
        store.list_active_workflows,
        lambda: store.create_checkpoint(checkpoint),
        lambda: store.get_latest_checkpoint(state.id),
        lambda: store.restore_from_checkpoint(checkpoint.id),
        lambda: store.delete_old_states(state.updated_at),
        lambda: store.cleanup_old_checkpoints(state.id),
        store.health_check,
        lambda: store.begin().__aenter__(),
    ]
    for call in calls:
        with pytest.raises(ConfigurationError, match="closed"):
            await call()
    assert state.version == 1


async def test_closing_ends_every_thread_and_connection(database_url: str, backend: str, postgres: Postgres) -> None:
    before = set(threading.enumerate())
    async with StateStore.open(database_url) as store:
        await asyncio.gather(*(store.list_active_workflows() for _ in range(20)))
    if backend == "postgres":
        name = urlsplit(database_url).path[1:]
        assert await comes_true(lambda: not postgres.execute("SELECT 1 FROM pg_stat_activity WHERE datname = $1", name))
    assert await comes_true(lambda: set(threading.enumerate()) <= before)


async def _in_a_step(run: Run) -> None:
    await run.step("s", asyncio.sleep, 60)


async def _between_steps(run: Run) -> None:
    for number in range(10_000):
        await run.step(f"s{number}", int)
        await asyncio.sleep(0)


async def _in_transact(run: Run) -> None:
    async def idly(session: AsyncSession) -> None:
        await session.execute(select(1))
        await asyncio.sleep(60)

    await run.transact("t", idly)


async def _waiting(run: Run) -> None:
    await run.wait_for("never")


async def _waiting_for_a_while(run: Run) -> None:
    await run.wait_for("never", timeout=60)


async def _child_waiting(run: Run) -> None:
    await run.child("child", _waiting)


@pytest.mark.parametrize(
    "handler", [_in_a_step, _between_steps, _in_transact, _waiting, _waiting_for_a_while, _child_waiting]
)
async def test_closing_stops_runs_where_they_are_and_lets_go_of_them(
    database_url: str, handler: Callable[[Run], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "orchestrator_state.execution.leases._TO_STOP", 30.0
    )  # what takes longer is left to the end of the lease
    seen: list[str] = []

    async def watched(run: Run) -> None:
        try:
            began.set()
            await handler(run)
        except Exception as error:
            seen.append(type(error).__name__)  # what a handler would compensate for
            raise

    began = asyncio.Event()
    store = await StateStore.open(database_url)
    running = asyncio.create_task(store.run("n", watched, workflow_id="w", context={}))
    await began.wait()
    await asyncio.sleep(0.1)
    await store.close()
    with pytest.raises(StoreUnavailable, match="the store is closed"):
        await running
    assert seen == []
    async with StateStore.open(database_url) as other:
        row = await row_of(other, "w")
    assert (row.status, row.lease_expires_at) == ("running", None)


async def test_a_run_that_is_claimed_while_its_store_closes_is_stopped(store: StateStore) -> None:
    await store._executor.keeper.stop_runs()
    with pytest.raises(StoreUnavailable, match="the store is closed"):
        await store.run("n", _waiting, workflow_id="w", context={})


async def test_closing_does_not_wait_for_a_run_that_will_not_stop(database_url: str) -> None:
    async def stubborn() -> None:
        while not closed.is_set():
            with suppress(asyncio.CancelledError):
                began.set()
                await closed.wait()

    async def handler(run: Run) -> None:
        await run.step("s", stubborn)

    began, closed = asyncio.Event(), asyncio.Event()
    store = await StateStore.open(database_url)
    running = asyncio.create_task(store.run("n", handler, workflow_id="w", context={}))
    await began.wait()
    await store.close()
    closed.set()
    with pytest.raises(StoreUnavailable, match="the store is closed"):
        await running


async def test_two_hundred_tasks_share_a_pool_of_five(database_url: str) -> None:
    async with StateStore.open(database_url, pool_min=1, pool_max=5) as store:
        most = 0

        async def use(number: int) -> None:
            nonlocal most
            state = a_state(str(number))
            await store.save_workflow_state(state)
            most = max(most, checked_out(store))
            assert await store.load_workflow_state(state.id) == state

        await asyncio.gather(*(use(number) for number in range(200)))
        assert len(await store.list_active_workflows()) == 200
        assert most <= 5
        assert checked_out(store) == 0
