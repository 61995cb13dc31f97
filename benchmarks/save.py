"""How long does it take to save one changed step of a workflow?

By hand: a transaction, the version guarded, the step upserted, and nothing looked for: the application knows what it
changed. The store finds out, by encoding all steps and comparing them with what it last saved.
"""

from __future__ import annotations

from itertools import cycle
from typing import Any, Final

import msgspec

from benchmarks.measure import Question
from benchmarks.pairs import Pair, side_by_side
from benchmarks.raw import RawDriver
from benchmarks.samples import output, workflow
from orchestrator_state import StateStore, StepState, WorkflowState
from orchestrator_state.domain import utc_now

_OUTPUT_SIZE: Final = 2048
_CHANGED: Final = "step-7"

_UPDATE: Final = """
    UPDATE workflow_states SET updated_at = $1, version = version + 1
    WHERE id = $2 AND namespace = $3 AND version = $4
"""
_UPSERT: Final = """
    INSERT INTO step_states (workflow_state_id, step_id, status, started_at, completed_at, outputs, error,
                             retry_count, position)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
    ON CONFLICT (workflow_state_id, step_id) DO UPDATE SET
        status = excluded.status, started_at = excluded.started_at, completed_at = excluded.completed_at,
        outputs = excluded.outputs, error = excluded.error, retry_count = excluded.retry_count
"""


async def _save_by_hand(raw: RawDriver, namespace: str, state: WorkflowState, step: StepState) -> None:
    key = raw.identifier(state.id)
    assert step.started_at is not None
    assert step.completed_at is not None
    row = (
        *(key, step.step_id, step.status.value, raw.timestamp(step.started_at), raw.timestamp(step.completed_at)),
        *(msgspec.json.encode(step.outputs).decode(), step.error, step.retry_count, 0),
    )
    async with raw.transaction():
        if await raw.execute(_UPDATE, raw.timestamp(utc_now()), key, namespace, state.version) != 1:
            raise RuntimeError("the version moved on")
        await raw.execute(_UPSERT, *row)
    state.version += 1


async def _prepare(store: StateStore, raw: RawDriver, size: int) -> Pair:
    states = [workflow(number, steps=size, output_size=_OUTPUT_SIZE) for number in range(2)]
    for state in states:
        await store.save_workflow_state(state)
    theirs, ours = states
    new_outputs = [output(_OUTPUT_SIZE, seed) for seed in (1001, 1002)]
    next_by_hand, next_of_ours = cycle(new_outputs), cycle(new_outputs)

    async def by_hand() -> Any:
        step = theirs.steps[_CHANGED]
        step.outputs = next(next_by_hand)
        await _save_by_hand(raw, store.namespace, theirs, step)

    async def by_the_store() -> Any:
        ours.steps[_CHANGED].outputs = next(next_of_ours)
        await store.save_workflow_state(ours)

    for save, state in ((by_hand, theirs), (by_the_store, ours)):
        for version in (2, 3):
            await save()
            found = await store.load_workflow_state(state.id)
            assert (found.version, found.steps) == (version, state.steps)
    return Pair(by_hand, by_the_store)


SAVE: Final = Question(
    name="save",
    measure=side_by_side(
        "save one changed step of {size}, 2 KB each", _prepare, calls=200, bars={"sqlite": 6.0, "postgres": 3.0}
    ),
    size=20,
    quick_size=20,
)
