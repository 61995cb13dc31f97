"""Workers: they share the runs, hear of new ones, end gently, and survive their database and their neighbours."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from orchestrator_state import ConfigurationError, Run, StateStore, Worker, WorkflowStatus
from tests.chaos.children import Child
from tests.chaos.workers import Job, work
from tests.support.held import checked_out, comes_true
from tests.support.postgres_server import PrivatePostgres
from tests.support.running import Effect, Gate, row_of, seconds
from tests.support.statements import rewritten, traffic_of

PATIENCE = 30  # seconds until what should happen at once counts as not happening


async def is_over(store: StateStore, workflow_id: str) -> Any:
    """Wait until the run has ended, and return its row."""
    async with asyncio.timeout(PATIENCE):
        while True:
            row = await row_of(store, workflow_id)
            if row.status not in (WorkflowStatus.PENDING, WorkflowStatus.RUNNING):
                return row
            await asyncio.sleep(0.02)


# --- sharing -----------------------------------------------------------------------------------------------------


async def test_several_workers_share_the_runs(database_url: str) -> None:
    everybody = asyncio.Barrier(6)

    async def handler(run: Run) -> None:
        # Passed only when all six runs are under way: two in each of three workers.
        await run.step("meet", meet)

    async def meet() -> None:
        await everybody.wait()

    async with StateStore.open(database_url) as store, StateStore.open(database_url) as second:
        for number in range(6):
            await store.start("meet", workflow_id=f"w-{number}")
        workers = [
            Worker(of, {"meet": handler}, concurrency=2, poll=0.05, handle_signals=False)
            for of in (store, second, store)
        ]
        async with workers[0], workers[1], workers[2]:
            rows = [await is_over(store, f"w-{number}") for number in range(6)]
        assert [(row.status, row.lease_token, row.attempts) for row in rows] == [("completed", 1, 0)] * 6


async def test_a_worker_has_as_many_runs_under_way_as_its_concurrency_and_no_more(store: StateStore) -> None:
    at_once = most = 0
    three = asyncio.Barrier(3)

    async def step() -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await three.wait()
        at_once -= 1

    for number in range(12):
        await store.start("w", workflow_id=f"w-{number}")
    async with Worker(store, {"w": lambda run: run.step("s", step)}, concurrency=3, poll=0.05, handle_signals=False):
        for number in range(12):
            assert (await is_over(store, f"w-{number}")).status == WorkflowStatus.COMPLETED
    assert most == 3


async def test_a_run_that_fails_ends_neither_the_worker_nor_the_others(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        raise ValueError("this one")

    await store.start("fails", workflow_id="fails")
    async with Worker(store, {"fails": handler, "works": _nothing}, poll=0.05, handle_signals=False):
        assert (await is_over(store, "fails")).error == "ValueError: this one"
        await store.start("works", workflow_id="works")
        assert (await is_over(store, "works")).status == WorkflowStatus.COMPLETED


async def test_a_run_whose_handler_nobody_has_waits_for_a_worker_that_has_it(store: StateStore) -> None:
    await store.start("unknown", workflow_id="unknown")
    await store.start("known", workflow_id="known")
    async with Worker(store, {"known": _nothing}, poll=0.05, handle_signals=False):
        await is_over(store, "known")
    assert (await row_of(store, "unknown")).status == WorkflowStatus.PENDING
    async with Worker(store, {"unknown": _nothing}, poll=0.05, handle_signals=False):
        assert (await is_over(store, "unknown")).status == WorkflowStatus.COMPLETED


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"poll": 0}, {"poll": -1}])
async def test_options_that_make_no_sense_are_refused(store: StateStore, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Worker(store, {"w": _nothing}, **options)
    with pytest.raises(ConfigurationError):
        Worker(store, {})


async def _nothing(run: Run) -> None: ...


# --- ending ------------------------------------------------------------------------------------------------------


async def test_sigterm_lets_the_run_under_way_finish_and_claims_no_other(database_url: str) -> None:
    async with StateStore.open(database_url) as store:
        await store.start("work", workflow_id="first")
        with Child(work, Job(url=database_url, until_stopped=True)) as worker:
            while await worker.message() != ("first", "slow"):
                pass
            await store.start("work", workflow_id="second")
            worker.terminate()
            assert (await worker.end())[-1] == "ended"
            assert worker.exit_code == 0
        assert (await row_of(store, "first")).status == WorkflowStatus.COMPLETED
        assert (await row_of(store, "second")).status == WorkflowStatus.PENDING


async def test_after_sigterm_and_its_grace_another_worker_goes_on_at_once_where_the_first_was_stopped(
    database_url: str,
) -> None:
    effect = Effect()

    async def handler(run: Run) -> Any:
        await run.step("quick", effect, "quick")
        return await run.step("slow", effect, "slow")

    async with StateStore.open(database_url) as store:
        await store.start("work", workflow_id="w")
        with Child(work, Job(url=database_url, grace=0.2)) as worker:
            while await worker.message() != ("w", "slow"):
                pass
            worker.terminate()
            assert (await worker.end())[-1] == "ended"
        row = await row_of(store, "w")
        assert (row.status, row.lease_expires_at, row.attempts) == (WorkflowStatus.RUNNING, None, 0)

        async with Worker(store, {"work": handler}, poll=0.05, handle_signals=False):
            row = await is_over(store, "w")
    assert (row.status, row.result, row.attempts) == (WorkflowStatus.COMPLETED, '"slow"', 0)
    assert effect.calls == ["slow"]


async def test_a_worker_that_is_cancelled_lets_go_of_its_runs(store: StateStore) -> None:
    gate = Gate()
    await store.start("w", workflow_id="w")
    worker = asyncio.create_task(
        Worker(store, {"w": lambda run: run.step("s", gate)}, poll=0.05, handle_signals=False).run()
    )
    await gate.reached.wait()
    worker.cancel()
    await asyncio.wait({worker})
    assert gate.cancelled
    row = await row_of(store, "w")
    assert (row.status, row.lease_expires_at) == (WorkflowStatus.RUNNING, None)
    assert not [task for task in asyncio.all_tasks() if "orchestrator_state" in task.get_name()]


async def test_a_worker_finishes_the_run_of_a_neighbour_that_was_killed(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator_state.worker._LOOK_FOR_THE_DEAD", 0.2)
    async with StateStore.open(database_url) as store:
        await store.start("work", workflow_id="w")
        with Child(work, Job(url=database_url)) as neighbour:
            while await neighbour.message() != ("w", "slow"):
                pass
            async with Worker(
                store, {"work": lambda run: run.step("slow", Effect(), "second")}, poll=0.2, handle_signals=False
            ):
                neighbour.kill()
                row = await is_over(store, "w")
    assert (row.status, row.result, row.attempts) == (WorkflowStatus.COMPLETED, '"second"', 1)


# --- hearing of work, beside what test_notifications has ---------------------------------------------------------


async def listeners(store: StateStore) -> int:
    """How many connections to the store's database listen."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
    async with store.begin() as uow:
        return int((await uow.session.execute(text(query))).scalar_one())


