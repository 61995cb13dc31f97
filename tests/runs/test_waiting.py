"""What waiting costs, when it ends, and when a worker lets go of a run that waits."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator_state import Run, RunCancelled, RunPaused, StateStore, StoreUnavailable, Worker
from orchestrator_state.runs import child_run_id
from tests.support.cases import case
from tests.support.held import comes_true
from tests.support.interleaving import just_after, just_before
from tests.support.running import Effect, all_become, becomes, row_of, seconds, vanish
from tests.support.statements import traffic_of

FAN = 60


async def leaf(run: Run) -> Any:
    return await run.wait_for("go")


def is_suspended(row: Any) -> bool:
    return row.lease_expires_at is None and row.wake_at is not None


def is_over(row: Any) -> bool:
    return row.status not in ("pending", "running")


@pytest.fixture
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a worker keeps a run that waits."""
    monkeypatch.setattr("orchestrator_state.worker._LINGER", seconds(0.2))


# --- suspension needs no lucky instant ---


async def wide(run: Run) -> list[Any]:
    return list(await asyncio.gather(*(run.child("leaf", leaf) for _ in range(FAN))))


async def test_a_wide_fan_out_of_waiting_children_is_let_go_of(store: StateStore) -> None:
    await store.start("wide", workflow_id="w")
    async with asyncio.timeout(60):
        report = await store.recover({"wide": wide, "leaf": leaf})
    assert "w" in [run.workflow_id for run in report.suspended]
    assert is_suspended(await row_of(store, "w"))


@pytest.mark.slow
@pytest.mark.usefixtures("short_linger")
async def test_a_wide_fan_out_is_let_go_of_by_a_worker_and_ends(store: StateStore) -> None:
    await store.start("wide", workflow_id="w")
    async with asyncio.timeout(120), Worker(store, {"wide": wide, "leaf": leaf}, poll=0.1, handle_signals=False):
        await becomes(is_suspended, store, "w")
        for state in await store.list_active_workflows():
            if state.workflow_name == "leaf":
                await store.signal(state.id, "go", 1)
        await becomes(is_over, store, "w")
    assert await store.run("wide", wide, workflow_id="w") == [1] * FAN


