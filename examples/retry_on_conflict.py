"""Several writers change one workflow; whoever is late loads it again, and no change is lost.

`python examples/retry_on_conflict.py` prints

    4 writers, 40 changes, count 40

The database is DATABASE_URL, else ./workflows.db.
"""

import asyncio
from uuid import UUID

from orchestrator_state import StaleVersion, StateStore, WorkflowState

WRITERS, CHANGES = 4, 10


async def add_one(store: StateStore, workflow_state_id: UUID) -> None:
    while True:
        state = await store.load_workflow_state(workflow_state_id)
        state.context["count"] += 1
        try:
            await store.save_workflow_state(state)
        except StaleVersion:
            continue  # somebody saved between our load and our save
        return


async def writer(store: StateStore, workflow_state_id: UUID) -> None:
    for _ in range(CHANGES):
        await add_one(store, workflow_state_id)


async def main() -> None:
    async with StateStore.open(migrate=True) as store:
        state = WorkflowState(workflow_id="counter", workflow_name="Count", context={"count": 0})
        await store.save_workflow_state(state)
        await asyncio.gather(*(writer(store, state.id) for _ in range(WRITERS)))
        count = (await store.load_workflow_state(state.id)).context["count"]
        print(f"{WRITERS} writers, {WRITERS * CHANGES} changes, count {count}")


if __name__ == "__main__":
    asyncio.run(main())
