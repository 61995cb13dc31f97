"""What was measured, as a table for people and as JSON for comparisons over time."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import psutil
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Figure

_RESULTS: Final = Path(__file__).parent / "results"
_LIBRARIES: Final = ("orchestrator-state", "sqlalchemy", "asyncpg", "aiosqlite", "pydantic", "msgspec")
_PEERS: Final = ("dbos", "langgraph", "langgraph-checkpoint-sqlite", "langgraph-checkpoint-postgres")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A question's figures on one database."""

    question: str
    database: str
    durability: Mapping[str, str]
    size: int
    figures: list[Figure]


def print_table(answers: list[Answer], console: Console) -> None:
    table = Table(box=box.MARKDOWN)  # as it stands in the documents
    for heading in ("what", "database"):
        table.add_column(heading, no_wrap=True)
    for heading in ("figure", "rounds", "bar"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("measured", no_wrap=True)
    for answer in answers:
        for figure in answer.figures:
            table.add_row(*_cells(answer.database, figure))
    console.print(table)
    console.print(f"{datetime.now(UTC):%Y-%m-%d}, {_machine_in_words()}", soft_wrap=True)
    console.print(_durability(answers), soft_wrap=True)


def _cells(database: str, figure: Figure) -> tuple[str, ...]:
    colour = "green" if figure.reaches_its_bar else "red"
    value = f"{short(figure.value)} {figure.unit}"
    return (
        figure.what,
        database,
        value if figure.bar is None else f"[{colour}]{value}[/]",
        f"{short(min(figure.rounds))}-{short(max(figure.rounds))}",
        "" if figure.bar is None else str(figure.bar),
        ", ".join(f"{name} {short(value)}" for name, value in figure.beside.items()),
    )


def short(value: float) -> str:
    """Three digits or so: no benchmark knows more."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def write_json(answers: list[Answer]) -> Path:
    """Write everything that was measured to a new file under `benchmarks/results` and return its path."""
    now = datetime.now(UTC)
    _RESULTS.mkdir(exist_ok=True)
    path = _RESULTS / f"{now:%Y%m%dT%H%M%SZ}.json"
    measured = [
        asdict(answer) | {"figures": [asdict(figure) | {"value": figure.value} for figure in answer.figures]}
        for answer in answers
    ]
    document = {"measured_at": now.isoformat(timespec="seconds"), "machine": _machine(), "answers": measured}
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
        "libraries": _libraries(),
    }


def _machine_in_words() -> str:
    libraries = ", ".join(f"{name} {number}" for name, number in _libraries().items())
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores ({_processor()}), load average {load:.1f}: Python {platform.python_version()}, "
        f"{libraries}"
    )


def _libraries() -> dict[str, str]:
    """Their versions; of the peers, of those that are installed."""
    found = {name: version(name) for name in _LIBRARIES}
    for name in _PEERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


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
