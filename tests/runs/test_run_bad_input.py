"""What runs refuse, on both databases: with an error that names the argument, and before anything is written."""

import asyncio
from datetime import timedelta
from typing import Any, cast

import pytest

from orchestrator_state import (
    ConfigurationError,
    InvalidPayload,
    LeaseHeld,
    OrchestratorStateError,
    PayloadTooLarge,
    Run,
    StateStore,
    Worker,
)
from tests.support.clocks import set_wall_clock
from tests.support.running import Effect, Gate, change_row, count_rows, row_of, seconds, steps_of

BAD_NAMES = {"": "1 to 255", "x" * 256: "256", "a\0b": "NUL", "\ud800": "surrogate", 7: "str", None: "str"}


async def do_nothing(run: Run) -> None:
    pass


async def refusal(store: StateStore, call: Any, *, workflow_id: str) -> OrchestratorStateError:
    """What `call(run)` raised in a handler, which went on all the same."""

    async def handler(run: Run) -> None:
        with pytest.raises(OrchestratorStateError) as raised:
            await call(run)
        errors.append(raised.value)
        await run.step("goes on", Effect())

    errors: list[OrchestratorStateError] = []
    await store.run("n", handler, workflow_id=workflow_id)
    assert list(await steps_of(store, workflow_id)) == ["goes on"]
    return errors[0]


# --- steps ---


async def test_a_step_id_that_cannot_be_stored_is_refused_before_the_step_is_called(store: StateStore) -> None:
    never = Effect()
    calls: list[Any] = [
        lambda run, name: run.step(name, never),
        lambda run, name: run.transact(name, never),
        lambda run, name: run.checkpoint(name),
    ]
    for n, call in enumerate(calls):
        for m, (name, reason) in enumerate(BAD_NAMES.items()):
            error = await refusal(store, lambda run, call=call, name=name: call(run, name), workflow_id=f"w-{n}-{m}")
            assert type(error) is InvalidPayload
            assert "step_id" in str(error)
            assert reason in str(error)
    assert never.calls == []


