"""`run.step` on both databases: a step happens once, is found by its id, and says how it went."""

import asyncio
import gc
import threading
import warnings
from datetime import timedelta
from typing import Any

import pytest

from orchestrator_state import (
    ConfigurationError,
    Happened,
    InvalidPayload,
    OutcomeUnknown,
    Retry,
    Run,
    StateStore,
    UnusedSteps,
)
from orchestrator_state.hooks import StepReused, StepStarted, StepsUnused
from tests.support.running import (
    Effect,
    Failing,
    Gate,
    Log,
    VanishesEverywhere,
    row_of,
    seconds,
    steps_of,
    until_done,
    vanish,
)

AT_ONCE = timedelta(milliseconds=1)

# --- once ---


async def test_every_step_happens_at_most_once_more_than_its_worker_vanished_in_the_middle_of_it(
    database_url: str,
) -> None:
    effect = Effect()

    async def handler(run: Run) -> list[Any]:
        return [await run.step(f"step {n}", effect, n) for n in range(3)]

    hook = VanishesEverywhere()
    async with StateStore.open(database_url, hook=hook) as store:
        assert await until_done(lambda: store.run("n", handler, workflow_id="w")) == [0, 1, 2]
        assert len(hook.moments) >= 3 * 3
        # Vanished before the call, before the commit, and after it: called by the attempts two and three only.
        assert sorted(effect.calls) == [0, 0, 1, 1, 2, 2]
        assert [step.status for step in (await steps_of(store, "w")).values()] == ["completed"] * 3


async def test_a_resumed_handler_is_given_what_was_recorded_not_what_the_function_would_return_now(
    store: StateStore,
) -> None:
    values = iter([{"answer": [1, 2.5, None]}, "another"])

    async def handler(run: Run) -> Any:
        value = await run.step("draw", lambda: next(values))
        if not attempts:
            attempts.append(1)
            vanish()
        return value

    attempts: list[int] = []
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    assert await store.run("n", handler, workflow_id="w") == {"answer": [1, 2.5, None]}


async def test_a_changed_copy_of_recorded_outputs_stays_a_copy(store: StateStore) -> None:
    async def handler(run: Run) -> list[Any]:
        outputs: list[int] = await run.step("list", lambda: [1])
        outputs.append(2)
        if not attempts:
            attempts.append(1)
            vanish()
        return outputs

    attempts: list[int] = []
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    assert await store.run("n", handler, workflow_id="w") == [1, 2]
    assert (await steps_of(store, "w"))["list"].outputs == "[1]"


# --- async and sync functions ---


async def test_a_sync_function_runs_in_a_thread_and_leaves_the_event_loop_free(store: StateStore) -> None:
    released = threading.Event()

    def blocking() -> bool:
        return released.wait(timeout=60) and threading.current_thread() is not threading.main_thread()

    async def handler(run: Run) -> Any:
        step = asyncio.create_task(run.step("blocking", blocking))
        await run.step("meanwhile", Effect())
        released.set()
        return await step

    assert await store.run("n", handler) is True


class Proxy:
    """Of something far away, whatever it is asked for: as those of `xmlrpc.client`."""

    def __getattr__(self, name: str) -> "Proxy":
        return Proxy()

    def __call__(self, value: str) -> str:
        return value


