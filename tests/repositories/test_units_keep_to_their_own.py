"""No call of a unit of work reaches outside its namespace, or past the lease of a run: every one is tried."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from sqlalchemy import delete

from orchestrator_state import (
    AlreadyExists,
    Checkpoint,
    CheckpointNotFound,
    LeaseHeld,
    OrchestratorStateError,
    Run,
    StateStore,
    StepNotFound,
    UnitOfWork,
    WorkflowNotFound,
    WorkflowState,
)
from orchestrator_state.database import FAR_FUTURE
from orchestrator_state.models import workflow_states
from tests.support.cases import case
from tests.support.raw_sql import contents
from tests.support.running import Gate, row_of

FUTURE: Final = datetime.now(UTC) + timedelta(days=1)
LARGE: Final = "x" * 20_000
"""So that the run's checkpoints are deltas."""


@dataclass(frozen=True)
class Theirs:
    """Rows of a namespace, and new objects that say they belong to them."""

    state: WorkflowState
    checkpoint: Checkpoint
    edited: WorkflowState
    another: Checkpoint


Call = Callable[[UnitOfWork, Theirs], Awaitable[object]]

CALLS: Final[Mapping[str, Call]] = {
    "workflows.save": lambda uow, theirs: uow.workflows.save(theirs.edited),
    "workflows.find": lambda uow, theirs: uow.workflows.find(theirs.state.id),
    "workflows.get": lambda uow, theirs: uow.workflows.get(theirs.state.id),
    "workflows.find_by_workflow_id": lambda uow, theirs: uow.workflows.find_by_workflow_id(theirs.state.workflow_id),
    "workflows.get_by_workflow_id": lambda uow, theirs: uow.workflows.get_by_workflow_id(theirs.state.workflow_id),
    "workflows.list_active": lambda uow, theirs: uow.workflows.list_active(),
    "workflows.count_finished": lambda uow, theirs: uow.workflows.count_finished(older_than=FUTURE),
    "workflows.delete_finished": lambda uow, theirs: uow.workflows.delete_finished(older_than=FUTURE, limit=9),
    "workflows.delete": lambda uow, theirs: uow.workflows.delete([theirs.state.id]),
    "steps.list": lambda uow, theirs: uow.steps.list(theirs.state.id),
    "steps.find": lambda uow, theirs: uow.steps.find(theirs.state.id, "s0"),
    "steps.get": lambda uow, theirs: uow.steps.get(theirs.state.id, "s0"),
    "checkpoints.add": lambda uow, theirs: uow.checkpoints.add(theirs.another),
    "checkpoints.find": lambda uow, theirs: uow.checkpoints.find(theirs.checkpoint.id),
    "checkpoints.get": lambda uow, theirs: uow.checkpoints.get(theirs.checkpoint.id),
    "checkpoints.find_latest": lambda uow, theirs: uow.checkpoints.find_latest(theirs.state.id),
    "checkpoints.list": lambda uow, theirs: uow.checkpoints.list(theirs.state.id),
    "checkpoints.prune": lambda uow, theirs: uow.checkpoints.prune(theirs.state.id, keep=0),
}
NOTHING: Final[tuple[object, ...]] = (None, 0, [])
NOT_FOUND: Final = (WorkflowNotFound, StepNotFound, CheckpointNotFound)


async def three_steps(run: Run) -> None:
    for number in range(3):
        await run.step(f"s{number}", lambda: LARGE)


async def a_run(store: StateStore, *, active: bool = False) -> Theirs:
    """A finished run, of which a state by hand is a copy that somebody has edited."""
    await store.run("n", three_steps, workflow_id="w")
    state = await store.load_workflow_state_by_workflow_id("w")
    checkpoint = await store.get_latest_checkpoint(state.id)
    assert checkpoint is not None
    edited = await store.load_workflow_state(state.id)
    edited.context = {"edited": True}
    edited.steps.pop("s1")
    if active:
        await store.start("m", workflow_id="active")
    return Theirs(state, checkpoint, edited, Checkpoint(workflow_state_id=state.id, step_id="s0", snapshot=LARGE))


