"""A step's row that is taken for sound at a glance is sound by the rule, whatever a database may hand out."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from orchestrator_state.damaged import DAMAGED_TIME, FURTHEST_COUNT
from orchestrator_state.domain import StepStatus
from orchestrator_state.errors import CorruptPayload
from orchestrator_state.records import SealedStep
from orchestrator_state.records.recorded import damaged_cells, is_surely_sound


class Text(str):
    """What no driver makes, and a rule may still let pass."""

    __slots__ = ()


SOUND = SealedStep(
    workflow_state_id=UUID(int=1),
    step_id="load",
    status="completed",
    started_at=datetime(2026, 1, 1, tzinfo=UTC),
    completed_at=datetime(2026, 1, 2, tzinfo=UTC),
    outputs="1",
    error=None,
    retry_count=0,
    position=0,
    context_patch=None,
    outputs_digest="",
    error_digest=None,
    context_patch_digest=None,
    schema_version=None,
)
CELLS = ("step_id", "status", "started_at", "completed_at", "retry_count", "position", "schema_version")

numbers = st.sampled_from([-1, 0, 1, FURTHEST_COUNT - 1, FURTHEST_COUNT, 2**63 - 1, -(2**63), 1.5, float("nan"), True])
texts = st.sampled_from(["", "a", "completed", "é", "\ud800", "\udcff", "a" * 255, "a" * 256, "é" * 256, "a\0", Text()])
moments = st.sampled_from(
    [
        DAMAGED_TIME,
        DAMAGED_TIME.replace(tzinfo=None),
        DAMAGED_TIME + timedelta(microseconds=1),
        datetime.min.replace(tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC),
        datetime(2026, 1, 1, tzinfo=UTC).date(),
    ]
)
cells = st.one_of(
    st.none(), numbers, texts, moments, st.sampled_from([*StepStatus]), st.binary(max_size=3), st.just(SOUND.started_at)
)


def is_sound(row: SealedStep) -> bool:
    try:
        return damaged_cells(row) == []
    except CorruptPayload:
        return False


@given(st.dictionaries(st.sampled_from(CELLS), cells))
def test_a_row_that_is_surely_sound_has_no_damaged_cell(hostile: dict[str, Any]) -> None:
    row = SOUND._replace(**hostile)
    assert is_sound(row) or not is_surely_sound(row)


def test_a_step_as_nearly_all_are_is_surely_sound() -> None:
    assert is_surely_sound(SOUND)
    assert is_surely_sound(SOUND._replace(schema_version=3, retry_count=7, position=99, status="skipped"))
