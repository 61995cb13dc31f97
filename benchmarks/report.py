"""What was measured, as a table for people and as JSON for comparisons over time."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Final

import psutil
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Round
from benchmarks.payloads import Figure

_RESULTS: Final = Path(__file__).parent / "results"
_LIBRARIES: Final = ("orchestrator-state", "sqlalchemy", "asyncpg", "aiosqlite", "pydantic", "msgspec")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A question's rounds on one database, and their medians."""

    question: str
    asks: str
    database: str
    durability: dict[str, str]
    bar: float
    rounds: list[Round]

    @property
    def raw(self) -> float:
        return median(one.raw for one in self.rounds)

    @property
    def ours(self) -> float:
        return median(one.ours for one in self.rounds)

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios: a slow round has a slow divisor too."""
        return median(one.ratio for one in self.rounds)


def print_table(answers: list[Answer], console: Console) -> None:
    table = Table(box=box.MARKDOWN)  # as it stands in the documents
    for heading in ("question", "database"):
        table.add_column(heading, no_wrap=True)
    for heading in ("raw ms", "ours ms", "ratio", "rounds", "bar"):
        table.add_column(heading, justify="right", no_wrap=True)
    for answer in answers:
        ratios = [one.ratio for one in answer.rounds]
        table.add_row(
            answer.asks,
            answer.database,
            f"{answer.raw:.3f}",
            f"{answer.ours:.3f}",
            f"[{'green' if answer.ratio <= answer.bar else 'red'}]{answer.ratio:.2f}[/]",
            f"{min(ratios):.2f}-{max(ratios):.2f}",
            f"≤ {answer.bar:g}",
        )
    console.print(table)
    console.print(_durability(answers), soft_wrap=True)


def write_json(answers: list[Answer], figures: list[Figure]) -> Path:
    """Write everything that was measured to a new file under `benchmarks/results` and return its path."""
    now = datetime.now(UTC)
    _RESULTS.mkdir(exist_ok=True)
    path = _RESULTS / f"{now:%Y%m%dT%H%M%SZ}.json"
    measured = [
        asdict(answer) | {"raw_ms": answer.raw, "ours_ms": answer.ours, "ratio": answer.ratio} for answer in answers
    ]
    document = {
        "measured_at": now.isoformat(timespec="seconds"),
        "machine": _machine(),
        "answers": measured,
        "payloads": [asdict(figure) for figure in figures],
    }
    path.write_text(json.dumps(document, indent=2) + "\n")
    return path


def _machine() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in _LIBRARIES},
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _durability(answers: list[Answer]) -> str:
    settings = {answer.database: answer.durability for answer in answers}
    return "; ".join(
        f"{database}: {', '.join(f'{name}={value}' for name, value in values.items())}"
        for database, values in settings.items()
    )
