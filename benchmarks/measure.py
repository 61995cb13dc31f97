"""What is asked, what is answered, and what the answer is held against."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.databases import NewDatabase


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where a question is measured, and how thoroughly."""

    database: str
    new_database: NewDatabase
    size: int
    """How many workflows, steps or whatever else the question counts."""
    rounds: int
    effort: float = 1.0
    """A factor for the calls, or the seconds, of one round."""

    def scaled(self, calls: int) -> int:
        return max(1, round(calls * self.effort))


@dataclass(frozen=True)
class Bar:
    """What a figure is to reach."""

    limit: float
    at_least: bool = False

    def is_reached_by(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the table."""

    what: str
    unit: str
    rounds: Sequence[float]
    """One value a round. For a ratio: of what was measured in the same round, since a slow round slows both."""
    bar: Bar | None = None
    beside: Mapping[str, float] = field(default_factory=dict)
    """Medians of what the figure was made of; the names say the units."""

    @property
    def value(self) -> float:
        return median(self.rounds)

    @property
    def reaches_its_bar(self) -> bool:
        return self.bar is None or self.bar.is_reached_by(self.value)


Measure = Callable[[Bench], Coroutine[Any, Any, list[Figure]]]


@dataclass(frozen=True, kw_only=True)
class Question:
    name: str
    measure: Measure
    size: int
    quick_size: int
    rounds: int = 7
    databases: Sequence[str] = ("sqlite", "postgres")