async def test_a_resumed_run_does_not_ask_each_child_that_waits_whether_it_still_does(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        await asyncio.gather(run.wait_for("more"), *(run.child("leaf", leaf) for _ in range(20)))

    await store.start("n", workflow_id="w")
    await store.recover({"n": handler})
    await store.signal((await row_of(store, "w")).id, "more")
    with traffic_of(store) as traffic:
        assert [run.workflow_id for run in (await store.recover({"n": handler})).suspended] == ["w"]
    assert traffic.commits < 20


# --- plain code beside a wait ---


async def by_gather(*work: Callable[[], Awaitable[Any]]) -> None:
    await asyncio.gather(*(each() for each in work))


async def by_group(*work: Callable[[], Awaitable[Any]]) -> None:
    async with asyncio.TaskGroup() as group:
        for each in work:
            group.create_task(each())  # type: ignore[arg-type]


async def by_wait(*work: Callable[[], Awaitable[Any]]) -> None:
    await asyncio.wait([asyncio.ensure_future(each()) for each in work])


async def by_as_completed(*work: Callable[[], Awaitable[Any]]) -> None:
    for each in asyncio.as_completed([each() for each in work]):
        await each


async def by_wait_for(*work: Callable[[], Awaitable[Any]]) -> None:
    await asyncio.wait_for(by_gather(*work), 3600)


async def by_forgotten_tasks(*work: Callable[[], Awaitable[Any]]) -> None:
    tasks = [asyncio.ensure_future(each()) for each in work[1:]]
    await work[0]()
    await asyncio.gather(*tasks)


JOINS: dict[str, Any] = {
    join.__name__: join for join in (by_gather, by_group, by_wait, by_as_completed, by_wait_for, by_forgotten_tasks)
}


async def start_all(store: StateStore, workflow_ids: Iterable[str]) -> None:
    for workflow_id in workflow_ids:
        await store.start("n", workflow_id=workflow_id)


@pytest.mark.usefixtures("short_linger")
async def test_a_branch_in_plain_code_is_not_cut_off_because_another_one_waits(store: StateStore) -> None:
    begun: list[str] = []

    async def handler(run: Run) -> None:
        async def plain() -> None:
            begun.append(run.workflow_id)
            await asyncio.sleep(1)  # as a request that is no step
            await run.step("after", Effect())

        await JOINS[run.workflow_id](lambda: run.wait_for("go"), plain)

    await start_all(store, JOINS)
    async with asyncio.timeout(60), Worker(store, {"n": handler}, poll=0.1, handle_signals=False):
        for join in JOINS:
            with case(join):
                await becomes(is_suspended, store, join)
                assert "after" in (await store.load_workflow_state_by_workflow_id(join)).steps
        assert sorted(begun) == sorted(JOINS)
        for join in JOINS:
            await store.signal((await row_of(store, join)).id, "go")
        await all_become("completed", store, JOINS)


async def test_nor_is_one_whose_tasks_have_still_to_hear_that_a_step_ended(store: StateStore) -> None:
    async def through_tasks(run: Run, levels: int) -> None:
        if levels:
            await asyncio.create_task(through_tasks(run, levels - 1))
        else:
            await run.step("before", Effect())

    async def handler(run: Run) -> None:
        async def plain() -> None:
            await through_tasks(run, 3)  # each wakes the next one in another turn of the loop
            await run.step("after", Effect())

        await JOINS[run.workflow_id](lambda: run.wait_for("go"), plain)

    for join in JOINS:
        with case(join):
            await store.start("n", workflow_id=join)
            assert len((await store.recover({"n": handler})).suspended) == 1
            assert "after" in (await store.load_workflow_state_by_workflow_id(join)).steps


async def limited_by_timeout(wait: Awaitable[Any], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        await wait


async def limited_by_wait(wait: Awaitable[Any], seconds: float) -> None:
    task = asyncio.ensure_future(wait)
    if not (await asyncio.wait({task}, timeout=seconds))[0]:
        task.cancel()
        raise TimeoutError


async def limited_by_as_completed(wait: Awaitable[Any], seconds: float) -> None:
    task = asyncio.ensure_future(wait)
    try:
        for each in asyncio.as_completed([task], timeout=seconds):
            await each
    finally:
        task.cancel()


LIMITS: dict[str, Any] = {
    limited.__name__: limited
    for limited in (limited_by_timeout, asyncio.wait_for, limited_by_wait, limited_by_as_completed)
}


@pytest.mark.usefixtures("short_linger")
async def test_a_time_limit_of_asyncios_is_kept_while_a_run_waits(store: StateStore) -> None:
    """A run that is let go of has forgotten it, and would wait for ever."""

    async def handler(run: Run) -> str:
        try:
            await LIMITS[run.workflow_id.partition(" ")[0]](run.wait_for("never"), 0.7)
        except TimeoutError:
            return await run.step("late", Effect(), "late")
        return "in time"

    await start_all(store, LIMITS)
    async with asyncio.timeout(30), Worker(store, {"n": handler}, poll=0.1, handle_signals=False):
        await all_become("completed", store, LIMITS)
    recovered = [f"{limited} recovered" for limited in LIMITS]
    await start_all(store, recovered)
    report = await store.recover({"n": handler})
    assert sorted(run.workflow_id for run in report.completed) == sorted(recovered)
    for workflow_id in (*LIMITS, *recovered):
        with case(workflow_id):
            assert await store.run("n", handler, workflow_id=workflow_id) == "late"


@pytest.mark.parametrize("limit", [0.15, 0.4])  # seconds: due before, and after, the run would be let go of
async def test_so_is_one_that_is_over_while_the_process_stands_still(store: StateStore, limit: float) -> None:
    begun: list[str] = []

    async def handler(run: Run) -> str:
        begun.append(run.workflow_id)
        if len(begun) == len(LIMITS):
            asyncio.get_running_loop().call_later(0.1, time.sleep, 0.6)
        try:
            await LIMITS[run.workflow_id](run.wait_for("never"), limit)
        except TimeoutError:
            return await run.step("late", Effect(), "late")
        return "in time"

    store._executor._shared.exits._took = 0.05  # so the next look at all tasks is due in 0.2 seconds
    await start_all(store, LIMITS)
    report = await store.recover({"n": handler})
    assert sorted(run.workflow_id for run in report.completed) == sorted(LIMITS)


async def test_a_run_is_let_go_of_however_it_joins_its_branches(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        await JOINS[run.workflow_id](
            lambda: run.wait_for("a"), lambda: run.wait_for("b"), lambda: run.sleep(timedelta(days=1))
        )

    for join in JOINS:
        with case(join):
            await store.start("n", workflow_id=join)
            async with asyncio.timeout(30):
                assert len((await store.recover({"n": handler})).suspended) == 1


async def test_what_the_loop_calls_for_others_does_not_keep_a_run_that_waits(store: StateStore) -> None:
    """In its context, and on and on: it reads a connection that the run has opened, or sends others' commits."""
    is_over = False

    async def handler(run: Run) -> None:
        def go_on() -> None:
            if not is_over:
                asyncio.get_running_loop().call_soon(go_on)

        go_on()
        await run.wait_for("go")

    await store.start("n", workflow_id="w")
    try:
        async with asyncio.timeout(10):
            assert len((await store.recover({"n": handler})).suspended) == 1
    finally:
        is_over = True


async def test_what_a_step_left_running_does_not_keep_its_run(store: StateStore) -> None:
    left: list[asyncio.Task[None]] = []

    async def connect() -> None:
        left.append(asyncio.create_task(asyncio.sleep(3600)))

    async def handler(run: Run) -> None:
        await run.step("connect", connect)
        await run.wait_for("go")

    await store.start("n", workflow_id="w")
    async with asyncio.timeout(30):
        assert len((await store.recover({"n": handler})).suspended) == 1
    left[0].cancel()


# --- what it costs ---


async def test_runs_that_wait_share_a_query_and_write_nothing(store: StateStore) -> None:
    tasks = [asyncio.create_task(store.run("n", leaf, workflow_id=f"w{n}")) for n in range(50)]
    assert await comes_true(lambda: len(store._executor.lookout._watches) == 50)
    with traffic_of(store) as traffic:
        await asyncio.sleep(2)
        assert await comes_true(lambda: len(traffic.statements) > 1)
    assert traffic.commits == 0
    assert len(traffic.statements) < 50
    for state in await store.list_active_workflows():
        await store.signal(state.id, "go", int(state.workflow_id.removeprefix("w")))
    assert await asyncio.gather(*tasks) == list(range(50))


async def test_no_task_is_left_once_nobody_waits(store: StateStore) -> None:
    state = await store.start("n", workflow_id="w")
    task = asyncio.create_task(store.run("n", leaf, workflow_id="w"))
    assert await comes_true(lambda: bool(store._executor.lookout._watches))
    await store.signal(state.id, "go", 1)
    assert await task == 1
    async with asyncio.timeout(30):
        await asyncio.wait({task for task in asyncio.all_tasks() if "lookout" in task.get_name()} or {task})


# --- what ends it ---


@pytest.mark.parametrize(("ask", "ended"), [("cancel", RunCancelled), ("pause", RunPaused)])
async def test_a_request_reaches_a_run_that_waits_long_before_the_next_heartbeat(
    database_url: str, store: StateStore, ask: str, ended: type[Exception]
) -> None:
    async with StateStore.open(database_url, lease_term=seconds(600)) as owner, asyncio.timeout(20):
        state = await store.start("n", workflow_id="w")
        task = asyncio.create_task(owner.run("n", leaf, workflow_id="w"))
        await becomes(lambda row: row.lease_expires_at is not None, store, "w")
        await getattr(store, ask)(state.id)
        with pytest.raises(ended):
            await task


async def test_a_child_that_another_worker_ends_wakes_its_parent(database_url: str, store: StateStore) -> None:
    async def parent(run: Run) -> Any:
        return await run.child("leaf", leaf)

    state = await store.start("n", workflow_id="w")
    child = child_run_id(state.id, "child:leaf")
    async with StateStore.open(database_url) as other, asyncio.timeout(30):
        await store.recover({"n": parent})  # which starts the child, too
        elsewhere = asyncio.create_task(other.run("leaf", leaf, workflow_id=f"{state.id}/child:leaf"))
        await becomes(lambda row: row.lease_expires_at is not None, store, f"{state.id}/child:leaf")
        here = asyncio.create_task(store.run("n", parent, workflow_id="w"))
        await becomes(lambda row: row.lease_expires_at is not None, store, "w")
        await other.signal(child, "go", "done")
        assert await elsewhere == "done"
        assert await here == "done"


async def test_waiting_goes_on_while_the_database_is_away(store: StateStore) -> None:
    state = await store.start("n", workflow_id="w")
    failed = asyncio.Event()

    async def fails() -> None:
        failed.set()
        raise StoreUnavailable("away")

    with just_before(store, " AS kind", fails, times=2):
        task = asyncio.create_task(store.run("n", leaf, workflow_id="w"))
        async with asyncio.timeout(20):
            await failed.wait()
            await store.signal(state.id, "go", 1)
            assert await task == 1


@pytest.mark.parametrize("fails", [True, False], ids=["and failed", "and was answered"])
async def test_a_look_that_took_an_hour_is_followed_by_no_long_rest(
    store: StateStore, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    state = await store.start("n", workflow_id="w")
    answered = asyncio.Event()
    clock = SimpleNamespace(monotonic=time.monotonic)

    async def take_an_hour() -> None:
        later = time.monotonic() + 3600
        clock.monotonic = lambda: later
        if fails:
            raise StoreUnavailable("away", transient=True)

    async def sees_nothing() -> None:
        answered.set()

    monkeypatch.setattr("orchestrator_state.runs.waiting.lookout.time", clock)
    task = asyncio.create_task(store.run("n", leaf, workflow_id="w"))
    async with asyncio.timeout(20):
        with just_before(store, " AS kind", take_an_hour), just_after(store, " AS kind", sees_nothing):
            await answered.wait()
        await store.signal(state.id, "go", 1)
        assert await task == 1


async def test_a_detached_branch_that_waits_ends_with_its_run(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        detached.append(asyncio.create_task(run.wait_for("never")))
        await run.wait_for("go")

    detached: list[asyncio.Task[Any]] = []
    state = await store.start("n", workflow_id="w")
    task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    await becomes(lambda row: row.lease_expires_at is not None, store, "w")
    async with asyncio.timeout(20):
        await store.cancel(state.id)
        with pytest.raises(RunCancelled):
            await task
        await asyncio.wait(detached)
    assert detached[0].cancelled()


# --- passing through what is recorded ---


async def test_a_run_that_passes_through_many_recorded_steps_leaves_the_loop_to_others(store: StateStore) -> None:
    turns: list[int] = []

    async def handler(run: Run) -> None:
        taken.clear()
        others = asyncio.create_task(take_turns())
        for n in range(10):
            time.sleep(0.06)  # noqa: ASYNC251 - as many more steps would: longer than it may have the loop to itself
            await run.step("s", Effect(), n)
        turns.append(len(taken))
        others.cancel()
        if len(turns) == 1:
            vanish()

    async def take_turns() -> None:
        while True:
            taken.append(1)
            await asyncio.sleep(0)

    taken: list[int] = []
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    await store.run("n", handler, workflow_id="w")
    assert turns[1] >= 10
