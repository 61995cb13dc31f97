"""Schema versions and upcasters: what old code stored is read by new code, and never by code that cannot.

Three versions of one application: v1 counts in cents, v2 names the currency, v3 has a model and a ledger with objects.
"""

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn
from uuid import uuid4

import pytest
from pydantic import BaseModel

from orchestrator_state import (
    Checkpoint,
    ConfigurationError,
    InvalidPayload,
    NewerSchemaVersion,
    OrchestratorStateError,
    Run,
    SchemaMismatch,
    StateMismatch,
    StateSchema,
    StateStore,
    StepState,
    UnitOfWork,
    UpcasterFailed,
    UpcasterMissing,
    WorkflowState,
)
from tests.support.interleaving import just_after
from tests.support.running import (
    Effect,
    VanishesEverywhere,
    change_row,
    change_step,
    checkpoints_of,
    row_of,
    steps_of,
    until_done,
    vanish,
)

SECRET = "canary-91c4"


class Line(BaseModel):
    cents: int


class Ledger(BaseModel):
    total: int
    currency: str
    lines: list[Line] = []


class Page(BaseModel):
    url: str
    words: int


V1 = StateSchema("ledger", version=1)
V2 = StateSchema("ledger", version=2)
V3 = StateSchema("ledger", version=3, state=Ledger, outputs={"fetch": Page}, result=Ledger)


def with_currency(context: dict[str, Any]) -> dict[str, Any]:
    return context | {"currency": "EUR"}


def with_objects(context: dict[str, Any]) -> dict[str, Any]:
    """`n` becomes `total`, and each line an object."""
    context["total"] = context.pop("n")
    return context | {"lines": [{"cents": cents} for cents in context["lines"]]}


def a_page(outputs: Any) -> dict[str, Any]:
    return {"url": outputs, "words": 0}


def counted(outputs: dict[str, Any]) -> dict[str, Any]:
    return outputs | {"words": len(outputs["url"])}


V2.upcast(1)(with_currency)
V2.upcast_outputs("fetch", 1)(a_page)
V3.upcast(1)(with_currency)
V3.upcast(2)(with_objects)
V3.upcast_outputs("fetch", 1)(a_page)
V3.upcast_outputs("fetch", 2)(counted)


async def handler_1(run: Run) -> None:
    for n in range(2):
        run.context["n"] += 10
        run.append("lines", 10)
        await run.step("fetch", Effect(), f"page {n}")
    await run.step("plain", Effect(), [1])
    vanish()


async def handler_3(run: Run[Ledger]) -> Ledger:
    state = run.state
    for n in range(3):
        state.total += 10
        run.append("lines", Line(cents=10))
        page = await run.step("fetch", Effect(), Page(url=f"page {n}", words=6), returns=Page)
        assert page == Page(url=f"page {n}", words=6)
        assert (state.total, len(state.lines)) == (10 * n + 10, n + 1)
    assert await run.step("plain", Effect(), [2]) == [1]
    return state


EXPECTED = Ledger(total=30, currency="EUR", lines=[Line(cents=10)] * 3)


async def begun_by_v1(url: str, *, stamp: bool = True) -> WorkflowState:
    """A run of three recorded steps whose worker vanished. Without a stamp: as of before there were schemas."""
    async with StateStore.open(url, schemas=[V1] if stamp else []) as store:
        with pytest.raises(asyncio.CancelledError):
            await store.run("ledger", handler_1, workflow_id="w", context={"n": 0, "lines": []})
        return await store.load_workflow_state_by_workflow_id("w")


def without(schema: StateSchema, version: int) -> StateSchema:
    """V3 again, its context's upcaster from `version` left out."""
    copy = StateSchema("ledger", version=3, state=schema.state, outputs=schema.outputs, result=schema.result)
    for at, upcaster in {1: with_currency, 2: with_objects}.items():
        if at != version:
            copy.upcast(at)(upcaster)
    copy.upcast_outputs("fetch", 1)(a_page)
    copy.upcast_outputs("fetch", 2)(counted)
    return copy


# --- the happy chain ---


