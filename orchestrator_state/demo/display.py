"""What a person sees: a bar for each process, the table of steps, the verdict."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from orchestrator_state.demo.evidence import Evidence, Fate, faults, rows
from orchestrator_state.demo.witness import Entry

KEPT, BROKEN = 0, 1
_STYLES: dict[Fate, str] = {
    "reused": "green",
    "run": "",
    "interrupted": "yellow",
    "run again": "bold red",
    "missing": "bold red",
}


def progress_on(console: Console) -> Progress:
    columns = TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console)


class Bars:
    """How many results each worker has in hand. The first is the one that began the run."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._bars: dict[int, TaskID] = {}

    def show(self, journal: Sequence[Entry]) -> None:
        """Every result counts, also one that was recorded by another worker."""
        for entry in journal:
            if entry.pid not in self._bars:
                name = f"worker {len(self._bars) + 1}"
                self._bars[entry.pid] = self._progress.add_task(name, total=self._total)
        for pid, bar in self._bars.items():
            done = sum(entry.pid == pid and entry.event == "returned" for entry in journal)
            self._progress.update(bar, completed=done)

    def killed(self, pid: int) -> None:
        self._progress.update(self._bars[pid], description="worker 1, killed")
        self._progress.stop_task(self._bars[pid])


def table(evidence: Evidence) -> Table:
    shown = Table(title="Steps, as the second worker met them")
    shown.add_column("step", overflow="fold")
    shown.add_column("fate")
    shown.add_column("worker")
    shown.add_column("attempts", justify="right")
    shown.add_column("duration", justify="right")
    for row in rows(evidence):
        workers = ", ".join("1" if pid == evidence.killed_pid else "2" for pid in row.pids)
        duration = "" if row.seconds is None else f"{row.seconds * 1000:.1f} ms"
        shown.add_row(escape(row.step), row.fate, workers, str(len(row.pids)), duration, style=_STYLES[row.fate])
    return shown


def verdict(evidence: Evidence, console: Console) -> int:
    """Print whether the promise was kept, with each fault if it was not; return the exit status."""
    found = faults(evidence)
    for fault in found:
        console.print(f"[bold red]fault:[/] {escape(fault)}", soft_wrap=True)
    if found:
        return BROKEN
    counts = f"{len(evidence.finished)} of {len(evidence.plan)} steps"
    console.print(
        f"[bold green]The promise held:[/] worker 1 was killed inside {escape(repr(evidence.interrupted))}, and "
        f"worker 2 went on {evidence.take_over_seconds:.1f} s later. {counts} were finished by then, none of them ran "
        "again, and the report is an uninterrupted run's, byte for byte.",
        soft_wrap=True,
    )
    return KEPT
