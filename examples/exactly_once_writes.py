"""A worker dies just before, and just after, it commits a charge; the invoice is there once.

`python examples/exactly_once_writes.py` prints

    worker 1: died before the commit, 0 invoices
    worker 2: died after the commit, 1 invoice
    worker 3: completed, 1 invoice
    charge was called 2 times

The database is DATABASE_URL, else ./workflows.db.
"""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from uuid import uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state import Event, Run, StateStore
from orchestrator_state.hooks import StepCommitted, StepCommitting


async def charge(session: AsyncSession, order: str, cents: int) -> int:
    """The application's own row, in the transaction of the step."""
    print("charge", flush=True)
    await session.execute(text("INSERT INTO example_bills VALUES (:order, :cents)"), {"order": order, "cents": cents})
    return cents


async def bill(run: Run) -> int:
    return await run.transact("charge", charge, str(run.id), 1250)


class DiesAt:
    """A hook that kills its process at a moment."""

    def __init__(self, moment: type[Event]) -> None:
        self.moment = moment

    def on_event(self, event: Event) -> None:
        if isinstance(event, self.moment):
            os.kill(os.getpid(), signal.SIGKILL)


MOMENTS = {"before": StepCommitting, "after": StepCommitted}


async def work(workflow_id: str, when: str) -> None:
    """What a worker's process does."""
    async with StateStore.open(hook=DiesAt(MOMENTS[when])) as store:
        await store.run("bill", bill, workflow_id=workflow_id)


async def start_worker(workflow_id: str, when: str) -> int:
    """Start a worker, wait for its death, and return how often it called `charge`."""
    worker = await asyncio.create_subprocess_exec(sys.executable, __file__, workflow_id, when, stdout=PIPE)
    output, _ = await worker.communicate()
    return output.decode().split().count("charge")


async def count_bills(store: StateStore, run_id: str) -> str:
    async with store.begin() as uow:
        query = text("SELECT count(*) FROM example_bills WHERE order_id = :order")
        count = (await uow.session.execute(query, {"order": run_id})).scalar_one()
    return f"{count} invoice{'s' if count != 1 else ''}"


async def main() -> None:
    async with StateStore.open(migrate=True) as store:
        async with store.begin() as uow:
            await uow.session.execute(
                text("CREATE TABLE IF NOT EXISTS example_bills (order_id VARCHAR(36), cents INTEGER)")
            )
        workflow_id = f"order-{uuid4()}"
        run_id = str((await store.start("bill", workflow_id=workflow_id)).id)

        calls = 0
        for number, when in enumerate(MOMENTS, start=1):
            calls += await start_worker(workflow_id, when)
            print(f"worker {number}: died {when} the commit, {await count_bills(store, run_id)}")

        await store.run("bill", bill, workflow_id=workflow_id)
        print(f"worker 3: completed, {await count_bills(store, run_id)}")
        print(f"charge was called {calls} times")


if __name__ == "__main__":
    asyncio.run(work(*sys.argv[1:]) if sys.argv[1:] else main())
