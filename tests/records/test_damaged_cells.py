"""A cell that holds no value of its column's type harms its own run alone, whoever meets it."""

import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID

import pytest
from sqlalchemy.exc import OperationalError

from orchestrator_state import Checkpoint, Run, StateStore, Worker, WorkflowState
from orchestrator_state.errors import CorruptPayload, InvalidTransition, OrchestratorStateError, PayloadError
from tests.support.cases import case
from tests.support.engines import opened_engine
from tests.support.raw_sql import execute, fetch
from tests.support.running import becomes, row_of

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


async def refusal(ask: Callable[[], Awaitable[object]]) -> PayloadError | None:
    try:
        await ask()
    except PayloadError as error:
        return error
    return None


async def waits(run: Run) -> object:
    await run.step("a", lambda: "a")
    return await run.wait_for("go")


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


async def assert_stop_nobody_else(store: StateStore, url: str, changes: Iterable[tuple[str, str]]) -> None:
    """Each column that is set to a value in a run of its own, all of them between two runs that are sound."""
    damaged = {f"{column} = {value}": (column, value) for column, value in changes}
    ids = {name: (await store.start("n", workflow_id=name, context={})).id for name in ("before", *damaged, "after")}
    updates = [
        f"UPDATE workflow_states SET {column} = {value} WHERE id = '{ids[name]}'"
        for name, (column, value) in damaged.items()
    ]
    execute(url, *updates)
    await assert_neighbours_are_served(store)


def forget_all(url: str) -> None:
    tables = ("step_states", "checkpoints", "signals", "requests", "workflow_states")
    execute(url, *(f"DELETE FROM {table}" for table in tables))


async def test_a_moment_that_is_none_stops_nobody_else(store: StateStore, database_url: str, backend: str) -> None:
    await assert_stop_nobody_else(store, database_url, itertools.product(TIMES, NO_TIMES[backend]))


async def test_a_cell_of_another_type_stops_nobody_else(sqlite_url: str) -> None:
    async with StateStore.open(sqlite_url) as store:
        await assert_stop_nobody_else(store, sqlite_url, itertools.product(OTHER_CELLS + TEXTS, NOT_OF_THE_TYPE))


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


async def test_whoever_asks_for_a_damaged_run_is_told_in_our_words(sqlite_url: str) -> None:
    async with StateStore.open(sqlite_url) as store:
        for column, value in itertools.product(OTHER_CELLS + TEXTS, NOT_OF_THE_TYPE):
            with case(f"{column} = {value}"):
                (_, damaged, _) = await three_runs(store)
                damage(sqlite_url, column, value, where=f"id = '{damaged}'")
                with contextlib.suppress(OrchestratorStateError):
                    await store.run("n", done, workflow_id="damaged", context={})
                for ask in (store.pause, store.resume, store.cancel, partial(store.signal, name="go")):
                    with contextlib.suppress(OrchestratorStateError):
                        await ask(damaged)
                execute(sqlite_url, "DELETE FROM workflow_states")


async def test_a_count_that_cannot_grow_stops_nobody_else(store: StateStore, database_url: str, backend: str) -> None:
    largest = (2**63 if backend == "sqlite" else 2**31) - 1
    numbers = [largest - below for below in (0, 1, 2)]
    for column, number in itertools.product(["version", "lease_token", "attempts", "checkpoint_seq"], numbers):
        with case(f"{column} = {number}"):
            await assert_stops_nobody_else(store, database_url, column, number)
            forget_all(database_url)


async def assert_stops_nobody_else(store: StateStore, database_url: str, column: str, number: int) -> None:
    (_, damaged, _) = await three_runs(store)
    assert (await store.verify()).is_sound
    damage(database_url, column, str(number), where=f"id = '{damaged}'")
    assert not (await store.verify()).is_sound
    report = await store.recover({"n": done})
    assert {run.workflow_id for run in report.completed} == {"before", "after"}
    (found,) = report.unknown or report.failed
    assert isinstance(found.error, CorruptPayload)
    assert column in str(found.error)


@pytest.mark.parametrize("table", ["workflow_states", "step_states"])
async def test_whoever_loads_a_damaged_workflow_is_told_of_the_very_cell(
    store: StateStore, database_url: str, backend: str, table: str
) -> None:
    (_, damaged, _) = await three_runs(store)
    await store.recover({"n": waits})
    where = f"{'id' if table == 'workflow_states' else 'workflow_state_id'} = '{damaged}'"
    damage(database_url, "started_at", NO_TIMES[backend][0], table, where)
    with pytest.raises(CorruptPayload) as caught:
        await store.load_workflow_state(damaged)
    assert caught.value.path == "started_at"
    assert caught.value.about["workflow_state_id"] == damaged
    assert caught.value.about["workflow_id"] == "damaged"


