"""What a run waits for is on record while it waits: as a running step of a kind, which says until when."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from orchestrator_state import InvalidPayload, PayloadTooLarge, Run, RunCancelled, StateStore
from tests.support.running import Effect, change_row, change_step, checkpoints_of, row_of, steps_of, vanish
from tests.support.statements import traffic_of

DAY = timedelta(days=1)
FOREVER = 10**6


async def begins_to_wait(store: StateStore, workflow_id: str, step_id: str) -> Any:
    """Wait until the wait is on record. Returns its row."""
    async with asyncio.timeout(60):
        while (row := (await steps_of(store, workflow_id)).get(step_id)) is None:  # noqa: ASYNC110 - another task's
            await asyncio.sleep(0.02)
    assert row.status == "running"
    return row


async def suspended(store: StateStore, handler: Callable[[Run], Awaitable[Any]], **children: Any) -> dict[str, Any]:
    """Run `handler` as "w" until it waits and is let go of. Returns its steps' rows."""
    await store.start("n", workflow_id="w")
    report = await store.recover({"n": handler, **children})
    assert "w" in {run.workflow_id for run in report.suspended}
    return await steps_of(store, "w")


async def waiting_child(run: Run) -> Any:
    return await run.wait_for("go")


@pytest.mark.parametrize(
    ("step_id", "kind", "wait"),
    [
        pytest.param("signal:go", "signal", lambda run: run.wait_for("go"), id="a signal"),
        pytest.param("signal:go", "signal", lambda run: run.wait_for("go", DAY), id="a signal with a timeout"),
        pytest.param("sleep", "sleep", lambda run: run.sleep(DAY), id="a sleep"),
        pytest.param("child:leaf", "child", lambda run: run.child("leaf", waiting_child), id="a child"),
    ],
)
async def test_a_run_that_waits_has_a_running_step_that_says_for_what(
    store: StateStore, step_id: str, kind: str, wait: Any
) -> None:
    row = (await suspended(store, wait, leaf=waiting_child))[step_id]
    assert (row.status, row.kind) == ("running", kind)
    if kind == "sleep" or "go" in step_id:
        state = await store.load_workflow_state_by_workflow_id("w")
        recorded = state.steps[step_id].outputs
        assert row.waits_until == (None if recorded is None else datetime.fromisoformat(recorded))


