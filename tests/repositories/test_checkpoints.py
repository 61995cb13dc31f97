"""Checkpoints: numbered in the order of their creation, pruned to the newest, and the way back to what was."""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from orchestrator_state import (
    AlreadyExists,
    Checkpoint,
    CheckpointNotFound,
    InvalidPayload,
    PayloadError,
    StaleVersion,
    StateStore,
    StepState,
    WorkflowNotFound,
    WorkflowState,
)
from tests.support.cases import case
from tests.support.workflows import LONG_AGO, a_workflow, checkpointed, nested, saved


async def checkpoints_of(store: StateStore, workflow_state_id: UUID) -> list[Checkpoint]:
    """Newest first."""
    async with store.begin() as uow:
        return await uow.checkpoints.list(workflow_state_id)


# --- create and look up ---


async def test_a_checkpoint_is_found_as_it_was_created(store: StateStore) -> None:
    state = await saved(store, "load")
    checkpoint = await checkpointed(store, state)
    assert checkpoint.seq == 1
    assert await store.get_latest_checkpoint(state.id) == checkpoint
    assert await store.get_latest_checkpoint(str(state.id)) == checkpoint
    async with store.begin() as uow:
        assert await uow.checkpoints.get(checkpoint.id) == checkpoint
        assert await uow.checkpoints.find(str(checkpoint.id)) == checkpoint


async def test_a_workflow_without_checkpoints_has_no_latest(store: StateStore) -> None:
    state = await saved(store)
    assert await store.get_latest_checkpoint(state.id) is None
    assert await store.get_latest_checkpoint(uuid4()) is None


async def test_creating_a_checkpoint_does_not_make_a_loaded_state_stale(store: StateStore) -> None:
    state = await saved(store)
    await checkpointed(store, state)
    state.context = {"changed": True}
    await store.save_workflow_state(state)
    assert state.version == 2


# Clocks that stand still, and clocks that run backwards.
@pytest.mark.parametrize("tick", [timedelta(0), timedelta(seconds=-1)])
async def test_checkpoints_are_ordered_by_their_creation_whatever_the_clock_says(
    store: StateStore, tick: timedelta
) -> None:
    state = await saved(store)
    created = [await checkpointed(store, state, timestamp=LONG_AGO + n * tick) for n in range(5)]
    assert [checkpoint.seq for checkpoint in created] == [1, 2, 3, 4, 5]
    assert await store.get_latest_checkpoint(state.id) == created[-1]
    assert await checkpoints_of(store, state.id) == created[::-1]
    await store.cleanup_old_checkpoints(state.id, keep=2)
    assert await checkpoints_of(store, state.id) == created[:2:-1]


async def test_every_workflow_counts_its_own_checkpoints(store: StateStore) -> None:
    first, second = await saved(store), await saved(store)
    numbers = [(await checkpointed(store, state)).seq for state in (first, second, first, second, second)]
    assert numbers == [1, 1, 2, 2, 3]
    latest = await store.get_latest_checkpoint(first.id)
    assert latest is not None
    assert latest.seq == 2


async def test_a_number_is_never_used_again(store: StateStore) -> None:
    state = await saved(store)
    for _ in range(3):
        await checkpointed(store, state)
    assert await store.cleanup_old_checkpoints(state.id, keep=0) == 3
    assert (await checkpointed(store, state)).seq == 4


async def test_a_checkpoint_of_an_unknown_workflow_is_refused(store: StateStore) -> None:
    checkpoint = Checkpoint(workflow_state_id=uuid4(), step_id="load", snapshot={})
    with pytest.raises(WorkflowNotFound) as refused:
        await store.create_checkpoint(checkpoint)
    assert refused.value.workflow_state_id == checkpoint.workflow_state_id
    assert checkpoint.seq is None


async def test_a_checkpoint_is_created_once(store: StateStore) -> None:
    state = await saved(store)
    checkpoint = await checkpointed(store, state)
    again = checkpoint.model_copy(update={"snapshot": "other"})
    with pytest.raises(AlreadyExists) as refused:
        await store.create_checkpoint(again)
    assert str(refused.value) == f"there is a checkpoint {checkpoint.id} already"
    assert again.seq == 1
    assert await checkpoints_of(store, state.id) == [checkpoint]
    assert (await checkpointed(store, state)).seq == 2


async def test_a_checkpoint_of_a_unit_that_rolled_back_has_no_number(store: StateStore) -> None:
    state = await saved(store)
    checkpoint = Checkpoint(workflow_state_id=state.id, step_id="load", snapshot={})
    with suppress(ZeroDivisionError):
        async with store.begin() as uow:
            await uow.checkpoints.add(checkpoint)
            raise ZeroDivisionError
    assert checkpoint.seq is None
    assert await checkpoints_of(store, state.id) == []
    await store.create_checkpoint(checkpoint)
    assert checkpoint.seq == 1


