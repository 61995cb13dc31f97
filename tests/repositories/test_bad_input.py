"""Bad input gets the same clear error on both databases, before any SQL, and changes nothing anywhere."""

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable
from datetime import date, datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings

from orchestrator_state import (
    Checkpoint,
    ConfigurationError,
    InvalidPayload,
    OrchestratorStateError,
    PayloadTooLarge,
    StateStore,
    StepState,
    UnitOfWork,
    WorkflowNotFound,
    WorkflowState,
)
from orchestrator_state.payloads import encode
from tests.support.cases import case
from tests.support.odd_values import Odder
from tests.support.raw_sql import contents
from tests.support.statements import traffic_of
from tests.support.workflows import LONG_AGO, a_workflow, checkpointed, nested, saved, unstorable_values

NAIVE = datetime(2026, 1, 1)  # noqa: DTZ001 - the point


async def refusal_without_sql(store: StateStore, call: Callable[[], Awaitable[object]]) -> OrchestratorStateError:
    with traffic_of(store) as traffic, pytest.raises(OrchestratorStateError) as refused:
        await call()
    assert traffic.statements == []
    assert str(refused.value).encode(), "it can be printed"
    return refused.value


# --- payloads ---

SHARED: Any = [1]
for _ in range(60):
    SHARED = [SHARED, SHARED]

LOOP: list[Any] = []
LOOP.append(LOOP)

BAD_PAYLOADS: dict[str, tuple[Any, str, str]] = {
    "NUL": ({"a": ["\0"]}, ".a[0]", "contains a NUL character; remove it"),
    "surrogate": ({"a": ["\ud800"]}, ".a[0]", "contains a lone surrogate; it is not valid Unicode text"),
    "NaN": ({"a": [math.nan]}, ".a[0]", "is not a finite number; JSON has no NaN and no infinity"),
    "infinity": ([-math.inf], "[0]", "is not a finite number; JSON has no NaN and no infinity"),
    "key": ({"a": {1: 2}}, ".a", "has a key of type int; use str"),
    "bytes": (
        {"a": [0, b"s3cret"]},
        ".a[1]",
        "is of type bytes, which would not load back equal; use None, bool, int, float, str, list or dict",
    ),
    "set": (
        {"s3cret"},
        "",
        "is of type set, which would not load back equal; use None, bool, int, float, str, list or dict",
    ),
    "digits": ([10**4300], "[0]", "is an integer of more than 4300 digits, its sign counted"),
    "deep": (nested(105), "", "is nested deeper than 100 levels, or contains itself"),
    "very deep": (nested(10_000), "", "is nested deeper than 100 levels, or contains itself"),
    "loop": (LOOP, "", "is nested deeper than 100 levels, or contains itself"),
}


async def test_a_payload_that_is_not_json_is_refused_by_its_place(store: StateStore, database_url: str) -> None:
    state = await saved(store, "load")
    before = contents(database_url)
    for name, bad in BAD_PAYLOADS.items():
        with case(name):
            await is_refused_by_its_place(store, state.model_copy(deep=True), *bad)
            assert contents(database_url) == before


