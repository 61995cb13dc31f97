"""Workflows and values for the tests to save."""

from datetime import UTC, datetime
from typing import Any, Final

from hypothesis import strategies as st

from orchestrator_state import Checkpoint, StateStore, StepState, WorkflowState

LONG_AGO: Final = datetime(2020, 1, 1, tzinfo=UTC)

storable_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | storable_text,
    lambda inner: st.lists(inner) | st.dictionaries(storable_text, inner),
    max_leaves=15,
)


def a_workflow(*step_ids: str, **fields: Any) -> WorkflowState:
    state = WorkflowState(**{"workflow_id": "wf-1", "workflow_name": "Pipeline", **fields})
    state.steps = {step_id: StepState(step_id=step_id) for step_id in step_ids}
    return state


async def saved(store: StateStore, *step_ids: str, **fields: Any) -> WorkflowState:
    """A workflow that `store` has just inserted."""
    state = a_workflow(*step_ids, **fields)
    await store.save_workflow_state(state)
    return state


async def checkpointed(store: StateStore, state: WorkflowState, step_id: str = "load", **fields: Any) -> Checkpoint:
    """A checkpoint that `store` has just created; by default of `state` as it is now."""
    fields.setdefault("snapshot", state.to_snapshot())
    checkpoint = Checkpoint(workflow_state_id=state.id, step_id=step_id, **fields)
    await store.create_checkpoint(checkpoint)
    return checkpoint


def nested(levels: int) -> Any:
    """A number inside that many lists."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value