async def test_whoever_asks_for_a_result_that_is_no_json_is_told_whose_it_is(
    store: StateStore, database_url: str
) -> None:
    await store.run("n", done, workflow_id="w", context={})
    execute(database_url, "UPDATE workflow_states SET result = '[[', result_digest = NULL")
    with pytest.raises(CorruptPayload) as caught:
        await store.run("n", done, workflow_id="w", context={})
    assert caught.value.path == "result"
    assert caught.value.about["workflow_state_id"] == (await row_of(store, "w")).id


@pytest.mark.parametrize("value", ["'unknown'", "''", NO_UTF_8])
async def test_a_run_of_no_known_status_is_not_taken_up(sqlite_url: str, value: str) -> None:
    async with StateStore.open(sqlite_url) as store:
        (_, damaged, _) = await three_runs(store)
        execute(
            sqlite_url,
            "PRAGMA ignore_check_constraints = ON",
            f"UPDATE workflow_states SET status = {value} WHERE id = '{damaged}'",
        )
        with pytest.raises(CorruptPayload) as caught:
            await store.run("n", done, workflow_id="damaged", context={})
        assert caught.value.path == "status"


async def test_the_id_of_a_damaged_run_is_told_as_an_id_in_whatever_form_it_was_given(postgres_url: str) -> None:
    async with StateStore.open(postgres_url) as store:
        (_, damaged, _) = await three_runs(store)
        damage(postgres_url, "version", str(2**31 - 1), where=f"id = '{damaged}'")
        for ask in (store.pause, store.cancel):
            with pytest.raises(CorruptPayload) as caught:
                await ask(str(damaged))
            assert caught.value.about["workflow_state_id"] == damaged


async def test_a_step_whose_id_is_longer_than_any_fails_its_run_alone(sqlite_url: str) -> None:
    async with StateStore.open(sqlite_url) as store:
        ids = await three_runs(store)
        await store.recover({"n": waits})
        execute(
            sqlite_url,
            "PRAGMA ignore_check_constraints = ON",
            f"UPDATE step_states SET step_id = '{'x' * 256}' WHERE workflow_state_id = '{ids[1]}' AND kind IS NULL",
        )
        for each in ids:
            await store.signal(each, "go")
        report = await store.recover({"n": waits})
        assert {run.workflow_id for run in report.completed} == {"before", "after"}
        (failed,) = report.failed
        assert isinstance(failed.error, CorruptPayload)
        assert failed.error.about["path"] == "step_id"


@pytest.mark.parametrize("column", ["version", "lease_token", "checkpoint_seq", "signal_seq"])
async def test_whoever_writes_to_a_run_of_which_a_count_cannot_grow_is_told_which_run_it_is(
    store: StateStore, database_url: str, backend: str, column: str
) -> None:
    (_, damaged, _) = await three_runs(store)
    await store.recover({"n": waits})
    latest = await store.get_latest_checkpoint(damaged)
    assert latest is not None
    largest = (2**63 if backend == "sqlite" else 2**31) - 1
    damage(database_url, column, str(largest), where=f"id = '{damaged}'")

    refused: list[PayloadError] = []

    async def save() -> None:
        state = await store.load_workflow_state(damaged)
        state.context["more"] = 1
        await store.save_workflow_state(state)

    for ask in (
        save,
        partial(store.create_checkpoint, Checkpoint(workflow_state_id=damaged, step_id="c", snapshot={})),
        partial(store.signal, damaged, "go"),
        partial(store.pause, damaged),
        partial(store.resume, damaged),
        partial(store.rewind, latest.id),
        partial(store.cancel, damaged),
    ):
        with contextlib.suppress(InvalidTransition):
            refused += [error] if (error := await refusal(ask)) is not None else []
    assert all({damaged, latest.id} & set(error.about.values()) for error in refused)
    assert "refused a value" not in " ".join(map(str, refused))
    if column.endswith("_seq"):
        await store.create_checkpoint(Checkpoint(workflow_state_id=damaged, step_id="last", snapshot={}))
        latest = await store.get_latest_checkpoint(damaged)
        assert latest is not None
        assert latest.step_id == "last"


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


