"""Save, load and list, on both databases: what is saved is what is loaded, and nobody's save is overwritten."""

import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from orchestrator_state import (
    StaleVersion,
    StateStore,
    StepNotFound,
    StepState,
    StepStatus,
    WorkflowNotFound,
    WorkflowState,
    WorkflowStatus,
)
from tests.support.cases import case
from tests.support.workflows import LONG_AGO, a_workflow, saved

# --- save: insert or guarded update ---


async def test_the_first_save_inserts_version_one_and_each_further_one_adds_one(store: StateStore) -> None:
    state = a_workflow()
    versions = [state.version]
    for n in range(3):
        state.context = {"n": n}
        await store.save_workflow_state(state)
        versions.append(state.version)
    assert versions == [0, 1, 2, 3]
    assert (await store.load_workflow_state(state.id)).version == 3


async def test_a_save_updates_every_field(store: StateStore) -> None:
    state = await saved(store, "load")
    for name, value in {
        "workflow_id": "wf-2",
        "workflow_name": "Other",
        "status": WorkflowStatus.PAUSED,
        "user_id": "u-2",
        "started_at": LONG_AGO,
        "updated_at": LONG_AGO,
        "completed_at": LONG_AGO,
        "context": [1],
        "error": "why",
    }.items():
        setattr(state, name, value)
        await store.save_workflow_state(state)
        assert getattr(await store.load_workflow_state(state.id), name) == value


async def test_a_save_updates_every_field_of_a_step(store: StateStore) -> None:
    state = await saved(store, "load", "other")
    for name, value in {
        "status": StepStatus.FAILED,
        "started_at": LONG_AGO,
        "completed_at": LONG_AGO,
        "outputs": [1],
        "error": "why",
        "retry_count": 7,
    }.items():
        setattr(state.steps["load"], name, value)
        await store.save_workflow_state(state)
        loaded = await store.load_workflow_state(state.id)
        assert getattr(loaded.steps["load"], name) == value
        assert loaded == state


