"""Whatever a step's function or a handler raises, of whatever class, is its failure, and nobody else's."""

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import anyio
import pytest
from pydantic import AfterValidator

from orchestrator_state import (
    AbnormalExit,
    Event,
    Happened,
    InvalidPayload,
    Run,
    StateSchema,
    StateStore,
    Worker,
    WorkflowStatus,
)
from tests.support.cases import case
from tests.support.running import Effect, Gate, becomes, row_of, steps_of


class HostileError(BaseException):
    """Each of its methods makes things worse."""

    def __str__(self) -> str:
        raise KeyboardInterrupt

    __repr__ = __str__

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise SystemExit

    def __eq__(self, other: object) -> bool:
        raise SystemExit

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> NoReturn:
        raise SystemExit


class LyingError(Exception):
    """An ordinary exception that must not be asked anything."""

    def __getattribute__(self, name: str) -> NoReturn:
        raise SystemExit


def raising(error: BaseException) -> Callable[..., NoReturn]:
    def fail(*_: Any) -> NoReturn:
        raise error

    return fail


def raising_async(error: BaseException) -> Callable[..., Any]:
    async def fail(*_: Any) -> NoReturn:
        raise error

    return fail


async def await_what_was_cancelled(*_: Any) -> None:
    inner = asyncio.ensure_future(asyncio.sleep(10))
    await asyncio.sleep(0)
    inner.cancel()
    await inner


async def cancel_itself(*_: Any) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(10)


async def cancel_itself_and_raise_another(*_: Any) -> None:
    try:
        await cancel_itself()
    finally:
        raise SystemExit(3)


BEYOND_EXCEPTION: dict[str, Callable[..., Any]] = {
    "CancelledError": await_what_was_cancelled,
    "CancelledError, its own": cancel_itself,
    "CancelledError, from a thread": raising(asyncio.CancelledError()),
    "SystemExit": raising_async(SystemExit(1)),
    "SystemExit, after a cancellation": cancel_itself_and_raise_another,
    "SystemExit, from a thread": raising(SystemExit(1)),
    "KeyboardInterrupt": raising_async(KeyboardInterrupt()),
    "KeyboardInterrupt, from a thread": raising(KeyboardInterrupt()),
    "GeneratorExit": raising_async(GeneratorExit()),
    "GeneratorExit, from a thread": raising(GeneratorExit()),
    "StopIteration, from a thread": raising(StopIteration("x")),
    "BaseExceptionGroup": raising_async(BaseExceptionGroup("g", [SystemExit(1), ValueError("member")])),
    "HostileError": raising_async(HostileError()),
    "HostileError, from a thread": raising(HostileError()),
}
EXCEPTIONS: dict[str, Callable[..., Any]] = {
    "StopAsyncIteration": raising_async(StopAsyncIteration()),
    "StopAsyncIteration, from a thread": raising(StopAsyncIteration()),
    "CancelledError, of concurrent.futures": raising(concurrent.futures.CancelledError()),
    "ExceptionGroup": raising_async(ExceptionGroup("g", [ValueError("member")])),
    "TimeoutError": raising_async(TimeoutError()),
}
# Python makes a RuntimeError of a StopIteration that leaves a coroutine.
IN_A_COROUTINE = [name for name in BEYOND_EXCEPTION if "StopIter" not in name]


def class_of(name: str) -> str:
    return name.partition(",")[0]


# --- a step ---