async def test_without_an_end_it_waits_until_nothing_and_with_one_until_then(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        await asyncio.gather(run.wait_for("a"), run.wait_for("b", DAY), run.wait_for("c", FOREVER))

    rows = await suspended(store, handler)
    assert rows["signal:a"].waits_until is None
    assert timedelta(hours=23) < rows["signal:b"].waits_until - datetime.now(UTC) < timedelta(hours=25)
    assert rows["signal:c"].waits_until > rows["signal:b"].waits_until


async def test_each_step_says_of_what_kind_it_is_once_it_is_over(store: StateStore) -> None:
    async def insert(session: Any) -> None:
        pass

    async def leaf(run: Run) -> None:
        pass

    async def handler(run: Run) -> None:
        await run.step("step", Effect())
        await run.transact("transact", insert)
        await run.checkpoint("point")
        await run.sleep(0)
        await run.wait_for("there")
        with pytest.raises(TimeoutError):
            await run.wait_for("late", 0)
        with pytest.raises(InvalidPayload):
            await run.wait_for("odd", returns=int)
        await run.child("leaf", leaf)

    run_id = (await store.start("n", workflow_id="w")).id
    await store.signal(run_id, "there", 1)
    await store.signal(run_id, "odd", "text")
    await store.run("n", handler, workflow_id="w")
    kinds = {step_id: row.kind for step_id, row in (await steps_of(store, "w")).items()}
    assert kinds == {
        "step": None,
        "transact": "transact",
        "point": "checkpoint",
        "sleep": "sleep",
        "signal:there": "signal",
        "signal:late": "signal",
        "signal:odd": "signal",
        "child:leaf": "child",
    }


async def cost_of(store: StateStore, call: Callable[[Run], Awaitable[Any]], *, signals: int = 0) -> int:
    """How many commits `call(run)` makes, where these signals have been sent before."""

    async def handler(run: Run) -> None:
        await run.step("before", Effect())
        with traffic_of(store) as traffic:
            await call(run)
        costs.append(traffic.commits)

    costs: list[int] = []
    run_id = (await store.start("n", workflow_id="w")).id
    for _ in range(signals):
        await store.signal(run_id, "go", "payload")
    await store.run("n", handler, workflow_id="w")
    return costs[0]


@pytest.mark.parametrize("limit", [None, DAY])
async def test_a_wait_whose_signal_is_there_is_one_commit(store: StateStore, limit: timedelta | None) -> None:
    assert await cost_of(store, lambda run: run.wait_for("go", limit), signals=1) == 1


@pytest.mark.parametrize("limit", [None, DAY])
async def test_a_wait_that_has_to_wait_is_two_commits(store: StateStore, limit: timedelta | None) -> None:
    async def handler(run: Run) -> Any:
        return await run.wait_for("go", limit)

    run_id = (await store.start("n", workflow_id="w")).id
    before = (await row_of(store, "w")).version
    task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    await begins_to_wait(store, "w", "signal:go")
    await store.signal(run_id, "go", 1)
    assert await task == 1
    assert (await row_of(store, "w")).version - before == 4, "the claim, the wait, the signal, the end"


async def test_a_child_that_need_not_be_waited_for_costs_its_parent_one_commit(store: StateStore) -> None:
    async def leaf(run: Run) -> None:
        pass

    # The start of the child, its end, and the step of the parent.
    assert await cost_of(store, lambda run: run.child("leaf", leaf)) == 3


async def test_a_run_that_is_resumed_waits_on_without_a_commit(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        await asyncio.gather(run.wait_for("a"), run.wait_for("b", DAY), run.sleep(DAY), run.child("l", waiting_child))

    before = await suspended(store, handler, l=waiting_child)
    await change_row(store, (await row_of(store, "w")).id, wake_at=None)
    await store.recover({"n": handler, "l": waiting_child})
    assert await steps_of(store, "w") == before


async def test_a_row_of_software_that_knew_no_kinds_gets_its_kind_with_the_next_commit(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        return await run.wait_for("go", DAY)

    row = (await suspended(store, handler))["signal:go"]
    await change_step(store, row.workflow_state_id, "signal:go", kind=None, waits_until=None)
    await store.signal(row.workflow_state_id, "go", "yes")
    assert await store.run("n", handler, workflow_id="w") == "yes"
    after = (await steps_of(store, "w"))["signal:go"]
    assert (after.status, after.kind, after.waits_until) == ("completed", "signal", row.waits_until)


@pytest.mark.parametrize(
    ("first", "then"), [pytest.param(None, DAY, id="an end"), pytest.param(DAY, None, id="no end")]
)
async def test_a_handler_that_now_gives_its_wait_another_end_says_so(
    store: StateStore, caplog: pytest.LogCaptureFixture, first: timedelta | None, then: timedelta | None
) -> None:
    limits = [first, then]

    async def handler(run: Run) -> Any:
        return await run.wait_for("go", limits[0])

    await suspended(store, handler)
    limits.pop(0)
    await change_row(store, (await row_of(store, "w")).id, wake_at=None)
    await store.recover({"n": handler})
    after = (await steps_of(store, "w"))["signal:go"]
    assert (after.status, after.waits_until is None) == ("running", then is None)
    assert "no time" not in caplog.text


async def test_a_fork_of_a_run_that_waited_waits_for_the_same_until_the_same_time(store: StateStore) -> None:
    async def wait(run: Run) -> Any:
        return await run.wait_for("go", DAY)

    async def handler(run: Run) -> Any:
        waiting = asyncio.create_task(wait(run))
        await begins_to_wait(store, run.workflow_id, "signal:go")
        await run.checkpoint()
        return await waiting

    row = (await suspended(store, handler))["signal:go"]
    fork = await store.fork((await checkpoints_of(store, "w"))[-1].id, workflow_id="f")
    forked = (await steps_of(store, "f"))["signal:go"]
    assert (forked.status, forked.kind, forked.waits_until) == ("running", "signal", row.waits_until)
    await store.signal(fork.id, "go", "to the fork")
    assert await store.run("n", wait, workflow_id="f") == "to the fork"
    assert (await steps_of(store, "w"))["signal:go"] == row


async def test_a_rewind_to_where_a_run_waited_waits_again(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        async def answer() -> Any:
            return await run.wait_for("go")

        waiting = asyncio.create_task(answer())
        await asyncio.sleep(0)
        if "signal:go" not in await steps_of(store, "w"):
            await begins_to_wait(store, "w", "signal:go")
        await run.checkpoint()
        return await waiting

    row = (await suspended(store, handler))["signal:go"]
    await store.signal(row.workflow_state_id, "go", "first")
    assert await store.run("n", handler, workflow_id="w") == "first"
    points = await checkpoints_of(store, "w")
    restored = await store.restore_from_checkpoint(points[0].id)
    assert (restored.steps["signal:go"].status, restored.steps["signal:go"].outputs) == ("running", None)
    await store.rewind(points[0].id)
    rewound = (await steps_of(store, "w"))["signal:go"]
    assert (rewound.status, rewound.kind) == ("running", "signal")
    await store.signal(row.workflow_state_id, "go", "second")
    assert await store.run("n", handler, workflow_id="w") == "second"


@pytest.mark.parametrize("damage", [{"outputs": '"2'}, {"error": "x", "error_digest": "y"}], ids=["outputs", "error"])
async def test_a_damaged_row_of_a_wait_is_mended_and_it_waits_on(store: StateStore, damage: dict[str, str]) -> None:
    async def handler(run: Run) -> Any:
        return await run.wait_for("go", DAY)

    row = (await suspended(store, handler))["signal:go"]
    await change_step(store, row.workflow_state_id, "signal:go", **damage)
    await change_row(store, row.workflow_state_id, wake_at=None)
    await store.recover({"n": handler})
    mended = (await steps_of(store, "w"))["signal:go"]
    assert (mended.status, mended.kind) == ("running", "signal")
    await store.signal(row.workflow_state_id, "go", "yes")
    assert await store.run("n", handler, workflow_id="w") == "yes"


@pytest.mark.parametrize("backend", ["sqlite"])
async def test_a_kind_that_is_no_text_harms_nothing(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        return await run.wait_for("go", DAY)

    row = (await suspended(store, handler))["signal:go"]
    async with store.begin() as uow:
        connection = await uow.session.connection()
        await connection.exec_driver_sql("UPDATE step_states SET kind = x'ff00', waits_until = 'soon'")
    await store.signal(row.workflow_state_id, "go", "yes")
    assert await store.run("n", handler, workflow_id="w") == "yes"


async def test_a_run_that_is_given_up_is_not_said_to_have_died_of_its_waits(database_url: str) -> None:
    async def handler(run: Run) -> Any:
        await run.wait_for("go")

    async with StateStore.open(database_url, max_attempts=1) as store:
        row = (await suspended(store, handler))["signal:go"]
        await change_row(
            store, row.workflow_state_id, attempts=1, wake_at=None, lease_expires_at=datetime(2020, 1, 1, tzinfo=UTC)
        )
        await store.recover({"n": handler})
        [failed] = [await store.load_workflow_state(row.workflow_state_id)]
        assert failed.status == "failed"
        assert failed.error is not None
        assert "under way" not in failed.error


async def test_a_wait_that_would_be_one_step_too_many_is_refused_before_it_waits(database_url: str) -> None:
    async def handler(run: Run) -> Any:
        await run.step("a", Effect())
        await run.wait_for("go")

    async with StateStore.open(database_url, max_steps=1) as store, asyncio.timeout(60):
        with pytest.raises(PayloadTooLarge):
            await store.run("n", handler, workflow_id="w")


async def test_a_run_that_waits_can_be_cancelled(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        await run.wait_for("go")

    await store.start("n", workflow_id="w")
    task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    row = await begins_to_wait(store, "w", "signal:go")
    await store.cancel(row.workflow_state_id)
    with pytest.raises(RunCancelled):
        await task
    assert (await row_of(store, "w")).status == "cancelled"


async def test_a_worker_that_vanishes_leaves_the_wait_for_the_next_one(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        tasks.append(asyncio.create_task(wait(run)))
        await begins_to_wait(store, "w", "signal:go")
        vanish()

    async def wait(run: Run) -> Any:
        return await run.wait_for("go", DAY)

    tasks: list[asyncio.Task[Any]] = []
    ends = set()
    for _ in range(2):
        with pytest.raises(asyncio.CancelledError):
            await store.run("n", handler, workflow_id="w")
        ends.add((await steps_of(store, "w"))["signal:go"].waits_until)
    assert len(ends) == 1
    await store.signal((await row_of(store, "w")).id, "go", 1)
    assert await store.run("n", wait, workflow_id="w") == 1