@pytest.mark.parametrize("stamp", [True, False])
async def test_a_run_that_v1_began_is_ended_by_v3_and_nothing_counts_twice(database_url: str, stamp: bool) -> None:
    await begun_by_v1(database_url, stamp=stamp)
    async with StateStore.open(database_url, schemas=[V3]) as store:
        assert await store.run("ledger", handler_3, workflow_id="w") == EXPECTED
        state = await store.load_workflow_state_by_workflow_id("w")
        assert state.context == EXPECTED.model_dump(mode="json")
        assert list(state.steps) == ["fetch", "fetch#2", "plain", "fetch#3"]
        assert {(await row_of(store, "w")).schema_version} == {3}
        assert {step.schema_version for step in (await steps_of(store, "w")).values()} == {3}
        [newest, *_] = (await checkpoints_of(store, "w"))[::-1]
        assert newest.snapshot["context"] == state.context


@pytest.mark.parametrize("is_recovered", [True, False])
async def test_v3_may_vanish_anywhere_on_the_way(database_url: str, is_recovered: bool) -> None:
    await begun_by_v1(database_url)

    async def go(store: StateStore) -> Any:
        if is_recovered:
            await store.recover({"ledger": handler_3})
        return await store.run("ledger", handler_3, workflow_id="w")

    async with StateStore.open(database_url, schemas=[V3], hook=VanishesEverywhere()) as store:
        assert await until_done(lambda: go(store)) == EXPECTED


async def test_a_worker_that_vanishes_before_the_conversion_is_stored_leaves_all_as_it_was(
    database_url: str,
) -> None:
    await begun_by_v1(database_url)
    async with StateStore.open(database_url, schemas=[V3]) as store:
        before = await row_of(store, "w"), await steps_of(store, "w")

        async def die() -> None:
            driver.cancel()
            await asyncio.sleep(0)

        with just_after(store, "UPDATE step_states", die):
            driver = asyncio.create_task(store.run("ledger", handler_3, workflow_id="w"))
            with pytest.raises(asyncio.CancelledError):
                await driver
        row = await row_of(store, "w")
        assert (row.context, row.initial_context, row.schema_version) == (
            before[0].context,
            before[0].initial_context,
            1,
        )
        assert await steps_of(store, "w") == before[1]
        assert await store.run("ledger", handler_3, workflow_id="w") == EXPECTED


async def test_versions_follow_each_other(database_url: str) -> None:
    await begun_by_v1(database_url)

    async def handler_2(run: Run) -> None:
        run.context["n"] += 10
        run.append("lines", 10)
        assert await run.step("fetch", Effect()) == {"url": "page 0", "words": 0}
        assert run.context == {"n": 10, "lines": [10], "currency": "EUR"}
        vanish()

    async with StateStore.open(database_url, schemas=[V2]) as store:
        with pytest.raises(asyncio.CancelledError):
            await store.run("ledger", handler_2, workflow_id="w")
        assert (await row_of(store, "w")).schema_version == 2
    async with StateStore.open(database_url, schemas=[V3]) as store:
        assert await store.run("ledger", handler_3, workflow_id="w") == EXPECTED


async def test_what_a_step_appended_goes_on_being_appended(database_url: str) -> None:
    await begun_by_v1(database_url)
    async with StateStore.open(database_url, schemas=[V3]) as store:
        await store.run("ledger", handler_3, workflow_id="w")
        patch = json.loads((await steps_of(store, "w"))["fetch#2"].context_patch)
        assert patch == {"set": {"total": 20}, "append": {"lines": [{"cents": 10}]}, "drop": []}