async def test_whatever_a_step_raises_is_counted_recorded_and_fails_the_run(store: StateStore) -> None:
    functions = BEYOND_EXCEPTION | EXCEPTIONS

    async def handler(run: Run) -> Any:
        return await run.step("paid", functions[run.workflow_id], retry=2)

    async def outcome_of(name: str) -> Any:
        with case(name), pytest.raises(AbnormalExit if name in BEYOND_EXCEPTION else Exception) as caught:
            await store.run("n", handler, workflow_id=name)
        return caught.value

    outcomes = await asyncio.gather(*(outcome_of(name) for name in functions))
    for name, outcome in zip(functions, outcomes, strict=True):
        with case(name):
            step = (await steps_of(store, name))["paid"]
            assert (step.status, step.retry_count) == ("failed", 2)
            assert step.error.startswith(class_of(name))
            row = await row_of(store, name)
            assert (row.status, row.error.partition("\n")[0]) == ("failed", step.error.partition("\n")[0])
            if isinstance(outcome, AbnormalExit):
                assert type(outcome.__cause__).__name__ == outcome.raised == class_of(name)


async def test_a_handler_may_catch_what_its_step_raised_and_go_on(store: StateStore) -> None:
    async def handler(run: Run) -> str:
        try:
            await run.step("paid", BEYOND_EXCEPTION[run.workflow_id])
        except Exception:  # noqa: BLE001 - as a careless handler does
            return "caught"
        return "missed"

    for name in BEYOND_EXCEPTION:
        with case(name):
            assert await store.run("n", handler, workflow_id=name) == "caught"


async def test_a_worker_fails_the_run_at_once_and_goes_on_with_the_others(store: StateStore) -> None:
    calls = Effect()

    async def deadly(run: Run) -> None:
        await run.step("note", calls, run.workflow_id)
        await run.step("paid", BEYOND_EXCEPTION[run.workflow_id])

    async def healthy(run: Run) -> Any:
        return await run.step("paid", Effect(), "well")

    async with Worker(store, {"deadly": deadly, "healthy": healthy}, handle_signals=False, poll=0.05):
        for name in BEYOND_EXCEPTION:
            with case(name):
                await store.start("deadly", workflow_id=name)
                await becomes(lambda row: row.status == "failed", store, name)
                await store.start("healthy", workflow_id=f"after {name}")
                await becomes(lambda row: row.status == "completed", store, f"after {name}")
    assert calls.calls == list(BEYOND_EXCEPTION)


async def test_recover_reports_the_run_and_finishes_its_neighbours(store: StateStore) -> None:
    async def deadly(run: Run) -> None:
        await run.step("paid", BEYOND_EXCEPTION[run.workflow_id])

    async def healthy(run: Run) -> Any:
        await run.sleep(0.01)
        return await run.step("paid", Effect(), "well")

    for name in BEYOND_EXCEPTION:
        await store.start("deadly", workflow_id=name)
        await store.start("healthy", workflow_id=f"beside {name}")
    report = await store.recover({"deadly": deadly, "healthy": healthy})
    assert sorted(run.workflow_id for run in report.failed) == sorted(BEYOND_EXCEPTION)
    for name in BEYOND_EXCEPTION:
        while (await row_of(store, f"beside {name}")).status != "completed":
            await store.recover({"healthy": healthy})


