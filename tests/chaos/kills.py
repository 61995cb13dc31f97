"""SIGKILL at random moments of a run: what was acknowledged is there, and what had finished is not done again."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Final, Literal, TypeVar

from orchestrator_state import Checkpoint, Run, StateStore, StepStatus, WorkflowState, WorkflowStatus
from tests.chaos.children import Child, Pipe
from tests.chaos.flaws import plant
from tests.chaos.report import Fault, Kind, Report
from tests.chaos.witness import Journal, book, create_ledger, entries, read_journal

_T = TypeVar("_T")
Flaw = Literal["acknowledges before the commit", "forgets what finished"]

_LAPS: Final = 3
_STEPS: Final = frozenset(f"{kind} {lap}" for kind in ("plain", "left", "right", "book") for lap in range(_LAPS))
_RESULT: Final = {"counted": _LAPS, "log": [f"lap {lap}" for lap in range(_LAPS)]}


@dataclass(frozen=True, kw_only=True)
class Job:
    url: str
    workflow_id: str
    journal: str
    seed: int
    flaw: Flaw | None = None


async def kill_at_random(url: str, directory: Path, *, rounds: int, seed: int, flaw: Flaw | None = None) -> Report:
    """Kill a worker `rounds` times, and compare its acknowledgements and its journal with the database each time."""
    chance = random.Random(seed)
    report = Report(name=f"SIGKILL at random{f', a worker that {flaw}' if flaw else ''}", seed=seed)
    async with StateStore.open(url, pool_min=1) as store:
        await create_ledger(store)
        story = _Story(store, directory, "w-0")
        longest = await _run_time(Job(url=url, workflow_id="measured", journal=str(directory / "measured"), seed=seed))
        while report.rounds < rounds and not (flaw and report.faults):
            job = Job(
                url=url, workflow_id=story.workflow_id, journal=story.journal, seed=chance.randrange(2**32), flaw=flaw
            )
            was_killed = await _work_and_kill(job, chance.uniform(0, longest), story)
            report.rounds += was_killed
            report.acknowledged += len(story.acknowledged) if not was_killed else 0
            report.faults += await story.faults()
            if not was_killed:
                report.figures["runs finished"] += 1
                report.faults += await story.faults_of_a_finished_run()
                story = _Story(store, directory, f"w-{report.figures['runs finished']}")
    return report


async def _work_and_kill(job: Job, seconds: float, story: "_Story") -> bool:
    with Child(work, job) as child:
        await child.message()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child.end(), seconds)
        child.kill()
        for message in await child.end():
            if isinstance(message, tuple):
                step_id, outputs = message
                story.acknowledged[step_id] = outputs
        return child.exit_code != 0


async def _run_time(job: Job) -> float:
    with Child(work, job) as child:
        await child.message()
        start = monotonic()
        await child.end()
        return monotonic() - start


@dataclass
class _Story:
    """One run through all its workers, told by what does not pass through the store."""

    store: StateStore
    directory: Path
    workflow_id: str
    acknowledged: dict[str, Any] = field(default_factory=dict)
    finished: dict[str, int] = field(default_factory=dict)
    """Finished steps, and how many lines the journal had when that was first seen."""

    @property
    def journal(self) -> str:
        return str(self.directory / f"{self.workflow_id}.journal")

    async def faults(self) -> list[Fault]:
        """What is wrong after a kill."""
        state, checkpoint = await self._what_is_there()
        if state is None:
            return [self._fault("lost", f"{step} was acknowledged, and there is no run") for step in self.acknowledged]
        lines = read_journal(self.journal)
        completed = {step.step_id: step for step in state.steps.values() if step.status is StepStatus.COMPLETED}
        found = [
            self._fault("lost", f"{step_id} was acknowledged and is lost")
            for step_id, outputs in self.acknowledged.items()
            if step_id not in completed or completed[step_id].outputs != outputs
        ]
        found += [
            self._fault("doubled", f"{step_id} had finished and ran again")
            for step_id, length in self.finished.items()
            if step_id in lines[length:]
        ]
        for step_id in completed:
            self.finished.setdefault(step_id, len(lines))
        booked = await entries(self.store, self.workflow_id)
        if booked != sorted(step_id for step_id in completed if step_id.startswith("book")):
            found.append(self._fault("doubled", f"the ledger has {booked}"))
        return found + [self._fault("stale", what) for what in _disagreements(state, checkpoint)]

    async def faults_of_a_finished_run(self) -> list[Fault]:
        state = await self.store.load_workflow_state_by_workflow_id(self.workflow_id)
        found = []
        if state.status is not WorkflowStatus.COMPLETED or state.steps.keys() != _STEPS:
            found.append(self._fault("failed", f"it is {state.status} with the steps {sorted(state.steps)}"))
        if state.context != _RESULT:
            found.append(self._fault("doubled", f"its context is {state.context}"))
        return found

    def _fault(self, kind: Kind, what: str) -> Fault:
        return Fault(kind, f"{self.workflow_id}: {what}")

    async def _what_is_there(self) -> tuple[WorkflowState | None, Checkpoint | None]:
        """The state and its newest checkpoint, of one moment: a server may still be at a killed one's last commit."""
        seen: Checkpoint | None = None
        while True:
            state = await _find(self.store, self.workflow_id)
            newest = None if state is None else await self.store.get_latest_checkpoint(state.id)
            if newest == seen:
                return state, newest
            seen = newest


