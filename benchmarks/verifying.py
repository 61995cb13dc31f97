"""How fast does `verify` look through a database? Payloads of 2 KB in a second, end to end."""

from __future__ import annotations

import time
from typing import Final

from benchmarks.measure import Bar, Bench, Figure, Question
from benchmarks.samples import output
from orchestrator_state import StateStore, StepState, WorkflowState

_STEPS: Final = 19
_PAYLOAD: Final = 2048


async def _measure(bench: Bench) -> list[Figure]:
    with bench.new_database() as url:
        async with StateStore.open(url, migrate=True) as store:
            for number in range(bench.size):
                await store.save_workflow_state(_workflow(number))
            rounds = [await _payloads_per_second(store) for _ in range(bench.rounds)]
    return [Figure(what="payloads of 2 KB verified", unit="/s", rounds=rounds, bar=Bar(20_000, at_least=True))]


def _workflow(number: int) -> WorkflowState:
    state = WorkflowState(workflow_id=f"w-{number}", workflow_name="verified", context={"output": output(_PAYLOAD)})
    for position in range(_STEPS):
        step = StepState(step_id=f"s-{position}")
        step.mark_completed(output(_PAYLOAD))
        state.steps[step.step_id] = step
    return state


async def _payloads_per_second(store: StateStore) -> float:
    start = time.perf_counter()
    report = await store.verify()
    elapsed = time.perf_counter() - start
    assert report.is_sound
    assert report.intact == report.payloads
    return report.payloads / elapsed


VERIFYING: Final = Question(name="verify", measure=_measure, size=1000, quick_size=200)