# --- prune ---


async def test_the_ten_newest_checkpoints_are_kept(store: StateStore) -> None:
    state = await saved(store)
    for _ in range(13):
        await checkpointed(store, state)
    assert [checkpoint.seq for checkpoint in await checkpoints_of(store, state.id)] == list(range(13, 3, -1))


@pytest.mark.parametrize("keep", [1, 3])
async def test_how_many_checkpoints_are_kept_is_configurable(database_url: str, keep: int) -> None:
    async with StateStore.open(database_url, keep_checkpoints=keep) as store:
        state = await saved(store)
        for _ in range(5):
            await checkpointed(store, state)
        kept = [checkpoint.seq for checkpoint in await checkpoints_of(store, state.id)]
    assert kept == [5, 4, 3][:keep]


async def test_pruning_leaves_other_workflows_alone(store: StateStore) -> None:
    other = await saved(store)
    theirs = await checkpointed(store, other)
    state = await saved(store)
    for _ in range(12):
        await checkpointed(store, state)
    await store.cleanup_old_checkpoints(state.id, keep=0)
    assert await checkpoints_of(store, other.id) == [theirs]


async def test_a_cleanup_says_how_many_it_deleted(store: StateStore) -> None:
    for keep, deleted in ((0, 4), (1, 3), (3, 1), (4, 0), (5, 0), (10, 0), (2**63 - 1, 0)):
        with case(f"keep {keep}"):
            state = await saved(store)
            created = [await checkpointed(store, state) for _ in range(4)]
            assert await store.cleanup_old_checkpoints(state.id, keep=keep) == deleted
            assert await checkpoints_of(store, state.id) == created[deleted:][::-1]


async def test_a_cleanup_keeps_ten_by_default_and_knows_no_unknown_workflow(store: StateStore) -> None:
    state = await saved(store)
    async with store.begin() as uow:
        for _ in range(12):
            await uow.checkpoints.add(Checkpoint(workflow_state_id=state.id, step_id="load", snapshot={}))
    assert await store.cleanup_old_checkpoints(uuid4()) == 0
    assert await store.cleanup_old_checkpoints(str(state.id)) == 2


# --- restore ---


async def test_a_restored_state_is_the_one_of_then_with_the_version_of_now(store: StateStore) -> None:
    state = await saved(store, "load", context={"n": 1})
    checkpoint = await checkpointed(store, state)
    then = state.model_copy(deep=True)
    state.steps["load"].mark_completed(["done"])
    state.steps["split"] = StepState(step_id="split")
    state.context = {"n": 2}
    await store.save_workflow_state(state)

    restored = await store.restore_from_checkpoint(checkpoint.id)

    assert restored == then.model_copy(update={"version": 2})
    assert await store.load_workflow_state(state.id) == state


async def test_saving_a_restored_state_rolls_the_workflow_back(store: StateStore) -> None:
    state = await saved(store, "load", "split", context={"n": 1})
    checkpoint = await checkpointed(store, state)
    state.steps["load"].mark_completed(["done"])
    del state.steps["split"]
    state.steps["score"] = StepState(step_id="score")
    state.context = {"n": 2}
    state.mark_completed()
    await store.save_workflow_state(state)

    restored = await store.restore_from_checkpoint(str(checkpoint.id))
    before = datetime.now(UTC)
    await store.save_workflow_state(restored)

    loaded = await store.load_workflow_state(state.id)
    assert loaded == restored
    assert (loaded.status, loaded.context, loaded.completed_at) == ("pending", {"n": 1}, None)
    assert loaded.steps == {"load": StepState(step_id="load"), "split": StepState(step_id="split")}
    assert loaded.version == 3
    assert loaded.updated_at >= before.replace(
        microsecond=before.microsecond // 1000 * 1000
    )  # SQLite's clock has no more


async def test_a_restored_state_equals_the_stored_one_after_its_save_even_if_nothing_changed(store: StateStore) -> None:
    state = a_workflow("load", updated_at=LONG_AGO)
    snapshot = state.to_snapshot()
    await store.save_workflow_state(state)
    state.context = {"changed": True}
    await store.save_workflow_state(state)
    state.context = {}
    await store.save_workflow_state(state)
    checkpoint = await checkpointed(store, state, snapshot=snapshot)

    restored = await store.restore_from_checkpoint(checkpoint.id)
    await store.save_workflow_state(restored)

    assert await store.load_workflow_state(state.id) == restored


