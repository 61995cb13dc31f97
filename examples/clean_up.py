"""Delete what is finished and old; what is still to be done stays, however old it is.

`python examples/clean_up.py` prints

    5 checkpoints pruned to 2
    deleted 1 of 2 workflows
    left: waiting, pending

The database is DATABASE_URL, else ./workflows.db.
"""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from orchestrator_state import Checkpoint, StateStore, WorkflowState


async def main() -> None:
    # A namespace of its own: cleaning up deletes nothing of anybody else's.
    async with StateStore.open(migrate=True, namespace=f"example-{uuid4()}") as store:
        long_ago = datetime.now(UTC) - timedelta(days=40)
        waiting = WorkflowState(workflow_id="waiting", workflow_name="Example", updated_at=long_ago)
        done = WorkflowState(workflow_id="done", workflow_name="Example")
        done.mark_completed()
        done.updated_at = long_ago
        for state in (waiting, done):
            await store.save_workflow_state(state)

        for number in range(5):
            snapshot = waiting.to_snapshot()
            await store.create_checkpoint(
                Checkpoint(workflow_state_id=waiting.id, step_id=f"step-{number}", snapshot=snapshot)
            )
        pruned = await store.cleanup_old_checkpoints(waiting.id, keep=2)
        print(f"5 checkpoints pruned to {5 - pruned}")

        deleted = await store.delete_old_states(older_than=datetime.now(UTC) - timedelta(days=30))
        print(f"deleted {deleted} of 2 workflows")
        for state in await store.list_active_workflows():
            print(f"left: {state.workflow_id}, {state.status}")


if __name__ == "__main__":
    asyncio.run(main())