async def are_listening(store: StateStore, number: int) -> None:
    """Wait until so many connections listen."""
    async with asyncio.timeout(PATIENCE):
        while True:
            if await listeners(store) == number:
                return
            await asyncio.sleep(0.02)


async def comes_to_rest(store: StateStore) -> None:
    """Wait until the store's worker has looked for what it may have missed: it asks nothing for a second.

    That is counted in turns of the loop. A process that stands still for as long has not looked.
    """
    turns = 0
    with traffic_of(store) as traffic:
        while turns < 20:
            asked = len(traffic.statements)
            await asyncio.sleep(0.05)
            is_quiet = len(traffic.statements) == asked and checked_out(store) == 0
            turns = turns + 1 if is_quiet else 0


async def test_a_run_that_nobody_announces_waits_for_the_poll(postgres_url: str) -> None:
    async with (
        StateStore.open(postgres_url) as store,
        Worker(store, {"quick": _nothing}, poll=3600, handle_signals=False),
    ):
        await are_listening(store, 1)
        await store.start("quick", workflow_id="announced")
        await is_over(store, "announced")
        await comes_to_rest(store)
        with rewritten(store, r"pg_notify\(", "concat("):
            await store.start("quick", workflow_id="not announced")
        await asyncio.sleep(1)
        assert (await row_of(store, "not announced")).status == WorkflowStatus.PENDING