async def test_verify_names_a_moment_that_is_none(store: StateStore, database_url: str, backend: str) -> None:
    for column in TIMES:
        with case(column):
            (_, damaged, _) = await three_runs(store)
            damage(database_url, column, NO_TIMES[backend][0], where=f"id = '{damaged}'")
            report = await store.verify()
            assert not report.is_sound
            assert [(found.workflow_state_id, found.column) for found in report.damage] == [(str(damaged), column)]
            forget_all(database_url)


async def test_verify_names_a_request_of_which_a_cell_is_damaged(
    store: StateStore, database_url: str, backend: str
) -> None:
    await three_runs(store)
    (request, *others) = [str(found) for (found,) in fetch(database_url, "SELECT id FROM requests")]
    assert (await store.verify()).is_sound
    for column, value in (("made_at", NO_TIMES[backend][0]), ("namespace", "''")):
        damage(database_url, column, value, "requests", f"id = '{request}'")

    async with StateStore.open(database_url, namespace="theirs") as theirs:
        for each in (store, theirs):
            report = await each.verify()
            assert not report.is_sound
            assert report.damaged_cells == 2
            assert {(found.table, found.request_id, found.column) for found in report.damage} == {
                ("requests", request, "made_at"),
                ("requests", request, "namespace"),
            }
    assert others


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


async def test_a_moment_that_is_none_stops_nobody_on_an_engine_of_the_applications(
    database_url: str, backend: str
) -> None:
    async with opened_engine(database_url) as engine, StateStore.open(engine=engine) as store:
        await assert_stop_nobody_else(store, database_url, itertools.product(TIMES, NO_TIMES[backend]))


async def test_what_the_application_reads_on_its_own_engine_is_as_it_was(sqlite_url: str) -> None:
    async with opened_engine(sqlite_url) as engine, StateStore.open(engine=engine) as store:
        await three_runs(store)
        damage(sqlite_url, "user_id", NO_UTF_8, where="workflow_id = 'damaged'")
        await store.list_active_workflows(on_damaged=lambda _: None)
        async with engine.connect() as connection:
            assert (await connection.exec_driver_sql("SELECT 'text'")).scalar() == "text"
            with pytest.raises(OperationalError):
                await connection.exec_driver_sql("SELECT user_id FROM workflow_states")


async def test_a_worker_names_a_run_that_it_marks_failed_for_damage(
    store: StateStore, database_url: str, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    (_, damaged, _) = await three_runs(store)
    damage(database_url, "started_at", NO_TIMES[backend][0], where=f"id = '{damaged}'")
    with caplog.at_level(logging.WARNING, "orchestrator_state"):
        async with Worker(store, {"n": done}, poll=0.05, handle_signals=False):
            await becomes(lambda row: row.status == "failed", store, "damaged")
    (said,) = [line for line in caplog.messages if str(damaged) in line]
    assert "started_at" in said
    assert "is left" not in said


async def test_a_count_behind_what_it_counts_is_set_right(store: StateStore, database_url: str) -> None:
    heard: list[str] = []

    async def handler(run: Run) -> None:
        for at in range(3):
            await run.step(f"before {at}", lambda: None)
        heard.extend([await run.wait_for("go") for _ in range(3)])
        await run.step("last", lambda: None)

    run_id = (await store.start("n", workflow_id="w", context={})).id
    await store.recover({"n": handler})
    for said in ("one", "two"):
        await store.signal(run_id, "go", said)
    damage(database_url, "checkpoint_seq", "0", where=f"id = '{run_id}'")
    damage(database_url, "signal_seq", "0", where=f"id = '{run_id}'")
    await store.signal(run_id, "go", "three")

    assert len((await store.recover({"n": handler})).completed) == 1

    assert heard == ["one", "two", "three"]
    latest = await store.get_latest_checkpoint(run_id)
    assert latest is not None
    assert latest.step_id == "last"


async def test_a_checkpoint_by_hand_comes_after_those_that_are_there(store: StateStore, database_url: str) -> None:
    state = WorkflowState(workflow_id="w", workflow_name="n")
    await store.save_workflow_state(state)
    for at in range(2):
        await store.create_checkpoint(Checkpoint(workflow_state_id=state.id, step_id=str(at), snapshot={}))
        damage(database_url, "checkpoint_seq", "0", where=f"id = '{state.id}'")
    latest = await store.get_latest_checkpoint(state.id)
    assert latest is not None
    assert latest.step_id == "1"
