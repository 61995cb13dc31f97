"""`run.sleep` on both databases: it waits once, by the database's clock, and a restart waits for what is left."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from orchestrator_state import Run, RunCancelled, StateStore
from tests.support.clocks import set_wall_clock
from tests.support.interleaving import just_after
from tests.support.running import (
    LONG_AGO,
    Effect,
    VanishesEverywhere,
    becomes,
    change_row,
    change_step,
    row_of,
    seconds,
    steps_of,
    until_done,
)


async def sleep_for_days(run: Run) -> str:
    await run.sleep(timedelta(days=3))
    return "rested"


async def asleep(store: StateStore, handler: Any = sleep_for_days) -> Any:
    """The row of a run that sleeps and that nobody owns."""
    await store.start("n", workflow_id="w")
    assert len((await store.recover({"n": handler})).suspended) == 1
    return await row_of(store, "w")


async def let_the_time_come(store: StateStore, row: Any, step_id: str = "sleep") -> None:
    await change_step(store, row.id, step_id, outputs=json.dumps(LONG_AGO.isoformat()), outputs_digest=None)
    await change_row(store, row.id, wake_at=LONG_AGO)


async def test_a_run_goes_on_when_the_time_has_come(store: StateStore) -> None:
    async def handler(run: Run) -> list[Any]:
        before = datetime.now(UTC)
        await run.sleep(0.2)
        return [datetime.now(UTC) - before >= seconds(0.2)]

    assert await store.run("n", handler, workflow_id="w") == [True]
    assert (await steps_of(store, "w"))["sleep"].status == "completed"


async def test_a_claim_that_is_answered_late_ends_no_sleep_early(store: StateStore) -> None:
    """The database's time in the answer is old by the time that it is heard."""
    began: list[datetime] = []

    async def handler(run: Run) -> None:
        began.append(datetime.now(UTC))
        await run.sleep(timedelta(days=3))

    with just_after(store, "UPDATE workflow_states SET", partial(asyncio.sleep, 1)):
        row = await asleep(store, handler)
    assert row.wake_at >= began[0] + timedelta(days=3)


