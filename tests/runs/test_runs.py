"""`store.run` on both databases: it starts a run, resumes it, or returns what it once returned."""

import asyncio
import sqlite3
from typing import Any, cast

import pytest

from orchestrator_state import (
    ConfigurationError,
    Conflict,
    InvalidPayload,
    LeaseHeld,
    Retry,
    Run,
    StateStore,
    StepState,
    StepStatus,
    WorkflowState,
    WorkflowStatus,
)
from tests.support.running import Effect, Failing, Gate, becomes, count_rows, row_of, seconds, steps_of, vanish


async def do_nothing(run: Run) -> None:
    pass


# --- start, resume, return ---


async def test_a_new_run_calls_the_handler_and_stores_what_it_returns(store: StateStore) -> None:
    async def summarise(run: Run) -> dict[str, Any]:
        page = await run.step("fetch", Effect(), run.context["url"])
        return {"summary of": page}

    result = await store.run("summarise", summarise, workflow_id="doc-1", user_id="u-1", context={"url": "/a"})

    assert result == {"summary of": "/a"}
    state = await store.load_workflow_state_by_workflow_id("doc-1")
    assert (state.workflow_name, state.status, state.user_id) == ("summarise", WorkflowStatus.COMPLETED, "u-1")
    assert state.context == {"url": "/a"}
    assert state.completed_at is not None
    assert {step.step_id: (step.status, step.outputs) for step in state.steps.values()} == {
        "fetch": (StepStatus.COMPLETED, "/a")
    }


async def test_a_handler_knows_its_run(store: StateStore) -> None:
    async def handler(run: Run) -> list[Any]:
        return [str(run.id), run.workflow_id, run.name, run.user_id, run.parent_id, run.attempts]

    seen = await store.run("who", handler, workflow_id="w", user_id="u-1")
    assert seen == [str((await row_of(store, "w")).id), "w", "who", "u-1", None, 0]


async def test_a_finished_run_returns_its_recorded_result_and_calls_nothing(store: StateStore) -> None:
    async def never(run: Run) -> Any:
        raise AssertionError

    results: list[Any] = [None, 0, "", [], {}, {"a": [1.5, None, True]}, "é\U0001f600"]
    for n, result in enumerate(results):

        async def first(run: Run, result: Any = result) -> Any:
            return result

        await store.run("n", first, workflow_id=f"w-{n}")
        assert await store.run("n", never, workflow_id=f"w-{n}") == result


async def test_an_unfinished_run_is_resumed_and_its_finished_steps_are_not_called_again(store: StateStore) -> None:
    first, second = Effect(), Effect()

    async def handler(run: Run) -> list[Any]:
        results = [await run.step("first", first, 1)]
        if len(second.calls) == 0:
            second.calls.append("seen by the first attempt")
            vanish()
        return [*results, await run.step("second", second, 2)]

    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    assert (await row_of(store, "w")).status == "running"
    assert await store.run("n", handler, workflow_id="w") == [1, 2]
    assert first.calls == [1]


async def test_a_second_store_resumes_a_cancelled_run_at_once(database_url: str, store: StateStore) -> None:
    gate, effect = Gate(), Effect()

    async def handler(run: Run) -> str:
        await run.step("kept", effect)
        await run.step("under way", gate)
        return "done"

    task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    await gate.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gate.cancelled
    gate.opened.set()
    async with StateStore.open(database_url) as other:
        assert await other.run("n", handler, workflow_id="w") == "done"
    assert len(effect.calls) == 1
    assert (await row_of(store, "w")).attempts == 0, "a worker that let go in an orderly way has not vanished"