async def outcome_of(call: Call, uow: UnitOfWork, theirs: Theirs) -> object:
    """What a call returns, or raises."""
    try:
        return await call(uow, theirs)
    except OrchestratorStateError as error:
        return error


async def test_no_call_is_left_out(store: StateStore) -> None:
    async with store.begin() as uow:
        repositories = {"workflows": uow.workflows, "steps": uow.steps, "checkpoints": uow.checkpoints}
    public = {f"{name}.{call}" for name, of in repositories.items() for call in dir(of) if not call.startswith("_")}
    assert public == set(CALLS)


async def test_a_call_finds_and_changes_nothing_of_another_namespace(store: StateStore, database_url: str) -> None:
    theirs = await a_run(store, active=True)
    before = contents(database_url)
    async with StateStore.open(database_url, namespace="other") as other:
        for name, call in CALLS.items():
            with case(name):
                async with other.begin() as uow:
                    outcome = await outcome_of(call, uow, theirs)
                assert outcome in NOTHING or isinstance(outcome, NOT_FOUND)
                assert contents(database_url) == before


async def test_a_new_state_with_the_id_of_another_namespaces_does_not_replace_it(
    store: StateStore, database_url: str
) -> None:
    theirs = await a_run(store)
    before = contents(database_url)
    async with StateStore.open(database_url, namespace="other") as other, other.begin() as uow:
        with pytest.raises(AlreadyExists):
            await uow.workflows.save(WorkflowState(id=theirs.state.id, workflow_id="w", workflow_name="n"))
    assert contents(database_url) == before


async def test_the_same_call_finds_or_changes_what_is_its_own(store: StateStore, database_url: str) -> None:
    for name, call in CALLS.items():
        with case(name):
            own = await a_run(store, active=True)
            before = contents(database_url)
            async with store.begin() as uow:
                outcome = await outcome_of(call, uow, own)
            assert not isinstance(outcome, Exception)
            assert outcome not in NOTHING or contents(database_url) != before
            async with store.begin() as uow:
                await uow.session.execute(delete(workflow_states))


@pytest.mark.parametrize("name", ["workflows.save", "workflows.delete"])
async def test_a_run_that_a_worker_owns_is_left_as_it_is(store: StateStore, database_url: str, name: str) -> None:
    gate = Gate()

    async def handler(run: Run) -> None:
        await three_steps(run)
        await run.step("under way", gate)

    running = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    await gate.reached.wait()
    state = await store.load_workflow_state_by_workflow_id("w")
    checkpoint = await store.get_latest_checkpoint(state.id)
    assert checkpoint is not None
    edited = await store.load_workflow_state(state.id)
    edited.context = {"edited": True}
    rows = {table: contents(database_url)[table] for table in ("step_states", "checkpoints")}
    async with store.begin() as uow:
        with pytest.raises(LeaseHeld):
            await CALLS[name](uow, Theirs(state, checkpoint, edited, checkpoint))
    assert {table: contents(database_url)[table] for table in rows} == rows
    gate.opened.set()
    await running
    assert (await store.load_workflow_state(state.id)).status == "completed"


async def test_a_run_that_waits_for_one_that_is_deleted_is_woken_and_calls_it_again(store: StateStore) -> None:
    async def child(run: Run) -> Any:
        return await run.wait_for("answer")

    async def parent(run: Run) -> Any:
        return await run.child("part", child)

    handlers = {"n": parent, "part": child}
    await store.start("n", workflow_id="w")
    await store.recover(handlers)
    asleep = await row_of(store, "w")
    assert asleep.wake_at == FAR_FUTURE
    (part,) = [state for state in await store.list_active_workflows() if state.workflow_name == "part"]
    async with store.begin() as uow:
        await uow.workflows.delete([part.id])
    await store.recover(handlers)
    (again,) = [state for state in await store.list_active_workflows() if state.workflow_name == "part"]
    await store.signal(again.id, "answer", 42)
    while (await row_of(store, "w")).status != "completed":
        await store.recover(handlers)
    assert await store.run("n", parent, workflow_id="w") == 42
