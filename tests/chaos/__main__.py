"""The long form: `python -m tests.chaos [--seed N] [--scale 0.1]`. The exit status says whether every proof held."""

import argparse
import asyncio
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

from rich.console import Console
from rich.table import Table

from orchestrator_state import StateStore
from orchestrator_state.hooks import StepCommitting
from tests.chaos.boundaries import kill_at_boundaries, kill_between_lines
from tests.chaos.cancellations import cancel_at_random
from tests.chaos.claims import force_nested_loops, race_for_runs
from tests.chaos.freezes import freeze_past_the_lease
from tests.chaos.kills import kill_at_random
from tests.chaos.report import Report
from tests.chaos.restarts import restart_after_kill
from tests.postgres_server import Postgres, PrivatePostgres

BOTH: Final = ("sqlite", "postgres")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A fresh database, a directory, and how much to do there."""

    url: str
    directory: Path
    seed: int
    scale: float

    def times(self, rounds: int) -> int:
        return max(1, round(rounds * self.scale))


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """`run` must find nothing wrong; a control must find something."""

    run: Callable[[Place], Awaitable[Report]]
    is_control: bool = False
    databases: tuple[str, ...] = BOTH


async def _nested_loops(place: Place) -> Report:
    await force_nested_loops(place.url)
    report = await race_for_runs(place.url, place.directory, runs=place.times(1000))
    report.name += ", with nested loops only"
    return report


async def _nested_loops_control(place: Place) -> Report:
    await force_nested_loops(place.url)
    report = await race_for_runs(place.url, place.directory, runs=60, flaw="picks rows in a plain subquery")
    report.name += ", with nested loops only"
    return report


EXPERIMENTS: Final = (
    Experiment(run=lambda at: kill_at_random(at.url, at.directory, rounds=at.times(200), seed=at.seed)),
    Experiment(
        run=lambda at: kill_at_random(
            at.url, at.directory, rounds=200, seed=at.seed, flaw="acknowledges before the commit"
        ),
        is_control=True,
    ),
    Experiment(
        run=lambda at: kill_at_random(at.url, at.directory, rounds=200, seed=at.seed, flaw="forgets what finished"),
        is_control=True,
    ),
    Experiment(run=lambda at: kill_at_boundaries(at.url)),
    Experiment(
        run=lambda at: kill_at_boundaries(at.url, [(StepCommitting, "charge")], is_flawed=True), is_control=True
    ),
    Experiment(run=lambda at: kill_between_lines(at.url, rounds=at.times(200), seed=at.seed)),
    Experiment(run=lambda at: restart_after_kill(at.url)),
    Experiment(run=lambda at: restart_after_kill(at.url, is_flawed=True), is_control=True),
    Experiment(run=lambda at: freeze_past_the_lease(at.url, rounds=at.times(200), seed=at.seed)),
    Experiment(
        run=lambda at: freeze_past_the_lease(at.url, rounds=200, seed=at.seed, is_fenced=False), is_control=True
    ),
    Experiment(run=lambda at: race_for_runs(at.url, at.directory, runs=at.times(1000))),
    Experiment(
        run=lambda at: race_for_runs(at.url, at.directory, runs=60, flaw="looks and claims in two transactions"),
        is_control=True,
    ),
    Experiment(run=_nested_loops, databases=("postgres",)),
    Experiment(run=_nested_loops_control, databases=("postgres",), is_control=True),
    Experiment(run=lambda at: cancel_at_random(at.url, rounds=at.times(1500), seed=at.seed)),
    Experiment(run=lambda at: cancel_at_random(at.url, rounds=100, seed=at.seed, is_flawed=True), is_control=True),
)


async def main() -> int:
    """Run every experiment on each of its databases; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--scale", type=float, default=1.0, help="of the long form's rounds")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(f"seed {options.seed}")
    table = Table("", "database", "experiment", "figures", "faults", "seconds")
    everything_held = True
    with PrivatePostgres() as server:
        for experiment in EXPERIMENTS:
            for database in experiment.databases:
                async with _fresh(database, server) as (url, directory):
                    start = monotonic()
                    place = Place(url=url, directory=directory, seed=options.seed, scale=options.scale)
                    report = await experiment.run(place)
                holds = bool(report.faults) == experiment.is_control
                everything_held &= holds
                if not holds:
                    console.print(str(report), style="red")
                table.add_row(*_row(report, database, experiment, holds=holds, seconds=monotonic() - start))
                console.print(f"{'ok' if holds else 'FAILED':7}{database:9}{report.name}")
    console.print(table)
    return 0 if everything_held else 1


def _row(report: Report, database: str, experiment: Experiment, *, holds: bool, seconds: float) -> tuple[str, ...]:
    mark = "[green]ok[/]" if holds else "[red]FAILED[/]"
    kind = "[dim]control[/] " if experiment.is_control else ""
    figures = ", ".join(f"{number} {what}" for what, number in report.figures.items())
    faults = f"{len(report.faults)}, as wanted" if experiment.is_control and holds else str(len(report.faults))
    return (mark, database, f"{kind}{report.name}", figures, faults, f"{seconds:.0f}")


@asynccontextmanager
async def _fresh(database: str, server: Postgres) -> AsyncIterator[tuple[str, Path]]:
    with tempfile.TemporaryDirectory() as path:
        directory = Path(path)
        if database == "sqlite":
            url = str(directory / "workflows.db")
            async with StateStore.open(url):
                pass
            yield url, directory
        else:
            with server.database() as name:
                url = server.url(name)
                async with StateStore.open(url, migrate=True):
                    pass
                yield url, directory


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
