"""What a durable run costs on both databases: commits, statements and connections."""

import asyncio
from contextlib import nullcontext
from typing import Any

import pytest

from orchestrator_state import Run, StateStore
from tests.support.running import Effect, Failing, seconds, vanish
from tests.support.statements import Traffic, hops, traffic_of


async def cost_in_a_run(store: StateStore, call: Any, **options: Any) -> Traffic:
    """What `call(run)` sends, in the middle of a run."""

    async def handler(run: Run) -> None:
        for n in range(3):
            await run.step(f"before {n}", Effect(), n)
        with traffic_of(store) as traffic:
            await call(run)
        costs.append(traffic)

    costs: list[Traffic] = []
    await store.run("n", handler, **options)
    return costs[0]


def assert_one_commit(cost: Traffic, backend: str, *, verbs: list[str]) -> None:
    """On Postgres one statement, which is a transaction by itself; on SQLite those."""
    assert cost.commits == 1
    if backend == "postgres":
        assert len(cost.statements) == 1
    else:
        assert [statement.split()[0] for statement in cost.statements] == verbs


async def test_a_step_is_one_commit_of_one_statement_or_of_four(store: StateStore, backend: str) -> None:
    cost = await cost_in_a_run(store, lambda run: run.step("a", Effect(), {"some": "outputs"}))
    assert_one_commit(cost, backend, verbs=["UPDATE", "INSERT", "INSERT", "DELETE"])