async def is_refused_by_its_place(store: StateStore, state: WorkflowState, value: Any, place: str, reason: str) -> None:
    state.context = value
    refused = await refusal_without_sql(store, lambda: store.save_workflow_state(state))
    assert (type(refused), str(refused)) == (InvalidPayload, f"context{place} {reason}")
    assert state.version == 1

    state.context = {}
    state.steps["load"].mark_completed(value)
    refused = await refusal_without_sql(store, lambda: store.save_workflow_state(state))
    assert (type(refused), str(refused)) == (InvalidPayload, f"steps['load'].outputs{place} {reason}")
    assert state.version == 1

    checkpoint = Checkpoint(workflow_state_id=state.id, step_id="load", snapshot=value)
    refused = await refusal_without_sql(store, lambda: store.create_checkpoint(checkpoint))
    # A snapshot may be some levels deeper than what it was taken of.
    assert (type(refused), str(refused)) == (InvalidPayload, f"snapshot{place} {reason.replace('100', '104')}")
    assert checkpoint.seq is None

    refused = await refusal_without_sql(store, lambda: store.save_workflow_state(a_workflow(context=value)))
    assert type(refused) is InvalidPayload


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=unstorable_values())
async def test_any_payload_that_is_not_json_is_refused_in_the_same_words_on_both_databases(
    store: StateStore, value: Any
) -> None:
    checkpoint = Checkpoint(workflow_state_id=uuid4(), step_id="load", snapshot=value)
    state = a_workflow("load")
    state.steps["load"].mark_completed(value)
    saves: list[tuple[str, Callable[[], Awaitable[object]]]] = [
        ("context", lambda: store.save_workflow_state(a_workflow(context=value))),
        ("steps['load'].outputs", lambda: store.save_workflow_state(state)),
        ("snapshot", lambda: store.create_checkpoint(checkpoint)),
    ]
    for path, save in saves:
        with pytest.raises(InvalidPayload) as expected:
            encode(value, path)
        refused = await refusal_without_sql(store, save)
        assert (type(refused), str(refused)) == (InvalidPayload, str(expected.value))


# The work must not grow with the 2**60 values that the lists stand for. The mark turns a hang into a failure.
@pytest.mark.timeout(60)
async def test_lists_shared_sixty_levels_deep_are_refused_before_they_unfold(store: StateStore) -> None:
    refused = await refusal_without_sql(store, lambda: store.save_workflow_state(a_workflow(context=SHARED)))
    assert type(refused) is PayloadTooLarge


async def test_a_payload_over_the_size_limit_is_refused(store: StateStore) -> None:
    state = await saved(store)
    state.context = ["x" * 16 * 1024 * 1024]
    refused = await refusal_without_sql(store, lambda: store.save_workflow_state(state))
    assert type(refused) is PayloadTooLarge
    assert str(refused) == (
        "context is 16777220 bytes or more as JSON, over the limit of 16777216; store a reference to it instead"
    )


async def test_a_state_is_saved_once_the_bad_payload_is_mended(store: StateStore) -> None:
    state = await saved(store)
    state.context = {"when": LONG_AGO}
    await refusal_without_sql(store, lambda: store.save_workflow_state(state))
    state.context = {"when": LONG_AGO.isoformat()}
    await store.save_workflow_state(state)
    assert await store.load_workflow_state(state.id) == state


# --- steps ---


async def test_a_step_under_another_key_than_its_id_is_refused(store: StateStore) -> None:
    state = await saved(store)
    state.steps["load"] = StepState(step_id="split")
    refused = await refusal_without_sql(store, lambda: store.save_workflow_state(state))
    assert isinstance(refused, InvalidPayload)
    assert refused.path == "steps['load']"
    assert str(refused) == "steps['load'] holds the step 'split'; key and step_id must agree"


async def test_a_step_that_is_none_is_refused(store: StateStore) -> None:
    state = await saved(store)
    strangers: list[Any] = [None, "load", {"step_id": "load"}]
    for stranger in strangers:
        state.steps["load"] = stranger
        with case(stranger):
            refused = await refusal_without_sql(store, lambda: store.save_workflow_state(state))
            assert str(refused) == f"steps['load'] is a {type(stranger).__name__}, not a StepState"


async def test_a_step_under_a_key_that_is_no_name_is_refused_in_words_that_can_be_printed(store: StateStore) -> None:
    state = await saved(store)
    keys: dict[str, Any] = {"surrogate": "\ud800", "NUL": "a\0b", "1": 1, "None": None, "long": 10**5000}
    for name, key in keys.items():
        state.steps.clear()
        state.steps[key] = StepState(step_id="load")
        with case(name):
            refused = await refusal_without_sql(store, lambda: store.save_workflow_state(state))
            assert type(refused) is InvalidPayload


# --- fields that came in past validation ---

