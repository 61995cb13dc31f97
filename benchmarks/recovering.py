"""How long until a new worker has claimed and loaded all runs that a dead one left, each of them ready to resume?

By hand: one statement that fetches the same rows, and nothing decoded or claimed. A run is ready once its handler is
called; the handlers are held there, since what they would do is not recovery.
"""

from __future__ import annotations

import asyncio
import gc
import time
from datetime import timedelta
from functools import partial
from statistics import median
from typing import Final

from benchmarks.load import STATES
from benchmarks.measure import Bar, Bench, Figure, Question
from benchmarks.pairs import milliseconds
from benchmarks.raw import RawDriver, connect
from benchmarks.samples import workflow
from orchestrator_state import Run, StateStore, Worker

_STEPS: Final = 20
# Small on purpose: bytes cost both sides the same, and would hide what a run costs.
_OUTPUT_SIZE: Final = 256
_ABANDONED: Final = STATES.format(workflow="namespace = $1 AND status = 'running'")
_IN_A_TRANSACTION: Final = 500
_PROMISED_SECONDS: Final = 5.0


async def _abandon(store: StateStore, raw: RawDriver, runs: int) -> str:
    """Leave running workflows that nobody has a lease of, and return the name of their handler."""
    for first in range(0, runs, _IN_A_TRANSACTION):
        async with store.begin() as uow:
            for number in range(first, min(first + _IN_A_TRANSACTION, runs)):
                await uow.workflows.save(workflow(number, steps=_STEPS, output_size=_OUTPUT_SIZE))
    for table in ("workflow_states", "step_states"):
        await raw.fetch(f"ANALYZE {table}")
    return workflow(0, steps=1, output_size=1).workflow_name


async def _claim_all(url: str, name: str, runs: int) -> float:
    """Seconds that a worker in a store of its own takes; afterwards it lets go of them all."""
    ready, all_ready, held = 0, asyncio.Event(), asyncio.Event()

    async def handler(_: Run) -> None:
        nonlocal ready
        ready += 1
        if ready == runs:
            all_ready.set()
        await held.wait()

    async with StateStore.open(url) as store:
        # A worker with places to spare looks for more as soon as it may.
        worker = Worker(store, {name: handler}, concurrency=runs, poll=timedelta(milliseconds=1), grace=0)
        begun = time.perf_counter()
        async with worker:
            await all_ready.wait()
            return time.perf_counter() - begun


async def _measure(bench: Bench) -> list[Figure]:
    seconds, fetches = [], []
    with bench.new_database() as url:
        async with StateStore.open(url, migrate=True) as store, connect(url) as raw:
            name = await _abandon(store, raw, bench.size)
            for _ in range(bench.rounds):
                gc.collect()
                fetches.append(await milliseconds(partial(raw.fetch, _ABANDONED, store.namespace)) / 1000)
                gc.collect()
                seconds.append(await _claim_all(url, name, bench.size))
    what = f"{bench.size:,} abandoned runs of {_STEPS} steps, claimed and loaded"
    return [
        Figure(
            what=what,
            unit="x raw",
            rounds=[ours / raw for ours, raw in zip(seconds, fetches, strict=True)],
            bar=Bar(3.0),
            beside={"raw fetch s": median(fetches), "ours s": median(seconds)},
        ),
        Figure(what=what, unit="s", rounds=seconds, bar=Bar(_PROMISED_SECONDS)),
    ]


RECOVERING: Final = Question(name="recovering", measure=_measure, size=10_000, quick_size=500, rounds=3)