async def test_sleeps_are_numbered_like_steps(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        for _ in range(3):
            await run.sleep(0)

    await store.run("n", handler, workflow_id="w")
    assert list(await steps_of(store, "w")) == ["sleep", "sleep#2", "sleep#3"]


async def test_under_recover_a_sleeping_run_needs_no_worker_until_its_time(store: StateStore) -> None:
    row = await asleep(store)
    assert (row.status, row.lease_expires_at) == ("running", None)
    assert timedelta(days=2) < row.wake_at - datetime.now(UTC) < timedelta(days=4)
    assert (await store.recover({"n": sleep_for_days})).runs == []
    await let_the_time_come(store, row)
    assert len((await store.recover({"n": sleep_for_days})).completed) == 1
    assert await store.run("n", sleep_for_days, workflow_id="w") == "rested"


async def test_a_restart_waits_for_what_is_left_and_not_anew(store: StateStore) -> None:
    row = await asleep(store)
    until = (await steps_of(store, "w"))["sleep"].outputs
    await change_row(store, row.id, wake_at=LONG_AGO)
    assert len((await store.recover({"n": sleep_for_days})).suspended) == 1
    assert (await steps_of(store, "w"))["sleep"].outputs == until
    assert (await row_of(store, "w")).wake_at == datetime.fromisoformat(json.loads(until))


@pytest.mark.parametrize("recorded", ["null", "5", '"soon"', '"2020-01-01T00:00:00"', '[""]', '{"at":1}'])
async def test_a_recorded_end_that_was_changed_into_no_time_is_recorded_anew(store: StateStore, recorded: str) -> None:
    row = await asleep(store)
    await change_step(store, row.id, "sleep", outputs=recorded, outputs_digest=None)
    await change_row(store, row.id, wake_at=LONG_AGO)
    assert len((await store.recover({"n": sleep_for_days})).suspended) == 1
    await let_the_time_come(store, row)
    assert await store.run("n", sleep_for_days, workflow_id="w") == "rested"


async def test_a_sleep_survives_a_worker_that_vanishes_at_every_event(database_url: str) -> None:
    async def handler(run: Run) -> list[Any]:
        effects = [await run.step("before", Effect(), 1)]
        await run.sleep(0.01)
        return [*effects, await run.step("after", Effect(), 2)]

    async with StateStore.open(database_url, hook=VanishesEverywhere()) as store:
        assert await until_done(lambda: store.run("n", handler, workflow_id="w")) == [1, 2]


async def test_the_first_of_several_sleeps_wakes_the_run(store: StateStore) -> None:
    async def handler(run: Run) -> list[Any]:
        async def nap(hours: int) -> int:
            await run.sleep(timedelta(hours=hours))
            run.append("woken", hours)
            await run.checkpoint("woken")
            return hours

        return await asyncio.gather(*(nap(hours) for hours in (3, 1, 2)))

    row = await asleep(store, handler)
    assert row.wake_at - datetime.now(UTC) < timedelta(hours=1)
    await let_the_time_come(store, row, "sleep#2")
    assert len((await store.recover({"n": handler})).suspended) == 1
    state = await store.load_workflow_state(row.id)
    assert state.context == {"woken": [1]}
    assert timedelta(hours=1) < (await row_of(store, "w")).wake_at - datetime.now(UTC) < timedelta(hours=2)


async def test_a_sleeping_run_is_let_go_of_once_its_other_branches_are_done(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        async def work() -> None:
            await asyncio.sleep(0.05)

        await asyncio.gather(run.sleep(timedelta(days=3)), run.step("work", work))

    async with asyncio.timeout(60):
        await asleep(store, handler)
    assert (await steps_of(store, "w"))["work"].status == "completed"


async def test_a_sleeping_run_that_is_owned_can_be_cancelled(database_url: str, store: StateStore) -> None:
    async with StateStore.open(database_url, lease_term=seconds(5)) as owner, asyncio.timeout(60):
        state = await store.start("n", workflow_id="w")
        task = asyncio.create_task(owner.run("n", sleep_for_days, workflow_id="w"))
        await becomes(lambda row: row.status == "running", store, "w")
        await store.cancel(state.id)
        with pytest.raises(RunCancelled):
            await task
    assert (await row_of(store, "w")).status == "cancelled"


@pytest.mark.parametrize("duration", [timedelta.max, 1e300, 10**400])
async def test_a_sleep_for_ever_is_possible(store: StateStore, duration: Any) -> None:
    async def handler(run: Run) -> None:
        await run.sleep(duration)

    row = await asleep(store, handler)
    assert row.wake_at.year == 9999


@pytest.mark.parametrize("by", [timedelta(hours=1), timedelta(hours=-1)])
async def test_the_workers_own_clock_does_not_matter(
    store: StateStore, monkeypatch: pytest.MonkeyPatch, by: timedelta
) -> None:
    now = datetime.now(UTC)
    set_wall_clock(monkeypatch, by)
    row = await asleep(store)
    assert abs(row.wake_at - now - timedelta(days=3)) < timedelta(minutes=10)


@pytest.mark.parametrize("by", [timedelta(hours=1), timedelta(hours=-1)])
async def test_a_clock_that_is_set_meanwhile_ends_no_wait_early_and_keeps_none_from_ending(
    store: StateStore, monkeypatch: pytest.MonkeyPatch, by: timedelta
) -> None:
    over: list[str] = []
    both = asyncio.Event()

    async def handler(run: Run) -> None:
        async def long() -> None:
            await run.sleep(1000)
            over.append("long")

        async def limited() -> None:
            with pytest.raises(TimeoutError):
                await run.wait_for("nothing", timeout=1.5)
            over.append("limited")
            both.set()

        async def short() -> None:
            await run.sleep(1)
            over.append("short")

        await asyncio.gather(long(), limited(), short())

    await store.start("n", workflow_id="w")
    task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    await becomes(lambda row: row.version >= 5, store, "w")
    set_wall_clock(monkeypatch, by)
    async with asyncio.timeout(60):
        await both.wait()
    await asyncio.sleep(0.5)
    assert sorted(over) == ["limited", "short"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
