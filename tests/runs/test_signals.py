"""Signals on both databases: stored, first in first out, consumed once, and awaited without a worker."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from orchestrator_state import InvalidPayload, InvalidTransition, Run, StateStore, WorkflowNotFound
from tests.support import raw_sql
from tests.support.running import (
    LONG_AGO,
    Effect,
    Gate,
    becomes,
    change_row,
    change_step,
    count_rows,
    fetch,
    row_of,
    seconds,
    steps_of,
    vanish,
)


async def wait_once(run: Run) -> Any:
    return await run.wait_for("approval")


async def waiting(store: StateStore, handler: Any = wait_once) -> Any:
    """The row of a run that waits for a signal and that nobody owns."""
    await store.start("n", workflow_id="w")
    report = await store.recover({"n": handler})
    assert [run.outcome for run in report.runs] == ["suspended"]
    return await row_of(store, "w")


# --- send and receive ---


async def test_a_signal_sent_before_is_received(store: StateStore) -> None:
    state = await store.start("n", workflow_id="w")
    await store.signal(state.id, "approval", {"ok": True, "by": ["Ann"]})
    assert await store.run("n", wait_once, workflow_id="w") == {"ok": True, "by": ["Ann"]}
    assert await count_rows(store, "signals") == 0


async def test_a_signal_sent_by_another_store_ends_the_wait(database_url: str, store: StateStore) -> None:
    task = asyncio.create_task(store.run("n", handler := wait_once, workflow_id="w"))
    async with StateStore.open(database_url) as other:
        state = await other.start("n", workflow_id="w")
        await other.signal(str(state.id), "approval", "yes")
        assert await task == "yes"
    assert await store.run("n", handler, workflow_id="w") == "yes"


async def test_a_signal_may_come_without_a_payload(store: StateStore) -> None:
    state = await store.start("n", workflow_id="w")
    await store.signal(state.id, "approval")
    assert await store.run("n", wait_once, workflow_id="w") is None


async def test_signals_of_a_name_are_received_first_in_first_out(store: StateStore) -> None:
    async def handler(run: Run) -> list[Any]:
        return [await run.wait_for("item") for _ in range(5)]

    state = await store.start("n", workflow_id="w")
    for n in range(5):
        await store.signal(state.id, "other", "not this one")
        await store.signal(state.id, "item", n)
    assert await store.run("n", handler, workflow_id="w") == [0, 1, 2, 3, 4]
    assert list(await steps_of(store, "w")) == ["signal:item", *(f"signal:item#{n}" for n in range(2, 6))]
    assert await count_rows(store, "signals") == 5


async def test_a_received_signal_is_received_again_by_a_resumed_handler_and_only_by_that_wait(
    store: StateStore,
) -> None:
    async def handler(run: Run) -> list[Any]:
        first = await run.wait_for("item")
        if not attempts:
            attempts.append(1)
            vanish()
        return [first, await run.wait_for("item")]

    attempts: list[int] = []
    state = await store.start("n", workflow_id="w")
    for n in (1, 2):
        await store.signal(state.id, "item", n)
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    assert await store.run("n", handler, workflow_id="w") == [1, 2]


async def test_waiters_side_by_side_each_get_a_signal_of_their_own(store: StateStore) -> None:
    async def handler(run: Run) -> list[Any]:
        return sorted(await asyncio.gather(*(run.wait_for("item") for _ in range(4))))

    task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    state = await store.start("n", workflow_id="w")
    for n in range(4):
        await store.signal(state.id, "item", n)
    assert await task == [0, 1, 2, 3]
    assert await count_rows(store, "signals") == 0


async def test_signals_sent_at_once_are_all_stored(database_url: str, store: StateStore) -> None:
    state = await store.start("n", workflow_id="w")
    async with StateStore.open(database_url) as other:
        await asyncio.gather(*(each.signal(state.id, "item", n) for n in range(10) for each in (store, other)))
    numbers = await fetch(store, text("SELECT seq FROM signals ORDER BY seq"))
    assert [seq for (seq,) in numbers] == list(range(1, 21))


# --- a waiting run needs no worker ---


async def test_under_recover_a_waiting_run_is_let_go_of_and_stays_asleep(store: StateStore) -> None:
    row = await waiting(store)
    assert (row.status, row.lease_expires_at) == ("running", None)
    assert row.wake_at > datetime.now(UTC)
    assert (await store.recover({"n": wait_once})).runs == []


async def test_the_signal_wakes_it(store: StateStore) -> None:
    row = await waiting(store)
    await store.signal(row.id, "approval", "yes")
    report = await store.recover({"n": wait_once})
    assert [run.workflow_state_id for run in report.completed] == [row.id]
    assert await store.run("n", wait_once, workflow_id="w") == "yes"


async def test_another_signal_wakes_it_for_nothing(store: StateStore) -> None:
    row = await waiting(store)
    await store.signal(row.id, "something else")
    for expected in (["suspended"], []):
        assert [run.outcome for run in (await store.recover({"n": wait_once})).runs] == expected
    await store.signal(row.id, "approval", "yes")
    assert len((await store.recover({"n": wait_once})).completed) == 1


async def test_store_run_waits_in_place_for_what_recover_let_go_of(store: StateStore) -> None:
    row = await waiting(store)
    task = asyncio.create_task(store.run("n", wait_once, workflow_id="w"))
    await becomes(lambda row: row.lease_expires_at is not None, store, "w")
    await store.signal(row.id, "approval", "yes")
    assert await task == "yes"


async def test_a_run_is_not_let_go_of_while_one_of_its_branches_works(store: StateStore) -> None:
    gate = Gate()

    async def handler(run: Run) -> list[Any]:
        return list(await asyncio.gather(run.wait_for("approval"), run.step("work", gate, "worked")))

    await store.start("n", workflow_id="w")
    task = asyncio.create_task(store.recover({"n": handler}))
    await gate.reached.wait()
    assert (await row_of(store, "w")).lease_expires_at is not None
    gate.opened.set()
    assert len((await task).suspended) == 1
    await store.signal((await row_of(store, "w")).id, "approval", "yes")
    assert len((await store.recover({"n": handler})).completed) == 1
    assert await store.run("n", handler, workflow_id="w") == ["yes", "worked"]


async def test_steps_before_the_wait_are_not_repeated_after_it(store: StateStore) -> None:
    effect = Effect()

    async def handler(run: Run) -> Any:
        run.append("log", await run.step("before", effect, "before"))
        run.append("log", await run.wait_for("approval"))
        return run.context["log"]

    row = await waiting(store, handler)
    await store.signal(row.id, "approval", "yes")
    await store.recover({"n": handler})
    assert await store.run("n", handler, workflow_id="w") == ["before", "yes"]
    assert effect.calls == ["before"]


# --- time limits ---


async def test_a_wait_that_takes_too_long_raises_and_does_so_again_when_resumed(store: StateStore) -> None:
    async def handler(run: Run) -> str:
        try:
            return str(await run.wait_for("approval", timeout=0.05))
        except TimeoutError:
            if not attempts:
                attempts.append(1)
                vanish()
            return "too late"

    attempts: list[int] = []
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    row = await row_of(store, "w")
    await store.signal(row.id, "approval", "yes")
    assert await store.run("n", handler, workflow_id="w") == "too late"
    assert (await steps_of(store, "w"))["signal:approval"].status == "skipped"


async def test_the_time_limit_is_durable_a_resumed_wait_does_not_start_it_anew(store: StateStore) -> None:
    async def handler(run: Run) -> str:
        try:
            return str(await run.wait_for("approval", timeout=seconds(3600)))
        except TimeoutError:
            return "too late"

    row = await waiting(store, handler)
    deadline = (await steps_of(store, "w"))["signal:approval"].outputs
    assert seconds(3500) < row.wake_at - datetime.now(UTC) < seconds(3700), "it is woken when its time is over"
    await change_row(store, row.id, wake_at=LONG_AGO)
    assert len((await store.recover({"n": handler})).suspended) == 1
    assert (await steps_of(store, "w"))["signal:approval"].outputs == deadline
    # An hour later:
    await change_row(store, row.id, wake_at=LONG_AGO)
    await change_step(store, row.id, "signal:approval", outputs=f'"{LONG_AGO.isoformat()}"', outputs_digest=None)
    assert len((await store.recover({"n": handler})).completed) == 1
    assert await store.run("n", handler, workflow_id="w") == "too late"


async def test_a_signal_that_is_there_is_received_even_after_the_time(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        return await run.wait_for("approval", timeout=seconds(3600))

    row = await waiting(store, handler)
    await store.signal(row.id, "approval", "in time")
    await change_step(store, row.id, "signal:approval", outputs=f'"{LONG_AGO.isoformat()}"', outputs_digest=None)
    assert len((await store.recover({"n": handler})).completed) == 1
    assert await store.run("n", handler, workflow_id="w") == "in time"


async def test_without_waiting_a_time_limit_of_zero_asks_whether_a_signal_is_there(store: StateStore) -> None:
    async def handler(run: Run) -> list[Any]:
        found = [await run.wait_for("item", timeout=0)]
        with pytest.raises(TimeoutError):
            await run.wait_for("item", timeout=0)
        return found

    state = await store.start("n", workflow_id="w")
    await store.signal(state.id, "item", 1)
    assert await store.run("n", handler, workflow_id="w") == [1]


# --- refused ---


async def test_a_signal_to_a_finished_run_is_refused_and_not_stored(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        pass

    await store.run("n", handler, workflow_id="w")
    row = await row_of(store, "w")
    with pytest.raises(InvalidTransition, match="completed") as refused:
        await store.signal(row.id, "approval")
    assert (refused.value.found, refused.value.workflow_state_id) == ("completed", row.id)  # type: ignore[attr-defined]
    assert await count_rows(store, "signals") == 0


async def test_a_signal_to_a_run_that_is_resumed_at_that_moment_is_stored(postgres_url: str) -> None:
    """SQLite lets nobody in between two statements of a transaction."""
    async with StateStore.open(postgres_url) as store:
        run_id = (await waiting(store)).id
        await change_row(store, run_id, status="failed")

        def resume(_: Any, cursor: Any, statement: str, *__: Any) -> None:
            if "signal_seq" in statement and cursor.rowcount == 0:
                raw_sql.execute(postgres_url, "UPDATE workflow_states SET status = 'running'")

        event.listen(Engine, "after_cursor_execute", resume)
        try:
            await store.signal(run_id, "approval", "yes")
        finally:
            event.remove(Engine, "after_cursor_execute", resume)
        assert await count_rows(store, "signals") == 1


async def test_a_signal_to_a_paused_run_waits_for_it(store: StateStore) -> None:
    row = await waiting(store)
    await store.pause(row.id)
    await store.signal(row.id, "approval", "yes")
    assert (await store.recover({"n": wait_once})).runs == []
    await store.resume(row.id)
    assert len((await store.recover({"n": wait_once})).completed) == 1


async def test_a_signal_to_nobody_is_refused(store: StateStore) -> None:
    with pytest.raises(WorkflowNotFound):
        await store.signal("00000000-0000-4000-8000-000000000000", "approval")
    with pytest.raises(InvalidPayload):
        await store.signal("no uuid", "approval")


async def test_a_signal_does_not_cross_namespaces(database_url: str, store: StateStore) -> None:
    state = await store.start("n", workflow_id="w")
    async with StateStore.open(database_url, namespace="tenant") as tenant:
        with pytest.raises(WorkflowNotFound):
            await tenant.signal(state.id, "approval")
    assert await count_rows(store, "signals") == 0
