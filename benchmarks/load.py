"""How long does it take to load one workflow?

By hand: one statement, which is one consistent snapshot, and every payload decoded from JSON. The store also builds
the domain objects, and keeps what a later save compares with.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from benchmarks.measure import Question
from benchmarks.pairs import Pair, side_by_side
from benchmarks.raw import RawDriver
from benchmarks.samples import workflow
from orchestrator_state import StateStore

_OUTPUT_SIZE: Final = 2048

STATES: Final = """
    SELECT id, CAST(NULL AS text), context, status, started_at, completed_at, error, 0,
           workflow_id, workflow_name, user_id, updated_at, version
    FROM workflow_states WHERE {workflow}
    UNION ALL
    SELECT workflow_state_id, step_id, outputs, status, started_at, completed_at, error, retry_count,
           NULL, NULL, NULL, NULL, NULL
    FROM step_states WHERE workflow_state_id IN (SELECT id FROM workflow_states WHERE {workflow})
"""
_ONE: Final = STATES.format(workflow="id = $1 AND namespace = $2")


def assemble(rows: Iterable[Any]) -> dict[Any, dict[str | None, tuple[Any, Any]]]:
    """Workflows by id, each a dict of its rows and their decoded payloads by step id; None is the workflow itself."""
    workflows: dict[Any, dict[str | None, tuple[Any, Any]]] = {}
    decode = msgspec.json.decode
    for row in rows:
        payload = row[2]
        workflows.setdefault(row[0], {})[row[1]] = (row, None if payload is None else decode(payload))
    return workflows


async def _prepare(store: StateStore, raw: RawDriver, size: int) -> Pair:
    state = workflow(0, steps=size, output_size=_OUTPUT_SIZE)
    await store.save_workflow_state(state)
    key = raw.identifier(state.id)

    async def by_hand() -> Any:
        return assemble(await raw.fetch(_ONE, key, store.namespace))[key]

    async def by_the_store() -> Any:
        return await store.load_workflow_state(state.id)

    found = await by_hand()
    assert await by_the_store() == state
    assert {step_id: outputs for step_id, (_, outputs) in found.items() if step_id is not None} == {
        step_id: step.outputs for step_id, step in state.steps.items()
    }
    return Pair(by_hand, by_the_store)


LOAD: Final = Question(
    name="load",
    measure=side_by_side(
        "load one workflow of {size} steps, 2 KB each", _prepare, calls=200, bars={"sqlite": 2.5, "postgres": 2.5}
    ),
    size=20,
    quick_size=20,
)