async def test_every_load_shows_the_version_of_the_code_and_stores_nothing(database_url: str) -> None:
    old = await begun_by_v1(database_url)
    async with StateStore.open(database_url, schemas=[V3]) as store:
        before = await row_of(store, "w"), await steps_of(store, "w")
        checkpoint = await store.get_latest_checkpoint(old.id)
        assert checkpoint is not None
        states = [
            await store.load_workflow_state(old.id),
            await store.load_workflow_state_by_workflow_id("w"),
            *await store.list_active_workflows(),
            await store.restore_from_checkpoint(checkpoint.id),
            WorkflowState.from_snapshot(checkpoint.snapshot),
        ]
        for state in states:
            assert state.context == {"total": 20, "currency": "EUR", "lines": [{"cents": 10}, {"cents": 10}]}
            assert state.steps["fetch"].outputs == {"url": "page 0", "words": 6}
            assert state.steps["fetch#2"].outputs == {"url": "page 1", "words": 6}
            assert state.steps["plain"].outputs == [1]
        async with store.begin() as uow:
            assert (await uow.steps.get(old.id, "fetch")).outputs == {"url": "page 0", "words": 6}
            joined = UnitOfWork(uow.session, schemas=[V3])
            assert (await joined.workflows.get(old.id)).context == states[0].context
        assert (await row_of(store, "w"), await steps_of(store, "w")) == before


async def test_a_save_of_something_else_leaves_the_old_context_to_the_resume(database_url: str) -> None:
    old = await begun_by_v1(database_url)
    async with StateStore.open(database_url, schemas=[V3]) as store:
        state = await store.load_workflow_state(old.id)
        state.user_id = "u-1"
        state.steps["plain"].outputs = [1]
        await store.save_workflow_state(state)
        row = await row_of(store, "w")
        assert (row.user_id, row.schema_version, json.loads(row.initial_context)) == ("u-1", 1, {"n": 0, "lines": []})
        assert await store.run("ledger", handler_3, workflow_id="w") == EXPECTED


async def test_a_save_of_what_changed_is_of_todays_version_and_can_be_changed_back(database_url: str) -> None:
    async with StateStore.open(database_url, schemas=[V1]) as store:
        state = WorkflowState(workflow_id="w", workflow_name="ledger", context={"n": 1, "lines": [1]})
        state.steps["fetch"] = StepState(step_id="fetch")
        state.steps["fetch"].mark_completed("page")
        await store.save_workflow_state(state)
    async with StateStore.open(database_url, schemas=[V3]) as store:
        state = await store.load_workflow_state(state.id)
        first = dict(state.context)
        state.context["total"] = 5
        await store.save_workflow_state(state)
        assert (await row_of(store, "w")).schema_version == 3
        assert (await steps_of(store, "w"))["fetch"].schema_version == 1
        state.context = first
        state.steps["fetch"].outputs["words"] = 9
        await store.save_workflow_state(state)
        loaded = await store.load_workflow_state(state.id)
        assert loaded.context == first
        assert loaded.steps["fetch"].outputs == {"url": "page", "words": 9}
        assert (await steps_of(store, "w"))["fetch"].schema_version == 3


async def test_a_checkpoint_by_hand_is_of_the_version_of_its_maker(database_url: str) -> None:
    old = await begun_by_v1(database_url)
    async with StateStore.open(database_url) as store:  # knows of no versions
        raw = await store.load_workflow_state(old.id)
        await store.create_checkpoint(Checkpoint(workflow_state_id=old.id, step_id="raw", snapshot=raw.to_snapshot()))
    async with StateStore.open(database_url, schemas=[V3]) as store:
        state = await store.load_workflow_state(old.id)
        await store.create_checkpoint(Checkpoint(workflow_state_id=old.id, step_id="new", snapshot=state.to_snapshot()))
        await store.create_checkpoint(Checkpoint(workflow_state_id=old.id, step_id="any", snapshot=["no state"]))
        *_, by_raw, by_new, other = await checkpoints_of(store, "w")
        assert by_raw.snapshot["context"] == by_new.snapshot["context"] == state.context
        assert other.snapshot == ["no state"]


