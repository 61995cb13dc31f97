"""Save a workflow, load it back, change one step.

`python examples/first_workflow.py` prints

    saved at version 1
    load: pending
    load: completed, 3 pages
    saved at version 2
    nothing changed: still version 2

The database is DATABASE_URL, else ./workflows.db.
"""

import asyncio

from orchestrator_state import StateStore, StepState, WorkflowState


async def main() -> None:
    async with StateStore.open(migrate=True) as store:
        state = WorkflowState(workflow_id="doc-42", workflow_name="Summarise", context={"url": "https://example.org"})
        state.steps["load"] = StepState(step_id="load")
        await store.save_workflow_state(state)
        print(f"saved at version {state.version}")

        loaded = await store.load_workflow_state(state.id)
        step = loaded.steps["load"]
        print(f"load: {step.status}")

        step.mark_running()
        step.mark_completed({"pages": 3})
        print(f"load: {step.status}, {step.outputs['pages']} pages")
        await store.save_workflow_state(loaded)
        print(f"saved at version {loaded.version}")

        await store.save_workflow_state(loaded)
        print(f"nothing changed: still version {loaded.version}")


if __name__ == "__main__":
    asyncio.run(main())
