"""A worker process for the tests of workers."""

import asyncio
from dataclasses import dataclass

from orchestrator_state import Run, StateStore, Worker
from tests.chaos.children import Pipe


@dataclass(frozen=True, kw_only=True)
class Job:
    """`seconds` is how long the second step of each run takes."""

    url: str
    seconds: float = 3600
    grace: float = 10


def work(job: Job, pipe: Pipe) -> None:
    """One run at a time, until SIGTERM. Tells of each step that it starts, and of its own end."""
    asyncio.run(_work(job, pipe))


async def _work(job: Job, pipe: Pipe) -> None:
    async def step(run: Run, step_id: str, seconds: float) -> str:
        pipe.send((run.workflow_id, step_id))
        await asyncio.sleep(seconds)
        return "first"

    async def handler(run: Run) -> str:
        await run.step("quick", step, run, "quick", 0)
        await run.step("slow", step, run, "slow", job.seconds)
        return "first"

    async with StateStore.open(job.url, migrate=False, pool_min=1) as store:
        await Worker(store, {"work": handler}, concurrency=1, poll=0.05, grace=job.grace).run()
    pipe.send("ended")
