"""A cell that holds no value of its column's type harms its own run alone, whoever meets it."""

import contextlib
import logging
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID

import pytest

from orchestrator_state import Run, StateStore, Worker
from orchestrator_state.errors import CorruptPayload, OrchestratorStateError, PayloadError
from tests.raw_sql import execute
from tests.running import becomes, row_of

TIMES = ("started_at", "updated_at", "completed_at", "digested_at", "wake_at", "lease_expires_at")
NO_UTF_8 = "CAST(x'ff00' AS TEXT)"
NO_TIMES = {
    "sqlite": ["'garbage'", "17", "x'ff00'", "''", NO_UTF_8],
    "postgres": ["'294276-01-01'", "'4713-01-01 BC'", "'infinity'", "'-infinity'"],
}
OTHER_CELLS = ("parent_id", "forked_from_id", "lease_owner", "version", "context_position", "schema_version")
TEXTS = ("workflow_id", "workflow_name", "user_id", "lease_process", "request")
NOT_OF_THE_TYPE = ("'garbage'", "x'ff00'", NO_UTF_8)


async def done(run: Run) -> str:
    return "done"


async def three_runs(store: StateStore) -> list[UUID]:
    """The one in the middle is to be damaged."""
    return [(await store.start("n", workflow_id=name, context={})).id for name in ("before", "damaged", "after")]


def damage(url: str, column: str, value: str, table: str = "workflow_states", where: str = "id") -> None:
    execute(url, f"UPDATE {table} SET {column} = {value} WHERE {where}")


async def assert_neighbours_are_served(store: StateStore) -> None:
    """All that goes through the runs of a namespace gets to its end."""
    listed = {state.workflow_id for state in await store.list_active_workflows()}
    assert {"before", "after"} <= listed
    await store.verify(load=True)
    await store.rekey()
    report = await store.recover({"n": done})
    assert {"before", "after"} <= {run.workflow_id for run in report.completed}
    await store.verify(load=True)
    await store.delete_old_states(datetime.now(UTC) + timedelta(days=1))
    left = await store.list_active_workflows(on_damaged=lambda _: None)
    assert {"before", "after"}.isdisjoint(state.workflow_id for state in left)


@pytest.mark.parametrize("column", TIMES)
async def test_a_moment_that_is_none_stops_nobody_else(
    store: StateStore, database_url: str, backend: str, column: str
) -> None:
    for value in NO_TIMES[backend]:
        (_, damaged, _) = await three_runs(store)
        damage(database_url, column, value, where=f"id = '{damaged}'")
        await assert_neighbours_are_served(store)
        execute(database_url, "DELETE FROM workflow_states")


@pytest.mark.parametrize("value", NOT_OF_THE_TYPE)
@pytest.mark.parametrize("column", OTHER_CELLS + TEXTS)
async def test_a_cell_of_another_type_stops_nobody_else(sqlite_url: str, column: str, value: str) -> None:
    async with StateStore.open(sqlite_url) as store:
        (_, damaged, _) = await three_runs(store)
        damage(sqlite_url, column, value, where=f"id = '{damaged}'")
        await assert_neighbours_are_served(store)