BAD_FIELDS: list[tuple[str, Any]] = [
    *((name, bad) for name in ("workflow_id", "workflow_name", "user_id") for bad in ("", "x" * 256, "a\0", "\ud800")),
    *((name, bad) for name in ("started_at", "updated_at", "completed_at") for bad in (NAIVE, "yesterday", 0, 0.5)),
    *(("status", bad) for bad in ("sleeping", None, nested(2000), Odder())),
    *(("error", bad) for bad in ("a\0", "\ud800", 7)),
    *(("id", bad) for bad in ("wf-1", None, str(uuid4()))),
    *(("workflow_name", bad) for bad in (nested(2000), Odder())),
    *(("version", bad) for bad in (-1, "1")),
    ("steps", ["load"]),
]
BAD_STEP_FIELDS: list[tuple[str, Any]] = [
    *(("step_id", bad) for bad in ("", "x" * 256, "a\0", "\ud800")),
    *((name, bad) for name in ("started_at", "completed_at") for bad in (NAIVE, "yesterday", 0)),
    *(("status", bad) for bad in ("sleeping", "paused", Odder())),
    *(("error", bad) for bad in ("a\0", "\ud800")),
    *(("retry_count", bad) for bad in (-1, 2**31, "3")),
]
BAD_CHECKPOINT_FIELDS: list[tuple[str, Any]] = [
    *(("step_id", bad) for bad in ("", "x" * 256, "a\0", "\ud800")),
    *(("timestamp", bad) for bad in (NAIVE, "yesterday", 0)),
    *(("id", bad) for bad in ("cp-1", None)),
    ("workflow_state_id", "wf-1"),
]


Call = Callable[[StateStore, str, Any], Awaitable[object]]


async def save_copied_workflow(store: StateStore, field: str, bad: Any) -> None:
    await store.save_workflow_state(a_workflow().model_copy(update={field: bad}))


async def save_copied_step(store: StateStore, field: str, bad: Any) -> None:
    step = StepState(step_id="load").model_copy(update={field: bad})
    await store.save_workflow_state(a_workflow().model_copy(update={"steps": {step.step_id: step}}))


async def create_copied_checkpoint(store: StateStore, field: str, bad: Any) -> None:
    checkpoint = Checkpoint(workflow_state_id=uuid4(), step_id="load", snapshot={})
    await store.create_checkpoint(checkpoint.model_copy(update={field: bad}))


@pytest.mark.parametrize(
    ("call", "fields"),
    [
        (save_copied_workflow, BAD_FIELDS),
        (save_copied_step, BAD_STEP_FIELDS),
        (create_copied_checkpoint, BAD_CHECKPOINT_FIELDS),
    ],
)
async def test_a_bad_field_that_came_in_through_model_copy_is_refused_by_name(
    store: StateStore, call: Call, fields: list[tuple[str, Any]]
) -> None:
    wrong = []
    for field, bad in fields:
        with traffic_of(store) as traffic:
            try:
                await call(store, field, bad)
            except InvalidPayload as error:
                told: object = error.path.endswith(field)
            except Exception as error:  # noqa: BLE001 - the point
                told = error
            else:
                told = False
        if told is not True or traffic.statements:
            wrong.append((field, bad, told, len(traffic.statements)))
    assert wrong == []
    assert await store.list_active_workflows() == []


# --- arguments ---

