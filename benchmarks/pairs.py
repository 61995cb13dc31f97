"""Two ways of doing one thing, timed call by call in turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.measure import Bar, Bench, Figure, Measure
from benchmarks.raw import RawDriver, connect
from orchestrator_state import StateStore

Call = Callable[[], Awaitable[Any]]


@dataclass(frozen=True)
class Pair:
    """The same work by hand and through the store. A call's result is freed outside the measured time."""

    raw: Call
    ours: Call


@dataclass(frozen=True)
class Round:
    """Medians of one round, in milliseconds."""

    raw: float
    ours: float

    @property
    def ratio(self) -> float:
        return self.ours / self.raw


Prepare = Callable[[StateStore, RawDriver, int], Awaitable[Pair]]
"""Fill the database for a size, check that both sides do the same, and return them."""


def side_by_side(asks: str, prepare: Prepare, *, calls: int, bars: Mapping[str, float]) -> Measure:
    """`calls` of each side in one round; `bars` are the ratio to stay below, by database."""

    async def measure(bench: Bench) -> list[Figure]:
        with bench.new_database() as url:
            async with StateStore.open(url, migrate=True) as store, connect(url) as raw:
                pair = await prepare(store, raw, bench.size)
                rounds = await _compare(pair, rounds=bench.rounds, calls=bench.scaled(calls))
        return [compared(asks.format(size=bench.size), rounds, bars[bench.database])]

    return measure


def compared(what: str, rounds: list[Round], bar: float) -> Figure:
    return Figure(
        what=what,
        unit="x raw",
        rounds=[one.ratio for one in rounds],
        bar=Bar(bar),
        beside={"raw ms": median(one.raw for one in rounds), "ours ms": median(one.ours for one in rounds)},
    )


async def _compare(pair: Pair, *, rounds: int, calls: int) -> list[Round]:
    """The sides take turns call by call, and in who goes first: whatever slows the machine down slows both."""
    await _round(pair, max(1, calls // 10))  # statements get prepared, pages and code get warm
    return [await _round(pair, calls) for _ in range(rounds)]


async def _round(pair: Pair, calls: int) -> Round:
    gc.collect()
    raw, ours = [], []
    for turn in range(calls):
        if turn % 2:
            ours.append(await milliseconds(pair.ours))
        raw.append(await milliseconds(pair.raw))
        if not turn % 2:
            ours.append(await milliseconds(pair.ours))
    return Round(median(raw), median(ours))


async def milliseconds(call: Call) -> float:
    start = time.perf_counter()
    result = await call()
    elapsed = time.perf_counter() - start
    del result
    return elapsed * 1000
