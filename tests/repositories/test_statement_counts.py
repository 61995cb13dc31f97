"""What a call costs: how many statements, rows and commits, which must not grow with what did not change."""

import pytest

from orchestrator_state import Checkpoint, StaleVersion, StateStore, StepState, WorkflowState
from tests.support.statements import Traffic, traffic_of
from tests.support.workflows import LONG_AGO, a_workflow, saved


async def cost_of_saving(store: StateStore, state: WorkflowState) -> Traffic:
    with traffic_of(store) as traffic:
        await store.save_workflow_state(state)
    return traffic


def two_hundred_steps() -> WorkflowState:
    return a_workflow(*(f"step-{n}" for n in range(200)))


# --- save ---


async def test_the_first_save_writes_every_row_in_two_statements(store: StateStore) -> None:
    cost = await cost_of_saving(store, two_hundred_steps())
    assert cost.rows_written == {"insert workflow_states": 1, "insert step_states": 200}
    assert (len(cost.statements), cost.commits) == (2, 1)


async def test_one_changed_step_among_two_hundred_writes_two_rows(store: StateStore) -> None:
    state = two_hundred_steps()
    await store.save_workflow_state(state)
    state.steps["step-77"].mark_running()
    cost = await cost_of_saving(store, state)
    assert cost.rows_written == {"update workflow_states": 1, "insert step_states": 1}
    assert (len(cost.statements), cost.commits) == (2, 1)


async def test_one_changed_step_of_a_loaded_state_writes_two_rows(store: StateStore) -> None:
    state = two_hundred_steps()
    await store.save_workflow_state(state)
    loaded = await store.load_workflow_state(state.id)
    loaded.steps["step-77"].mark_running()
    cost = await cost_of_saving(store, loaded)
    assert cost.rows_written == {"update workflow_states": 1, "insert step_states": 1}


async def test_a_changed_context_writes_one_row(store: StateStore) -> None:
    state = two_hundred_steps()
    await store.save_workflow_state(state)
    state.context = {"changed": True}
    cost = await cost_of_saving(store, state)
    assert cost.rows_written == {"update workflow_states": 1}


async def test_an_unchanged_column_is_not_sent(store: StateStore) -> None:
    state = await saved(store, context={"large": "x" * 1000})
    state.mark_running()
    [update] = (await cost_of_saving(store, state)).statements
    assert "status=" in update
    assert "context" not in update


async def test_a_removed_step_writes_two_rows(store: StateStore) -> None:
    state = two_hundred_steps()
    await store.save_workflow_state(state)
    del state.steps["step-77"]
    cost = await cost_of_saving(store, state)
    assert cost.rows_written == {"update workflow_states": 1, "delete step_states": 1}


async def test_an_added_step_writes_two_rows(store: StateStore) -> None:
    state = two_hundred_steps()
    await store.save_workflow_state(state)
    state.steps["last"] = StepState(step_id="last")
    cost = await cost_of_saving(store, state)
    assert cost.rows_written == {"update workflow_states": 1, "insert step_states": 1}


async def test_an_unchanged_save_writes_nothing(store: StateStore) -> None:
    state = two_hundred_steps()
    await store.save_workflow_state(state)
    cost = await cost_of_saving(store, state)
    assert cost.rows_written == {}


async def test_an_unchanged_copy_without_its_base_writes_nothing(store: StateStore) -> None:
    state = two_hundred_steps()
    await store.save_workflow_state(state)
    cost = await cost_of_saving(store, WorkflowState.model_validate(state.model_dump()))
    assert not any(cost.rows_written.values())


async def test_a_copy_without_its_base_writes_only_what_changed(store: StateStore) -> None:
    state = two_hundred_steps()
    await store.save_workflow_state(state)
    copy = WorkflowState.model_validate(state.model_dump())
    copy.steps["step-77"].mark_running()
    cost = await cost_of_saving(store, copy)
    assert cost.rows_written == {"update workflow_states": 1, "insert step_states": 1}


async def test_a_second_save_in_a_row_writes_only_what_changed_in_between(store: StateStore) -> None:
    state = two_hundred_steps()
    async with store.begin() as uow:
        await uow.workflows.save(state)
        with traffic_of(store) as traffic:
            state.steps["step-77"].mark_running()
            await uow.workflows.save(state)
    assert traffic.rows_written == {"update workflow_states": 1, "insert step_states": 1}


async def test_a_refused_save_writes_nothing(store: StateStore) -> None:
    state = await saved(store, "load")
    stale = await store.load_workflow_state(state.id)
    state.context = 1
    await store.save_workflow_state(state)
    stale.context = 2
    stale.steps["load"].mark_running()
    with traffic_of(store) as traffic, pytest.raises(StaleVersion):
        await store.save_workflow_state(stale)
    assert sum(traffic.rows_written.values()) == 0
    assert traffic.commits == 0


# --- read ---


async def test_a_load_is_one_statement_whatever_the_number_of_steps(store: StateStore) -> None:
    for state in (a_workflow(), two_hundred_steps()):
        await store.save_workflow_state(state)
        with traffic_of(store) as traffic:
            await store.load_workflow_state(state.id)
            await store.load_workflow_state_by_workflow_id(state.workflow_id)
        assert len(traffic.statements) == 2


async def test_the_active_workflows_are_one_statement_whatever_their_number(store: StateStore) -> None:
    for total in (1, 100):
        async with store.begin() as uow:
            while len(await uow.workflows.list_active()) < total:
                await uow.workflows.save(a_workflow("a", "b", "c"))
        with traffic_of(store) as traffic:
            listed = await store.list_active_workflows()
        assert (len(listed), len(traffic.statements)) == (total, 1)


# --- checkpoints and clean-up ---


async def test_a_checkpoint_is_created_and_the_oldest_pruned_in_one_transaction(store: StateStore) -> None:
    state = await saved(store)
    for _ in range(10):
        await store.create_checkpoint(Checkpoint(workflow_state_id=state.id, step_id="load", snapshot={}))
    with traffic_of(store) as traffic:
        await store.create_checkpoint(Checkpoint(workflow_state_id=state.id, step_id="load", snapshot={}))
    assert traffic.commits == 1
    assert traffic.rows_written["insert checkpoints"] == 1
    assert traffic.rows_written["delete checkpoints"] == 1


async def test_old_states_are_deleted_in_batches_of_two_hundred(store: StateStore) -> None:
    async with store.begin() as uow:
        for _ in range(450):
            await uow.workflows.save(a_workflow("load", status="completed", updated_at=LONG_AGO))
    with traffic_of(store) as traffic:
        assert await store.delete_old_states(older_than=LONG_AGO.replace(year=2021)) == 450
    assert {what: rows for what, rows in traffic.rows_written.items() if rows} == {
        "delete step_states": 450,
        "delete workflow_states": 450,
        "insert requests": 3,
    }
    assert traffic.commits == 3
