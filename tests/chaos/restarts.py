"""kill -9 of the only process: how long until a new one has finished its run, with settings left as they are.

python -m tests.chaos.restarts URL      # what the new process runs
"""

import asyncio
import subprocess
import sys
from pathlib import Path
from time import monotonic
from typing import Final

from orchestrator_state import Run, StateStore, StepStatus, WorkflowStatus
from orchestrator_state.concurrency.processes import ProcessIdentity
from tests.chaos.children import Child, Pipe
from tests.chaos.report import Report

_ROOT: Final = Path(__file__).parents[2]
_FLAWED: Final = "unable to tell that the owner is dead"


async def restart_after_kill(url: str, *, is_flawed: bool = False) -> Report:
    """Kill the only process in the middle of a step, start Python anew, and let it recover."""
    report = Report(name=f"a restart after SIGKILL{', ' + _FLAWED if is_flawed else ''}", seed=0)
    with Child(work, url) as first:
        await first.message()
        first.kill()
        start = monotonic()
        command = [sys.executable, "-m", "tests.chaos.restarts", url, *([_FLAWED] if is_flawed else [])]
        await asyncio.to_thread(subprocess.run, command, cwd=_ROOT, check=True, timeout=60)
        report.rounds += 1
        report.recovered_after(monotonic() - start)
    async with StateStore.open(url) as store:
        state = await store.load_workflow_state_by_workflow_id("restart")
        if state.status is not WorkflowStatus.COMPLETED:
            report.find("unrecovered", f"the run is {state.status}")
        report.acknowledged = sum(step.status is StepStatus.COMPLETED for step in state.steps.values())
    return report


def work(url: str, pipe: Pipe) -> None:
    asyncio.run(_work(url, pipe))


async def _work(url: str, pipe: Pipe) -> None:
    async def endless() -> None:
        pipe.send("in the middle of a step")
        await asyncio.Event().wait()

    async def handler(run: Run) -> None:
        await run.step("first", asyncio.sleep, 0)
        await run.step("second", endless)

    async with StateStore.open(url) as store:
        await store.run("restart", handler, workflow_id="restart")


async def _recover(url: str) -> None:
    async def handler(run: Run) -> None:
        await run.step("first", asyncio.sleep, 0)
        await run.step("second", asyncio.sleep, 0)

    async with StateStore.open(url) as store:
        await store.recover({"restart": handler})


if __name__ == "__main__":
    if _FLAWED in sys.argv:
        ProcessIdentity.is_dead = lambda self: False  # type: ignore[method-assign]
    asyncio.run(_recover(sys.argv[1]))
