"""Statuses, transitions and the three domain objects, without a database."""

import pickle
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_state import (
    Checkpoint,
    InvalidPayload,
    InvalidTransition,
    StepState,
    StepStatus,
    WorkflowState,
    WorkflowStatus,
)
from tests.support.cases import case

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)

# from: where the marks may lead. Written out, not derived from the code under test.
WORKFLOW_ARROWS = {
    "pending": {"running", "paused", "completed", "failed", "cancelled"},
    "running": {"running", "paused", "completed", "failed", "cancelled"},
    "paused": {"running", "paused", "completed", "failed", "cancelled"},
    "failed": {"running"},
    "completed": set(),
    "cancelled": set(),
}
STEP_ARROWS = {
    "pending": {"running", "completed", "failed", "skipped"},
    "running": {"running", "completed", "failed", "skipped"},
    "failed": {"running", "skipped"},
    "completed": set(),
    "skipped": set(),
}
WORKFLOW_TARGETS = ("running", "paused", "completed", "failed", "cancelled")
STEP_TARGETS = ("running", "completed", "failed", "skipped")


def a_workflow(**fields: Any) -> WorkflowState:
    return WorkflowState(**{"workflow_id": "wf-1", "workflow_name": "Pipeline", **fields})


def a_step(**fields: Any) -> StepState:
    return StepState(**{"step_id": "load", **fields})


def a_checkpoint(**fields: Any) -> Checkpoint:
    return Checkpoint(**{"workflow_state_id": uuid4(), "step_id": "load", "snapshot": {}, **fields})


def mark(subject: WorkflowState | StepState, target: str) -> None:
    method = getattr(subject, f"mark_{target}")
    method("reason") if target == "failed" else method()


def arrows(table: dict[str, set[str]], targets: tuple[str, ...], *, legal: bool) -> list[tuple[str, str]]:
    return [(start, target) for start in table for target in targets if (target in table[start]) == legal]


# --- the state machines ---


@pytest.mark.parametrize(("start", "target"), arrows(WORKFLOW_ARROWS, WORKFLOW_TARGETS, legal=True))
def test_a_workflow_goes_where_its_status_allows(start: str, target: str) -> None:
    state = a_workflow(status=start)
    mark(state, target)
    assert state.status == target


@pytest.mark.parametrize(("start", "target"), arrows(WORKFLOW_ARROWS, WORKFLOW_TARGETS, legal=False))
def test_a_workflow_refuses_every_other_way_and_stays_as_it_was(start: str, target: str) -> None:
    state = a_workflow(status=start, error="before", completed_at=LONG_AGO, updated_at=LONG_AGO)
    before = state.model_copy(deep=True)

    with pytest.raises(InvalidTransition) as refused:
        mark(state, target)

    assert state == before
    assert refused.value.found == start
    assert set(refused.value.expected) == WORKFLOW_ARROWS[start]


@pytest.mark.parametrize(("start", "target"), arrows(STEP_ARROWS, STEP_TARGETS, legal=True))
def test_a_step_goes_where_its_status_allows(start: str, target: str) -> None:
    step = a_step(status=start)
    mark(step, target)
    assert step.status == target


@pytest.mark.parametrize(("start", "target"), arrows(STEP_ARROWS, STEP_TARGETS, legal=False))
def test_a_step_refuses_every_other_way_and_stays_as_it_was(start: str, target: str) -> None:
    step = a_step(status=start, error="before", completed_at=LONG_AGO, outputs=[1])
    before = step.model_copy(deep=True)

    with pytest.raises(InvalidTransition) as refused:
        mark(step, target)

    assert step == before
    assert refused.value.found == start
    assert set(refused.value.expected) == STEP_ARROWS[start]


def test_a_refused_transition_says_where_it_may_go() -> None:
    with pytest.raises(InvalidTransition) as refused:
        a_workflow(status="failed").mark_paused()
    assert str(refused.value) == "workflow 'wf-1' is failed and cannot become paused; it may become running"


def test_a_refused_transition_from_the_end_says_so() -> None:
    with pytest.raises(InvalidTransition) as refused:
        a_step(status="skipped").mark_running()
    assert str(refused.value) == "step 'load' is skipped and cannot become running; it is finished"


def test_an_error_keeps_its_message_and_attributes_between_processes() -> None:
    with pytest.raises(InvalidTransition) as refused:
        a_workflow(status="completed").mark_running()
    copy = pickle.loads(pickle.dumps(refused.value))
    assert (str(copy), copy.expected, copy.found) == (str(refused.value), (), "completed")