async def test_a_callable_that_has_every_attribute_is_called_like_any_other(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        return await run.step("far", Proxy(), "away")

    assert await store.run("n", handler) == "away"


async def test_a_lambda_that_returns_a_coroutine_is_awaited(store: StateStore) -> None:
    effect = Effect()

    async def handler(run: Run) -> Any:
        return await run.step("lambda", lambda: effect("value"))

    assert await store.run("n", handler) == "value"


async def test_the_step_key_is_the_same_in_every_attempt_and_another_for_every_step(database_url: str) -> None:
    keys: dict[str, set[str]] = {}

    async def handler(run: Run) -> None:
        def note(name: str) -> None:
            keys.setdefault(name, set()).add(run.step_key)

        async def note_async(name: str) -> None:
            note(name)

        async def note_in_transaction(session: Any, name: str) -> None:
            note(name)

        await asyncio.gather(run.step("a", note, "a"), run.step("b", note_async, "b"), run.step("a", note, "a#2"))
        await run.transact("c", note_in_transaction, "c")
        if not attempts:
            attempts.append(1)
            vanish()

    attempts: list[int] = []
    async with StateStore.open(database_url, hook=VanishesEverywhere()) as store:
        await until_done(lambda: store.run("n", handler, workflow_id="w"))
        await until_done(lambda: store.run("n", handler, workflow_id="other"))
    assert {name: len(found) for name, found in keys.items()} == dict.fromkeys(("a", "a#2", "b", "c"), 2)
    assert len(set.union(*keys.values())) == 8, "no two steps, and no two runs, share a key"


async def test_outside_a_step_there_is_no_step_key(store: StateStore) -> None:
    async def handler(run: Run) -> str:
        await run.step("a", Effect())
        return run.step_key

    with pytest.raises(ConfigurationError, match="step_key"):
        await store.run("n", handler)


async def test_a_step_inside_a_steps_function_is_refused_because_a_resumed_run_would_not_meet_it(
    store: StateStore,
) -> None:
    async def handler(run: Run) -> Any:
        return await run.step("outer", lambda: run.step("inner", Effect()))

    with pytest.raises(ConfigurationError, match="step 'outer' called a step of its own run"):
        await store.run("n", handler, workflow_id="w")
    assert list(await steps_of(store, "w")) == ["outer"]


async def test_another_run_inside_a_steps_function_has_steps_of_its_own(store: StateStore) -> None:
    async def inner(run: Run) -> Any:
        return await run.step("inner", lambda: run.step_key)

    async def outer(run: Run) -> Any:
        return await run.step("outer", lambda: store.run("inner", inner, workflow_id="inside"))

    inside = await store.run("outer", outer, workflow_id="w")
    assert inside == f"{(await row_of(store, 'inside')).id}:inner"


# --- ids ---


async def test_the_same_id_in_a_loop_is_numbered(store: StateStore) -> None:
    async def handler(run: Run) -> list[Any]:
        return [await run.step("item", Effect(), n) for n in range(3)]

    assert await store.run("n", handler, workflow_id="w") == [0, 1, 2]
    assert list(await steps_of(store, "w")) == ["item", "item#2", "item#3"]


async def test_ids_in_a_gather_are_numbered_in_the_order_of_the_calls_not_of_the_results(store: StateStore) -> None:
    gates = [Gate() for _ in range(4)]

    async def handler(run: Run) -> list[Any]:
        results = await asyncio.gather(*(run.step("item", gate, n) for n, gate in enumerate(gates)))
        if not attempts:
            attempts.append(1)
            vanish()
        return results

    async def open_backwards() -> None:
        for gate in reversed(gates):
            await gate.reached.wait()
            gate.opened.set()
            await asyncio.sleep(0)

    attempts: list[int] = []
    opening = asyncio.create_task(open_backwards())
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    await opening
    assert await store.run("n", handler, workflow_id="w") == [0, 1, 2, 3]
    outputs = {step_id: step.outputs for step_id, step in (await steps_of(store, "w")).items()}
    assert outputs == {"item": "0", "item#2": "1", "item#3": "2", "item#4": "3"}


async def test_an_id_that_looks_like_a_number_of_another_is_not_mistaken_for_it(store: StateStore) -> None:
    async def handler(run: Run) -> list[Any]:
        return [await run.step(step_id, Effect(), n) for n, step_id in enumerate(["a#2", "a", "a", "a#2"])]

    assert await store.run("n", handler, workflow_id="w") == [0, 1, 2, 3]
    assert len(await steps_of(store, "w")) == 4


async def test_steps_side_by_side_commit_without_conflict(store: StateStore) -> None:
    async def handler(run: Run) -> int:
        return sum(await asyncio.gather(*(run.step(f"step {n}", Effect(), n) for n in range(20))))

    assert await store.run("n", handler, workflow_id="w") == sum(range(20))
    positions = [step.position for step in (await steps_of(store, "w")).values()]
    assert positions == list(range(20)), "each commit has a place of its own"


# --- a handler that changed in between ---


async def test_steps_are_found_by_id_when_a_new_version_adds_and_reorders_them(store: StateStore) -> None:
    effect = Effect()

    async def old(run: Run) -> None:
        await run.step("a", effect, "old a")
        await run.step("b", effect, "old b")
        vanish()

    async def new(run: Run) -> list[Any]:
        return [await run.step(step_id, effect, f"new {step_id}") for step_id in ("added", "b", "a")]

    with pytest.raises(asyncio.CancelledError):
        await store.run("n", old, workflow_id="w")
    assert await store.run("n", new, workflow_id="w") == ["new added", "old b", "old a"]
    assert effect.calls == ["old a", "old b", "new added"]


async def test_recorded_steps_that_the_handler_never_asked_for_are_reported(database_url: str) -> None:
    log = Log()

    async def old(run: Run) -> None:
        for step_id in ("kept", "dropped", "dropped too"):
            await run.step(step_id, Effect())
        vanish()

    async def new(run: Run) -> list[str]:
        before = run.unused_steps
        await run.step("kept", Effect())
        return [*before, "|", *run.unused_steps]

    async with StateStore.open(database_url, hook=log) as store:
        with pytest.raises(asyncio.CancelledError):
            await store.run("n", old, workflow_id="w")
        seen = await store.run("n", new, workflow_id="w")
    assert seen == ["kept", "dropped", "dropped too", "|", "dropped", "dropped too"]
    assert [event.step_ids for event in log.of(StepsUnused)] == [("dropped", "dropped too")]
    assert [event.step_id for event in log.of(StepReused)] == ["kept"]


async def test_strict_fails_a_run_that_ends_without_asking_for_its_recorded_steps(store: StateStore) -> None:
    async def old(run: Run) -> None:
        await run.step("dropped", Effect())
        vanish()

    async def new(run: Run) -> str:
        return "done"

    with pytest.raises(asyncio.CancelledError):
        await store.run("n", old, workflow_id="w", strict=True)
    with pytest.raises(UnusedSteps, match="dropped") as raised:
        await store.run("n", new, workflow_id="w", strict=True)
    assert raised.value.step_ids == ("dropped",)
    state = await store.load_workflow_state_by_workflow_id("w")
    assert (state.status, state.id) == ("failed", raised.value.workflow_state_id)
    assert await store.run("n", new, workflow_id="w") == "done"


# --- failures, retries, time limits ---


async def test_a_failed_step_is_recorded_with_its_error_and_runs_again_when_the_run_is_resumed(
    store: StateStore,
) -> None:
    work = Failing(ValueError("first"))

    async def handler(run: Run) -> str:
        return await run.step("work", work)

    with pytest.raises(ValueError, match="first"):
        await store.run("n", handler, workflow_id="w")
    step = (await store.load_workflow_state_by_workflow_id("w")).steps["work"]
    assert (step.status, step.error, step.retry_count, step.outputs) == ("failed", "ValueError: first", 1, None)
    assert await store.run("n", handler, workflow_id="w") == "done"
    step = (await store.load_workflow_state_by_workflow_id("w")).steps["work"]
    assert (step.status, step.outputs, step.retry_count) == ("completed", "done", 1)


async def test_a_handler_may_go_on_after_a_failed_step(store: StateStore) -> None:
    async def handler(run: Run) -> str:
        try:
            return await run.step("first choice", Failing(ValueError("no")))
        except ValueError:
            return await run.step("second choice", Failing())

    assert await store.run("n", handler, workflow_id="w") == "done"
    assert [step.status for step in (await steps_of(store, "w")).values()] == ["failed", "completed"]


async def test_retries_count_and_the_last_error_is_kept(database_url: str) -> None:
    log, work = Log(), Failing(ValueError("first"), KeyError("second"))

    async def handler(run: Run) -> str:
        return await run.step("work", work, retry=Retry(attempts=5, wait_initial=AT_ONCE))

    async with StateStore.open(database_url, hook=log) as store:
        assert await store.run("n", handler, workflow_id="w") == "done"
        step = (await store.load_workflow_state_by_workflow_id("w")).steps["work"]
    assert (step.status, step.retry_count, step.error) == ("completed", 2, "KeyError: 'second'")
    assert [event.attempt for event in log.of(StepStarted)] == [1, 2, 3]


async def test_when_the_retries_are_used_up_the_last_exception_is_raised(store: StateStore) -> None:
    errors = [ValueError(f"{n}") for n in range(3)]
    work = Failing(*errors)

    async def handler(run: Run) -> str:
        return await run.step("work", work, retry=Retry(attempts=3, wait_initial=AT_ONCE))

    with pytest.raises(ValueError, match="2") as raised:
        await store.run("n", handler, workflow_id="w")
    assert raised.value is errors[2]
    step = (await steps_of(store, "w"))["work"]
    assert (work.calls, step.status, step.retry_count, step.error) == (3, "failed", 3, "ValueError: 2")


async def test_retry_is_a_number_of_calls_in_all(store: StateStore) -> None:
    work = Failing(ValueError("once"))

    async def handler(run: Run) -> str:
        return await run.step("work", work, retry=2)

    assert await store.run("n", handler) == "done"
    assert work.calls == 2


async def test_only_the_named_exceptions_are_worth_another_call(store: StateStore) -> None:
    work = Failing(ValueError("worth it"), KeyError("not worth it"))

    async def handler(run: Run) -> str:
        return await run.step("work", work, retry=Retry(attempts=9, wait_initial=AT_ONCE, on=ValueError))

    with pytest.raises(KeyError):
        await store.run("n", handler)
    assert work.calls == 2


async def test_the_cause_of_a_steps_exception_is_kept(store: StateStore) -> None:
    cause = OSError("below")
    error = ValueError("above")
    error.__cause__ = cause

    async def handler(run: Run) -> str:
        return await run.step("work", Failing(error))

    with pytest.raises(ValueError, match="above") as raised:
        await store.run("n", handler)
    assert raised.value.__cause__ is cause


async def test_the_log_says_in_words_which_step_is_called_again_and_not_what_it_raised(
    store: StateStore, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(run: Run) -> str:
        failing = Failing(ValueError("s3cret"), KeyError("s3cret"))
        return await run.step("work\n", failing, retry=Retry(attempts=3, wait_initial=AT_ONCE))

    with caplog.at_level("DEBUG"):
        await store.run("n", handler, workflow_id="w")
    run_id = (await row_of(store, "w")).id
    said = [record.getMessage() for record in caplog.records if "called again" in record.getMessage()]
    assert [line.partition(";")[0] for line in said] == [
        f"step 'work\\n' of run {run_id} failed (ValueError), call 1 of 3",
        f"step 'work\\n' of run {run_id} failed (KeyError), call 2 of 3",
    ]
    assert not any("s3cret" in str(vars(record)) for record in caplog.records)
    assert not any("retry_scheduled" in record.getMessage() for record in caplog.records)


def test_pauses_double_up_to_the_longest() -> None:
    retry = Retry(attempts=9, wait_initial=1, wait_max=10, wait_jitter=0)
    assert [retry.pause_after(calls) for calls in (1, 2, 3, 4, 5, 2000)] == [1, 2, 4, 8, 10, 10]
    assert Retry(wait_initial=timedelta.max, wait_max=timedelta.max).pause_after(2000) > 0


async def test_a_step_that_takes_too_long_is_cancelled_and_fails(store: StateStore) -> None:
    gate = Gate()

    async def handler(run: Run) -> Any:
        return await run.step("slow", gate, timeout=0.01)

    with pytest.raises(TimeoutError):
        await store.run("n", handler, workflow_id="w")
    assert gate.cancelled
    step = (await steps_of(store, "w"))["slow"]
    assert (step.status, step.error) == ("failed", "TimeoutError")


async def test_the_time_limit_is_each_calls_own(store: StateStore) -> None:
    gate = Gate()

    async def slow_once() -> str:
        if not gate.cancelled:
            await gate()
        return "done"

    async def handler(run: Run) -> str:
        return await run.step("slow", slow_once, timeout=seconds(0.2), retry=2)

    assert await store.run("n", handler, workflow_id="w") == "done"
    assert (await steps_of(store, "w"))["slow"].retry_count == 1


async def test_outputs_that_cannot_be_stored_fail_the_step_and_are_not_worth_a_retry(store: StateStore) -> None:
    calls = []

    def unstorable() -> object:
        calls.append(1)
        return {"deep": [b"bytes"]}

    async def handler(run: Run) -> Any:
        return await run.step("load", unstorable, retry=3)

    with pytest.raises(InvalidPayload, match=r"deep\[0\]"):
        await store.run("n", handler, workflow_id="w")
    step = (await steps_of(store, "w"))["load"]
    assert (step.status, len(calls)) == ("failed", 1)
    assert "InvalidPayload" in step.error


# --- a step that was under way when its worker vanished ---


def charge(effect: Effect, on_unknown: Any, *, crash: bool) -> Any:
    async def handler(run: Run) -> Any:
        async def take_money() -> str:
            await effect(run.step_key)
            if crash and len(effect.calls) == 1:
                vanish()
            return "charged"

        return await run.step("charge", take_money, on_unknown=on_unknown)

    return handler


async def test_by_default_such_a_step_runs_again(store: StateStore) -> None:
    effect = Effect()
    handler = charge(effect, "retry", crash=True)
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    assert await steps_of(store, "w") == {}, "no intent is written for it"
    assert await store.run("n", handler, workflow_id="w") == "charged"
    assert len(effect.calls) == 2
    assert len(set(effect.calls)) == 1


async def test_the_intent_is_committed_before_the_effect_and_raise_refuses_to_repeat_it(store: StateStore) -> None:
    effect = Effect()
    handler = charge(effect, "raise", crash=True)
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    assert (await steps_of(store, "w"))["charge"].status == "running"
    with pytest.raises(OutcomeUnknown, match="charge"):
        await store.run("n", handler, workflow_id="w")
    with pytest.raises(OutcomeUnknown, match="charge") as raised:
        await store.run("n", handler, workflow_id="w")
    state = await store.load_workflow_state_by_workflow_id("w")
    assert state.status == "failed"
    error = raised.value
    assert (error.workflow_state_id, error.step_id, error.step_key) == (state.id, "charge", effect.calls[0])
    assert len(effect.calls) == 1


async def test_a_callable_that_finds_it_happened_gives_the_outputs(store: StateStore) -> None:
    effect, asked = Effect(), Effect()

    async def find_out(step_key: str) -> Happened:
        await asked(step_key)
        return Happened({"receipt": 7})

    handler = charge(effect, find_out, crash=True)
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    for _ in range(2):
        assert await store.run("n", handler, workflow_id="w") == {"receipt": 7}
    assert effect.calls == asked.calls
    step = (await store.load_workflow_state_by_workflow_id("w")).steps["charge"]
    assert (step.status, step.outputs) == ("completed", {"receipt": 7})


async def test_a_callable_that_finds_nothing_happened_lets_the_step_run_again(store: StateStore) -> None:
    effect = Effect()
    handler = charge(effect, lambda step_key: None, crash=True)
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    assert await store.run("n", handler, workflow_id="w") == "charged"
    assert len(effect.calls) == 2


async def test_a_callable_that_returns_anything_else_is_refused(store: StateStore) -> None:
    effect = Effect()
    handler = charge(effect, lambda step_key: {"receipt": 7}, crash=True)
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    with pytest.raises(ConfigurationError, match="Happened"):
        await store.run("n", handler, workflow_id="w")
    assert len(effect.calls) == 1


async def test_without_a_crash_nobody_is_asked(store: StateStore) -> None:
    def never(step_key: str) -> None:
        raise AssertionError

    effect = Effect()
    assert await store.run("n", charge(effect, never, crash=False), workflow_id="w") == "charged"
    assert len(effect.calls) == 1


async def test_a_step_that_failed_has_a_known_outcome(store: StateStore) -> None:
    work = Failing(ValueError("refused"))

    async def handler(run: Run) -> str:
        return await run.step("charge", work, on_unknown="raise")

    with pytest.raises(ValueError, match="refused"):
        await store.run("n", handler, workflow_id="w")
    assert await store.run("n", handler, workflow_id="w") == "done"


async def test_a_step_that_is_cancelled_before_it_begins_leaves_no_coroutine_behind(store: StateStore) -> None:
    async def handler(run: Run) -> str:
        beside = asyncio.create_task(run.step("never", Effect()))
        beside.cancel()
        with pytest.raises(asyncio.CancelledError):
            await beside
        return "done"

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert await store.run("n", handler, workflow_id="w") == "done"
        gc.collect()
    assert [str(warning.message) for warning in caught] == []
