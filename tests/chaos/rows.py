"""The rows of the report: each experiment on each of its databases, and whether it went as it has to."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, Literal

from rich.table import Table

from tests.chaos.catalogue import Experiment
from tests.chaos.experiments import found_sooner_or_later, fresh_place
from tests.chaos.report import KINDS, Report
from tests.chaos.tools import ToolMissing
from tests.support.postgres_server import Postgres

Verdict = Literal["ok", "FAILED", "not run"]
_COLOURS: Final[dict[Verdict, str]] = {"ok": "green", "FAILED": "red", "not run": "yellow"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of one experiment on one database."""

    experiment: Experiment
    database: str
    verdict: Verdict
    report: Report
    seconds: float
    why: str = ""
    """Why it was not run, or what went wrong with the experiment itself."""

    def as_json(self) -> dict[str, Any]:
        return {
            "database": self.database,
            "experiment": self.experiment.name,
            "is_control": self.experiment.is_control,
            "verdict": self.verdict,
            "why": self.why,
            "seconds": round(self.seconds, 1),
            **self.report.as_json(),
        }

    def cells(self) -> tuple[str, ...]:
        """The row of a table with the columns of `table_of`."""
        mark, report = f"[{_COLOURS[self.verdict]}]{self.verdict}[/]", self.report
        kind = "[dim]control[/] " if self.experiment.is_control else ""
        recovered = "" if report.recovery_seconds is None else f"{report.recovery_seconds:.1f} s"
        figures = ", ".join(f"{number} {what}" for what, number in report.figures.items())
        return (
            *(mark, self.database, f"{kind}{report.name}", str(report.rounds), str(report.acknowledged)),
            *(str(number) for number in report.counts().values()),
            *(recovered, figures, f"{self.seconds:.0f}"),
        )

    def __str__(self) -> str:
        line = f"{self.verdict:8}{self.database:9}{self.report.name} ({self.seconds:.0f} s)"
        if self.why:
            line += f"\n  {self.why}"
        return line if self.verdict != "FAILED" else f"{line}\n{self.report}"


async def play(experiment: Experiment, database: str, server: Postgres, seed: int, scale: float) -> Row:
    """Whatever happens in an experiment is its own row's: the others are run.

    A proof that made no fault at all proves nothing, and has failed.
    """
    start, why = monotonic(), ""
    verdict: Verdict
    report = Report(name=experiment.name, seed=seed)
    try:
        if experiment.is_control:
            report = await found_sooner_or_later(experiment.run, database, server, seed, scale)
        else:
            async with fresh_place(database, server, seed, scale) as place:
                report = await experiment.run(place)
    except ToolMissing as error:
        verdict, why = "not run", str(error)
    except Exception:  # noqa: BLE001 - it is in the report
        verdict, why = "FAILED", traceback.format_exc()
    else:
        found = bool(report.faults)
        verdict = "ok" if found == experiment.is_control and (found or report.rounds) else "FAILED"
    return Row(
        experiment=experiment,
        database=database,
        verdict=verdict,
        report=report,
        seconds=monotonic() - start,
        why=why,
    )


def table_of(rows: Sequence[Row]) -> Table:
    table = Table("", "database", "experiment", "rounds", "acknowledged", *KINDS, "recovered in", "figures", "seconds")
    for row in rows:
        table.add_row(*row.cells())
    return table


def exit_status(rows: Sequence[Row]) -> int:
    """0 if each proof held and each control was found; 1 if not; 2 if only some could not be run."""
    verdicts = {row.verdict for row in rows}
    return 1 if "FAILED" in verdicts else 2 if "not run" in verdicts else 0
