"""How many durable steps a second are there with many runs at once?

By hand all waiting steps share a transaction, and on Postgres two connections take turns: that is the driver's limit.
The peers do what they do by default, with the same durability. A step's result has 2 KB.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final
from uuid import UUID

from benchmarks.by_hand import Step, StepsByHand, new_workflows, steps_by_hand
from benchmarks.contest import OUTPUT_SIZE, STEPS_PER_RUN, Contestant, Entrant, Together, against, answer, hold_contest
from benchmarks.measure import Bench, Figure, Question
from benchmarks.peers import installed_peers
from benchmarks.samples import output
from orchestrator_state import Run, StateStore

_CONNECTIONS: Final = {"sqlite": 1, "postgres": 2}
_LARGEST_BATCH: Final = 500
_BARS: Final = {
    "sqlite": {"raw": 0.5, "DBOS": 10.0, "LangGraph": 8.0},
    "postgres": {"raw": 0.5, "DBOS": 10.0, "LangGraph": 10.0},
}


@asynccontextmanager
async def _by_the_store(bench: Bench) -> AsyncIterator[Contestant]:
    with bench.new_database() as url:
        async with StateStore.open(url, migrate=True) as store:
            yield partial(_runs_at_once, store)


async def _runs_at_once(store: StateStore, runs: int) -> float:
    together = Together(runs)

    async def handler(run: Run) -> None:
        async with together.run():
            for number in range(STEPS_PER_RUN):
                await run.step(f"step-{number}", answer, number)

    async with asyncio.TaskGroup() as group:
        for _ in range(runs):
            group.create_task(store.run("benchmark", handler))
    return together.steps_per_second


@asynccontextmanager
async def _by_hand(bench: Bench) -> AsyncIterator[Contestant]:
    with bench.new_database() as url:
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(StateStore.open(url, migrate=True))
            connections = [
                await stack.enter_async_context(steps_by_hand(url)) for _ in range(_CONNECTIONS[bench.database])
            ]
            yield partial(_batches, store, connections)


async def _batches(store: StateStore, connections: Sequence[StepsByHand], runs: int) -> float:
    """Each connection has workflows of its own, and enough of them to fill its batches."""
    batch = min(runs, _LARGEST_BATCH)
    count = max(runs, batch * len(connections))
    ids = await new_workflows(store, count)
    begun = time.perf_counter()
    shares = (ids[number :: len(connections)] for number in range(len(connections)))
    await asyncio.gather(*(_share(*pair, batch) for pair in zip(connections, shares, strict=True)))
    return count * STEPS_PER_RUN / (time.perf_counter() - begun)


async def _share(connection: StepsByHand, ids: Sequence[UUID], batch: int) -> None:
    for position in range(STEPS_PER_RUN):
        for first in range(0, len(ids), batch):
            steps = [Step(key, position, output(OUTPUT_SIZE, position)) for key in ids[first : first + batch]]
            await connection.commit(steps)


async def _measure(bench: Bench) -> list[Figure]:
    entrants: dict[str, Entrant] = {"raw": _by_hand, "ours": _by_the_store, **installed_peers()}
    rates = await hold_contest(entrants, bench)
    return [
        against(other, rates, what=f"durable steps a second, {bench.size:,} runs at once", bar=bar)
        for other, bar in _BARS[bench.database].items()
        if other in rates
    ]


STEPS: Final = (
    Question(name="steps-100", measure=_measure, size=100, quick_size=100, rounds=5),
    Question(name="steps-1000", measure=_measure, size=1_000, quick_size=300, rounds=3),
)