@pytest.mark.parametrize("is_resumed_before", [True, False])
@pytest.mark.parametrize("is_forked", [True, False])
async def test_a_fork_or_rewind_to_an_old_checkpoint_is_resumed_by_new_code(
    database_url: str, is_forked: bool, is_resumed_before: bool
) -> None:
    await begun_by_v1(database_url)
    async with StateStore.open(database_url, schemas=[V3]) as store:
        checkpoint = next(each for each in await checkpoints_of(store, "w") if each.step_id == "fetch#2")
        if is_resumed_before:
            await store.run("ledger", handler_3, workflow_id="w")
        if is_forked:
            state = await store.fork(checkpoint.id, workflow_id="w2")
        else:
            state = await store.rewind(checkpoint.id)
        assert state.context == {"total": 20, "currency": "EUR", "lines": [{"cents": 10}, {"cents": 10}]}
        assert list(state.steps) == ["fetch", "fetch#2"]

        async def handler(run: Run[Ledger]) -> Ledger:
            await run.step("plain", Effect(), [1])  # which is forgotten
            return await handler_3_without_plain(run)

        assert await store.run("ledger", handler, workflow_id=state.workflow_id) == EXPECTED


async def test_a_save_of_an_old_checkpoint_rolls_an_old_run_back(database_url: str) -> None:
    await begun_by_v1(database_url)
    async with StateStore.open(database_url, schemas=[V3]) as store:
        checkpoint = next(each for each in await checkpoints_of(store, "w") if each.step_id == "fetch")
        restored = await store.restore_from_checkpoint(checkpoint.id)
        assert restored.context == {"total": 10, "currency": "EUR", "lines": [{"cents": 10}]}
        await store.save_workflow_state(restored)
        assert await store.load_workflow_state(restored.id) == restored
        assert await store.run("ledger", handler_3_without_plain, workflow_id="w") == EXPECTED


async def handler_3_without_plain(run: Run[Ledger]) -> Ledger:
    for n in range(3):
        run.state.total += 10
        run.append("lines", Line(cents=10))
        assert await run.step("fetch", Effect(), Page(url=f"page {n}", words=6)) == Page(url=f"page {n}", words=6)
    return run.state


async def test_a_damaged_old_step_is_taken_from_its_checkpoint_and_upcast(database_url: str) -> None:
    old = await begun_by_v1(database_url)
    async with StateStore.open(database_url, schemas=[V3]) as store:
        await change_step(store, old.id, "fetch", outputs="{")
        assert await store.run("ledger", handler_3, workflow_id="w") == EXPECTED


async def test_a_result_is_upcast_too(database_url: str) -> None:
    async def ends(run: Run) -> int:
        return 5

    async with StateStore.open(database_url, schemas=[V1]) as store:
        await store.run("ledger", ends, workflow_id="w", context={"n": 0, "lines": []})
    schema = StateSchema("ledger", version=2, result=Ledger)

    @schema.upcast_result(1)
    def _(result: int) -> dict[str, Any]:
        return {"total": result, "currency": "EUR"}

    async with StateStore.open(database_url, schemas=[schema]) as store:
        assert await store.run("ledger", handler_3, workflow_id="w") == Ledger(total=5, currency="EUR")


# --- what cannot be read ---


def raising(context: Any) -> NoReturn:
    raise ValueError(SECRET)


def v3_with(context: Callable[[Any], Any] = with_objects, outputs: Callable[[Any], Any] = counted) -> StateSchema:
    schema = StateSchema("ledger", version=3, state=Ledger, outputs={"fetch": Page}, result=Ledger)
    schema.upcast(1)(with_currency)
    schema.upcast(2)(context)
    schema.upcast_outputs("fetch", 1)(a_page)
    schema.upcast_outputs("fetch", 2)(outputs)
    return schema


UNREADABLE: list[tuple[StateSchema, type[SchemaMismatch], dict[str, Any]]] = [
    (without(V3, 1), UpcasterMissing, {"path": "context", "found": 1, "expected": 3, "missing": 1}),
    (without(V3, 2), UpcasterMissing, {"path": "context", "found": 1, "expected": 3, "missing": 2}),
    (v3_with(context=raising), UpcasterFailed, {"path": "context", "found": 1, "expected": 3, "failed": 2}),
    (v3_with(context=lambda _: [SECRET]), UpcasterFailed, {"path": "context", "failed": 2}),
    (v3_with(context=lambda _: {"total": {SECRET}}), UpcasterFailed, {"path": "context", "failed": 2}),
    (v3_with(outputs=raising), UpcasterFailed, {"path": "steps['fetch'].outputs", "found": 1, "failed": 2}),
    (
        v3_with(context=lambda context: with_objects(context) | {"total": SECRET}),
        StateMismatch,
        {"path": "context.total", "paths": ("context.total",), "found": 1, "expected": 3},
    ),
    (
        v3_with(outputs=lambda _: {"url": "u", "words": SECRET}),
        StateMismatch,
        {"path": "steps['fetch'].outputs.words", "found": 1, "expected": 3},
    ),
]
NAMES = ["missing 1", "missing 2", "raises", "no dict", "no json", "outputs raise", "no total", "no words"]


