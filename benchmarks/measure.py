"""Two ways of doing one thing, timed call by call in turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.raw import RawDriver
from orchestrator_state import StateStore

Call = Callable[[], Awaitable[Any]]


@dataclass(frozen=True)
class Pair:
    """The same work by hand and through the store. A call's result is freed outside the measured time."""

    raw: Call
    ours: Call


@dataclass(frozen=True, kw_only=True)
class Question:
    name: str
    asks: str
    """One line for the table; `{size}` is filled in."""
    size: int
    quick_size: int
    calls: int
    """Calls of each side in one round."""
    bars: Mapping[str, float]
    """The ratio to reach, by database."""
    prepare: Callable[[StateStore, RawDriver, int], Awaitable[Pair]]
    """Fill the database for `size`, check that both sides do the same, and return them."""


@dataclass(frozen=True)
class Round:
    """Medians of one round, in milliseconds."""

    raw: float
    ours: float

    @property
    def ratio(self) -> float:
        return self.ours / self.raw


async def compare(pair: Pair, *, rounds: int, calls: int) -> list[Round]:
    """Time `calls` calls of each side in each round.

    The sides take turns call by call, and in who goes first: whatever slows the machine down slows both.
    """
    await _round(pair, max(1, calls // 10))  # statements get prepared, pages and code get warm
    return [await _round(pair, calls) for _ in range(rounds)]


async def _round(pair: Pair, calls: int) -> Round:
    gc.collect()
    raw, ours = [], []
    for turn in range(calls):
        if turn % 2:
            ours.append(await _time(pair.ours))
        raw.append(await _time(pair.raw))
        if not turn % 2:
            ours.append(await _time(pair.ours))
    return Round(median(raw), median(ours))


async def _time(call: Call) -> float:
    start = time.perf_counter()
    result = await call()
    elapsed = time.perf_counter() - start
    del result
    return elapsed * 1000