AWARE = "must be an aware datetime, such as datetime.now(UTC)"
WHOLE = "must be a whole number, 0 or more"
BAD_ARGUMENTS: dict[str, tuple[Callable[[StateStore], Awaitable[object]], str]] = {
    "load a word": (lambda store: store.load_workflow_state("wf-1"), "workflow_state_id is not a UUID"),
    "load a number": (lambda store: store.load_workflow_state(7), "workflow_state_id is not a UUID"),  # type: ignore[arg-type]
    "load nothing": (lambda store: store.load_workflow_state(None), "workflow_state_id is not a UUID"),  # type: ignore[arg-type]
    "latest of a word": (lambda store: store.get_latest_checkpoint("wf-1"), "workflow_state_id is not a UUID"),
    "restore a word": (lambda store: store.restore_from_checkpoint("cp"), "checkpoint_id is not a UUID"),
    "clean up a word": (lambda store: store.cleanup_old_checkpoints("wf-1"), "workflow_state_id is not a UUID"),
    "find a NUL": (
        lambda store: store.load_workflow_state_by_workflow_id("a\0"),
        "workflow_id contains a NUL character; remove it",
    ),
    "find a surrogate": (
        lambda store: store.load_workflow_state_by_workflow_id("\ud800"),
        "workflow_id contains a lone surrogate; it is not valid Unicode text",
    ),
    "find a number": (
        lambda store: store.load_workflow_state_by_workflow_id(7),  # type: ignore[arg-type]
        "workflow_id must be a str, not int",
    ),
    "delete naive": (lambda store: store.delete_old_states(NAIVE), f"older_than {AWARE}"),
    "delete a date": (lambda store: store.delete_old_states(date(2026, 1, 1)), f"older_than {AWARE}"),  # type: ignore[arg-type]
    "delete a text": (lambda store: store.delete_old_states("2026-01-01"), f"older_than {AWARE}"),  # type: ignore[arg-type]
    "delete past the end": (
        lambda store: store.delete_old_states(datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))),
        "older_than is outside the years 1 to 9999 in UTC",
    ),
    "keep less than none": (lambda store: store.cleanup_old_checkpoints(uuid4(), keep=-1), f"keep {WHOLE}"),
    "keep a truth": (lambda store: store.cleanup_old_checkpoints(uuid4(), keep=True), f"keep {WHOLE}"),
    "keep a half": (lambda store: store.cleanup_old_checkpoints(uuid4(), keep=0.5), f"keep {WHOLE}"),  # type: ignore[arg-type]
    "keep a text": (lambda store: store.cleanup_old_checkpoints(uuid4(), keep="3"), f"keep {WHOLE}"),  # type: ignore[arg-type]
}


async def test_a_bad_argument_is_refused_by_name(store: StateStore) -> None:
    for name, (call, message) in BAD_ARGUMENTS.items():
        with case(name):
            refused = await refusal_without_sql(store, partial(call, store))
            assert (type(refused), str(refused)) == (InvalidPayload, message)


@pytest.mark.parametrize("keep", [2**63, 2**70])
async def test_a_number_larger_than_any_database_counts_is_the_same_on_both(store: StateStore, keep: int) -> None:
    state = await saved(store)
    await checkpointed(store, state)
    assert await store.cleanup_old_checkpoints(state.id, keep=keep) == 0


async def test_a_name_longer_than_any_stored_one_is_not_found(store: StateStore) -> None:
    for name in ("", "x" * 256, "x" * 1_000_000):
        with pytest.raises(WorkflowNotFound):
            await store.load_workflow_state_by_workflow_id(name)


async def test_a_unit_with_a_namespace_that_is_no_name_is_refused(store: StateStore) -> None:
    async def save(namespace: str) -> None:
        async with store.begin() as uow:
            await UnitOfWork(uow.session, namespace=namespace).workflows.save(a_workflow())

    for name, namespace in {"empty": "", "long": "x" * 256, "NUL": "a\0", "surrogate": "\ud800"}.items():
        with case(name):
            refused = await refusal_without_sql(store, partial(save, namespace))
            assert isinstance(refused, ConfigurationError)


# --- files ---


async def refusal_to_open(path: Path) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as refused:
        await StateStore.open(path)
    return refused.value


def test_a_directory_is_no_database(tmp_path: Path) -> None:
    assert "is a directory" in str(asyncio.run(refusal_to_open(tmp_path)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"garbage" * 1000, b"{}", b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    asyncio.run(refusal_to_open(path))
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_without_its_directory_is_refused_and_nothing_keeps_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failures.append)
    threads = threading.enumerate()
    for _ in range(50):
        asyncio.run(refusal_to_open(tmp_path / "nowhere" / "workflows.db"))
        assert set(threading.enumerate()) <= set(threads)
    assert failures == []
    assert list(tmp_path.iterdir()) == []