async def test_the_longest_step_id_fits_once(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        await run.step("x" * 255, Effect())
        with pytest.raises(InvalidPayload, match="257"):
            await run.step("x" * 255, Effect())

    await store.run("n", handler, workflow_id="w")
    assert list(await steps_of(store, "w")) == ["x" * 255]


async def test_a_signals_name_that_cannot_be_stored_is_refused_by_both_ends(store: StateStore) -> None:
    state = await store.start("n", workflow_id="to")
    for n, name in enumerate(("", "x" * 249, "a\0b", 7)):
        error = await refusal(store, lambda run, name=name: run.wait_for(name), workflow_id=f"w-{n}")
        assert type(error) is InvalidPayload
        with pytest.raises(InvalidPayload, match="name"):
            await store.signal(state.id, cast("str", name))
    assert await count_rows(store, "signals") == 0


async def test_a_signals_payload_that_cannot_be_stored_is_refused(store: StateStore) -> None:
    state = await store.start("n", workflow_id="w")
    for payload in (b"bytes", {"a": {1}}, float("inf"), "a\0b"):
        with pytest.raises(InvalidPayload, match="payload"):
            await store.signal(state.id, "approval", payload)
    assert await count_rows(store, "signals") == 0


async def test_durations_that_are_none_are_refused(store: StateStore) -> None:
    for n, duration in enumerate(("3 days", None, float("nan"), float("inf"), True)):
        for name, call in {
            "sleep": lambda run, bad: run.sleep(bad),
            "wait": lambda run, bad: run.wait_for("x", timeout=bad if bad is not None else "none"),
            "step": lambda run, bad: run.step("x", Effect(), timeout=bad if bad is not None else "none"),
        }.items():
            error = await refusal(store, lambda run, call=call, bad=duration: call(run, bad), workflow_id=f"{name}-{n}")
            assert type(error) is InvalidPayload
            assert "timedelta" in str(error)


async def test_a_negative_duration_is_none(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        await run.sleep(timedelta(days=-1))
        await run.sleep(-5)

    await store.run("n", handler)


async def test_outputs_over_the_limit_fail_the_step(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        await run.step("large", lambda: "x" * (16 * 1024 * 1024))

    with pytest.raises(PayloadTooLarge):
        await store.run("n", handler, workflow_id="w")
    assert (await steps_of(store, "w"))["large"].status == "failed"


async def test_the_calls_of_a_run_are_for_its_handler(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        runs.append(run)

    runs: list[Run] = []
    await store.run("n", handler, workflow_id="w")
    [run] = runs
    for call in (
        lambda: run.step("late", Effect()),
        lambda: run.transact("late", Effect()),
        run.checkpoint,
        lambda: run.sleep(0),
        lambda: run.wait_for("late"),
        lambda: run.child("late", do_nothing),
    ):
        with pytest.raises(ConfigurationError, match="has ended"):
            await call()
    assert await steps_of(store, "w") == {}


# --- starting ---


async def test_arguments_of_a_start_that_cannot_be_stored_are_refused(store: StateStore) -> None:
    contexts: list[Any] = [[], "text", 7, {1: 2}, {"a": {1}}, {"a": float("nan")}]
    refused: list[dict[str, Any]] = [
        *({"workflow_id": name} for name in BAD_NAMES if name is not None),
        *({"name": name} for name in BAD_NAMES),
        *({"user_id": name} for name in BAD_NAMES if name is not None),
        *({"idempotency_key": name} for name in BAD_NAMES if name is not None),
        *({"context": context} for context in contexts),
    ]
    for bad in refused:
        arguments = {"name": "n", **bad}
        with pytest.raises(InvalidPayload):
            await store.run(arguments.pop("name"), do_nothing, **arguments)
        arguments = {"name": "n", **bad}
        with pytest.raises(InvalidPayload):
            await store.start(arguments.pop("name"), **arguments)
    assert await count_rows(store, "workflow_states") == 0


async def test_ids_that_are_no_uuids_are_refused(store: StateStore) -> None:
    for call in (store.pause, store.resume, store.cancel, store.fork, store.rewind):
        for bad in ("", "no uuid", 7, None):
            with pytest.raises(InvalidPayload, match="UUID"):
                await cast("Any", call)(bad)


async def test_a_handler_that_is_no_async_function_fails_readably(store: StateStore) -> None:
    def not_async(run: Run) -> int:
        return 1

    with pytest.raises(TypeError):
        await store.run("n", cast("Any", not_async), workflow_id="w")
    row = await row_of(store, "w")
    assert (row.status, row.error.partition(":")[0]) == ("failed", "TypeError")


async def test_settings_that_make_no_sense_are_refused(store: StateStore) -> None:
    for bad in (
        {"lease_term": seconds(0)},
        {"lease_term": seconds(-1)},
        {"checkpoint_every": -1},
        {"keep_checkpoints": 0},
        {"max_attempts": 0},
    ):
        with pytest.raises(ConfigurationError, match=next(iter(bad))):
            StateStore.open(":memory:", **cast("Any", bad))
    with pytest.raises(ConfigurationError):
        Worker(store, {})
    with pytest.raises(ConfigurationError):
        Worker(store, {"n": do_nothing}, concurrency=0)


# --- clocks and nesting ---


async def test_a_worker_whose_clock_is_an_hour_off_steals_no_lease(
    database_url: str, store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()

    async def handler(run: Run) -> Any:
        return await run.step("work", gate, "mine")

    task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    await gate.reached.wait()
    for hours in (1, -1):
        set_wall_clock(monkeypatch, timedelta(hours=hours))
        async with StateStore.open(database_url) as other:
            with pytest.raises(LeaseHeld):
                await other.run("n", handler, workflow_id="w")
            assert (await other.recover({"n": handler})).runs == []
    gate.opened.set()
    assert await task == "mine"


async def test_an_owner_that_is_no_process_this_package_knows_is_alive_until_its_lease_ends(store: StateStore) -> None:
    state = await store.start("n", workflow_id="w")
    for process in ("", "another format", "boot|not a number|1", None):
        await change_row(
            store,
            state.id,
            status="running",
            lease_owner=state.id,
            lease_process=process,
            lease_expires_at=state.started_at + seconds(3600),
        )
        with pytest.raises(LeaseHeld):
            await store.run("n", do_nothing, workflow_id="w")
        assert (await store.recover({"n": do_nothing})).runs == []
