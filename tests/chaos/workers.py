"""A worker process for the tests of workers."""

import asyncio
from dataclasses import dataclass

from orchestrator_state import Run, StateStore, Worker
from tests.chaos.children import Pipe


@dataclass(frozen=True, kw_only=True)
class Job:
    """The second step of each run never ends, or with `until_stopped` a moment after its worker was told to stop."""

    url: str
    until_stopped: bool = False
    grace: float = 10


def work(job: Job, pipe: Pipe) -> None:
    """One run at a time, until SIGTERM. Tells of each step that it starts, and of its own end."""
    asyncio.run(_work(job, pipe))


async def _work(job: Job, pipe: Pipe) -> None:
    async def step(run: Run, step_id: str) -> str:
        pipe.send((run.workflow_id, step_id))
        if step_id == "slow":
            while not (job.until_stopped and worker.health().state == "stopping"):  # noqa: ASYNC110 - a signal changes it
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)
        return "first"

    async def handler(run: Run) -> str:
        await run.step("quick", step, run, "quick")
        await run.step("slow", step, run, "slow")
        return "first"

    async with StateStore.open(job.url, migrate=False, pool_min=1) as store:
        worker = Worker(store, {"work": handler}, concurrency=1, poll=0.05, grace=job.grace)
        await worker.run()
    pipe.send("ended")
