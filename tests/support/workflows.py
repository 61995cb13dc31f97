"""Workflows and values for the tests to save."""

import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from hypothesis import strategies as st

from orchestrator_state import Checkpoint, StateStore, StepState, StepStatus, WorkflowState

LONG_AGO: Final = datetime(2020, 1, 1, tzinfo=UTC)

storable_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
CORNERS: Final[list[Any]] = [
    *(2**53 + 1, 2**63 - 1, 2**63, 2**64, 2**128, -(2**200), 10**4300 - 1, 1 - 10**4299),
    *(-0.0, 1e16, 1e22, 1e38, 1e39, -1e39, 5e-324, 1.7976931348623157e308),
    *("", "null", "\\u0000", "\\", "\x7f\x01", "\u2028", "\ufeff", "e\u0301", "😀", [], {}, {"": {"": []}}),
]
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | storable_text
    | st.sampled_from(CORNERS),
    lambda inner: st.lists(inner) | st.dictionaries(storable_text, inner),
    max_leaves=15,
)

UNSTORABLE: Final[list[Any]] = [
    *(math.nan, math.inf, -math.inf, 10**4300, -(10**4299), "\0", "é\0", "\ud800", "a\ude00"),
    *({1: 0}, {1.5: 0}, {None: 0}, {True: 0}, {b"a": 0}, {(): 0}, {StepStatus.FAILED: 0}, {"\0": 0}, {"\ud800": 0}),
    *(
        (),
        (1,),
        set(),
        {1},
        frozenset(),
        b"",
        bytearray(),
        memoryview(b""),
        1j,
        ...,
        object(),
        int,
        Decimal(1),
        UUID(int=0),
    ),
    *(LONG_AGO, LONG_AGO.date(), LONG_AGO.time(), timedelta(1), StepStatus.FAILED, StepState(step_id="load")),
]


@st.composite
def unstorable_values(draw: st.DrawFn) -> Any:
    """One value that JSON would change, some levels down among others that it would not."""
    value = draw(st.sampled_from(UNSTORABLE))
    for _ in range(draw(st.integers(0, 3))):
        beside, key = draw(json_values), draw(storable_text)
        value = draw(st.sampled_from([[value], [beside, value], [value, beside], {"": beside, key: value}]))
    return value


def a_workflow(*step_ids: str, **fields: Any) -> WorkflowState:
    state = WorkflowState(**{"workflow_id": "wf-1", "workflow_name": "Pipeline", **fields})
    state.steps = {step_id: StepState(step_id=step_id) for step_id in step_ids}
    return state


async def saved(store: StateStore, *step_ids: str, **fields: Any) -> WorkflowState:
    """A workflow that `store` has just inserted."""
    state = a_workflow(*step_ids, **fields)
    await store.save_workflow_state(state)
    return state


async def checkpointed(store: StateStore, state: WorkflowState, step_id: str = "load", **fields: Any) -> Checkpoint:
    """A checkpoint that `store` has just created; by default of `state` as it is now."""
    fields.setdefault("snapshot", state.to_snapshot())
    checkpoint = Checkpoint(workflow_state_id=state.id, step_id=step_id, **fields)
    await store.create_checkpoint(checkpoint)
    return checkpoint


def nested(levels: int) -> Any:
    """A number inside that many lists."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value
