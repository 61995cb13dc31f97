"""The demo: run the document pipeline, kill it in the middle of a step, recover it, judge what happened."""

import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from orchestrator_state.demo.evidence import Evidence, Fate, faults, rows
from orchestrator_state.demo.inspection import finished_steps, prepare, rehearse
from orchestrator_state.demo.journal import read_journal
from orchestrator_state.demo.pipeline import CORPUS, DocumentError
from orchestrator_state.errors import OrchestratorStateError

KEPT, BROKEN, IMPOSSIBLE = 0, 1, 2
POLL_SECONDS = 0.02
STALL_SECONDS = 180.0
WATCHABLE_SECONDS = 2.0
"""What the pauses of the first process add up to, so that a person sees it work."""


Bar = Callable[[int], None]


class DemoError(RuntimeError):
    """A process of the demo ended, or hung, when it should not have."""


def run_demo(*, db: str | None, input_dir: Path | None, llm: str | None, output: Path | None, console: Console) -> int:
    """Run the demo and print its outcome; blocks, and must not be called from a running event loop.

    `db` None is a fresh SQLite file; any other database is first upgraded to the current schema. `output`
    None is a file in the temporary directory that also holds the journal, and is kept. Returns 0 when the
    promise held, 1 when a finished step ran again, work was lost or the reports differ, and 2 when the demo
    could not run.
    """
    directory = Path(tempfile.mkdtemp(prefix="orchestrator-state-demo-"))
    database = db or str(directory / "workflows.db")
    demo = Demo(
        db=database,
        source=(input_dir or CORPUS).absolute(),
        llm=llm,
        output=(output or directory / "report.md").absolute(),
        directory=directory,
        name=f"demo-{uuid.uuid4().hex[:12]}",
    )
    try:
        evidence = demo.run(console)
    except (DemoError, DocumentError, OrchestratorStateError) as error:
        console.print(f"[bold red]The demo cannot run:[/] {escape(str(error))}", soft_wrap=True)
        if any(directory.iterdir()):
            console.print(f"What it left is in {escape(str(directory))}", soft_wrap=True)
        else:
            directory.rmdir()
        return IMPOSSIBLE
    console.print(_table(evidence))
    console.print(f"Report    {escape(str(demo.output))}", soft_wrap=True)
    where = "as given by --db" if db else escape(database)  # a URL may hold a password
    console.print(f"Database  {where}, workflow {demo.name}", soft_wrap=True)
    return verdict(evidence, console)


def verdict(evidence: Evidence, console: Console) -> int:
    """Print whether the promise was kept, with each fault if it was not; return the exit status."""
    found = faults(evidence)
    for fault in found:
        console.print(f"[bold red]fault:[/] {escape(fault)}", soft_wrap=True)
    if found:
        return BROKEN
    counts = f"{len(evidence.finished)} of {len(evidence.plan)} steps"
    console.print(
        f"[bold green]The promise held:[/] killed inside {escape(repr(evidence.interrupted))}; {counts} were "
        f"finished then, none of them ran again, and the report is {evidence.reference_name}, byte for byte.",
        soft_wrap=True,
    )
    return KEPT