# --- what a mark changes besides the status ---


@pytest.mark.parametrize("status", WorkflowStatus)
def test_a_workflow_is_active_while_there_is_work_left(status: WorkflowStatus) -> None:
    assert a_workflow(status=status).is_active == (status in {"pending", "running", "paused"})


@pytest.mark.parametrize("target", WORKFLOW_TARGETS)
def test_every_mark_moves_updated_at(target: str) -> None:
    state = a_workflow(updated_at=LONG_AGO)
    mark(state, target)
    assert state.updated_at > LONG_AGO


@pytest.mark.parametrize("target", WORKFLOW_TARGETS)
def test_a_finished_workflow_has_completed_at_and_an_active_one_has_not(target: str) -> None:
    state = a_workflow()
    mark(state, target)
    assert (state.completed_at is None) == state.is_active


def outcome(subject: WorkflowState | StepState) -> tuple[str | None, bool]:
    return subject.error, subject.completed_at is not None


@pytest.mark.parametrize("build", [a_workflow, a_step])
def test_a_failure_is_kept_until_the_next_run(build: Callable[[], WorkflowState | StepState]) -> None:
    subject = build()
    subject.mark_running()
    assert outcome(subject) == (None, False)
    subject.mark_failed("disk full")
    assert outcome(subject) == ("disk full", True)
    subject.mark_running()
    assert outcome(subject) == (None, False)


def test_a_completed_step_has_its_times_and_its_outputs() -> None:
    step = a_step()
    step.mark_running()
    step.mark_completed({"rows": 3})
    assert step.started_at is not None
    assert step.completed_at is not None
    assert LONG_AGO < step.started_at <= step.completed_at
    assert step.outputs == {"rows": 3}


def test_a_skipped_step_has_completed_at() -> None:
    step = a_step()
    step.mark_skipped()
    assert step.completed_at is not None


def test_retries_are_counted_one_by_one() -> None:
    step = a_step()
    step.increment_retry()
    step.increment_retry()
    assert step.retry_count == 2


def test_a_mark_with_a_reason_that_cannot_be_stored_changes_nothing() -> None:
    state, step = a_workflow(status="running"), a_step(status="running")
    before = state.model_copy(deep=True), step.model_copy(deep=True)
    for subject in (state, step):
        with pytest.raises(InvalidPayload):
            subject.mark_failed("lone \ud800")
    assert (state, step) == before


# --- fields ---


def test_a_new_workflow_is_pending_empty_and_has_an_id_of_its_own() -> None:
    state, other = a_workflow(), a_workflow()
    assert (state.status, state.context, state.steps, state.version) == (WorkflowStatus.PENDING, {}, {}, 0)
    assert isinstance(state.id, UUID)
    assert state.id != other.id
    assert state.context is not other.context


def test_a_new_step_is_pending() -> None:
    step = a_step()
    assert (step.status, step.outputs, step.retry_count) == (StepStatus.PENDING, None, 0)


BAD_NAMES = ["", "x" * 256, "é" * 256, "a\0b", "a\ud800b", 7, b"load"]
BAD_TEXTS = ["a\0b", "\udfff", ValueError("no")]
BAD_COUNTS = [-1, 2**31, "3", 1.0, True]
BAD_TIMES = [
    datetime(2026, 1, 1),  # noqa: DTZ001 - the point
    datetime.max.replace(tzinfo=timezone(timedelta(hours=-5))),
    datetime.min.replace(tzinfo=timezone(timedelta(hours=5))),
    "yesterday",
]
BAD_FIELDS = [
    *((a_workflow, name, bad) for name in ("workflow_id", "workflow_name", "user_id") for bad in BAD_NAMES),
    *((a_workflow, name, bad) for name in ("started_at", "updated_at", "completed_at") for bad in BAD_TIMES),
    *((a_workflow, "status", bad) for bad in ("sleeping", "skipped", "RUNNING", None, 1)),
    *((a_workflow, "error", bad) for bad in BAD_TEXTS),
    *((a_workflow, "version", bad) for bad in BAD_COUNTS),
    *((a_workflow, "id", bad) for bad in ("wf-1", None, 7)),
    *((a_step, "step_id", bad) for bad in BAD_NAMES),
    *((a_step, name, bad) for name in ("started_at", "completed_at") for bad in BAD_TIMES),
    *((a_step, "status", bad) for bad in ("sleeping", "paused", None)),
    *((a_step, "error", bad) for bad in BAD_TEXTS),
    *((a_step, "retry_count", bad) for bad in BAD_COUNTS),
    *((a_checkpoint, "step_id", bad) for bad in BAD_NAMES),
    *((a_checkpoint, "timestamp", bad) for bad in BAD_TIMES),
    *((a_checkpoint, "workflow_state_id", bad) for bad in ("wf-1", None)),
]


