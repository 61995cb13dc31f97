"""One namespace never sees, changes or deletes another's rows, by any call."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from orchestrator_state import (
    AlreadyExists,
    Checkpoint,
    CheckpointNotFound,
    ConfigurationError,
    StateStore,
    StepNotFound,
    UnitOfWork,
    WorkflowNotFound,
    WorkflowState,
)
from tests.support.workflows import LONG_AGO, a_workflow, checkpointed, saved

NAMESPACES = ["other", "Default", "default ", "'; DROP TABLE workflow_states; --", "%", "_", "*", "é" * 255]


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[StateStore]:
    """A store in another namespace of the database of `store`."""
    async with StateStore.open(database_url, namespace="other") as other:
        yield other


async def test_the_namespace_is_default_unless_one_is_given(store: StateStore, other: StateStore) -> None:
    assert (store.namespace, other.namespace) == ("default", "other")
    state = await saved(store)
    async with StateStore.open(engine=store._transactions.database._pool) as third:
        assert await third.load_workflow_state(state.id) == state


async def test_a_namespace_may_have_any_name(store: StateStore, database_url: str) -> None:
    states = {}
    for name in NAMESPACES:
        async with StateStore.open(database_url, namespace=name) as named:
            assert await named.list_active_workflows() == []
            states[name] = await saved(named)
            assert await named.list_active_workflows() == [states[name]]
    assert await store.list_active_workflows() == []
    for name, state in states.items():
        async with StateStore.open(database_url, namespace=name) as named:
            assert await named.load_workflow_state_by_workflow_id("wf-1") == state


@pytest.mark.parametrize("name", ["", "x" * 256, "a\0b", "\ud800", 7])
def test_a_namespace_without_a_proper_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        StateStore.open(":memory:", namespace=name)
    assert str(refused.value).startswith("namespace: ")


# --- see ---


async def test_another_namespaces_workflow_is_not_seen(store: StateStore, other: StateStore) -> None:
    theirs = await saved(store, "load")
    with pytest.raises(WorkflowNotFound) as refused:
        await other.load_workflow_state(theirs.id)
    assert str(refused.value) == f"there is no workflow with id {theirs.id} in namespace 'other'"
    with pytest.raises(WorkflowNotFound):
        await other.load_workflow_state_by_workflow_id("wf-1")
    assert await other.list_active_workflows() == []


async def test_the_same_workflow_id_means_each_namespaces_own(store: StateStore, other: StateStore) -> None:
    mine = await saved(other, updated_at=LONG_AGO)
    theirs = await saved(store)
    assert await other.load_workflow_state_by_workflow_id("wf-1") == mine
    assert await store.load_workflow_state_by_workflow_id("wf-1") == theirs


async def test_another_namespaces_steps_are_not_seen(store: StateStore, other: StateStore) -> None:
    theirs = await saved(store, "load")
    async with other.begin() as uow:
        assert await uow.steps.list(theirs.id) == []
        assert await uow.steps.find(theirs.id, "load") is None
        with pytest.raises(StepNotFound):
            await uow.steps.get(theirs.id, "load")


async def test_another_namespaces_checkpoints_are_not_seen(store: StateStore, other: StateStore) -> None:
    theirs = await saved(store, "load")
    checkpoint = await checkpointed(store, theirs)
    assert await other.get_latest_checkpoint(theirs.id) is None
    with pytest.raises(CheckpointNotFound):
        await other.restore_from_checkpoint(checkpoint.id)
    async with other.begin() as uow:
        assert await uow.checkpoints.find(checkpoint.id) is None
        assert await uow.checkpoints.find_latest(theirs.id) is None
        assert await uow.checkpoints.list(theirs.id) == []
        with pytest.raises(CheckpointNotFound):
            await uow.checkpoints.get(checkpoint.id)


# --- change ---


def changed(state: WorkflowState) -> WorkflowState:
    copy = state.model_copy(deep=True)
    copy.context = {"mine": True}
    copy.steps["load"].mark_running()
    return copy


async def test_another_namespaces_workflow_is_not_changed(store: StateStore, other: StateStore) -> None:
    theirs = await saved(store, "load", "split")
    without_base = WorkflowState.model_validate(changed(theirs).model_dump())
    removing = theirs.model_copy(deep=True)
    removing.steps.clear()
    for copy in (changed(theirs), without_base, removing, theirs.model_copy(deep=True)):
        with pytest.raises(WorkflowNotFound):
            await other.save_workflow_state(copy)
    assert await store.load_workflow_state(theirs.id) == theirs


async def test_an_id_that_another_namespace_has_is_taken(store: StateStore, other: StateStore) -> None:
    theirs = await saved(store, "load")
    mine = a_workflow("load", "mine", id=theirs.id, context={"mine": True})
    with pytest.raises(AlreadyExists) as refused:
        await other.save_workflow_state(mine)
    assert str(refused.value) == f"the id {theirs.id} is taken; let the store choose one"
    assert mine.version == 0
    assert await store.load_workflow_state(theirs.id) == theirs
    assert await other.list_active_workflows() == []


async def test_another_namespaces_workflow_gets_no_checkpoint(store: StateStore, other: StateStore) -> None:
    theirs = await saved(store, "load")
    with pytest.raises(WorkflowNotFound):
        await checkpointed(other, theirs)
    assert await store.get_latest_checkpoint(theirs.id) is None
    assert (await checkpointed(store, theirs)).seq == 1


async def test_a_checkpoint_id_that_another_namespace_has_is_taken(store: StateStore, other: StateStore) -> None:
    theirs = await checkpointed(store, await saved(store))
    mine = await saved(other)
    with pytest.raises(AlreadyExists):
        await other.create_checkpoint(
            Checkpoint(id=theirs.id, workflow_state_id=mine.id, step_id="load", snapshot="mine")
        )
    assert await store.get_latest_checkpoint(theirs.workflow_state_id) == theirs
    assert await other.get_latest_checkpoint(mine.id) is None


async def test_a_snapshot_of_another_namespaces_workflow_does_not_restore_it(
    store: StateStore, other: StateStore
) -> None:
    theirs, mine = await saved(store, "load"), await saved(other)
    smuggled = await checkpointed(other, mine, snapshot=theirs.to_snapshot())
    with pytest.raises(ValueError, match="another workflow's state"):
        await other.restore_from_checkpoint(smuggled.id)


# --- delete ---


async def test_another_namespaces_finished_workflows_are_not_deleted(store: StateStore, other: StateStore) -> None:
    theirs = await saved(store, "load", status="completed", updated_at=LONG_AGO)
    checkpoint = await checkpointed(store, theirs)
    await saved(other, "load", status="completed", updated_at=LONG_AGO)
    assert await other.delete_old_states(older_than=datetime.now(UTC)) == 1
    assert await store.load_workflow_state(theirs.id) == theirs
    assert await store.get_latest_checkpoint(theirs.id) == checkpoint


async def test_another_namespaces_checkpoints_are_not_pruned(store: StateStore, other: StateStore) -> None:
    theirs = await saved(store)
    checkpoint = await checkpointed(store, theirs)
    assert await other.cleanup_old_checkpoints(theirs.id, keep=0) == 0
    async with other.begin() as uow:
        assert await uow.checkpoints.prune(theirs.id, keep=0) == 0
    assert await store.get_latest_checkpoint(theirs.id) == checkpoint


# --- a session of the caller's ---


async def test_a_unit_on_the_callers_session_is_confined_too(store: StateStore, other: StateStore) -> None:
    theirs = await saved(store, "load", status="completed", updated_at=LONG_AGO)
    async with store.begin() as uow:
        joined = UnitOfWork(uow.session, namespace="other")
        assert await joined.workflows.find(theirs.id) is None
        assert await joined.workflows.delete_finished(older_than=datetime.now(UTC), limit=9) == 0
        with pytest.raises(WorkflowNotFound):
            await joined.workflows.save(changed(theirs))
        mine = a_workflow("load")
        await joined.workflows.save(mine)
        assert await uow.workflows.find(mine.id) is None
    assert await other.load_workflow_state(mine.id) == mine
    assert await store.load_workflow_state(theirs.id) == theirs