async def test_a_worker_hears_of_a_dead_workers_run_from_whoever_found_out(postgres_url: str) -> None:
    def second(run: Run) -> Any:
        return run.step("slow", Effect(), "second")

    async with StateStore.open(postgres_url) as store, StateStore.open(postgres_url) as other:
        await store.start("work", workflow_id="w")
        with Child(work, Job(url=postgres_url)) as dead:
            while await dead.message() != ("w", "slow"):
                pass
            async with Worker(store, {"work": second}, poll=3600, handle_signals=False):
                await are_listening(store, 2)
                await comes_to_rest(store)
                dead.kill()
                await dead.end()
                await other.recover({"another": _nothing})
                assert (await is_over(store, "w")).result == '"second"'


async def test_a_worker_does_not_hear_of_the_runs_of_another_namespace(postgres_url: str) -> None:
    async with (
        StateStore.open(postgres_url) as store,
        StateStore.open(postgres_url, namespace="theirs") as theirs,
        Worker(store, {"quick": _nothing}, poll=3600, handle_signals=False),
    ):
        await are_listening(store, 1)
        await comes_to_rest(store)
        with traffic_of(store) as traffic:
            await theirs.start("quick", workflow_id="w")
            await asyncio.sleep(0.5)
        assert traffic.statements == []


async def test_listening_takes_no_connection_of_the_pool_and_ends_with_the_worker(postgres_url: str) -> None:
    async with StateStore.open(postgres_url, pool_min=1, pool_max=1) as store:
        async with Worker(store, {"quick": _nothing}, poll=3600, handle_signals=False):
            await are_listening(store, 1)
            await store.start("quick", workflow_id="w")
            await is_over(store, "w")
        await are_listening(store, 0)


async def test_an_idle_worker_sends_at_most_two_statements_a_second(store: StateStore) -> None:
    async with Worker(store, {"quick": _nothing}, handle_signals=False):
        await asyncio.sleep(1)  # it has found its feet
        with traffic_of(store) as traffic:
            began = time.monotonic()
            await asyncio.sleep(3.5)  # it has looked for the dead, too
            assert await comes_true(lambda: len(traffic.statements) >= 3)
            seconds = time.monotonic() - began
            assert len(traffic.statements) <= 2 * seconds + 1


# --- a database that goes away -----------------------------------------------------------------------------------


@pytest.mark.process
async def test_a_worker_survives_a_restart_of_its_database_and_hears_again(
    private_postgres: Callable[..., PrivatePostgres],
) -> None:
    server = private_postgres()
    async with (
        StateStore.open(server.url(), migrate=True) as store,
        Worker(store, {"quick": _nothing}, poll=3600, handle_signals=False),
    ):
        await are_listening(store, 1)
        await asyncio.to_thread(server.stop, "fast")
        await asyncio.sleep(1)
        await asyncio.to_thread(server.start)
        await store.start("quick", workflow_id="before it listens again")
        assert (await is_over(store, "before it listens again")).status == WorkflowStatus.COMPLETED
        await are_listening(store, 1)
        await store.start("quick", workflow_id="after")
        assert (await is_over(store, "after")).status == WorkflowStatus.COMPLETED


@pytest.mark.process
async def test_a_run_whose_database_was_away_for_longer_than_its_lease_is_stopped_and_taken_up_again(
    private_postgres: Callable[..., PrivatePostgres],
) -> None:
    server, stopped, taken_up = private_postgres(), Gate(), Gate()

    async def handler(run: Run) -> Any:
        return await run.step("s", taken_up if stopped.cancelled else stopped, "done")

    async with (
        StateStore.open(server.url(), migrate=True, lease_term=seconds(1.5)) as store,
        Worker(store, {"w": handler}, poll=0.2, handle_signals=False),
    ):
        await store.start("w", workflow_id="w")
        await stopped.reached.wait()
        await asyncio.to_thread(server.stop, "immediate")
        assert await comes_true(lambda: stopped.cancelled)
        await asyncio.to_thread(server.start)
        await taken_up.reached.wait()
        taken_up.opened.set()
        row = await is_over(store, "w")
    assert (row.status, row.lease_token) == (WorkflowStatus.COMPLETED, 2)
