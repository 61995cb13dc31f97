"""Two worker processes share 20 runs; one of them is killed, and the other finishes its work.

`python examples/many_workers.py` prints

    20 runs started
    one worker was ended by SIGKILL
    20 runs completed, 20 orders packed, each once
    the other worker was sent SIGTERM, and ended

The database is DATABASE_URL, else ./workflows.db.
"""

import asyncio
import multiprocessing
import os
import signal
from multiprocessing.process import BaseProcess
from uuid import uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state import Run, StateStore, Worker

RUNS = 20


async def pack(session: AsyncSession, namespace: str, order: str) -> None:
    """Exactly once: this row and the step are one commit."""
    values = {"namespace": namespace, "order": order}
    await session.execute(text("INSERT INTO example_parcels VALUES (:namespace, :order)"), values)


async def label(order: str) -> str:
    """At least once: the worker that is killed in here leaves this to another."""
    await asyncio.sleep(0.05)
    return f"label of {order}"


async def fulfil(run: Run) -> str:
    await run.transact("pack", pack, run.context["namespace"], run.workflow_id)
    return await run.step("label", label, run.workflow_id)


async def work(namespace: str) -> None:
    """A whole worker program. It ends on SIGTERM."""
    async with StateStore.open(namespace=namespace) as store:
        await Worker(store, {"fulfil": fulfil}, concurrency=2).run()


def start_worker(namespace: str) -> BaseProcess:
    process = multiprocessing.get_context("spawn").Process(target=run_worker, args=(namespace,))
    process.start()
    return process


def run_worker(namespace: str) -> None:
    asyncio.run(work(namespace))


async def until_completed(store: StateStore, count: int) -> None:
    while True:
        active = await store.list_active_workflows()
        if RUNS - len(active) >= count:
            return
        await asyncio.sleep(0.05)


async def main() -> None:
    # A namespace of its own, so that the workers share only what the example started.
    namespace = f"example-{uuid4()}"
    async with StateStore.open(migrate=True, namespace=namespace) as store:
        async with store.begin() as uow:
            await uow.session.execute(
                text("CREATE TABLE IF NOT EXISTS example_parcels (namespace VARCHAR(50), order_id VARCHAR(50))")
            )
        for number in range(RUNS):
            await store.start("fulfil", workflow_id=f"order-{number}", context={"namespace": namespace})
        print(f"{RUNS} runs started")

        victim, other = start_worker(namespace), start_worker(namespace)
        await until_completed(store, 5)
        os.kill(victim.pid or 0, signal.SIGKILL)
        await asyncio.to_thread(victim.join)
        print(f"one worker was ended by {signal.Signals(-(victim.exitcode or 0)).name}")

        await until_completed(store, RUNS)
        async with store.begin() as uow:
            query = text("SELECT count(*), count(DISTINCT order_id) FROM example_parcels WHERE namespace = :namespace")
            packed, orders = (await uow.session.execute(query, {"namespace": namespace})).one()
        print(f"{RUNS} runs completed, {orders} orders packed, {'each once' if packed == orders else 'some twice'}")

    other.terminate()
    await asyncio.to_thread(other.join)
    print("the other worker was sent SIGTERM, and ended")


if __name__ == "__main__":
    asyncio.run(main())
