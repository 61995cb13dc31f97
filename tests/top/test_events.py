"""What a hook is told: names, outcomes, the class of an error, which attempt it was, and how long it took."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from orchestrator_state import (
    ConfigurationError,
    Event,
    InvalidPayload,
    LeaseLost,
    Retry,
    Run,
    RunCancelled,
    RunPaused,
    StateStore,
    StoreUnavailable,
)
from orchestrator_state.hooks import (
    BatchCommitted,
    RunEnded,
    RunStarted,
    StepCommitted,
    StepFailed,
    StepReused,
    StepStarted,
    StoreEvent,
    TransactionRepeated,
)
from tests.support.running import LONG_AGO, Failing, Gate, Log, change_row, expire_lease, vanish

AGAIN = Retry(attempts=3, wait_initial=0, wait_max=0, wait_jitter=0)


@dataclass
class Ears(Log):
    """A hook that hears of the store, too."""

    of_store: list[StoreEvent] = field(default_factory=list)

    def on_store_event(self, event: StoreEvent) -> None:
        self.of_store.append(event)


async def one_step(run: Run) -> None:
    await run.step("a", Failing())


async def fails(run: Run) -> None:
    raise LookupError("a secret")


# --- steps -------------------------------------------------------------------------------------------------------


async def test_a_failed_call_is_told_and_whether_another_follows(database_url: str) -> None:
    log = Log()

    async def handler(run: Run) -> str:
        return await run.step("a", Failing(OSError("1"), KeyError("2")), retry=AGAIN)

    async with StateStore.open(database_url, hook=log) as store:
        await store.run("n", handler)
    failed = log.of(StepFailed)
    assert [(e.step_id, e.error_type, e.will_retry, e.attempt) for e in failed] == [
        ("a", "OSError", True, 1),
        ("a", "KeyError", True, 2),
    ]
    [committed] = log.of(StepCommitted)
    assert (committed.outcome, committed.error_type, committed.attempt) == ("completed", None, 3)
    durations = [*(each.duration for each in failed), committed.duration]
    assert all(isinstance(each, float) and each >= 0 for each in durations)
    assert {(each.name, each.token) for each in log.events} == {("n", 1)}


async def test_the_commit_of_a_failure_is_no_success(database_url: str) -> None:
    log = Log()

    fails_once = Failing(OSError("1"))

    async def handler(run: Run) -> None:
        await run.step("a", fails_once)

    async with StateStore.open(database_url, hook=log) as store:
        with pytest.raises(OSError, match="1"):
            await store.run("n", handler, workflow_id="w")
        await store.run("n", handler, workflow_id="w")
    [failed] = log.of(StepFailed)
    assert (failed.error_type, failed.will_retry) == ("OSError", False)
    outcomes = [(e.outcome, e.error_type, e.attempt, e.token) for e in log.of(StepCommitted)]
    assert outcomes == [("failed", "OSError", 1, 1), ("completed", None, 2, 2)]
    assert [e.outcome for e in log.of(RunEnded)] == ["failed", "completed"]


async def test_what_cannot_be_stored_and_a_failed_transact_are_failures_too(database_url: str) -> None:
    log = Log()

    async def writes(session: Any) -> None:
        raise LookupError("no")

    async def handler(run: Run) -> None:
        for call in (run.step("a", lambda: {1}), run.transact("b", writes)):
            with pytest.raises((InvalidPayload, LookupError)):
                await call

    async with StateStore.open(database_url, hook=log) as store:
        await store.run("n", handler)
    assert [(e.step_id, e.error_type) for e in log.of(StepFailed)] == [("a", "InvalidPayload"), ("b", "LookupError")]
    assert all(e.duration is not None for e in log.of(StepFailed))
    assert [e.outcome for e in log.of(StepCommitted)] == ["failed", "failed"]


async def test_waits_and_intents_have_outcomes_and_no_duration(database_url: str) -> None:
    log = Log()

    async def handler(run: Run) -> None:
        await run.step("a", Failing(), on_unknown="raise")
        await run.sleep(timedelta())
        with pytest.raises(TimeoutError):
            await run.wait_for("never", timeout=timedelta())
        await run.child("c", one_step)

    async with StateStore.open(database_url, hook=log) as store:
        await store.run("n", handler)
    found = [(e.step_id, e.outcome, e.duration is None) for e in log.of(StepCommitted) if e.name == "n"]
    assert ("a", "running", True) in found
    assert ("a", "completed", False) in found
    assert {(step, outcome) for step, outcome, timeless in found if timeless and outcome != "running"} == {
        ("sleep", "completed"),
        ("signal:never", "skipped"),
        ("child:c", "completed"),
    }


# --- runs --------------------------------------------------------------------------------------------------------


async def test_how_a_run_ended_is_told_with_its_reason(database_url: str) -> None:
    log = Log()
    began = asyncio.Event()

    async def waits(run: Run) -> None:
        began.set()
        await run.wait_for("go")

    async with StateStore.open(database_url, hook=log) as store:
        await store.run("completed", one_step)
        with pytest.raises(LookupError):
            await store.run("failed", fails)
        for ending, kind in ((store.cancel, RunCancelled), (store.pause, RunPaused)):
            gate = Gate()

            async def handler(run: Run, gate: Gate = gate) -> None:
                await run.step("a", gate)
                await run.step("b", gate)

            task = asyncio.create_task(store.run(ending.__name__, handler, workflow_id=ending.__name__))
            await gate.reached.wait()
            await ending((await store.load_workflow_state_by_workflow_id(ending.__name__)).id)
            gate.opened.set()
            with pytest.raises(kind):
                await task
        await store.start("suspended")
        report = await store.recover({"suspended": waits})
        assert len(report.suspended) == 1
        task = asyncio.create_task(store.run("released", waits))
        began.clear()
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    ended = {e.name: (e.outcome, e.error_type) for e in log.of(RunEnded)}
    assert ended == {
        "completed": ("completed", None),
        "failed": ("failed", "LookupError"),
        "cancel": ("cancelled", None),
        "pause": ("paused", None),
        "suspended": ("suspended", None),
        "released": ("released", None),
    }
    assert all(e.duration > 0 and e.started_at is not None for e in log.of(RunEnded))


@pytest.mark.parametrize("where", ["in a step", "at the end", "in a failure"])
async def test_a_lost_lease_is_told_wherever_it_is_noticed(
    database_url: str, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    log = Log()

    async with StateStore.open(database_url, hook=log) as store:

        async def handler(run: Run) -> None:
            await change_row(store, run.id, lease_token=99)
            if where == "in a step":
                await run.step("a", Failing())
            if where == "in a failure":
                raise LookupError("no")

        with pytest.raises(LeaseLost):
            await store.run("n", handler)
    [ended] = log.of(RunEnded)
    assert (ended.outcome, ended.error_type) == ("lost", "LeaseLost")
    lines = [each for each in caplog.messages if "has lost its lease" in each]
    assert len(lines) == 1


async def test_a_takeover_is_told_and_logged(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    log = Log()

    async def handler(run: Run) -> None:
        if run.id not in seen:
            seen.add(run.id)
            vanish()
        await run.step("a", Failing())

    seen: set[Any] = set()
    async with StateStore.open(database_url, hook=log) as store:
        with pytest.raises(asyncio.CancelledError):
            await store.run("n", handler, workflow_id="w")
        state = await store.load_workflow_state_by_workflow_id("w")
        await expire_lease(store, state.id)
        await store.run("n", handler, workflow_id="w")
    first, second = log.of(RunStarted)
    assert (first.attempts, first.token, second.attempts, second.token) == (0, 1, 1, 2)
    assert first.started_at == second.started_at
    assert second.workflow_id == "w"
    assert sum("goes on here" in each for each in caplog.messages) == 1


async def test_a_run_that_is_given_up_on_has_an_end_and_a_line(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    log = Log()
    async with StateStore.open(database_url, hook=log, max_attempts=1) as store:
        state = await store.start("n", workflow_id="w")
        await change_row(store, state.id, attempts=5, lease_expires_at=None)
        await store.recover({"n": one_step})
    assert [(e.outcome, e.name) for e in log.of(RunEnded)] == [("failed", "n")]
    assert log.of(RunStarted) == []
    assert sum("workers vanished" in each for each in caplog.messages) == 1


# --- the log -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_text", [False, True])
async def test_a_failed_run_is_one_line_without_what_the_error_says_unless_asked(
    database_url: str, caplog: pytest.LogCaptureFixture, *, with_text: bool
) -> None:
    async def fails_twice(run: Run) -> None:
        try:
            await run.step("a", Failing(KeyError("first\nsecret")))
        except KeyError as error:
            raise LookupError("a\x1b[31m secret") from error

    async with StateStore.open(database_url, log_error_text=with_text) as store:
        with pytest.raises(LookupError):
            await store.run("name\nERROR forged", fails_twice)
    [line] = [each for each in caplog.messages if " failed: " in each]
    assert line.isprintable()
    assert "LookupError" in line
    assert "caused by KeyError" in line
    assert f"{__file__}:" in line
    assert ("secret" in line) is with_text


async def test_no_name_nor_error_breaks_or_colours_a_line(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    hostile = "x\r\nERROR forged\x1b[31m\u2028\u202e"
    kind: Any = type(hostile, (Exception,), {})

    async def handler(run: Run) -> None:
        await run.step(hostile, Failing(kind(hostile)))

    async with StateStore.open(database_url, log_error_text=True) as store:
        with pytest.raises(kind):
            await store.run(hostile, handler, workflow_id=hostile)
        state = await store.load_workflow_state_by_workflow_id(hostile)
        await change_row(store, state.id, status="running", lease_expires_at=LONG_AGO, attempts=99)
        await store.recover({hostile: handler})
    assert {"failed: ", "workers vanished"} <= {
        words for words in ("failed: ", "workers vanished") for each in caplog.messages if words in each
    }
    assert [each for each in caplog.messages if not each.isprintable()] == []


# --- the store ---------------------------------------------------------------------------------------------------


async def test_commits_that_go_together_are_told_as_one_batch(database_url: str) -> None:
    ears, runs = Ears(), 20
    gates = [Gate() for _ in range(runs)]

    async with StateStore.open(database_url, hook=ears) as store:

        async def handler(run: Run) -> None:
            await run.step("a", gates[run.context["n"]], "é" * 100)

        tasks = [asyncio.create_task(store.run("n", handler, context={"n": n})) for n in range(runs)]
        await asyncio.gather(*(gate.reached.wait() for gate in gates))
        for gate in gates:
            gate.opened.set()
        await asyncio.gather(*tasks)
    batches = [event for event in ears.of_store if isinstance(event, BatchCommitted)]
    assert sum(batch.commits for batch in batches) == runs == len(ears.of(StepCommitted))
    assert len(batches) < runs
    assert batches[-1].queued == 0
    assert sum(batch.size for batch in batches) >= runs * 200
    assert all(batch.duration > 0 for batch in batches)


async def test_a_repeated_transaction_is_told(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ears = Ears()
    async with StateStore.open(database_url, hook=ears) as store:
        left = [StoreUnavailable("busy", transient=True)]

        async def work(_: Any) -> None:
            if left:
                raise left.pop()

        await store._transactions.write(work)
    assert ears.of_store == [TransactionRepeated(error_type="StoreUnavailable")]


# --- several hooks, and what they enter --------------------------------------------------------------------------

_place: ContextVar[str] = ContextVar("place", default="outside")


class Enters(Log):
    @contextmanager
    def around(self, event: RunStarted | StepStarted) -> Iterator[None]:
        before = _place.set(event.name if isinstance(event, RunStarted) else event.step_id)
        try:
            yield
        finally:
            _place.reset(before)


class Raises:
    def on_event(self, event: Event) -> None:
        raise SystemExit("broken")

    def on_store_event(self, event: StoreEvent) -> None:
        raise SystemExit("broken")

    def around(self, event: RunStarted | StepStarted) -> Any:
        raise SystemExit("broken")


async def test_code_sees_what_a_hook_entered_around_it(database_url: str) -> None:
    seen = []

    async def here() -> None:
        seen.append(_place.get())

    async def handler(run: Run) -> None:
        await here()
        await run.step("async", here)
        await run.step("sync", lambda: seen.append(_place.get()))
        await run.transact("transact", lambda session: here())
        with pytest.raises(OSError, match="x"):
            await run.step("fails", Failing(OSError("x")))
        await here()

    async with StateStore.open(database_url, hook=[Raises(), Enters(), Log()]) as store:
        await store.run("n", handler)
    assert seen == ["n", "async", "sync", "transact", "n"]
    assert _place.get() == "outside"


async def test_each_of_several_hooks_is_told_whatever_the_others_do(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, last = Log(), Ears()
    async with StateStore.open(database_url, hook=[first, Raises(), last]) as store:
        await store.run("n", one_step)
    assert first.events == last.events != []
    assert last.of_store
    assert "a hook failed on RunStarted: SystemExit" in caplog.text


def test_what_is_no_hook_is_refused() -> None:
    for given in ([Log(), object()], object(), [None]):
        with pytest.raises(ConfigurationError, match="without a method on_event"):
            StateStore.open(":memory:", hook=given)  # type: ignore[arg-type]


async def test_an_empty_list_of_hooks_is_none(database_url: str) -> None:
    async with StateStore.open(database_url, hook=[]) as store:
        assert store._transactions.hook is None
        await store.run("n", one_step)


async def test_a_step_on_record_is_told_as_reused_and_nothing_else(database_url: str) -> None:
    log = Log()

    async def handler(run: Run) -> None:
        await run.step("a", Failing())
        if not log.of(RunEnded):
            raise OSError("once")

    async with StateStore.open(database_url, hook=log) as store:
        with pytest.raises(OSError, match="once"):
            await store.run("n", handler, workflow_id="w")
        log.events.clear()
        log.events.append(RunEnded(workflow_state_id=None, outcome=""))  # type: ignore[arg-type]
        await store.run("n", handler, workflow_id="w")
    of_steps = [event for event in log.events if hasattr(event, "step_id")]
    assert [type(event) for event in of_steps] == [StepReused]
