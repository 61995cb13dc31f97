"""What is saved is what is loaded: every field, every JSON value and every name, on both databases."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from hypothesis import HealthCheck, given, settings

from orchestrator_state import Checkpoint, StateStore, StepState, StepStatus, WorkflowStatus
from orchestrator_state.payloads import Limits
from tests.support.workflows import CORNERS, a_workflow, json_values, nested, saved


async def test_a_state_loads_as_it_was_saved_with_every_field_set(store: StateStore) -> None:
    state = a_workflow("load", "split", "skip", user_id="u-1", context={"inputs": [1, 2.0, None, {"é": "😀"}]})
    state.steps["load"].mark_running()
    state.steps["load"].mark_completed({"rows": 3})
    state.steps["split"].increment_retry()
    state.steps["split"].mark_failed("no text")
    state.steps["skip"].mark_skipped()
    state.mark_failed("split failed")

    await store.save_workflow_state(state)

    loaded = await store.load_workflow_state(state.id)
    assert loaded == state
    assert list(loaded.steps) == ["load", "split", "skip"]
    assert isinstance(loaded.status, WorkflowStatus)
    assert isinstance(loaded.steps["load"].status, StepStatus)


async def test_a_state_may_be_looked_up_by_the_text_of_its_id(store: StateStore) -> None:
    state = await saved(store)
    assert await store.load_workflow_state(str(state.id)) == state


async def test_every_status_is_stored(store: StateStore) -> None:
    for workflow_status in WorkflowStatus:
        state = a_workflow(status=workflow_status)
        state.steps = {status: StepState(step_id=status, status=status) for status in StepStatus}
        await store.save_workflow_state(state)
        assert await store.load_workflow_state(state.id) == state


TIMES = [
    datetime(2026, 1, 31, 9, 30, 0, 1, tzinfo=UTC),
    datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    datetime(2026, 7, 1, 0, 15, tzinfo=timezone(timedelta(hours=5, minutes=45))),
    # Not the very first and last: Postgres takes those two for infinity, and the domain refuses them.
    datetime.min.replace(tzinfo=UTC) + datetime.resolution,
    datetime.max.replace(tzinfo=UTC) - datetime.resolution,
]


async def test_every_time_keeps_its_microseconds_and_comes_back_in_utc(store: StateStore) -> None:
    for time in TIMES:
        state = await saved(store, started_at=time, updated_at=time, completed_at=time)
        loaded = await store.load_workflow_state(state.id)
        times = [loaded.started_at, loaded.updated_at, loaded.completed_at]
        assert times == [time] * 3
        assert all(t is not None and t.tzinfo is UTC for t in times)


async def test_workflows_of_the_first_and_the_last_moment_can_be_listed(store: StateStore) -> None:
    states = [await saved(store, started_at=time, updated_at=time) for time in TIMES]
    states.sort(key=lambda state: state.updated_at, reverse=True)
    assert [state.id for state in await store.list_active_workflows()] == [state.id for state in states]


HOSTILE = [
    "'; DROP TABLE workflow_states; --",
    '"; DROP TABLE workflow_states; --',
    "../../etc/passwd",
    "%00",
    "%s %(name)s %%",
    ":name",
    "$1",
    "?",
    "\\N",
    "\\",
    "{}{0}{name}",
    "null",
    "NULL",
    "\t\r\n",
    " leading and trailing ",
    "é\u0301",
    "e\u0301",
    "İıß",
    "👩‍👩‍👧‍👦",
    "\u202egnp.exe",
    "\u2028",
    "\ufeff",
    "x" * 255,
    "é" * 255,
    "😀" * 255,
]


async def test_a_hostile_name_is_plain_data(store: StateStore) -> None:
    states = []
    for name in HOSTILE:
        state = a_workflow(workflow_id=name, workflow_name=name, user_id=name, error=name, context={name: name})
        state.steps = {step_id: StepState(step_id=step_id, outputs=step_id, error=step_id) for step_id in HOSTILE}
        await store.save_workflow_state(state)
        await store.create_checkpoint(Checkpoint(workflow_state_id=state.id, step_id=name, snapshot={name: name}))
        states.append(state)

    assert [await store.load_workflow_state_by_workflow_id(name) for name in HOSTILE] == states
    assert await store.list_active_workflows() == states[::-1]
    latest = [await store.get_latest_checkpoint(state.id) for state in states]
    assert [(checkpoint.step_id, checkpoint.snapshot) for checkpoint in latest if checkpoint] == [
        (name, {name: name}) for name in HOSTILE
    ]


async def test_a_hostile_name_is_plain_data_in_an_update_and_a_removal(store: StateStore) -> None:
    state = await saved(store, *HOSTILE)
    for name in HOSTILE:
        state.steps[name].mark_completed(name)
    await store.save_workflow_state(state)
    assert await store.load_workflow_state(state.id) == state
    while state.steps:
        state.steps.popitem()
        await store.save_workflow_state(state)
        assert await store.load_workflow_state(state.id) == state


async def test_names_that_differ_only_in_case_or_normal_form_are_different(store: StateStore) -> None:
    names = ["a", "A", "é", "e\u0301", "a ", " a"]
    states = {name: await saved(store, workflow_id=name) for name in names}
    for name in names:
        assert (await store.load_workflow_state_by_workflow_id(name)).id == states[name].id


VALUES: list[Any] = [
    *(None, True, 0, 1, 1.0, 0.1, 1e-320, *CORNERS),
    *([[]], {"b": 1, "a": 2}, [1, 1.0, True, "1"], nested(Limits().depth), dict.fromkeys(map(str, range(1000, 0, -1)))),
]


async def comes_back(store: StateStore, value: Any) -> None:
    """By repr, which tells 1 from 1.0 and True, -0.0 from 0.0, and one order of keys from another."""
    state = a_workflow("load", context=value)
    state.steps["load"].mark_completed(value)
    checkpoint = Checkpoint(workflow_state_id=state.id, step_id="load", snapshot=value)
    await store.save_workflow_state(state)
    await store.create_checkpoint(checkpoint)

    loaded = await store.load_workflow_state(state.id)
    latest = await store.get_latest_checkpoint(state.id)

    assert latest is not None
    assert repr([loaded.context, loaded.steps["load"].outputs, latest.snapshot]) == repr([value] * 3)


async def test_a_payload_comes_back_equal_in_value_type_and_order(store: StateStore) -> None:
    for value in VALUES:
        await comes_back(store, value)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=json_values)
async def test_any_json_value_comes_back_equal_in_value_type_and_order(store: StateStore, value: Any) -> None:
    await comes_back(store, value)


async def test_a_payload_of_megabytes_comes_back(store: StateStore) -> None:
    state = await saved(store, context="é" * 3_000_000)
    assert await store.load_workflow_state(state.id) == state