async def test_the_context_is_that_of_the_first_start(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        if run.context["n"] == 1 and not vanished:
            vanished.append(True)
            vanish()
        return run.context["n"]

    vanished: list[bool] = []
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w", context={"n": 1})
    assert await store.run("n", handler, workflow_id="w", context={"n": 2}) == 1


async def test_without_a_workflow_id_each_call_is_a_run_of_its_own(store: StateStore) -> None:
    effect = Effect()

    async def handler(run: Run) -> Any:
        return await run.step("once", effect, run.workflow_id)

    assert await store.run("n", handler) != await store.run("n", handler)
    assert len(effect.calls) == 2


async def test_a_workflow_id_belongs_to_one_handler_name(store: StateStore) -> None:
    await store.run("one", do_nothing, workflow_id="w")
    with pytest.raises(Conflict, match="is of 'one', not of 'other'"):
        await store.run("other", do_nothing, workflow_id="w")


async def test_a_workflow_that_was_saved_by_hand_can_be_run_and_its_finished_steps_count(store: StateStore) -> None:
    state = WorkflowState(workflow_id="w", workflow_name="n", context={"n": 1})
    state.steps["by hand"] = StepState(step_id="by hand")
    state.steps["by hand"].mark_completed({"from": "before"})
    await store.save_workflow_state(state)
    effect = Effect()

    async def handler(run: Run) -> Any:
        return [run.context["n"], await run.step("by hand", effect), await run.step("new", effect, "new")]

    assert await store.run("n", handler, workflow_id="w") == [1, {"from": "before"}, "new"]
    assert effect.calls == ["new"]


async def test_a_started_run_waits_for_whoever_runs_it(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        return run.context

    pending = await store.start("n", workflow_id="w", context={"n": 1}, user_id="u-1")
    again = await store.start("n", workflow_id="w", context={"n": 2})
    assert (pending.status, pending.user_id) == (WorkflowStatus.PENDING, "u-1")
    assert again == pending
    assert await store.run("n", handler, workflow_id="w") == {"n": 1}
    assert (await store.start("n", workflow_id="w")).status is WorkflowStatus.COMPLETED


# --- one owner ---


async def test_a_live_owner_elsewhere_is_named(database_url: str, store: StateStore) -> None:
    gate = Gate()

    async def handler(run: Run) -> Any:
        return await run.step("under way", gate, "mine")

    task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    await gate.reached.wait()
    row = await row_of(store, "w")
    async with StateStore.open(database_url) as other:
        with pytest.raises(LeaseHeld, match=str(row.lease_owner)) as refused:
            await other.run("n", handler, workflow_id="w")
    error = refused.value
    assert (error.workflow_state_id, error.owner) == (row.id, row.lease_owner)
    assert (error.process, error.expires_at) == (row.lease_process, row.lease_expires_at)
    gate.opened.set()
    assert await task == "mine"


async def test_a_second_call_in_the_same_store_is_refused_too(store: StateStore) -> None:
    gate = Gate()

    async def handler(run: Run) -> Any:
        return await run.step("under way", gate)

    task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    await gate.reached.wait()
    with pytest.raises(LeaseHeld):
        await store.run("n", handler, workflow_id="w")
    gate.opened.set()
    await task


async def test_a_run_inside_itself_is_refused(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        await store.run("n", handler, workflow_id="w")

    with pytest.raises(LeaseHeld):
        await store.run("n", handler, workflow_id="w")
    assert (await row_of(store, "w")).status == "failed"


async def test_wait_lets_the_other_owner_finish_and_returns_its_result(database_url: str, store: StateStore) -> None:
    gate, effect = Gate(), Effect()

    async def handler(run: Run) -> Any:
        await run.step("once", effect)
        return await run.step("under way", gate, "the owner's")

    task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    await gate.reached.wait()
    async with StateStore.open(database_url) as other:
        waiting = asyncio.create_task(other.run("n", handler, workflow_id="w", wait=60))
        gate.opened.set()
        assert await waiting == await task == "the owner's"
    assert len(effect.calls) == 1


async def test_wait_has_an_end(database_url: str, store: StateStore) -> None:
    gate = Gate()

    async def handler(run: Run) -> Any:
        return await run.step("under way", gate)

    task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    await gate.reached.wait()
    async with StateStore.open(database_url) as other:
        with pytest.raises(LeaseHeld):
            await other.run("n", handler, workflow_id="w", wait=seconds(0.1))
    gate.opened.set()
    await task


async def test_wait_outlasts_the_lease_of_a_worker_that_vanished(database_url: str) -> None:
    gate = Gate()

    async def handler(run: Run) -> Any:
        return await run.step("under way", gate, "taken over")

    async with StateStore.open(database_url, lease_term=seconds(1)) as store:
        task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
        await gate.reached.wait()
        heartbeat = store._executor.keeper._heartbeat
        assert heartbeat is not None
        heartbeat.cancel()  # as if the process were frozen
        gate.opened.clear()
        async with StateStore.open(database_url) as other:
            second = asyncio.create_task(other.run("n", handler, workflow_id="w", wait=60))
            await becomes(lambda row: row.lease_token > 1, other, "w")
            gate.opened.set()
            assert await second == "taken over"
        with pytest.raises(Conflict):
            await task


async def test_a_heartbeat_keeps_the_lease_of_a_step_that_takes_longer_than_its_term(database_url: str) -> None:
    gate = Gate()

    async def handler(run: Run) -> Any:
        return await run.step("under way", gate, "mine")

    async with (
        StateStore.open(database_url, lease_term=seconds(2)) as store,
        StateStore.open(database_url) as other,
    ):
        task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
        await gate.reached.wait()
        taken = (await row_of(other, "w")).lease_expires_at
        await becomes(lambda row: row.lease_expires_at > taken + seconds(2.1), other, "w")
        with pytest.raises(LeaseHeld):
            await other.run("n", handler, workflow_id="w")
        gate.opened.set()
        assert await task == "mine"


async def test_of_many_concurrent_starts_one_calls_the_handler(database_url: str, store: StateStore) -> None:
    effect = Effect()

    async def handler(run: Run) -> Any:
        return await run.step("once", effect, str(run.id))

    async with StateStore.open(database_url) as other:
        starts = [each.run("n", handler, workflow_id="w", wait=60) for each in (store, other) for _ in range(5)]
        results = await asyncio.gather(*starts)
    assert len(set(results)) == len(effect.calls) == await count_rows(store, "workflow_states") == 1


# --- idempotency ---


async def test_an_idempotency_key_makes_a_start_safe_to_repeat(store: StateStore) -> None:
    effect = Effect()

    async def handler(run: Run) -> Any:
        return await run.step("once", effect, run.context["n"])

    for n in (1, 2):
        assert await store.run("n", handler, context={"n": n}, idempotency_key="order-7") == 1
    for n in (3, 4):
        assert await store.run("n", handler, workflow_id=f"w-{n}", context={"n": n}, idempotency_key="order-8") == 3
    assert effect.calls == [1, 3]


async def test_another_idempotency_key_is_another_run(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        return run.context["n"]

    for n in (1, 2):
        assert await store.run("n", handler, context={"n": n}, idempotency_key=f"order-{n}") == n


async def test_an_idempotency_key_and_a_workflow_id_of_the_same_text_do_not_get_in_each_others_way(
    store: StateStore,
) -> None:
    async def handler(run: Run) -> str:
        return run.workflow_id

    assert await store.run("n", handler, workflow_id="same") == "same"
    assert await store.run("n", handler, workflow_id="other", idempotency_key="same") == "other"


async def test_concurrent_starts_with_one_idempotency_key_make_one_run(store: StateStore) -> None:
    started = await asyncio.gather(*(store.start("n", idempotency_key="order-7") for _ in range(10)))
    assert len({state.id for state in started}) == await count_rows(store, "workflow_states") == 1


# --- failure ---


async def test_a_handlers_exception_marks_the_run_failed_and_is_raised(store: StateStore) -> None:
    error = LookupError("no such page")

    async def handler(run: Run) -> None:
        raise error

    with pytest.raises(LookupError) as raised:
        await store.run("n", handler, workflow_id="w")
    assert raised.value is error
    row = await row_of(store, "w")
    assert (row.status, row.error, row.lease_expires_at) == ("failed", "LookupError: no such page", None)
    assert row.completed_at is not None


async def test_a_failed_run_is_resumed_by_calling_again_and_its_finished_steps_are_kept(store: StateStore) -> None:
    kept, outages = Effect(), [ConnectionError("the service is away")]

    async def handler(run: Run) -> str:
        await run.step("kept", kept)
        if outages:
            raise outages.pop()
        return "done"

    with pytest.raises(ConnectionError):
        await store.run("n", handler, workflow_id="w")
    assert await store.run("n", handler, workflow_id="w") == "done"
    assert len(kept.calls) == 1
    state = await store.load_workflow_state_by_workflow_id("w")
    assert (state.status, state.error) == (WorkflowStatus.COMPLETED, None)


async def test_a_long_error_is_bounded(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        raise ValueError("x" * 100_000)

    with pytest.raises(ValueError, match="x"):
        await store.run("n", handler, workflow_id="w")
    error = (await row_of(store, "w")).error
    assert error.startswith("ValueError: xxx")
    assert len(error) <= 2000


# --- hostile exceptions and results ---


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")

    __repr__ = __str__


class NotText(Exception):
    def __str__(self) -> str:
        return cast("str", 1)


HOSTILE = {
    "its str() fails": (Unprintable(), "Unprintable: (its message cannot be printed)"),
    "its str() is no text": (NotText(), "NotText: (its message cannot be printed)"),
    "NUL": (ValueError("a\0b"), "ValueError: a\N{REPLACEMENT CHARACTER}b"),
    "lone surrogate": (ValueError("a\ud800b"), "ValueError: a?b"),
    "no message": (ValueError(), "ValueError"),
    "the database's words": (RuntimeError("database is locked"), "RuntimeError: database is locked"),
    "the driver's error": (sqlite3.OperationalError("database is locked"), "OperationalError: database is locked"),
    "the network's": (ConnectionResetError("reset"), "ConnectionResetError: reset"),
    "a time limit": (TimeoutError(), "TimeoutError"),
}


async def test_a_hostile_exception_of_a_handler_fails_the_run_readably(store: StateStore) -> None:
    for name, (error, recorded) in HOSTILE.items():
        work = Failing(error)

        async def handler(run: Run, work: Failing = work) -> str:
            return await work()

        with pytest.raises(type(error)) as raised:
            await store.run("n", handler, workflow_id=name)
        assert raised.value is error
        row = await row_of(store, name)
        assert (row.status, row.error, work.calls) == ("failed", recorded, 1)


async def test_a_hostile_exception_of_a_step_fails_step_and_run_readably(store: StateStore) -> None:
    for name, (error, recorded) in HOSTILE.items():
        for calls in (1, 2):
            step = Failing(*[error] * calls)

            async def handler(run: Run, step: Failing = step, calls: int = calls) -> None:
                await run.step("hostile", step, retry=Retry(attempts=calls, wait_initial=seconds(0.001)))

            workflow_id = f"{name}, {calls} calls"
            with pytest.raises(type(error)) as raised:
                await store.run("n", handler, workflow_id=workflow_id)
            assert raised.value is error
            row, step_row = await row_of(store, workflow_id), (await steps_of(store, workflow_id))["hostile"]
            assert (row.status, row.error) == (step_row.status, step_row.error) == ("failed", recorded)
            assert step.calls == step_row.retry_count == calls


async def test_a_hostile_exception_in_a_transaction_fails_step_and_run_readably(store: StateStore) -> None:
    for name, (error, recorded) in HOSTILE.items():
        write = Failing(error)

        async def handler(run: Run, write: Failing = write) -> None:
            await run.transact("hostile", lambda _: write())

        with pytest.raises(type(error)) as raised:
            await store.run("n", handler, workflow_id=name)
        assert raised.value is error
        row, step_row = await row_of(store, name), (await steps_of(store, name))["hostile"]
        assert (row.status, row.error) == (step_row.status, step_row.error) == ("failed", recorded)
        assert write.calls == 1


async def test_a_result_that_cannot_be_stored_fails_the_run(store: StateStore) -> None:
    for n, unstorable in enumerate(({1, 2}, b"bytes", float("nan"), "a\0b", "\ud800", {1: 2}, object(), ValueError())):

        async def handler(run: Run, unstorable: object = unstorable) -> object:
            return unstorable

        with pytest.raises(InvalidPayload, match="result"):
            await store.run("n", handler, workflow_id=f"w-{n}")
        row = await row_of(store, f"w-{n}")
        assert row.status == "failed"
        assert row.error.startswith("InvalidPayload: ")


async def test_a_step_of_a_task_that_outlives_its_handler_is_refused(store: StateStore) -> None:
    left_behind: list[asyncio.Task[Any]] = []
    ended = asyncio.Event()

    async def straggler(run: Run) -> Any:
        await ended.wait()
        return await run.step("too late", Effect())

    async def handler(run: Run) -> None:
        left_behind.append(asyncio.create_task(straggler(run)))

    await store.run("n", handler, workflow_id="w")
    ended.set()
    with pytest.raises(ConfigurationError, match="has ended"):
        await left_behind[0]
    assert await steps_of(store, "w") == {}


# --- namespaces ---


async def test_the_same_workflow_id_in_two_namespaces_is_two_runs(database_url: str, store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        return run.context["in"]

    async with StateStore.open(database_url, namespace="tenant") as tenant:
        assert await store.run("n", handler, workflow_id="w", context={"in": "default"}) == "default"
        assert await tenant.run("n", handler, workflow_id="w", context={"in": "tenant"}) == "tenant"
        for key in ("k", None):
            await store.run("n", handler, idempotency_key=key, context={"in": 1})
            assert await tenant.run("n", handler, idempotency_key=key, context={"in": 2}) == 2