def _disagreements(state: WorkflowState, checkpoint: Checkpoint | None) -> list[str]:
    """The newest checkpoint was made by the newest commit: it is the state."""
    if checkpoint is None:
        return ["there are steps and no checkpoint"] if state.steps else []
    then = WorkflowState.from_snapshot(checkpoint.snapshot)
    found = []
    if then.context != state.context:
        found.append(f"the context is {state.context}, in the checkpoint {then.context}")
    if {step_id: step.outputs for step_id, step in then.steps.items()} != {
        step_id: step.outputs for step_id, step in state.steps.items()
    }:
        found.append("the newest checkpoint has other steps than the state")
    return found


async def _find(store: StateStore, workflow_id: str) -> WorkflowState | None:
    async with store.begin() as uow:
        return await uow.workflows.find_by_workflow_id(workflow_id)


# --- the worker --------------------------------------------------------------------------------------------------


def work(job: Job, pipe: Pipe) -> None:
    if job.flaw == "forgets what finished":
        plant(job.flaw)
    asyncio.run(_work(job, pipe))


async def _work(job: Job, pipe: Pipe) -> None:
    journal, chance = Journal(job.journal), random.Random(job.seed)

    async def effect(step_id: str) -> str:
        journal.note(step_id)
        if job.flaw == "acknowledges before the commit":
            pipe.send((step_id, step_id))
        await asyncio.sleep(chance.uniform(0, 0.003))
        return step_id

    async def acknowledged(step_id: str, call: Awaitable[_T]) -> None:
        outputs = await call
        pipe.send((step_id, outputs))

    async def handler(run: Run) -> Any:
        for lap in range(_LAPS):
            run.context["counted"] = run.context.get("counted", 0) + 1
            await acknowledged(f"plain {lap}", run.step(f"plain {lap}", effect, f"plain {lap}"))
            run.append("log", f"lap {lap}")
            sides = (f"left {lap}", f"right {lap}")
            await asyncio.gather(*(acknowledged(side, run.step(side, effect, side)) for side in sides))
            entry = f"book {lap}"
            await acknowledged(entry, run.transact(entry, book, run.workflow_id, entry))
        return run.context

    async with StateStore.open(job.url, migrate=False, pool_min=1, max_attempts=10_000) as store:
        pipe.send("ready")
        await store.run("laps", handler, workflow_id=job.workflow_id)
