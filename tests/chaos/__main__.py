"""The long form: `python -m tests.chaos`. The exit status says whether every proof held, and every control failed."""

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.chaos.experiments import EXPERIMENTS, Experiment, fresh_place
from tests.chaos.report import KINDS, Report
from tests.postgres_server import PrivatePostgres


async def main() -> int:
    """Run every experiment on each of its databases; returns the exit status."""
    options = _options()
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(f"seed {options.seed}")
    table = Table("", "database", "experiment", "rounds", "acknowledged", *KINDS, "recovered in", "figures", "seconds")
    rows: list[dict[str, Any]] = []
    with PrivatePostgres() as server:
        for experiment, database in _chosen(options.databases, options.only):
            start = monotonic()
            async with fresh_place(database, server, options.seed, options.scale) as place:
                report = await experiment.run(place)
            holds, seconds = bool(report.faults) == experiment.is_control, monotonic() - start
            console.print(f"{'ok' if holds else 'FAILED':7}{database:9}{report.name} ({seconds:.0f} s)")
            if not holds:
                console.print(str(report), style="red", markup=False)
            table.add_row(*_row(report, database, experiment, holds=holds, seconds=seconds))
            row = {"database": database, "is_control": experiment.is_control, "holds": holds}
            rows.append(row | {"seconds": round(seconds, 1)} | report.as_json())
    console.print(table)
    if options.json is not None:
        options.json.write_text(json.dumps({"seed": options.seed, "rows": rows}, indent=1) + "\n")
    return 0 if all(row["holds"] for row in rows) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--scale", type=float, default=1.0, help="of the long form's rounds")
    parser.add_argument("--json", type=Path, help="write the report to this file, too")
    parser.add_argument("--databases", nargs="*", default=["sqlite", "postgres"])
    parser.add_argument("--only", default="", help="only experiments with this in their name")
    return parser.parse_args()


def _chosen(databases: Sequence[str], only: str) -> list[tuple[Experiment, str]]:
    return [
        (experiment, database)
        for experiment in EXPERIMENTS
        for database in experiment.databases
        if database in databases and only in experiment.name
    ]


def _row(report: Report, database: str, experiment: Experiment, *, holds: bool, seconds: float) -> tuple[str, ...]:
    mark = "[green]ok[/]" if holds else "[red]FAILED[/]"
    kind = "[dim]control[/] " if experiment.is_control else ""
    counts = (str(number) if number else "0" for number in report.counts().values())
    recovered = "" if report.recovery_seconds is None else f"{report.recovery_seconds:.1f} s"
    figures = ", ".join(f"{number} {what}" for what, number in report.figures.items())
    return (
        *(mark, database, f"{kind}{report.name}", str(report.rounds), str(report.acknowledged)),
        *(*counts, recovered, figures, f"{seconds:.0f}"),
    )


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
