"""How long does it take to list all active workflows with their steps?

By hand: one statement, every row fetched and every payload decoded, in no order. The store also builds the domain
objects, newest first. One query per workflow and one per step list would be 20,001 queries.
"""

from __future__ import annotations

from typing import Any, Final

from benchmarks.load import STATES, assemble
from benchmarks.measure import Question
from benchmarks.pairs import Pair, side_by_side
from benchmarks.raw import RawDriver
from benchmarks.samples import workflow
from orchestrator_state import StateStore

_STEPS: Final = 5
# Small on purpose: bytes cost both sides the same, and would hide what an object costs.
_OUTPUT_SIZE: Final = 256
_ACTIVE: Final = STATES.format(workflow="namespace = $1 AND status IN ('pending', 'running', 'paused')")


async def _prepare(store: StateStore, raw: RawDriver, size: int) -> Pair:
    async with store.begin() as uow:
        for number in range(size):
            await uow.workflows.save(workflow(number, steps=_STEPS, output_size=_OUTPUT_SIZE))
    await raw.fetch("ANALYZE workflow_states")
    await raw.fetch("ANALYZE step_states")

    async def by_hand() -> Any:
        return assemble(await raw.fetch(_ACTIVE, store.namespace))

    async def by_the_store() -> Any:
        return await store.list_active_workflows()

    found, listed = await by_hand(), await by_the_store()
    assert len(found) == len(listed) == size
    for state in listed[:: max(1, size // 10)]:
        outputs = {step_id: value for step_id, (_, value) in found[raw.identifier(state.id)].items() if step_id}
        assert outputs == {step_id: step.outputs for step_id, step in state.steps.items()}
    return Pair(by_hand, by_the_store)


LIST_ACTIVE: Final = Question(
    name="list",
    measure=side_by_side(
        f"list {{size:,}} active workflows of {_STEPS} steps, {_OUTPUT_SIZE} B each",
        _prepare,
        calls=3,
        bars={"sqlite": 3.0, "postgres": 3.0},
    ),
    size=10_000,
    quick_size=1_000,
)