@pytest.mark.parametrize(("schema", "error", "about"), UNREADABLE, ids=NAMES)
async def test_what_cannot_be_upcast_is_an_error_of_its_own_and_nothing_is_written(
    database_url: str,
    schema: StateSchema,
    error: type[SchemaMismatch],
    about: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    old = await begun_by_v1(database_url)
    async with StateStore.open(database_url, schemas=[schema]) as store:
        before = await row_of(store, "w"), await steps_of(store, "w")
        for load in (
            lambda: store.load_workflow_state(old.id),
            store.list_active_workflows,
            lambda: store.get_latest_checkpoint(old.id),
            lambda: store.run("ledger", handler_3, workflow_id="w"),
        ):
            with pytest.raises(error) as caught:
                await load()
            found = {name: getattr(caught.value, name) for name in about}
            assert found == about
            assert (caught.value.workflow_name, caught.value.workflow_state_id) == ("ledger", old.id)
            assert "'ledger'" in str(caught.value)
            assert SECRET not in str(caught.value) + caplog.text
        assert f"run {old.id} is left to code that can read it" in caplog.text
        row = await row_of(store, "w")
        assert (row.status, row.lease_expires_at, row.attempts, row.error) == ("running", None, 0, None)
        assert (row.context, row.initial_context, row.schema_version) == (
            before[0].context,
            before[0].initial_context,
            1,
        )
        assert await steps_of(store, "w") == before[1]
    async with StateStore.open(database_url, schemas=[V3]) as store:
        assert await store.run("ledger", handler_3, workflow_id="w") == EXPECTED


@pytest.mark.parametrize("schemas", [[], [V1]], ids=["no schema", "v1"])
async def test_older_code_leaves_a_newer_run_alone(
    database_url: str, schemas: list[StateSchema], caplog: pytest.LogCaptureFixture
) -> None:
    async with StateStore.open(database_url, schemas=[V3]) as store:
        started = await store.start("ledger", workflow_id="w", context=Ledger(total=0, currency="EUR"))
        before = await row_of(store, "w")
    async with StateStore.open(database_url, schemas=schemas) as store:
        report = await store.recover({"ledger": handler_1})
        assert report.runs == []
        assert [run.workflow_state_id for run in report.unknown] == [started.id]
        assert f"run {started.id} is left to newer code" in caplog.text
        with pytest.raises(NewerSchemaVersion) as caught:
            await store.run("ledger", handler_1, workflow_id="w")
        assert (caught.value.found, caught.value.expected) == (3, 1)
        assert (caught.value.workflow_name, caught.value.workflow_state_id) == ("ledger", started.id)
        assert await row_of(store, "w") == before
        if schemas:
            with pytest.raises(NewerSchemaVersion):
                await store.load_workflow_state(started.id)
    async with StateStore.open(database_url, schemas=[V3]) as store:
        report = await store.recover({"ledger": handler_3_without_plain})
        assert [run.outcome for run in report.runs] == ["completed"]


async def test_a_newer_step_in_an_older_workflow_is_refused_as_well(database_url: str) -> None:
    old = await begun_by_v1(database_url)
    async with StateStore.open(database_url, schemas=[V3]) as store:
        await change_step(store, old.id, "plain", schema_version=4)
        for load in (
            lambda: store.load_workflow_state(old.id),
            lambda: store.run("ledger", handler_3, workflow_id="w"),
        ):
            with pytest.raises(NewerSchemaVersion) as caught:
                await load()
            assert caught.value.path == "steps['plain'].outputs"


async def test_recover_reports_a_run_that_cannot_be_upcast_and_tries_it_again_later(database_url: str) -> None:
    old = await begun_by_v1(database_url)
    async with StateStore.open(database_url, schemas=[without(V3, 2)]) as store:
        report = await store.recover({"ledger": handler_3})
        assert [(run.outcome, type(run.error)) for run in report.runs] == [("interrupted", UpcasterMissing)]
        row = await row_of(store, "w")
        assert row.status == "running"
        assert row.wake_at - row.updated_at > timedelta(seconds=1)
        assert (await store.recover({"ledger": handler_3})).runs == []
    async with StateStore.open(database_url, schemas=[V3]) as store:
        await change_row(store, old.id, wake_at=None)
        assert [run.outcome for run in (await store.recover({"ledger": handler_3})).runs] == ["completed"]


async def test_a_child_that_cannot_be_read_fails_neither_itself_nor_its_parent(database_url: str) -> None:
    async def parent(run: Run) -> Any:
        return await run.child("ledger", handler_1, context={"n": 0, "lines": []})

    async def parent_3(run: Run) -> Any:
        return (await run.child("ledger", handler_3)).total

    async with StateStore.open(database_url, schemas=[V1]) as store:
        with pytest.raises(asyncio.CancelledError):
            await store.run("parent", parent, workflow_id="w")
    async with StateStore.open(database_url, schemas=[without(V3, 1)]) as store:
        with pytest.raises(UpcasterMissing):
            await store.run("parent", parent_3, workflow_id="w")
        assert (await row_of(store, "w")).status == "running"
    async with StateStore.open(database_url, schemas=[V3]) as store:
        assert await store.run("parent", parent_3, workflow_id="w") == 30


# --- a schema itself ---


@pytest.mark.parametrize("version", [0, -1, True, 1.0, "1", 2**31])
def test_a_version_is_a_whole_number_from_1(version: Any) -> None:
    with pytest.raises(ConfigurationError):
        StateSchema("ledger", version=version)


def test_an_upcaster_is_registered_once_for_a_version_of_the_past() -> None:
    schema = StateSchema("ledger", version=2)
    schema.upcast(1)(with_currency)

    async def later(context: Any) -> Any:
        return context

    for register in (
        lambda: schema.upcast(1)(with_currency),
        lambda: schema.upcast(2)(with_currency),
        lambda: schema.upcast_outputs("fetch", 0)(a_page),
        lambda: schema.upcast_outputs("fetch", 1)(later),
    ):
        with pytest.raises(ConfigurationError):
            register()


def test_a_store_takes_one_schema_for_a_name() -> None:
    with pytest.raises(ConfigurationError):
        StateStore.open(":memory:", schemas=[V1, V3])
    with pytest.raises(ConfigurationError):
        StateStore.open(":memory:", schemas=["ledger"])  # type: ignore[list-item]


@pytest.mark.parametrize("kind", [UpcasterMissing, UpcasterFailed, NewerSchemaVersion, StateMismatch])
def test_the_errors_are_of_one_family_and_are_no_invalid_payloads(kind: type[SchemaMismatch]) -> None:
    error = kind("message", path="context").concerning(workflow_state_id=uuid4())
    assert isinstance(error, SchemaMismatch)
    assert not isinstance(error, InvalidPayload)
    assert isinstance(error, OrchestratorStateError)
    assert error.about.keys() == {"path", "workflow_state_id"}


async def test_what_a_wider_limit_has_let_in_is_upcast_too(database_url: str) -> None:
    new = StateSchema("n", version=2)
    new.upcast(1)(lambda context: context)
    large, wide = "x" * 17 * 1024 * 1024, 40 * 1024 * 1024
    state = WorkflowState(workflow_id="w", workflow_name="n", context={"large": large})
    async with StateStore.open(database_url, max_payload_bytes=wide) as store:
        await store.save_workflow_state(state)
    async with StateStore.open(database_url, max_payload_bytes=wide, schemas=[new]) as store:
        assert (await store.load_workflow_state(state.id)).context == {"large": large}