async def test_in_a_transaction_it_is_rolled_back_and_is_the_steps_failure(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        function = BEYOND_EXCEPTION[run.workflow_id]

        async def write(_session: Any) -> Any:
            result = function()
            return await result if asyncio.iscoroutine(result) else result

        return await run.transact("rows", write)

    for name in IN_A_COROUTINE:
        with case(name):
            with pytest.raises(AbnormalExit):
                await store.run("n", handler, workflow_id=name)
            step = (await steps_of(store, name))["rows"]
            assert (step.status, step.retry_count) == ("failed", 1)
            assert step.error.startswith(class_of(name))


async def test_whoever_should_find_out_about_a_step_may_raise_it_too(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        return await run.step("paid", Effect(), on_unknown=ask)

    async def interrupted(run: Run) -> Any:
        return await run.step("paid", gate, on_unknown="raise")

    async def find_out(_key: str) -> Happened:
        return Happened("found")

    for name, ask in BEYOND_EXCEPTION.items():
        with case(name):
            gate = Gate()
            await cancelled_in(gate, store, interrupted, name)
            with pytest.raises(AbnormalExit):
                await store.run("n", handler, workflow_id=name)
            assert (await steps_of(store, name))["paid"].status == "running", "its outcome still is unknown"

            ask = find_out  # noqa: PLW2901 - what the handler looks up from now on
            assert await store.run("n", handler, workflow_id=name) == "found"


# --- a handler ---


async def test_a_handler_that_raises_it_has_failed(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        result = BEYOND_EXCEPTION[run.workflow_id]()
        return await result if asyncio.iscoroutine(result) else result

    for name in IN_A_COROUTINE:
        with case(name):
            with pytest.raises(AbnormalExit):
                await store.run("n", handler, workflow_id=name)
            row = await row_of(store, name)
            assert row.status == "failed"
            assert row.error.startswith(class_of(name))


async def test_a_childs_handler_that_raises_it_fails_its_parents_call_alone(store: StateStore) -> None:
    async def handler(run: Run) -> str:
        name = run.workflow_id

        async def child(run: Run) -> Any:
            return await run.step("paid", BEYOND_EXCEPTION[name])

        try:
            await run.child("child", child)
        except AbnormalExit:
            return await run.step("other", Effect(), "went on")
        return "missed"

    for name in BEYOND_EXCEPTION:
        with case(name):
            assert await store.run("n", handler, workflow_id=name) == "went on"
            assert (await steps_of(store, name))["child:child"].error.startswith(class_of(name))


# --- a cancellation from outside stays one ---


async def cancelled_in(gate: Gate, store: StateStore, handler: Callable[[Run], Any], workflow_id: str = "w") -> None:
    """Cancel a run while it is in `gate`."""
    task = asyncio.create_task(store.run("n", handler, workflow_id=workflow_id))
    await gate.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_run_whose_caller_is_cancelled_is_left_as_it_was(store: StateStore) -> None:
    gate = Gate()

    async def handler(run: Run) -> Any:
        return await run.step("paid", gate, "done", retry=5)

    await cancelled_in(gate, store, handler)
    assert gate.cancelled
    assert "paid" not in await steps_of(store, "w")
    gate.opened.set()
    assert await store.run("n", handler, workflow_id="w") == "done"


async def test_what_a_cancelled_function_raises_instead_is_not_recorded(store: StateStore) -> None:
    gate = Gate()

    async def turn_into_another() -> None:
        try:
            await gate()
        except asyncio.CancelledError:
            raise ConnectionError("closed") from None

    async def handler(run: Run) -> Any:
        return await run.step("paid", turn_into_another, retry=5)

    await cancelled_in(gate, store, handler)
    assert "paid" not in await steps_of(store, "w")
    assert (await row_of(store, "w")).status == WorkflowStatus.RUNNING


async def test_what_a_cancelled_function_returns_all_the_same_is_kept_and_the_run_stops(store: StateStore) -> None:
    gate, later = Gate(), Effect()

    async def finish_first() -> str:
        try:
            await gate()
        except asyncio.CancelledError:
            return "paid for"
        return "never"

    async def handler(run: Run) -> Any:
        result = await run.step("paid", finish_first)
        await run.step("later", later)
        return result

    await cancelled_in(gate, store, handler)
    assert (await steps_of(store, "w"))["paid"].outputs == '"paid for"'
    assert later.calls == []
    assert await store.run("n", handler, workflow_id="w") == "paid for"


async def test_a_time_limit_of_the_handlers_own_is_a_timeout_to_it_and_nothing_to_the_step(store: StateStore) -> None:
    gate = Gate()

    async def handler(run: Run) -> str:
        try:
            async with asyncio.timeout(0.05):
                await run.step("paid", gate, retry=5)
        except TimeoutError:
            return await run.step("other", Effect(), "in time")
        return "late"

    assert await store.run("n", handler, workflow_id="w") == "in time"
    assert list(await steps_of(store, "w")) == ["other"]


async def test_a_cancel_scope_of_another_library_around_a_step_knows_its_own_cancellation(store: StateStore) -> None:
    gate = Gate()

    async def handler(run: Run) -> Any:
        with anyio.move_on_after(0.05) as scope:
            await run.step("paid", gate, retry=5)
        assert scope.cancelled_caught
        return await run.step("other", Effect(), "in time")

    assert await store.run("n", handler, workflow_id="w") == "in time"
    assert list(await steps_of(store, "w")) == ["other"]


async def test_a_cancel_scope_that_ends_before_the_function_begins_knows_its_own(
    store: StateStore,
) -> None:
    paid = Effect()

    async def handler(run: Run) -> Any:
        with anyio.CancelScope() as scope:
            asyncio.get_running_loop().call_soon(scope.cancel)
            await run.step("paid", paid)
        assert scope.cancelled_caught
        return await run.step("other", Effect(), "in time")

    assert await store.run("n", handler, workflow_id="w") == "in time"
    assert paid.calls == []
    assert list(await steps_of(store, "w")) == ["other"]


async def test_a_function_whose_task_somebody_cancels_before_it_begins_has_failed(store: StateStore) -> None:
    """As it has if that happens later."""

    async def handler(run: Run) -> Any:
        others = asyncio.all_tasks()
        asyncio.get_running_loop().call_soon(lambda: [task.cancel() for task in asyncio.all_tasks() - others])
        return await run.step("s", Effect(), "done", retry=2)

    assert await store.run("n", handler, workflow_id="w") == "done"
    assert (await steps_of(store, "w"))["s"].retry_count == 1


async def test_a_cancellation_reaches_the_function_with_its_message(store: StateStore) -> None:
    gate = Gate()
    seen: list[Any] = []

    async def note() -> None:
        try:
            await gate()
        except asyncio.CancelledError as error:
            seen.append(error.args)
            raise

    async def handler(run: Run) -> None:
        branch = asyncio.create_task(run.step("paid", note))
        await gate.reached.wait()
        branch.cancel("enough")
        try:
            await branch
        except asyncio.CancelledError as error:
            seen.append(error.args)

    await store.run("n", handler)
    assert seen == [("enough",), ("enough",)]


async def test_a_branch_that_fails_cancels_its_sibling_which_records_nothing(store: StateStore) -> None:
    gate = Gate()

    async def fail() -> None:
        await gate.reached.wait()
        raise ValueError("no")

    async def handler(run: Run) -> str:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(run.step("sibling", gate, retry=5))
                group.create_task(run.step("failing", fail))
        except ExceptionGroup:
            return "caught"
        return "missed"

    assert await store.run("n", handler, workflow_id="w") == "caught"
    assert list(await steps_of(store, "w")) == ["failing"]


async def test_a_worker_that_stops_leaves_its_runs_to_others(store: StateStore) -> None:
    gate = Gate()

    async def handler(run: Run) -> Any:
        return await run.step("paid", gate, "done", retry=5)

    await store.start("n", workflow_id="w")
    async with Worker(store, {"n": handler}, handle_signals=False, grace=0, poll=0.05):
        await gate.reached.wait()
    row = await row_of(store, "w")
    assert (row.status, row.error) == ("running", None)
    gate.opened.set()
    report = await store.recover({"n": handler})
    assert [run.outcome for run in report.runs] == ["completed"]


async def test_a_run_that_is_cancelled_before_its_handler_begins_is_left(store: StateStore) -> None:
    effect = Effect()

    async def handler(run: Run) -> Any:
        return await run.step("paid", effect, "done")

    for _ in range(200):
        task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
        for _ in range(len(effect.calls)):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            break
    assert await store.run("n", handler, workflow_id="w") == "done"
    assert (await row_of(store, "w")).error is None


async def test_a_step_that_raised_it_may_succeed_with_another_call(store: StateStore) -> None:
    left = [SystemExit(2), KeyboardInterrupt()]

    async def sometimes() -> str:
        if left:
            raise left.pop()
        return "done"

    async def handler(run: Run) -> Any:
        return await run.step("paid", sometimes, retry=3)

    assert await store.run("n", handler, workflow_id="w") == "done"
    step = (await steps_of(store, "w"))["paid"]
    assert (step.status, step.retry_count, step.error) == ("completed", 2, "SystemExit: 2")


async def test_what_a_hook_raises_harms_no_run(database_url: str) -> None:
    class Bad:
        def on_event(self, event: Event) -> None:
            told.append(type(error))
            raise error

    async def handler(run: Run) -> Any:
        return await run.step("paid", Effect(), "done")

    error: BaseException = ValueError()
    told: list[type[BaseException]] = []
    async with StateStore.open(database_url, hook=Bad()) as store:
        for error in (asyncio.CancelledError(), SystemExit(1), GeneratorExit(), StopIteration(), ValueError()):
            with case(repr(error)):
                assert await store.run("n", handler, workflow_id=repr(error)) == "done"
                assert told.count(type(error)) > 1


async def test_what_code_returns_after_it_has_cancelled_its_own_task_is_its_answer(store: StateStore) -> None:
    async def cancel_in_vain() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return "done"

    async def handler(run: Run) -> Any:
        await run.step("paid", cancel_in_vain)
        return await cancel_in_vain()

    assert await store.run("n", handler, workflow_id="w") == "done"
    assert (await steps_of(store, "w"))["paid"].outputs == '"done"'


# --- code that is called without a step ---


def exits(value: Any) -> Any:
    if value == "deadly":
        raise SystemExit(1)
    return value


async def test_a_validator_that_exits_fails_the_step_whose_output_it_was_given(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        return await run.step("paid", Effect(), "deadly", returns=Annotated[str, AfterValidator(exits)])

    with pytest.raises(InvalidPayload, match="SystemExit"):
        await store.run("n", handler, workflow_id="w")
    assert (await steps_of(store, "w"))["paid"].status == "failed"


async def test_an_upcaster_that_exits_leaves_its_run_and_harms_no_neighbour(database_url: str) -> None:
    schema = StateSchema("deadly", version=2)

    @schema.upcast(1)
    def upcast(_context: dict[str, Any]) -> dict[str, Any]:
        raise SystemExit(1)

    async def handler(run: Run) -> Any:
        return await run.step("paid", Effect(), "well")

    async with StateStore.open(database_url) as before:
        await before.start("deadly", workflow_id="deadly")
    async with StateStore.open(database_url, schemas=[schema]) as store:
        await store.start("healthy", workflow_id="healthy")
        report = await store.recover({"deadly": handler, "healthy": handler})
        assert {run.workflow_id: run.outcome for run in report.runs} == {
            "deadly": "interrupted",
            "healthy": "completed",
        }


WAYS = ["step", "thread", "transact", "child", "group", "handler"]


async def test_an_exception_that_must_not_be_asked_is_a_failure_like_others(store: StateStore) -> None:
    async def lying(run: Run) -> Any:
        fail, how = raising_async(LyingError()), run.workflow_id
        if how == "step":
            await run.step("s", fail)
        if how == "thread":
            await run.step("s", raising(LyingError()))
        if how == "transact":
            await run.transact("s", fail)
        if how == "child":
            await run.child("c", fail)
        if how == "group":
            raise ExceptionGroup("of", [LyingError()])
        raise LyingError

    async def sound(run: Run) -> Any:
        return await run.step("s", Effect())

    for how in WAYS:
        with case(how):
            await store.start("lying", workflow_id=how)
            await store.start("sound", workflow_id=f"beside {how}")
            report = await store.recover({"lying": lying, "sound": sound})

            assert {run.workflow_id: run.outcome for run in report.runs} == {
                how: "failed",
                f"beside {how}": "completed",
            }
            assert (await row_of(store, how)).status == WorkflowStatus.FAILED