@pytest.mark.parametrize("value", [*NOT_OF_THE_TYPE, "17", "upper(id)", "replace(id, '-', '')"])
async def test_a_run_whose_id_is_damaged_stops_nobody_and_is_reported(
    sqlite_url: str, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with StateStore.open(sqlite_url) as store:
        (_, damaged, _) = await three_runs(store)
        damage(sqlite_url, "id", value, where=f"id = '{damaged}'")
        with caplog.at_level(logging.WARNING, "orchestrator_state"):
            await assert_neighbours_are_served(store)
        report = await store.recover({"n": done})
        assert [run.workflow_id for run in report.unknown] == ["damaged"]
        assert not (await store.verify()).is_sound


@pytest.mark.parametrize("value", NOT_OF_THE_TYPE)
@pytest.mark.parametrize("column", OTHER_CELLS + TEXTS)
async def test_whoever_asks_for_a_damaged_run_is_told_in_our_words(sqlite_url: str, column: str, value: str) -> None:
    async with StateStore.open(sqlite_url) as store:
        (_, damaged, _) = await three_runs(store)
        damage(sqlite_url, column, value, where=f"id = '{damaged}'")
        with contextlib.suppress(OrchestratorStateError):
            await store.run("n", done, workflow_id="damaged", context={})
        for ask in (store.pause, store.resume, store.cancel, partial(store.signal, name="go")):
            with contextlib.suppress(OrchestratorStateError):
                await ask(damaged)


@pytest.mark.parametrize("column", ["version", "lease_token", "attempts", "checkpoint_seq"])
@pytest.mark.parametrize("below_the_largest", [0, 1, 2])
async def test_a_count_that_cannot_grow_stops_nobody_else(
    store: StateStore, database_url: str, backend: str, column: str, below_the_largest: int
) -> None:
    (_, damaged, _) = await three_runs(store)
    largest = (2**63 if backend == "sqlite" else 2**31) - 1
    damage(database_url, column, str(largest - below_the_largest), where=f"id = '{damaged}'")
    assert not (await store.verify()).is_sound
    report = await store.recover({"n": done})
    assert {run.workflow_id for run in report.completed} == {"before", "after"}
    (found,) = report.unknown or report.failed
    assert isinstance(found.error, CorruptPayload)
    assert column in str(found.error)


async def test_a_damaged_run_is_set_aside_and_goes_on_once_it_is_mended(
    store: StateStore, database_url: str, backend: str
) -> None:
    (_, damaged, _) = await three_runs(store)
    sound = (await row_of(store, "damaged")).started_at
    damage(database_url, "started_at", NO_TIMES[backend][0], where=f"id = '{damaged}'")

    report = await store.recover({"n": done})

    (failed,) = report.failed
    assert failed.workflow_state_id == damaged
    assert isinstance(failed.error, CorruptPayload)
    assert failed.error.about["path"] == "started_at"
    assert (await store.recover({"n": done})).runs == []

    damage(database_url, "started_at", f"'{sound.isoformat()}'", where=f"id = '{damaged}'")
    await store.resume(damaged)
    assert [run.workflow_state_id for run in (await store.recover({"n": done})).completed] == [damaged]


async def test_a_worker_goes_on_beside_damaged_runs(store: StateStore, database_url: str, backend: str) -> None:
    (_, damaged, _) = await three_runs(store)
    damage(database_url, "started_at", NO_TIMES[backend][0], where=f"id = '{damaged}'")
    if backend == "sqlite":
        unaddressable = (await store.start("n", workflow_id="of no id", context={})).id
        damage(database_url, "id", "'garbage'", where=f"id = '{unaddressable}'")
    async with Worker(store, {"n": done}):
        late = (await store.start("n", workflow_id="late", context={})).id
        for name in ("before", "after", "late"):
            await becomes(lambda row: row.status == "completed", store, name)
    assert (await store.load_workflow_state(late)).status == "completed"


@pytest.mark.parametrize("column", ["started_at", "completed_at"])
async def test_a_finished_step_whose_times_are_damaged_does_not_run_again(
    store: StateStore, database_url: str, backend: str, column: str
) -> None:
    called: list[str] = []

    def effect() -> str:
        called.append("a")
        return "a"

    async def handler(run: Run) -> object:
        first = await run.step("a", effect)
        await run.wait_for("go")
        return first

    run_id = (await store.start("n", workflow_id="w", context={})).id
    neighbour = (await store.start("n", workflow_id="neighbour", context={})).id
    assert len((await store.recover({"n": handler})).suspended) == 2
    damage(database_url, column, NO_TIMES[backend][0], "step_states", f"workflow_state_id = '{run_id}'")
    for each in (run_id, neighbour):
        await store.signal(each, "go")

    report = await store.recover({"n": handler})

    assert {run.workflow_state_id for run in report.completed} == {run_id, neighbour}
    assert [run.workflow_state_id for run in report.fell_back] == [run_id]
    assert called == ["a", "a"]
    assert (await store.load_workflow_state(run_id)).status == "completed"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("position", "'garbage'"),
        ("retry_count", "'garbage'"),
        ("step_id", "x'ff00'"),
        ("status", "x'ff00'"),
        ("outputs", "x'ff00'"),
        ("step_id", NO_UTF_8),
        ("status", NO_UTF_8),
        ("started_at", NO_UTF_8),
        ("outputs_digest", "x'ff00'"),
        ("context_patch", "x'ff00'"),
    ],
)
async def test_a_step_that_is_damaged_starves_no_run_of_its_page(sqlite_url: str, column: str, value: str) -> None:
    async def handler(run: Run) -> object:
        first = await run.step("a", lambda: "a")
        await run.wait_for("go")
        return first

    async with StateStore.open(sqlite_url) as store:
        ids = await three_runs(store)
        await store.recover({"n": handler})
        execute(
            sqlite_url,
            "PRAGMA ignore_check_constraints = ON",
            f"UPDATE step_states SET {column} = {value} WHERE workflow_state_id = '{ids[1]}' AND step_id = 'a'",
        )
        assert {"before", "after"} <= {state.workflow_id for state in await store.list_active_workflows()}
        for each in ids:
            await store.signal(each, "go")
        report = await store.recover({"n": handler})
        assert {"before", "after"} <= {run.workflow_id for run in report.completed}


@pytest.mark.parametrize("column", TIMES)
async def test_verify_names_a_moment_that_is_none(
    store: StateStore, database_url: str, backend: str, column: str
) -> None:
    (_, damaged, _) = await three_runs(store)
    damage(database_url, column, NO_TIMES[backend][0], where=f"id = '{damaged}'")
    report = await store.verify()
    assert not report.is_sound
    assert [(found.workflow_state_id, found.column) for found in report.damage] == [(str(damaged), column)]


async def test_a_list_tells_of_each_workflow_that_it_leaves_out(store: StateStore, database_url: str) -> None:
    (_, damaged, _) = await three_runs(store)
    damage(database_url, "context", "'{'", where=f"id = '{damaged}'")
    errors: list[PayloadError] = []

    listed = await store.list_active_workflows(on_damaged=errors.append)

    assert {state.workflow_id for state in listed} == {"before", "after"}
    assert [error.about["workflow_state_id"] for error in errors] == [damaged]


async def test_a_list_of_nothing_but_damage_is_an_error_and_not_an_empty_one(
    store: StateStore, database_url: str
) -> None:
    await three_runs(store)
    execute(database_url, "UPDATE workflow_states SET context = '{'")
    with pytest.raises(CorruptPayload):
        await store.list_active_workflows()
