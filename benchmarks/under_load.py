"""How long do a save and a load take while many runs are active?

The load is open: calls arrive at random moments (a Poisson process), each to a run picked at random, whether or not
earlier calls are done, and a call's time counts from its arrival. Saved is a durable step of 2 KB; loaded is a whole
run with the steps it has by then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from statistics import median, quantiles
from typing import Any, Final
from uuid import UUID

from benchmarks.contest import OUTPUT_SIZE
from benchmarks.measure import Bar, Bench, Figure, Question
from benchmarks.samples import output
from orchestrator_state import Run, StateStore

_POOL: Final = 20
_SECONDS: Final = 10.0
_OFFERED: Final = {"sqlite": 100.0, "postgres": 200.0}
"""Saves a second, and as many loads."""
_BARS: Final = {"sqlite": {"save": 20.0, "load": 10.0}, "postgres": {"save": 50.0, "load": 30.0}}


async def _answer() -> Any:
    return output(OUTPUT_SIZE)


@dataclass
class _ActiveRun:
    id: UUID
    requests: asyncio.Queue[asyncio.Future[None]] = field(default_factory=asyncio.Queue)

    async def save(self) -> None:
        """Have the run take a step, and wait until it is committed."""
        done = asyncio.get_running_loop().create_future()
        self.requests.put_nowait(done)
        await done


@asynccontextmanager
async def _active_runs(store: StateStore, count: int) -> AsyncIterator[list[_ActiveRun]]:
    active: list[_ActiveRun] = []
    all_active = asyncio.Event()

    async def handler(run: Run) -> None:
        me = _ActiveRun(run.id)
        active.append(me)
        if len(active) == count:
            all_active.set()
        while True:
            done = await me.requests.get()
            await run.step("step", _answer)
            done.set_result(None)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(store.run("benchmark", handler)) for _ in range(count)]
        await all_active.wait()
        yield active
        for task in tasks:
            task.cancel()


async def _offer(call: Callable[[], Awaitable[Any]], rate: float, seconds: float, random: Random) -> list[float]:
    """Call at random moments, `rate` times a second on the average; milliseconds from each arrival to its end."""
    times: list[float] = []

    async def arrive(due: float) -> None:
        await call()
        times.append((time.perf_counter() - due) * 1000)

    due = time.perf_counter()
    end = due + seconds
    async with asyncio.TaskGroup() as group:
        while (due := due + random.expovariate(rate)) < end:
            await asyncio.sleep(due - time.perf_counter())
            group.create_task(arrive(due))
    return times


async def _round(store: StateStore, runs: list[_ActiveRun], rate: float, seconds: float) -> dict[str, list[float]]:
    random = Random(len(runs))  # the same load each time
    save, load = await asyncio.gather(
        _offer(lambda: random.choice(runs).save(), rate, seconds, random),
        _offer(lambda: store.load_workflow_state(random.choice(runs).id), rate, seconds, random),
    )
    return {"save": save, "load": load}


def _percentile(times: list[float], percent: int) -> float:
    return quantiles(times, n=100, method="inclusive")[percent - 1]


async def _measure(bench: Bench) -> list[Figure]:
    rate, seconds = _OFFERED[bench.database], _SECONDS * bench.effort
    with bench.new_database() as url:
        async with (
            StateStore.open(url, migrate=True, pool_max=_POOL) as store,
            _active_runs(store, bench.size) as runs,
        ):
            await _round(store, runs, rate, seconds / 5)  # statements get prepared, pages and code get warm
            rounds = [await _round(store, runs, rate, seconds) for _ in range(bench.rounds)]
    return [
        Figure(
            what=f"p99 of a {call}, {bench.size:,} active runs, {rate:g} saves/s and {rate:g} loads/s offered",
            unit="ms",
            rounds=[_percentile(one[call], 99) for one in rounds],
            bar=Bar(bar),
            beside={"p50 ms": median(_percentile(one[call], 50) for one in rounds)},
        )
        for call, bar in _BARS[bench.database].items()
    ]


UNDER_LOAD: Final = (
    Question(name="under-load", measure=_measure, size=1_000, quick_size=1_000, rounds=3, databases=("sqlite",)),
    Question(name="under-load", measure=_measure, size=10_000, quick_size=1_000, rounds=3, databases=("postgres",)),
)