async def test_a_save_moves_updated_at_to_now(store: StateStore) -> None:
    state = await saved(store, updated_at=LONG_AGO)
    state.context = {"changed": True}
    before = datetime.now(UTC)
    await store.save_workflow_state(state)
    before = before.replace(microsecond=before.microsecond // 1000 * 1000)  # SQLite's clock has no more
    assert before <= state.updated_at <= datetime.now(UTC)
    assert await store.load_workflow_state(state.id) == state


async def test_an_updated_at_that_the_caller_moved_is_kept(store: StateStore) -> None:
    state = await saved(store)
    state.updated_at = LONG_AGO
    await store.save_workflow_state(state)
    assert (await store.load_workflow_state(state.id)).updated_at == LONG_AGO


async def test_a_change_deep_inside_the_context_is_saved(store: StateStore) -> None:
    state = await saved(store, context={"a": [{"b": []}]})
    state.context["a"][0]["b"].append("new")
    await store.save_workflow_state(state)
    assert (await store.load_workflow_state(state.id)).context == {"a": [{"b": ["new"]}]}


async def test_a_change_that_python_calls_equal_is_saved(store: StateStore) -> None:
    state = await saved(store)
    for value in (1, 1.0, True, 0.0, -0.0, {"a": 1, "b": 2}, {"b": 2, "a": 1}):
        state.context = value
        await store.save_workflow_state(state)
        assert repr((await store.load_workflow_state(state.id)).context) == repr(value)


async def test_a_removed_step_is_removed(store: StateStore) -> None:
    state = await saved(store, "load", "split", "score")
    del state.steps["split"]
    await store.save_workflow_state(state)
    assert list((await store.load_workflow_state(state.id)).steps) == ["load", "score"]


async def test_a_thousand_steps_are_saved_and_removed(store: StateStore) -> None:
    state = await saved(store, *(f"step-{n}" for n in range(1100)))
    assert await store.load_workflow_state(state.id) == state
    state.steps = {"step-7": state.steps["step-7"]}
    await store.save_workflow_state(state)
    assert await store.load_workflow_state(state.id) == state


async def test_steps_keep_the_order_in_which_they_were_added(store: StateStore) -> None:
    state = await saved(store, "z", "a", "m")
    state.steps["b"] = StepState(step_id="b")
    state.steps["A"] = StepState(step_id="A")
    state.steps["z"].mark_running()
    await store.save_workflow_state(state)
    assert list((await store.load_workflow_state(state.id)).steps) == ["z", "a", "m", "b", "A"]


async def test_steps_added_after_a_removal_come_last(store: StateStore) -> None:
    state = await saved(store, "c", "b", "a")
    del state.steps["a"]
    state.steps["0"] = StepState(step_id="0")
    await store.save_workflow_state(state)
    loaded = await store.load_workflow_state(state.id)
    loaded.steps["00"] = StepState(step_id="00")
    await store.save_workflow_state(loaded)
    assert list((await store.load_workflow_state(state.id)).steps) == ["c", "b", "0", "00"]


async def test_an_unchanged_save_leaves_version_and_updated_at(store: StateStore) -> None:
    state = await saved(store, "load")
    before = state.model_copy(deep=True)
    await store.save_workflow_state(state)
    assert state == before
    assert await store.load_workflow_state(state.id) == before


# --- stale copies ---


def edit_context(state: WorkflowState) -> None:
    state.context = {"mine": True}


def edit_step(state: WorkflowState) -> None:
    state.steps["load"].mark_running()


def remove_step(state: WorkflowState) -> None:
    del state.steps["load"]


def leave_alone(_: WorkflowState) -> None:
    pass


@pytest.mark.parametrize("edit", [edit_context, edit_step, remove_step, leave_alone])
async def test_a_stale_copy_is_refused_and_nothing_changes(
    store: StateStore, edit: Callable[[WorkflowState], None]
) -> None:
    mine = await saved(store, "load")
    theirs = await store.load_workflow_state(mine.id)
    theirs.context = {"theirs": True}
    await store.save_workflow_state(theirs)
    edit(mine)
    before = mine.model_copy(deep=True)

    for _ in range(2):
        with pytest.raises(StaleVersion) as refused:
            await store.save_workflow_state(mine)
        error = refused.value
        assert (error.workflow_state_id, error.expected, error.found) == (mine.id, 1, 2)
        assert str(error) == f"workflow {mine.id} is at version 2, this copy at 1; load it again"

    assert mine == before
    assert await store.load_workflow_state(mine.id) == theirs


async def test_a_new_state_with_a_taken_id_is_refused(store: StateStore) -> None:
    state = await saved(store, "load")
    impostor = a_workflow("other", id=state.id)
    with pytest.raises(StaleVersion) as refused:
        await store.save_workflow_state(impostor)
    assert (refused.value.expected, refused.value.found) == (0, 1)
    assert impostor.version == 0
    assert await store.load_workflow_state(state.id) == state


async def test_a_version_from_the_future_is_refused(store: StateStore) -> None:
    state = await saved(store)
    state.version = 9
    state.context = 1
    with pytest.raises(StaleVersion) as refused:
        await store.save_workflow_state(state)
    assert (refused.value.expected, refused.value.found) == (9, 1)


async def test_a_refused_change_succeeds_on_a_fresh_copy(store: StateStore) -> None:
    mine = await saved(store)
    theirs = await store.load_workflow_state(mine.id)
    theirs.context = {"theirs": 1}
    await store.save_workflow_state(theirs)
    fresh = await store.load_workflow_state(mine.id)
    fresh.context["mine"] = 2
    await store.save_workflow_state(fresh)
    assert (await store.load_workflow_state(mine.id)).context == {"theirs": 1, "mine": 2}


# --- copies that went another way than through the store ---


def through_dump(state: WorkflowState) -> WorkflowState:
    return WorkflowState.model_validate(state.model_dump())


def through_json(state: WorkflowState) -> WorkflowState:
    return WorkflowState.model_validate_json(state.model_dump_json())


def through_snapshot(state: WorkflowState) -> WorkflowState:
    return WorkflowState.from_snapshot(state.to_snapshot())


def through_pickle(state: WorkflowState) -> WorkflowState:
    copy: WorkflowState = pickle.loads(pickle.dumps(state))
    return copy


def through_model_copy(state: WorkflowState) -> WorkflowState:
    return state.model_copy()


def through_deep_copy(state: WorkflowState) -> WorkflowState:
    return state.model_copy(deep=True)


COPIES = [through_dump, through_json, through_snapshot, through_pickle, through_model_copy, through_deep_copy]


async def test_a_copy_saves_its_changes(store: StateStore) -> None:
    for through in COPIES:
        with case(through.__name__):
            state = await saved(store, "a", "b", "c", context={"n": 1})
            copy = through(await store.load_workflow_state(state.id))
            copy.context = {"n": 2}
            copy.steps["b"].mark_completed("done")
            del copy.steps["a"]
            copy.steps["d"] = StepState(step_id="d")

            await store.save_workflow_state(copy)

            assert copy.version == 2
            loaded = await store.load_workflow_state(state.id)
            assert loaded == copy
            assert list(loaded.steps) == ["b", "c", "d"]


async def test_an_unchanged_copy_saves_nothing(store: StateStore) -> None:
    state = await saved(store, "a", "b")
    for through in COPIES:
        copy = through(state)
        await store.save_workflow_state(copy)
        assert copy.version == 1
    assert await store.load_workflow_state(state.id) == state


@pytest.mark.parametrize("edit", [edit_context, leave_alone])
async def test_a_stale_copy_is_refused_however_it_was_made(
    store: StateStore, edit: Callable[[WorkflowState], None]
) -> None:
    state = await saved(store, "load")
    copies = [through(state) for through in COPIES]
    state.context = {"theirs": True}
    await store.save_workflow_state(state)
    for copy in copies:
        edit(copy)
        with pytest.raises(StaleVersion):
            await store.save_workflow_state(copy)
    assert await store.load_workflow_state(state.id) == state


async def test_a_copy_of_a_new_state_is_inserted(store: StateStore) -> None:
    for through in COPIES:
        copy = through(a_workflow("load"))
        await store.save_workflow_state(copy)
        assert await store.load_workflow_state(copy.id) == copy


async def test_what_one_store_saved_another_loads(database_url: str) -> None:
    async with StateStore.open(database_url) as first:
        state = await saved(first, "load", context={"n": 2**200})
    async with StateStore.open(database_url) as second:
        assert await second.load_workflow_state(state.id) == state


# --- look up and list ---


async def test_the_most_recently_updated_state_of_a_workflow_id_is_loaded(store: StateStore) -> None:
    newest = await saved(store, updated_at=LONG_AGO + timedelta(microseconds=2))
    await saved(store, updated_at=LONG_AGO)
    await saved(store, updated_at=LONG_AGO + timedelta(microseconds=1))
    await saved(store, workflow_id="another")
    assert await store.load_workflow_state_by_workflow_id("wf-1") == newest


async def test_active_workflows_are_listed_with_their_steps_most_recently_updated_first(store: StateStore) -> None:
    states = [
        await saved(store, "b", "a", status=status, updated_at=LONG_AGO + timedelta(microseconds=offset))
        for status, offset in (("pending", 1), ("paused", 3), ("running", 2))
    ]
    assert await store.list_active_workflows() == [states[1], states[2], states[0]]


async def test_a_finished_workflow_is_not_listed_as_active(store: StateStore) -> None:
    for status in ("completed", "failed", "cancelled"):
        await saved(store, status=status)
    assert await store.list_active_workflows() == []


async def test_a_listed_state_saves_like_a_loaded_one(store: StateStore) -> None:
    await saved(store, "load")
    [state] = await store.list_active_workflows()
    state.steps["load"].mark_running()
    await store.save_workflow_state(state)
    assert (state.version, await store.load_workflow_state(state.id)) == (2, state)


# --- what is not there ---


async def test_loading_an_unknown_id_raises(store: StateStore) -> None:
    unknown = uuid4()
    with pytest.raises(WorkflowNotFound) as refused:
        await store.load_workflow_state(unknown)
    assert refused.value.workflow_state_id == unknown
    assert str(refused.value) == f"there is no workflow with id {unknown} in namespace 'default'"


async def test_loading_an_unknown_workflow_id_raises(store: StateStore) -> None:
    with pytest.raises(WorkflowNotFound) as refused:
        await store.load_workflow_state_by_workflow_id("nowhere")
    assert refused.value.workflow_id == "nowhere"
    assert str(refused.value) == "there is no workflow 'nowhere' in namespace 'default'"


@pytest.mark.parametrize("edit", [edit_context, leave_alone])
async def test_saving_a_state_whose_row_was_deleted_raises_and_does_not_bring_it_back(
    store: StateStore, edit: Callable[[WorkflowState], None]
) -> None:
    state = await saved(store, status="completed", updated_at=LONG_AGO)
    await store.delete_old_states(datetime.now(UTC))
    edit(state)
    with pytest.raises(WorkflowNotFound):
        await store.save_workflow_state(state)
    with pytest.raises(WorkflowNotFound):
        await store.load_workflow_state(state.id)


async def test_finding_what_is_not_there_returns_nothing_and_getting_it_raises(store: StateStore) -> None:
    state = await saved(store, "load")
    async with store.begin() as uow:
        assert await uow.workflows.find(uuid4()) is None
        assert await uow.workflows.find_by_workflow_id("nowhere") is None
        assert await uow.steps.find(state.id, "nowhere") is None
        assert await uow.steps.list(uuid4()) == []
        with pytest.raises(StepNotFound) as refused:
            await uow.steps.get(state.id, "nowhere")
    assert (refused.value.workflow_state_id, refused.value.step_id) == (state.id, "nowhere")


async def test_steps_are_read_one_by_one_or_all_in_order(store: StateStore) -> None:
    state = await saved(store, "b", "a")
    async with store.begin() as uow:
        assert await uow.steps.get(state.id, "a") == state.steps["a"]
        assert await uow.steps.list(str(state.id)) == [state.steps["b"], state.steps["a"]]
