"""The demo: two workers share a run, one is killed in the middle of a step, the other finishes; judge what happened."""

import asyncio
import os
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, TypeVarTuple, cast
from uuid import UUID

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from orchestrator_state import Run, StateStore, StepStatus, WorkflowStatus
from orchestrator_state.database import locate
from orchestrator_state.demo import witness
from orchestrator_state.demo.crew import Crew, DemoError
from orchestrator_state.demo.display import Bars, progress_on, table, verdict
from orchestrator_state.demo.evidence import Evidence
from orchestrator_state.demo.pipeline import CORPUS, NAME, DocumentError, Report, discover, process
from orchestrator_state.errors import ConfigurationError, OrchestratorStateError

IMPOSSIBLE = 2
POLL_SECONDS = 0.05
STALL_SECONDS = 180.0
WATCHABLE_SECONDS = 2.0
"""What the pauses before the steps add up to, so that a person sees the workers work."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def run_demo(*, db: str | None, input_dir: Path | None, llm: str | None, output: Path | None, console: Console) -> int:
    """Run the demo and print its outcome; blocks, and must not be called from a running event loop.

    `db` None is a fresh SQLite file; any other database is first upgraded to the current schema, and the demo works in
    a namespace of its own there. `output` None is a file in the temporary directory that also holds the journal, and is
    kept. Returns 0 when the promise held, 1 when a finished step ran again, work was lost or the reports differ, and 2
    when the demo could not run.
    """
    directory = Path(tempfile.mkdtemp(prefix="orchestrator-state-demo-"))
    demo = Demo(
        db=db or str(directory / "workflows.db"),
        source=(input_dir or CORPUS).absolute(),
        llm=llm,
        output=(output or directory / "report.md").absolute(),
        directory=directory,
        namespace=f"demo-{uuid.uuid4().hex[:12]}",
    )
    try:
        demo.check()
        evidence = asyncio.run(demo.run(console))
    except (DemoError, DocumentError, OrchestratorStateError) as error:
        console.print(f"[bold red]The demo cannot run:[/] {escape(str(error))}", soft_wrap=True)
        if any(directory.iterdir()):
            console.print(f"What it left is in {escape(str(directory))}", soft_wrap=True)
        else:
            directory.rmdir()
        return IMPOSSIBLE
    console.print(table(evidence))
    console.print(f"Report    {escape(str(demo.output))}", soft_wrap=True)
    where = "as given by --db" if db else escape(demo.db)  # a URL may hold a password
    console.print(f"Database  {where}, namespace {demo.namespace}", soft_wrap=True)
    return verdict(evidence, console)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """One run of the demo. Everything it writes but the report and the rows stays in `directory`."""

    db: str
    source: Path
    llm: str | None
    output: Path
    directory: Path
    namespace: str

    def check(self) -> None:
        """Find out before anything runs what cannot work."""
        if not locate(self.db).is_lasting:
            raise ConfigurationError("a database in memory dies with the process that is killed; give a file")
        discover(str(self.source))
        if self.output.is_dir():
            raise DemoError(f"the output is a directory: {self.output}")
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DemoError(f"cannot create {self.output.parent}: {error.strerror}") from error

    async def run(self, console: Console) -> Evidence:
        """Run uninterrupted for the reference; run again, kill, watch the take-over; return what was seen."""
        async with StateStore.open(self.db, namespace=self.namespace, migrate=True) as store:
            with progress_on(console) as progress, Crew(self._environment, self.directory / "workers.log") as crew:
                plan = await self._run_alone(store, "rehearsal" if self.llm else "reference", {}, progress)
                await crew.ready()
                return await self._kill_and_watch(store, crew, plan, progress)

    async def _kill_and_watch(self, store: StateStore, crew: Crew, plan: list[str], progress: Progress) -> Evidence:
        bars = Bars(progress, len(plan))
        interrupted = plan[len(plan) // 2]
        run = await store.start(NAME, workflow_id=NAME, context=self._context(interrupted, len(plan)))
        killed_pid, killed_at, finished = 0, 0.0, dict[str, object]()
        async for journal in self._follow(store, run.id, crew):
            bars.show(journal)
            if not killed_pid and journal and journal[-1].event == "midway":
                finished = await finished_steps(store, run.id)
                killed_pid, killed_at = journal[-1].pid, time.monotonic()
                crew.kill(killed_pid)
                bars.killed(killed_pid)
        await crew.stop()
        final = await finished_steps(store, run.id)
        if self.llm:  # a model may answer differently each time: an uninterrupted run with the same answers
            answers = {step: output for step, output in final.items() if step.startswith("summarise ")}
            await self._run_alone(store, "reference", answers, progress)
        return Evidence(
            plan=plan,
            interrupted=interrupted,
            killed_pid=killed_pid,
            killed_at=killed_at,
            journal=witness.read(self._journal),
            finished=finished,
            final=final,
            report=self.output.read_bytes(),
            reference=(self.directory / "reference.md").read_bytes(),
        )

    async def _follow(self, store: StateStore, run_id: UUID, crew: Crew) -> AsyncIterator[list[witness.Entry]]:
        """Yield the journal over and over until the run is finished. Raises `DemoError` if it fails or stalls."""
        seen, deadline = 0, time.monotonic() + STALL_SECONDS
        while time.monotonic() < deadline:
            state = await store.load_workflow_state(run_id)  # first: the journal of a finished run is whole
            journal = witness.read(self._journal)
            yield journal
            if state.status is WorkflowStatus.COMPLETED:
                return
            if not state.is_active:
                raise DemoError(state.error)
            crew.require_well()
            if len(journal) > seen:
                seen, deadline = len(journal), time.monotonic() + STALL_SECONDS
            await asyncio.sleep(POLL_SECONDS)
        raise DemoError(f"no worker made progress for {STALL_SECONDS:.0f} seconds")

    async def _run_alone(
        self, store: StateStore, name: str, answers: Mapping[str, object], progress: Progress
    ) -> list[str]:
        """Run the pipeline in this process; return its steps. A step in `answers` returns what is given there."""
        plan: list[str] = []
        bar = progress.add_task("uninterrupted run", total=None)

        async def handler(run: Run) -> Report:
            async def step(step_id: str, fn: Callable[[*Ts], T], /, *args: *Ts) -> T:
                plan.append(step_id)
                answered = step_id in answers
                work = run.step(step_id, answers.get, step_id) if answered else run.step(step_id, fn, *args)
                progress.update(bar, completed=len(plan))
                return cast("T", await work)

            return await process(step, str(self.source), str(self.directory / f"{name}.md"))

        await store.run(name, handler, workflow_id=name)
        progress.update(bar, total=len(plan))
        return plan

    def _context(self, interrupted: str, steps: int) -> dict[str, object]:
        asked = witness.Instructions(journal=str(self._journal), pace=WATCHABLE_SECONDS / steps, linger_in=interrupted)
        return {"input": str(self.source), "output": str(self.output), "witness": asked}

    @property
    def _journal(self) -> Path:
        return self.directory / "journal.jsonl"

    @property
    def _environment(self) -> dict[str, str]:
        """For the workers. A URL may hold a password, and `ps` shows a command line to everybody."""
        return os.environ | {
            "DATABASE_URL": self.db,
            "ORCHESTRATOR_STATE_NAMESPACE": self.namespace,
            "LLM_URL": self.llm or "",
        }


async def finished_steps(store: StateStore, run_id: UUID) -> dict[str, object]:
    """The recorded outputs of the finished steps."""
    state = await store.load_workflow_state(run_id)
    return {step.step_id: step.outputs for step in state.steps.values() if step.status is StepStatus.COMPLETED}
