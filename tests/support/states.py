"""Workflows and checkpoints to save, and whether they were."""

from orchestrator_state import Checkpoint, StateStore, StepState, WorkflowNotFound, WorkflowState


def a_state(name: str = "w") -> WorkflowState:
    """A new workflow with one step; its context is a number, to count with."""
    state = WorkflowState(workflow_id=name, workflow_name="n", context=0)
    state.steps["load"] = StepState(step_id="load")
    return state


def a_checkpoint(state: WorkflowState, snapshot: object = 1) -> Checkpoint:
    return Checkpoint(workflow_state_id=state.id, step_id="load", snapshot=snapshot)


async def is_stored(store: StateStore, state: WorkflowState) -> bool:
    """Whether what is in the database is equal to `state`, version included."""
    try:
        return await store.load_workflow_state(state.id) == state
    except WorkflowNotFound:
        return False


async def checkpoints_of(store: StateStore, state: WorkflowState) -> list[Checkpoint]:
    """All of them, newest first."""
    async with store.begin() as uow:
        return await uow.checkpoints.list(state.id)
