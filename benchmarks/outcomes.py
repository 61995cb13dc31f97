"""How soon does `store.wait` answer, once the run's end is committed? In one process, one run after the other."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from benchmarks.measure import Bar, Bench, Figure, Question
from orchestrator_state import Run, StateStore
from orchestrator_state.hooks import Event, RunEnded


class _Ends:
    """When runs ended, as told to a hook: after the commit."""

    def __init__(self) -> None:
        self.at: dict[object, float] = {}

    def on_event(self, event: Event) -> None:
        if isinstance(event, RunEnded):
            self.at[event.workflow_state_id] = time.perf_counter()


async def _handler(run: Run) -> int:
    await run.step("load", asyncio.sleep, 0.01)
    return 1


async def _answered_at(store: StateStore, workflow_state_id: object) -> float:
    await store.wait(str(workflow_state_id))
    return time.perf_counter()


async def _measure(bench: Bench) -> list[Figure]:
    ends = _Ends()
    late = []
    with bench.new_database() as url:
        async with StateStore.open(url, migrate=True, hook=ends) as store:
            for _ in range(bench.size):
                state = await store.start("benchmark")
                waiting = asyncio.create_task(_answered_at(store, state.id))
                await asyncio.sleep(0.005)  # so that it waits when the run ends
                await store.recover({"benchmark": _handler})
                late.append((await waiting - ends.at[state.id]) * 1000)
    late.sort()
    return [
        Figure(
            what="an answer of store.wait after the run's end",
            unit="ms",
            rounds=late,
            bar=Bar(20.0),
            beside={"95 % ms": late[int(len(late) * 0.95)], "most ms": late[-1]},
        )
    ]


OUTCOMES: Final = Question(name="outcomes", measure=_measure, size=200, quick_size=20, rounds=1)
