"""Take a checkpoint, spoil the workflow, go back to the checkpoint.

`python examples/roll_back.py` prints

    checkpoint 1 after draft
    now: failed with 2 steps, version 2
    restored: running with 1 step
    saved: running with 1 step, version 3

The database is DATABASE_URL, else ./workflows.db.
"""

import asyncio

from orchestrator_state import Checkpoint, StateStore, StepState, WorkflowState


def describe(state: WorkflowState) -> str:
    count = len(state.steps)
    return f"{state.status} with {count} step{'s' if count != 1 else ''}"


async def main() -> None:
    async with StateStore.open(migrate=True) as store:
        state = WorkflowState(workflow_id="letter-7", workflow_name="Write a letter")
        state.mark_running()
        state.steps["draft"] = StepState(step_id="draft")
        state.steps["draft"].mark_completed("Dear Sir or Madam")
        await store.save_workflow_state(state)
        checkpoint = Checkpoint(workflow_state_id=state.id, step_id="draft", snapshot=state.to_snapshot())
        await store.create_checkpoint(checkpoint)
        print(f"checkpoint {checkpoint.seq} after draft")

        state.steps["polish"] = StepState(step_id="polish")
        state.steps["polish"].mark_failed("the model returned an empty answer")
        state.mark_failed("polish failed")
        await store.save_workflow_state(state)
        print(f"now: {describe(state)}, version {state.version}")

        latest = await store.get_latest_checkpoint(state.id)
        assert latest is not None
        restored = await store.restore_from_checkpoint(latest.id)
        print(f"restored: {describe(restored)}")

        # Until here nothing was rolled back: the save is what does it.
        await store.save_workflow_state(restored)
        print(f"saved: {describe(restored)}, version {restored.version}")
        assert await store.load_workflow_state(state.id) == restored


if __name__ == "__main__":
    asyncio.run(main())
