"""Contestants that do the same work in turns, each in a database of its own."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from statistics import median
from typing import Any, Final

from benchmarks.measure import Bar, Bench, Figure
from benchmarks.samples import output

STEPS_PER_RUN: Final = 20
OUTPUT_SIZE: Final = 2048

Contestant = Callable[[int], Awaitable[float]]
"""Does so many runs at once, of `STEPS_PER_RUN` steps each, and returns how many steps it did in a second."""
Entrant = Callable[[Bench], AbstractAsyncContextManager[Contestant]]


async def answer(number: int) -> Any:
    """What a step calls."""
    return output(OUTPUT_SIZE, number)


class Together:
    """The time from the moment when all runs are about to take their first step, to the last step's commit.

    Starting and finishing a run is thus not measured, on any side that has such a thing.
    """

    def __init__(self, runs: int) -> None:
        self._runs = runs
        self._barrier = asyncio.Barrier(runs)
        self._began = 0.0
        self._ended = 0.0

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        await self._barrier.wait()
        self._began = self._began or time.perf_counter()
        yield
        self._ended = time.perf_counter()

    @property
    def steps_per_second(self) -> float:
        return self._runs * STEPS_PER_RUN / (self._ended - self._began)


async def hold_contest(entrants: Mapping[str, Entrant], bench: Bench) -> dict[str, list[float]]:
    """Each contestant's steps a second, by name, one for each round; who goes first changes."""
    async with AsyncExitStack() as stack:
        contestants = {name: await stack.enter_async_context(enter(bench)) for name, enter in entrants.items()}
        for contestant in contestants.values():
            await contestant(min(10, bench.size))  # statements get prepared, pages and code get warm
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        names = list(contestants)
        for turn in range(bench.rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                gc.collect()
                rates[name].append(await contestants[name](bench.size))
    return rates


def against(other: str, rates: Mapping[str, list[float]], *, what: str, bar: float) -> Figure:
    """How many times faster than `other` we were."""
    return Figure(
        what=what,
        unit=f"x {other}",
        rounds=[ours / theirs for ours, theirs in zip(rates["ours"], rates[other], strict=True)],
        bar=Bar(bar, at_least=True),
        beside={f"{name} /s": median(rates[name]) for name in ("ours", other)},
    )