@pytest.mark.parametrize("backend", ["sqlite"])
async def test_a_step_is_one_switch_of_threads(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        await run.step("before", Effect())
        with hops() as switches:
            await run.step("a", Effect(), {"some": "outputs"})
        counts.append(switches.count)

    counts: list[int] = []
    await store.run("n", handler)
    assert counts == [1]


async def test_without_a_checkpoint_it_is_two_statements_on_sqlite(database_url: str, backend: str) -> None:
    async with StateStore.open(database_url, checkpoint_every=0) as store:
        cost = await cost_in_a_run(store, lambda run: run.step("a", Effect()))
    assert_one_commit(cost, backend, verbs=["UPDATE", "INSERT"])


async def test_a_changed_context_costs_no_further_statement(store: StateStore, backend: str) -> None:
    async def change_and_step(run: Run) -> None:
        run.context["n"] = 1
        run.append("log", "item")
        await run.step("a", Effect())

    cost = await cost_in_a_run(store, change_and_step)
    assert_one_commit(cost, backend, verbs=["UPDATE", "INSERT", "INSERT", "DELETE"])


async def test_retries_and_their_error_cost_no_further_commit(store: StateStore, backend: str) -> None:
    cost = await cost_in_a_run(store, lambda run: run.step("a", Failing(ValueError("once")), retry=2))
    assert_one_commit(cost, backend, verbs=["UPDATE", "INSERT", "INSERT", "DELETE"])


async def test_a_declared_on_unknown_costs_a_second_commit(store: StateStore) -> None:
    cost = await cost_in_a_run(store, lambda run: run.step("a", Effect(), on_unknown="raise"))
    assert cost.commits == 2
    assert len([statement for statement in cost.statements if "INSERT INTO step_states" in statement]) == 2


async def test_a_hundred_steps_at_once_are_few_commits(store: StateStore, backend: str) -> None:
    start, end = asyncio.Barrier(100), asyncio.Barrier(100)
    costs: list[Traffic] = []

    async def handler(run: Run) -> None:
        await start.wait()
        with traffic_of(store) if run.context["n"] == 0 else nullcontext(Traffic()) as traffic:
            await run.step("a", Effect())
            await end.wait()  # so that nothing but steps is counted, and all of them are
        if run.context["n"] == 0:
            costs.append(traffic)

    await asyncio.gather(*(store.run("n", handler, context={"n": n}) for n in range(100)))
    assert costs[0].commits <= 4
    assert len(costs[0].statements) <= (4 if backend == "postgres" else 400)


async def test_a_transaction_is_one_commit(store: StateStore) -> None:
    async def nothing(session: Any) -> None:
        pass

    cost = await cost_in_a_run(store, lambda run: run.transact("a", nothing))
    assert cost.commits == 1


async def test_the_cost_of_a_step_does_not_grow_with_their_number(store: StateStore, backend: str) -> None:
    async def handler(run: Run) -> None:
        for n in range(30):
            with traffic_of(store) as traffic:
                await run.step("step", Effect(), n)
            costs.append((traffic.commits, len(traffic.statements)))

    costs: list[tuple[int, int]] = []
    await store.run("n", handler)
    # The first use of an array type on a connection makes asyncpg ask what it is.
    assert set(costs[1:]) == {(1, 1 if backend == "postgres" else 4)}


async def test_a_new_run_is_a_look_its_creation_and_its_end(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        pass

    with traffic_of(store) as traffic:
        await store.run("n", handler, workflow_id="w")
    assert [statement.split()[0] for statement in traffic.statements] == ["SELECT", "INSERT", "UPDATE"]
    assert traffic.commits == 2


async def test_resuming_is_one_load_and_a_recorded_step_costs_nothing(store: StateStore) -> None:
    async def handler(run: Run) -> int:
        with traffic_of(store) as replay:
            for n in range(40):
                run.context["n"] = n
                await run.step("step", Effect(), n)
            await run.checkpoint()
            await run.sleep(0)
        replays.append(replay)
        if len(replays) == 1:
            vanish()
        return int(run.context["n"])

    replays: list[Traffic] = []
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    with traffic_of(store) as resuming:
        assert await store.run("n", handler, workflow_id="w") == 39
    assert (replays[1].statements, replays[1].commits) == ([], 0)
    assert resuming.commits == 2, "the claim and the end"
    selects = [statement for statement in resuming.statements if statement.startswith("SELECT")]
    assert len([statement for statement in selects if "FROM step_states" in statement]) == 1
    assert len(resuming.statements) <= 4, "look, claim, load, end"


async def test_a_finished_run_is_answered_in_one_statement(store: StateStore) -> None:
    async def handler(run: Run) -> int:
        return 7

    await store.run("n", handler, workflow_id="w")
    with traffic_of(store) as traffic:
        assert await store.run("n", handler, workflow_id="w") == 7
    assert len(traffic.statements) == 1


async def test_two_hundred_runs_whose_steps_sleep_hold_no_connection_of_a_pool_of_five(database_url: str) -> None:
    async with StateStore.open(database_url, pool_min=0, pool_max=5, pool_timeout=seconds(60)) as store:
        pool: Any = store._transactions.database._pool.pool
        asleep, all_asleep, wake = [], asyncio.Event(), asyncio.Event()

        async def work(n: int) -> int:
            asleep.append(n)
            if len(asleep) == 200:
                all_asleep.set()
            await wake.wait()
            return n

        async def handler(run: Run) -> int:
            return int(await run.step("work", work, run.context["n"]))

        runs = asyncio.gather(*(store.run("n", handler, context={"n": n}) for n in range(200)))
        await all_asleep.wait()
        while pool.checkedout():  # noqa: ASYNC110 - by whoever writes down, for a moment, which steps take long
            await asyncio.sleep(0.01)
        assert len(await store.list_active_workflows()) == 200, "the pool is there for others"
        wake.set()
        assert await runs == list(range(200))
        assert pool.size() <= 5
        assert pool.overflow() <= 0


async def test_a_run_that_waits_holds_no_connection(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        return list(await asyncio.gather(run.wait_for("approval"), run.sleep(0.3)))

    pool: Any = store._transactions.database._pool.pool
    state = await store.start("n", workflow_id="w")
    task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    idle = 0
    while idle < 3:
        await asyncio.sleep(0.05)
        idle += pool.checkedout() == 0
    await store.signal(state.id, "approval", "yes")
    assert await task == ["yes", None]