def test_a_bad_field_is_refused_by_name_when_it_is_given() -> None:
    for build, field, value in BAD_FIELDS:
        with case(f"{build}, {field} {ascii(value)[:50]}"):
            with pytest.raises(InvalidPayload) as refused:
                build(**{field: value})
            assert refused.value.path == field
            assert str(refused.value).startswith(f"{type(build()).__name__}: {field}: ")


def test_a_bad_field_is_refused_by_name_when_it_is_assigned() -> None:
    for build, field, value in BAD_FIELDS:
        with case(f"{build}, {field} {ascii(value)[:50]}"):
            subject = build()
            before = subject.model_copy(deep=True)
            with pytest.raises(InvalidPayload) as refused:
                setattr(subject, field, value)
            assert refused.value.path == field
            assert subject == before


def test_a_field_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidPayload) as refused:
        a_workflow(wrokflow_name="typo")
    assert refused.value.path == "wrokflow_name"


def test_a_refused_value_is_not_in_the_message() -> None:
    with pytest.raises(InvalidPayload) as refused:
        a_workflow(workflow_id="s3cret" * 100)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("name", ["x" * 255, "é" * 255, "😀" * 255, " ", "\u2028"])
def test_a_name_may_have_255_characters_of_any_size(name: str) -> None:
    assert a_workflow(workflow_id=name).workflow_id == name


def test_times_are_kept_in_utc() -> None:
    noon_in_kathmandu = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=5, minutes=45)))
    state = a_workflow(started_at=noon_in_kathmandu)
    assert state.started_at == noon_in_kathmandu
    assert state.started_at.tzinfo is UTC


# --- snapshots ---


def a_full_workflow() -> WorkflowState:
    state = a_workflow(user_id="u-1", context={"big": 2**200, "minus": -0.0, "deep": [[{}]]})
    state.mark_running()
    state.steps = {"load": a_step(), "split": a_step(step_id="split")}
    state.steps["load"].mark_completed({"rows": [1, 2.0, None]})
    state.steps["split"].mark_failed("no text")
    return state


def test_a_state_rebuilt_from_its_snapshot_is_equal() -> None:
    state = a_full_workflow()
    assert WorkflowState.from_snapshot(state.to_snapshot()) == state


def test_a_snapshot_does_not_follow_the_state() -> None:
    state = a_full_workflow()
    snapshot = state.to_snapshot()
    state.context["deep"][0].append("later")
    state.steps["load"].outputs["rows"].append("later")
    assert "later" not in str(snapshot)


def test_a_context_nested_too_deep_for_a_snapshot_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    with pytest.raises(InvalidPayload):
        a_workflow(context=deep).to_snapshot()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*WorkflowState.model_fields, "self"]), inner),
    max_leaves=8,
)


@settings(deadline=None)
@given(json_values)
def test_a_json_value_that_is_no_snapshot_is_refused_and_nothing_worse(snapshot: Any) -> None:
    with suppress(InvalidPayload):
        WorkflowState.from_snapshot(snapshot)


@pytest.mark.parametrize("snapshot", [None, True, 1, "text", [], {}, {"id": 1}, {"steps": {}}])
def test_a_value_that_is_no_state_is_no_snapshot(snapshot: Any) -> None:
    with pytest.raises(InvalidPayload):
        WorkflowState.from_snapshot(snapshot)


@pytest.mark.parametrize("stranger", ["self", "cls", "_saved", "__dict__", "unknown", "\ud800", "a\0b"])
def test_a_snapshot_with_a_strange_key_is_refused(stranger: str) -> None:
    with pytest.raises(InvalidPayload) as refused:
        WorkflowState.from_snapshot(a_workflow().to_snapshot() | {stranger: 1})
    assert str(refused.value).encode()


def test_states_are_equal_by_their_fields() -> None:
    state = a_full_workflow()
    assert state.model_copy(deep=True) == state
    assert state.model_copy(update={"context": {}}) != state
    assert state != "wf-1"


@pytest.mark.parametrize("moment", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
def test_the_first_and_the_last_moment_are_refused_because_postgres_reads_them_as_infinity(moment: datetime) -> None:
    with pytest.raises(InvalidPayload, match="infinity"):
        WorkflowState(workflow_id="wf-1", workflow_name="Pipeline", started_at=moment)
