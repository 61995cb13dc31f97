"""What user code raises is its failure, also if it is an error of ours that means something when we raise it."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Annotated, Any, NoReturn
from uuid import uuid4

import pytest
from pydantic import AfterValidator, PlainSerializer

from orchestrator_state import (
    Retry,
    Run,
    StateStore,
    Worker,
    errors,
)
from tests.support.cases import case
from tests.support.running import Effect, Gate, all_become, all_steps, row_of

HERE = "this run"
ELSEWHERE = uuid4()

CONTROL: list[type[errors.OrchestratorStateError]] = [
    errors.PauseTakenBack,
    errors.RunCancelled,
    errors.RunPaused,
    errors.RunSuspended,
    errors.RunFailed,
    errors.LeaseHeld,
    errors.LeaseLost,
    errors.StaleVersion,
    errors.OutcomeUnknown,
    errors.UnusedSteps,
    errors.AbnormalExit,
    errors.ConfigurationError,
    errors.SchemaOutOfDate,
    errors.CorruptPayload,
]
ABOUT: dict[str, dict[str, Any]] = {
    "no id": {},
    "its own id": {"workflow_state_id": HERE},
    "another's id": {"workflow_state_id": ELSEWHERE},
}


def made_by_hand(kind: type[errors.OrchestratorStateError], about: str, run: Run) -> errors.OrchestratorStateError:
    given = {name: run.id if value == HERE else value for name, value in ABOUT[about].items()}
    return kind("made by hand", **given)


def in_a_handler(run: Run, error: BaseException) -> Any:
    return fail(error)


def in_a_group(run: Run, error: BaseException) -> Any:
    return fail(BaseExceptionGroup("g", [BaseExceptionGroup("g", [error])]))


def in_a_step(run: Run, error: BaseException) -> Any:
    return run.step("s", fail, error)


def in_a_thread(run: Run, error: BaseException) -> Any:
    return run.step("s", fail_at_once, error)


def in_a_transaction(run: Run, error: BaseException) -> Any:
    return run.transact("s", fail_in_session, error)


def in_a_predicate(run: Run, error: BaseException) -> Any:
    return run.step("s", fail_at_once, ValueError("first"), retry=Retry(attempts=2, on=lambda _: fail_at_once(error)))


def in_a_validator(run: Run, error: BaseException) -> Any:
    return run.step("s", Effect(), 1, returns=Annotated[int, AfterValidator(lambda _: fail_at_once(error))])


def in_a_serializer(run: Run, error: BaseException) -> Any:
    return run.step("s", Effect(), 1, returns=Annotated[int, PlainSerializer(lambda _: fail_at_once(error))])


async def in_a_child(run: Run, error: BaseException) -> Any:
    return await run.child("kid", lambda _: fail(error))


async def in_a_step_of_a_child(run: Run, error: BaseException) -> Any:
    return await run.child("kid", lambda child: child.step("s", fail, error))


async def in_a_branch(run: Run, error: BaseException) -> Any:
    return await asyncio.gather(run.step("t", Effect()), run.step("s", fail, error))


async def fail(error: BaseException) -> NoReturn:
    raise error


def fail_at_once(error: BaseException) -> NoReturn:
    raise error


async def fail_in_session(_session: Any, error: BaseException) -> NoReturn:
    raise error


PLACES: dict[str, Callable[[Run, BaseException], Any]] = {
    place.__name__: place
    for place in (
        in_a_handler,
        in_a_group,
        in_a_step,
        in_a_thread,
        in_a_transaction,
        in_a_predicate,
        in_a_validator,
        in_a_serializer,
        in_a_child,
        in_a_step_of_a_child,
        in_a_branch,
    )
}
STEP: dict[str, str | None] = {
    "in_a_child": "child:kid",
    "in_a_step_of_a_child": "child:kid",
    "in_a_handler": None,
    "in_a_group": None,
}


@pytest.mark.slow
async def test_a_control_error_that_user_code_raises_is_a_failure_like_any_other(
    store: StateStore, backend: str
) -> None:
    """One worker, one run for each error in each place, and a neighbour that completes.

    Every other one is on SQLite and the rest on Postgres: an error is told from another before the database is asked.
    """
    cases = itertools.islice(itertools.product(PLACES, CONTROL, ABOUT), backend == "postgres", None, 2)
    raises = {f"{place}: {kind.__name__} with {about}": (place, kind, about) for place, kind, about in cases}
    calls: list[str] = []

    async def handler(run: Run) -> Any:
        calls.append(run.workflow_id)
        place, kind, about = raises[run.workflow_id]
        return await PLACES[place](run, made_by_hand(kind, about, run))

    async def healthy(run: Run) -> Any:
        return await run.step("paid", Effect(), "well")

    for workflow_id in raises:
        await store.start("n", workflow_id=workflow_id)
    await store.start("healthy", workflow_id="healthy")
    async with Worker(store, {"n": handler, "healthy": healthy}, handle_signals=False, poll=0.05, concurrency=99):
        await all_become("failed", store, raises)
        await all_become("completed", store, ["healthy"])
    assert sorted(calls) == sorted(raises)
    steps = await all_steps(store)
    for workflow_id, (place, _, _) in raises.items():
        if (step_id := STEP.get(place, "s")) is not None:
            step = steps[workflow_id, step_id]
            assert (step.status, step.retry_count) == ("failed", 1), workflow_id


async def test_whoever_started_the_run_is_raised_what_its_code_raised(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        return await PLACES[place](run, mine)

    for place, kind in itertools.product(["in_a_handler", "in_a_step", "in_a_transaction", "in_a_child"], CONTROL):
        with case(name := f"{kind.__name__} {place}"):
            mine = kind("made by hand")
            with pytest.raises(kind) as raised:
                await asyncio.wait_for(store.run("n", handler, workflow_id=name), 60)
            assert raised.value is mine
            row = await row_of(store, name)
            assert (row.status, row.error) == ("failed", f"{kind.__name__}: made by hand")
            assert row.lease_expires_at is None


async def test_recover_tells_a_failure_from_what_happened_to_a_run(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        raise getattr(errors, run.workflow_id)("made by hand", workflow_state_id=run.id)

    for kind in CONTROL:
        await store.start("n", workflow_id=kind.__name__)
    report = await store.recover({"n": handler})
    assert {run.workflow_id for run in report.failed} == {kind.__name__ for kind in CONTROL}
    assert all(type(run.error).__name__ == run.workflow_id for run in report.failed)


async def test_an_error_of_another_runs_that_a_step_meets_is_the_steps_failure(store: StateStore) -> None:
    gate = Gate()
    held = asyncio.create_task(store.run("other", lambda run: run.step("s", gate), workflow_id="held"))
    await gate.reached.wait()
    paused = await store.start("other", workflow_id="paused")
    await store.pause(paused.id)

    async def start_another(workflow_id: str) -> Any:
        return await store.run("other", lambda run: run.step("s", gate), workflow_id=workflow_id)

    async def handler(run: Run) -> Any:
        return await run.step("s", start_another, run.workflow_id.partition(" ")[2])

    for other, kind in (("held", errors.LeaseHeld), ("paused", errors.RunPaused)):
        with pytest.raises(kind):
            await store.run("n", handler, workflow_id=f"meets {other}")
        assert (await row_of(store, f"meets {other}")).status == "failed"
    gate.opened.set()
    await held
