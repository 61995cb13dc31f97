"""A process is killed in the middle of a step; the next one goes on after the last finished step.

`python examples/resume_after_crash.py` prints

    first: fetch
    first: summarise
    first: ended by SIGKILL
    second: summarise
    second: report
    doc-42 completed: TEXT OF HTTPS://EXAMPLE.ORG, 3 words

The database is DATABASE_URL, else ./workflows.db.
"""

import asyncio
import multiprocessing
import os
import signal
from dataclasses import dataclass
from uuid import uuid4

from orchestrator_state import Run, StateStore


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The handler, and which process it runs in. The step `killed_in` does not survive it."""

    process: str
    killed_in: str | None = None

    async def __call__(self, run: Run) -> str:
        page = await run.step("fetch", self.fetch, run.context["url"])
        summary = await run.step("summarise", self.summarise, page)
        return await run.step("report", self.report, summary)

    def fetch(self, url: str) -> str:
        self.begin("fetch")
        return f"text of {url}"

    def summarise(self, page: str) -> str:
        self.begin("summarise")
        return page.upper()

    def report(self, summary: str) -> str:
        self.begin("report")
        return f"{summary}, {len(summary.split())} words"

    def begin(self, step: str) -> None:
        print(f"{self.process}: {step}", flush=True)
        if step == self.killed_in:
            os.kill(os.getpid(), signal.SIGKILL)


async def start(namespace: str) -> None:
    """What the first process does; it is killed before `summarise` is finished."""
    async with StateStore.open(migrate=True, namespace=namespace) as store:
        pipeline = Pipeline("first", killed_in="summarise")
        await store.run("report", pipeline, workflow_id="doc-42", context={"url": "https://example.org"})


async def recover(namespace: str) -> None:
    """What the second process does: finish whatever is not finished."""
    async with StateStore.open(namespace=namespace) as store:
        report = await store.recover({"report": Pipeline("second")})
        for run in report.runs:
            result = await store.run("report", Pipeline("second"), workflow_id=run.workflow_id)
            print(f"{run.workflow_id} {run.outcome}: {result}")


def start_process(namespace: str) -> None:
    asyncio.run(start(namespace))


def main() -> None:
    # A namespace of its own, so that the example recovers only what it started.
    namespace = f"example-{uuid4()}"
    first = multiprocessing.get_context("spawn").Process(target=start_process, args=(namespace,))
    first.start()
    first.join()
    print(f"first: ended by {signal.Signals(-(first.exitcode or 0)).name}", flush=True)
    asyncio.run(recover(namespace))


if __name__ == "__main__":
    main()
