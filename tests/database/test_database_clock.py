"""What machines compare is written by the database's clock: a worker's own may be weeks behind, or ahead."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from orchestrator_state import StateStore, WorkflowState, WorkflowStatus
from orchestrator_state.database.clock import DatabaseClock, elapsed
from tests.support.clocks import set_wall_clock
from tests.support.running import Effect, row_of, vanish

WEEKS = timedelta(days=40)


@pytest.fixture(params=[-WEEKS, WEEKS], ids=["slow", "fast"])
def wrong_clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's clock, wherever the package reads it."""
    set_wall_clock(monkeypatch, request.param)


def test_an_answer_that_came_late_makes_no_time_limit_shorter() -> None:
    """Neither one that is begun by it, nor one that is looked at: whenever between the two it was written."""
    asked_at, noon, hour = elapsed() - 60, datetime(2030, 1, 1, 12, tzinfo=UTC), timedelta(hours=1)
    clock = DatabaseClock(noon, asked_at)
    assert noon <= clock.now() < noon + timedelta(seconds=60)
    assert clock.deadline(hour) >= noon + timedelta(seconds=60) + hour
    clock.set(noon + hour, elapsed())
    assert noon + 2 * hour <= clock.deadline(hour) < noon + 2 * hour + timedelta(seconds=60)


def is_now(moment: datetime) -> bool:
    return abs(datetime.now(UTC) - moment) < timedelta(hours=1)


async def end_of(store: StateStore, workflow_id: str) -> Any:
    row = await row_of(store, workflow_id)
    return row.status, is_now(row.started_at), is_now(row.updated_at), is_now(row.completed_at)


@pytest.mark.usefixtures("wrong_clock")
async def test_what_a_run_writes_when_it_ends(store: StateStore) -> None:
    async def completes(run: Any) -> None:
        await run.step("s", Effect())

    async def fails(run: Any) -> None:
        await run.step("s", Effect())
        raise ValueError("this one")

    await store.run("w", completes, workflow_id="completed")
    with pytest.raises(ValueError, match="this one"):
        await store.run("w", fails, workflow_id="failed")
    cancelled = await store.start("w", workflow_id="cancelled")
    await store.cancel(cancelled.id)

    for status in ("completed", "failed", "cancelled"):
        assert await end_of(store, status) == (status, True, True, True)
    assert await store.delete_old_states(timedelta(days=30)) == 0
    assert await store.delete_old_states(datetime.now(UTC) - timedelta(days=30)) == 0


@pytest.mark.usefixtures("wrong_clock")
async def test_what_a_claim_a_step_and_a_release_write(store: StateStore) -> None:
    moments = []

    async def handler(run: Any) -> None:
        moments.append((await row_of(store, "w")).updated_at)
        await run.step("s", Effect())
        moments.append((await row_of(store, "w")).updated_at)
        vanish()

    await store.start("w", workflow_id="w")
    with pytest.raises(asyncio.CancelledError):
        await store.run("w", handler, workflow_id="w")
    moments.append((await row_of(store, "w")).updated_at)
    assert [is_now(moment) for moment in moments] == [True] * 3
    assert moments == sorted(moments)


@pytest.mark.usefixtures("wrong_clock")
async def test_what_is_saved_by_hand(store: StateStore) -> None:
    state = WorkflowState(workflow_id="w", workflow_name="n")
    await store.save_workflow_state(state)
    assert is_now(state.updated_at), "the state knows what was written"
    state.mark_running()
    await store.save_workflow_state(state)
    assert is_now(state.updated_at)
    state.mark_completed()
    await store.save_workflow_state(state)
    assert is_now((await row_of(store, "w")).updated_at)
    assert await store.load_workflow_state(state.id) == state

    finished = WorkflowState(workflow_id="at once", workflow_name="n")
    finished.mark_completed()
    await store.save_workflow_state(finished)
    assert await store.delete_old_states(timedelta(days=30)) == 0
    assert await store.delete_old_states(timedelta()) == 2


async def test_a_caller_may_say_when_a_state_was_updated(store: StateStore) -> None:
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    state = WorkflowState(workflow_id="w", workflow_name="n", status=WorkflowStatus.COMPLETED, updated_at=long_ago)
    await store.save_workflow_state(state)
    assert (await row_of(store, "w")).updated_at == long_ago
    assert await store.delete_old_states(timedelta(days=30)) == 1


@pytest.mark.parametrize("age", [timedelta.max, timedelta(days=999_999)])
async def test_nothing_is_older_than_time(store: StateStore, age: timedelta) -> None:
    await store.save_workflow_state(WorkflowState(workflow_id="w", workflow_name="n", status=WorkflowStatus.COMPLETED))
    assert await store.delete_old_states(age) == 0
