"""SIGKILL at the boundaries of one step's commit, and between two lines of our code: a business row exists once."""

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Final

import orchestrator_state
from orchestrator_state import Event, Run, StateStore, StepStatus, WorkflowStatus
from orchestrator_state.hooks import StepCommitted, StepCommitting, StepStarted
from tests.chaos.children import Child, Pipe
from tests.chaos.report import Report
from tests.chaos.witness import book, book_once, create_ledger, entries

_PACKAGE: Final = str(Path(orchestrator_state.__file__).parent)
_STEPS: Final = ("prepare", "charge", "notify")

Boundary = tuple[type[Event], str]
BOUNDARIES: Final[Sequence[Boundary]] = [
    (event, step) for step in _STEPS for event in (StepStarted, StepCommitting, StepCommitted)
]


@dataclass(frozen=True, kw_only=True)
class Job:
    """`die_at` is the boundary, or the line after the start of `charge`, at which the worker kills itself."""

    url: str
    workflow_id: str
    die_at: Boundary | int | None = None
    is_flawed: bool = False
    """The charge is a step of its own transaction, without an idempotency key."""


async def kill_at_boundaries(
    url: str, boundaries: Sequence[Boundary] = BOUNDARIES, *, is_flawed: bool = False
) -> Report:
    """Die at each of the boundaries once, then recover."""
    report = Report(name=f"SIGKILL at the boundaries of a commit{_flaw(is_flawed)}", seed=0)
    async with _store(url) as store:
        await _play(store, url, boundaries, report, is_flawed=is_flawed)
    return report


async def kill_between_lines(url: str, *, rounds: int, seed: int, is_flawed: bool = False) -> Report:
    """Die at `rounds` random lines of ours, of all those that the transaction and the step after it execute."""
    report = Report(name=f"SIGKILL between two lines{_flaw(is_flawed)}", seed=seed)
    async with _store(url) as store:
        with Child(work, Job(url=url, workflow_id="lines", die_at=sys.maxsize, is_flawed=is_flawed)) as child:
            lines = int((await child.end())[-1])
        report.figures["lines executed"] = lines
        moments = random.Random(seed).sample(range(1, lines), k=min(rounds, lines - 1))
        await _play(store, url, moments, report, is_flawed=is_flawed)
    return report


@asynccontextmanager
async def _store(url: str) -> AsyncIterator[StateStore]:
    async with StateStore.open(url, migrate=False, pool_min=1) as store:
        await create_ledger(store)
        yield store


async def _play(
    store: StateStore, url: str, moments: Sequence[Boundary | int], report: Report, *, is_flawed: bool = False
) -> None:
    side_by_side = asyncio.Semaphore(3)

    async def play(moment: Boundary | int) -> None:
        where = moment if isinstance(moment, int) else f"{moment[0].__name__} of {moment[1]}"
        job = Job(url=url, workflow_id=f"{report.name} {where}", die_at=moment, is_flawed=is_flawed)
        async with side_by_side:
            with Child(work, job) as child:
                await child.end()
                report.rounds += child.exit_code == -signal.SIGKILL
            with Child(work, replace(job, die_at=None)) as child:
                await child.end()
                report.acknowledged += len(_STEPS) if child.exit_code == 0 else 0
            report.find("doubled", *(f"killed at {where}: {fault}" for fault in await _faults(store, job.workflow_id)))

    await asyncio.gather(*map(play, moments))


async def _faults(store: StateStore, workflow_id: str) -> list[str]:
    state = await store.load_workflow_state_by_workflow_id(workflow_id)
    found = []
    if state.status is not WorkflowStatus.COMPLETED:
        found.append(f"the run is {state.status}: {state.error}")
    if [step for step in state.steps.values() if step.status is not StepStatus.COMPLETED] or len(state.steps) != 3:
        found.append(f"the steps are {state.steps}")
    booked = await entries(store, workflow_id)
    if booked != sorted(["charge", f"{state.id}:notify"]):
        found.append(f"the ledger has {booked}")
    return found


def _flaw(is_flawed: bool) -> str:
    return ", the business row apart from the step" if is_flawed else ""


# --- the worker --------------------------------------------------------------------------------------------------


def work(job: Job, pipe: Pipe) -> None:
    asyncio.run(_work(job, pipe))


async def _work(job: Job, pipe: Pipe) -> None:
    death = _Death(job.die_at)
    async with StateStore.open(job.url, migrate=False, pool_min=1, hook=death) as store:

        async def charge_apart() -> str:
            async with store.begin() as uow:
                return await book(uow.session, job.workflow_id, "charge")

        async def handler(run: Run) -> Any:
            await run.step("prepare", asyncio.sleep, 0)
            if job.is_flawed:
                await run.step("charge", charge_apart)
            else:
                await run.transact("charge", book, run.workflow_id, "charge")

            async def notify() -> str:
                return await book_once(store, run.workflow_id, run.step_key)

            await run.step("notify", notify)

        await store.run("charge", handler, workflow_id=job.workflow_id)
    sys.settrace(None)
    pipe.send(death.lines)


class _Death:
    """A hook that kills its own process, at an event or a number of lines after `charge` started."""

    def __init__(self, at: Boundary | int | None) -> None:
        self._at = at
        self.lines = 0

    def on_event(self, event: Event) -> None:
        if self._at == (type(event), getattr(event, "step_id", None)):
            os.kill(os.getpid(), signal.SIGKILL)
        if isinstance(self._at, int) and isinstance(event, StepStarted) and event.step_id == "charge":
            sys.settrace(self._trace)

    def _trace(self, frame: FrameType, what: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(_PACKAGE):
            return None
        if what == "line":
            self.lines += 1
            if self.lines == self._at:
                os.kill(os.getpid(), signal.SIGKILL)
        return self._trace
