"""How long does one durable step take when nobody else is there?

By hand: one statement in one commit on Postgres, one transaction of the standard library's driver on SQLite.
"""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Final

from benchmarks.by_hand import Step, StepsByHand, new_workflows, steps_by_hand
from benchmarks.contest import OUTPUT_SIZE, STEPS_PER_RUN, answer
from benchmarks.measure import Bench, Figure, Question
from benchmarks.pairs import Round, compared, milliseconds
from benchmarks.samples import output
from orchestrator_state import Run, StateStore

_BARS: Final = {"sqlite": 3.0, "postgres": 1.6}


async def _round(store: StateStore, by_hand: StepsByHand, runs: int) -> Round:
    """Step by step in turns, from inside the handler."""
    raw: list[float] = []
    ours: list[float] = []

    async def handler(run: Run) -> None:
        [key] = await new_workflows(store, 1)
        for number in range(STEPS_PER_RUN):
            step = Step(key, number, output(OUTPUT_SIZE, number))
            raw.append(await milliseconds(partial(by_hand.commit, [step])))
            ours.append(await milliseconds(partial(run.step, f"step-{number}", answer, number)))

    for _ in range(runs):
        await store.run("benchmark", handler)
    return Round(median(raw), median(ours))


async def _measure(bench: Bench) -> list[Figure]:
    with bench.new_database() as url:
        async with StateStore.open(url, migrate=True) as store, steps_by_hand(url) as by_hand:
            await _round(store, by_hand, 1)
            rounds = [await _round(store, by_hand, bench.size) for _ in range(bench.rounds)]
    return [compared("one durable step, one run alone", rounds, _BARS[bench.database])]


ALONE: Final = Question(name="alone", measure=_measure, size=20, quick_size=5)
