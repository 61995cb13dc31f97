"""A process is killed in the middle of a step; the next one goes on after the last finished step.

`python examples/resume_after_crash.py` prints

    first: run fetch
    first: run summarise
    first: ended by SIGKILL
    second: reuse fetch
    second: run summarise
    second: run report
    second: completed, summarise took 2 attempts

The database is DATABASE_URL, else ./workflows.db.
"""

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from orchestrator_state import Checkpoint, StateStore, StepState, StepStatus, WorkflowState


@dataclass(frozen=True, slots=True)
class Run:
    """One process's view of one workflow. The step `killed_in` does not survive it."""

    store: StateStore
    state: WorkflowState
    process: str
    killed_in: str | None = None

    async def step(self, step_id: str, work: Callable[..., Any], *args: Any) -> Any:
        """Return what `work` returned when the step finished, now or in an earlier process."""
        step = self.state.steps.setdefault(step_id, StepState(step_id=step_id))
        if step.status is StepStatus.COMPLETED:
            print(f"{self.process}: reuse {step_id}", flush=True)
            return step.outputs
        if step.status is not StepStatus.PENDING:
            step.increment_retry()
        step.mark_running()
        await self.store.save_workflow_state(self.state)
        print(f"{self.process}: run {step_id}", flush=True)
        if step_id == self.killed_in:
            os.kill(os.getpid(), signal.SIGKILL)
        step.mark_completed(work(*args))
        await self._record(step_id)
        return step.outputs

    async def _record(self, step_id: str) -> None:
        """The step's result and its checkpoint, in one commit."""
        async with self.store.begin() as uow:
            await uow.workflows.save(self.state)
            snapshot = self.state.to_snapshot()
            await uow.checkpoints.add(Checkpoint(workflow_state_id=self.state.id, step_id=step_id, snapshot=snapshot))
            await uow.checkpoints.prune(self.state.id, keep=10)


async def pipeline(run: Run) -> None:
    page = await run.step("fetch", lambda url: f"text of {url}", run.state.context["url"])
    summary = await run.step("summarise", str.upper, page)
    await run.step("report", lambda text: {"summary": text, "words": len(text.split())}, summary)
    run.state.mark_completed()
    await run.store.save_workflow_state(run.state)


async def start(namespace: str) -> None:
    """What the first process does; it is killed before `summarise` is finished."""
    async with StateStore.open(migrate=True, namespace=namespace) as store:
        state = WorkflowState(workflow_id="doc-42", workflow_name="report", context={"url": "https://example.org"})
        state.mark_running()
        await pipeline(Run(store, state, "first", killed_in="summarise"))


async def recover(namespace: str) -> None:
    """What the second process does: finish whatever is not finished."""
    async with StateStore.open(namespace=namespace) as store:
        for state in await store.list_active_workflows():
            await pipeline(Run(store, state, "second"))
            attempts = state.steps["summarise"].retry_count + 1
            print(f"second: {state.status}, summarise took {attempts} attempts", flush=True)


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
