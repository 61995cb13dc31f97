"""A worker of the demo. Besides the pipeline's own functions this is all that an application has to write.

DATABASE_URL=… python -m orchestrator_state.demo.worker
"""

import asyncio
import os
import sys

from orchestrator_state import Run, StateStore, Worker
from orchestrator_state.demo.pipeline import NAME, Report, process
from orchestrator_state.demo.witness import Witness


async def documents(run: Run) -> Report:
    """Without a witness it would be `process(run.step, …)`."""
    return await process(Witness(run).step, run.context["input"], run.context["output"], os.environ.get("LLM_URL"))


async def main() -> None:
    async with StateStore.open() as store:
        worker = Worker(store, {NAME: documents})
        # The demo holds the other end: however it dies, its workers do not outlive it.
        asyncio.get_running_loop().add_reader(sys.stdin, worker.stop)
        print("ready", flush=True)  # noqa: T201 - the demo waits for it
        await worker.run()


if __name__ == "__main__":
    asyncio.run(main())