async def test_a_restored_state_is_stale_if_the_workflow_was_saved_in_between(store: StateStore) -> None:
    state = await saved(store, context=1)
    checkpoint = await checkpointed(store, state)
    state.context = 2
    await store.save_workflow_state(state)
    restored = await store.restore_from_checkpoint(checkpoint.id)
    state.context = 3
    await store.save_workflow_state(state)

    with pytest.raises(StaleVersion) as refused:
        await store.save_workflow_state(restored)

    assert (refused.value.expected, refused.value.found) == (2, 3)
    assert await store.load_workflow_state(state.id) == state


async def test_a_copy_loaded_before_the_rollback_is_stale_after_it(store: StateStore) -> None:
    state = await saved(store, context=1)
    checkpoint = await checkpointed(store, state)
    state.context = 2
    await store.save_workflow_state(state)
    await store.save_workflow_state(await store.restore_from_checkpoint(checkpoint.id))
    state.context = 3
    with pytest.raises(StaleVersion):
        await store.save_workflow_state(state)


async def test_the_order_of_steps_survives_a_rollback(store: StateStore) -> None:
    state = await saved(store, "c", "a", "b")
    checkpoint = await checkpointed(store, state)
    await store.save_workflow_state(await store.restore_from_checkpoint(checkpoint.id))
    assert list((await store.load_workflow_state(state.id)).steps) == ["c", "a", "b"]


async def test_the_order_of_steps_survives_a_rollback_that_brings_a_removed_step_back(store: StateStore) -> None:
    state = await saved(store, "c", "a", "b")
    checkpoint = await checkpointed(store, state)
    del state.steps["c"]
    await store.save_workflow_state(state)
    await store.save_workflow_state(await store.restore_from_checkpoint(checkpoint.id))
    assert list((await store.load_workflow_state(state.id)).steps) == ["c", "a", "b"]


async def test_restoring_an_unknown_checkpoint_raises(store: StateStore) -> None:
    unknown = uuid4()
    with pytest.raises(CheckpointNotFound) as refused:
        await store.restore_from_checkpoint(unknown)
    assert refused.value.checkpoint_id == unknown
    assert str(refused.value) == f"there is no checkpoint {unknown} in namespace 'default'"


def with_field(name: str, value: Any) -> Callable[[WorkflowState], Any]:
    return lambda state: state.to_snapshot() | {name: value}


HAND_MADE: dict[str, Callable[[WorkflowState], Any]] = {
    "null": lambda _: None,
    "number": lambda _: 1,
    "text": lambda _: "snapshot",
    "list": lambda _: [{}],
    "empty": lambda _: {},
    "note": lambda _: {"note": "by hand"},
    "self": lambda _: {"self": 1},
    "inside a list": lambda state: [state.to_snapshot()],
    "extra field": with_field("note", "by hand"),
    "private field": with_field("_saved", {}),
    "self field": with_field("self", 1),
    "bad status": with_field("status", "sleeping"),
    "bad time": with_field("started_at", "2026-01-01T00:00:00"),
    "bad name": with_field("workflow_id", ""),
    "bad steps": with_field("steps", [1]),
    "bad step": with_field("steps", {"load": {"step_id": "load", "status": "paused"}}),
    "another's state": lambda _: a_workflow().to_snapshot(),
    "another's id": with_field("id", str(uuid4())),
    "no id": lambda state: {name: value for name, value in state.to_snapshot().items() if name != "id"},
}


async def test_a_snapshot_made_by_hand_is_stored_and_refused_on_restore(store: StateStore) -> None:
    state = await saved(store, "load")
    for name, hand_made in HAND_MADE.items():
        with case(name):
            snapshot = hand_made(state)
            checkpoint = await checkpointed(store, state, snapshot=snapshot)
            assert (await checkpoints_of(store, state.id))[0].snapshot == snapshot
            with pytest.raises(PayloadError) as refused:
                await store.restore_from_checkpoint(checkpoint.id)
            assert "by hand" not in str(refused.value)
            assert await store.load_workflow_state(state.id) == state


async def test_a_step_under_another_name_in_a_snapshot_is_refused_before_it_is_stored(store: StateStore) -> None:
    state = await saved(store, "load")
    snapshot = state.to_snapshot()
    snapshot["steps"]["split"] = snapshot["steps"].pop("load")
    checkpoint = await checkpointed(store, state, snapshot=snapshot)
    with pytest.raises(InvalidPayload):
        await store.save_workflow_state(await store.restore_from_checkpoint(checkpoint.id))
    assert await store.load_workflow_state(state.id) == state


async def test_every_state_that_can_be_saved_can_be_checkpointed_and_restored(store: StateStore) -> None:
    state = a_workflow("load", context=nested(100))
    state.steps["load"].mark_completed(nested(100))
    await store.save_workflow_state(state)
    checkpoint = await checkpointed(store, state)
    assert await store.restore_from_checkpoint(checkpoint.id) == state
