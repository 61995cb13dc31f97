"""How fast do runs go into a file, and into another database? Rows in a second, end to end."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks.measure import Bar, Bench, Figure, Question
from benchmarks.samples import output
from orchestrator_state import StateStore, StepState, WorkflowState

_STEPS: Final = 19
_PAYLOAD: Final = 200
_BAR: Final = Bar(20_000, at_least=True)


async def _measure(bench: Bench) -> list[Figure]:
    exported, imported = [], []
    with bench.new_database() as url, tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "runs.ndjson"
        async with StateStore.open(url, migrate=True) as store:
            for number in range(bench.size):
                await store.save_workflow_state(_workflow(number))
            for _ in range(bench.rounds):
                start = time.perf_counter()
                report = await store.export_runs(file, overwrite=True)
                rows = sum(report.rows.values())
                exported.append(rows / (time.perf_counter() - start))
                imported.append(rows / await _seconds_to_import(bench, file))
    return [
        Figure(what="rows exported", unit="/s", rounds=exported, bar=_BAR),
        Figure(what="rows imported", unit="/s", rounds=imported, bar=_BAR),
    ]


async def _seconds_to_import(bench: Bench, file: Path) -> float:
    with bench.new_database() as url:
        async with StateStore.open(url, migrate=True) as target:
            start = time.perf_counter()
            report = await target.import_runs(file)
            elapsed = time.perf_counter() - start
    assert report.imported == bench.size
    return elapsed


def _workflow(number: int) -> WorkflowState:
    state = WorkflowState(workflow_id=f"w-{number}", workflow_name="moved", context={"output": output(_PAYLOAD)})
    for position in range(_STEPS):
        step = StepState(step_id=f"s-{position}")
        step.mark_completed(output(_PAYLOAD))
        state.steps[step.step_id] = step
    return state


MOVING: Final = Question(name="moving", measure=_measure, size=2500, quick_size=200)