@dataclass(frozen=True, kw_only=True)
class Demo:
    """One run of the demo. Everything it writes but the report stays in `directory`."""

    db: str
    source: Path
    llm: str | None
    output: Path
    directory: Path
    name: str

    def run(self, console: Console) -> Evidence:
        """Rehearse, run uninterrupted, run and kill, recover; return what was seen."""
        plan, _ = rehearse(str(self.source), {})
        prepare(self.db)
        _make_room(self.output)
        interrupted, pace = plan[len(plan) // 2], WATCHABLE_SECONDS / len(plan)
        columns = TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, console=console) as progress:

            def bar(description: str) -> Bar:
                task = progress.add_task(description, total=len(plan))
                return lambda done: progress.update(task, completed=done)

            if not self.llm:
                self._work(bar("uninterrupted run"), f"{self.name}-reference", self._reference)
            killed_pid = self._work(
                bar("first process, to be killed"), self.name, self.output, kill_in=interrupted, pace=pace
            )
            finished = finished_steps(self.db, self.name)
            self._work(bar("second process, recovering"), self.name, self.output)
            final = finished_steps(self.db, self.name)
        return Evidence(
            plan=plan,
            interrupted=interrupted,
            killed_pid=killed_pid,
            journal=read_journal(self._journal(self.name)),
            finished=finished,
            final=final,
            report=self.output.read_bytes(),
            reference=self._expected(final),
            reference_name="that which the recorded summaries make" if self.llm else "an uninterrupted run's",
        )

    def _expected(self, final: Mapping[str, object]) -> bytes:
        """The right report; with a model, which may answer differently each time, from recorded answers."""
        if self.llm:
            return rehearse(str(self.source), final)[1].encode()
        return self._reference.read_bytes()

    @property
    def _reference(self) -> Path:
        return self.directory / "reference.md"

    def _journal(self, workflow_id: str) -> Path:
        return self.directory / f"{workflow_id}.jsonl"

    def _work(self, bar: Bar, workflow_id: str, output: Path, *, kill_in: str | None = None, pace: float = 0.0) -> int:
        """Run one worker process to its end, or SIGKILL it inside the step `kill_in`; return its pid."""
        command = [sys.executable, "-m", "orchestrator_state.demo.worker", f"--workflow-id={workflow_id}"]
        command += [f"--input={self.source}", f"--output={output}", f"--journal={self._journal(workflow_id)}"]
        command += [f"--pace={pace}"]
        if self.llm:
            command.append(f"--llm={self.llm}")
        if kill_in:
            command.append(f"--linger={kill_in}")
        log = self.directory / "worker.log"
        with log.open("ab") as errors:
            # The URL goes through the environment, since `ps` shows a command line to everybody.
            environment = {**os.environ, "DATABASE_URL": self.db}
            process = subprocess.Popen(  # noqa: S603 - our own module, by a list and without a shell
                command, env=environment, stdin=subprocess.DEVNULL, stderr=errors
            )
        try:
            self._watch(process, bar, self._journal(workflow_id), kill_in)
        finally:
            process.kill()
            process.wait()
        return process.pid

    def _watch(self, process: subprocess.Popen[bytes], bar: Bar, journal: Path, kill_in: str | None) -> None:
        """Return when the process is inside the step `kill_in`, or without one when it has ended well."""
        seen, deadline = 0, time.monotonic() + STALL_SECONDS
        while time.monotonic() < deadline:
            ended = process.poll() is not None  # asked first: the journal of an ended process is whole
            entries = read_journal(journal)
            if len(entries) > seen:
                seen, deadline = len(entries), time.monotonic() + STALL_SECONDS
                bar(sum(entry.event == "saved" for entry in entries))
            if any(entry.event == "midway" and entry.step == kill_in for entry in entries):
                return
            if ended:
                if process.returncode or kill_in:
                    raise DemoError(self._last_words(process))
                return
            time.sleep(POLL_SECONDS)
        raise DemoError(f"process {process.pid} made no progress for {STALL_SECONDS:.0f} seconds")

    def _last_words(self, process: subprocess.Popen[bytes]) -> str:
        log = self.directory / "worker.log"
        lines = log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"process {process.pid} ended with status {process.returncode}"


def _make_room(output: Path) -> None:
    """Find out before anything runs that the report has a place to go to."""
    if output.is_dir():
        raise DemoError(f"the output is a directory: {output}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(f"cannot create {output.parent}: {error.strerror}") from error


def _table(evidence: Evidence) -> Table:
    table = Table(title="Steps, as the second process met them")
    table.add_column("step", overflow="fold")
    table.add_column("fate")
    table.add_column("attempts", justify="right")
    table.add_column("duration", justify="right")
    styles: dict[Fate, str] = {
        "reused": "green",
        "run": "",
        "interrupted": "yellow",
        "run again": "bold red",
        "missing": "bold red",
    }
    for row in rows(evidence):
        duration = "" if row.seconds is None else f"{row.seconds * 1000:.1f} ms"
        table.add_row(escape(row.step), row.fate, str(row.attempts), duration, style=styles[row.fate])
    return table
