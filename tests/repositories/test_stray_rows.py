"""Rows that belong to nobody, to somebody else, or to each other: named, and of no harm to others."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import insert

from orchestrator_state import (
    AesGcm,
    Checkpoint,
    CorruptPayload,
    KeyRing,
    Run,
    StateStore,
    StepState,
    StoreUnavailable,
    Worker,
    WorkflowState,
)
from orchestrator_state.encryption import new_key
from orchestrator_state.errors import PayloadError
from orchestrator_state.maintenance import verification
from orchestrator_state.models import current_steps
from orchestrator_state.payloads import BlobStore, Payloads
from tests.support.engines import opened_engine
from tests.support.raw_sql import execute, fetch
from tests.support.running import LONG_AGO, becomes, change_row, checkpoints_of, count_rows, row_of

LATER = timedelta(days=1)
KEYS = {"old": new_key(), "new": new_key()}


async def done(run: Run) -> str:
    return str(await run.step("a", lambda: "a"))


async def waits(run: Run) -> Any:
    await run.step("a", lambda: "a")
    return await run.wait_for("go")


async def waiting(store: StateStore, *names: str) -> list[UUID]:
    """Runs that have a step, a checkpoint and a signal that nobody has asked for."""
    ids = [(await store.start("n", workflow_id=name, context={})).id for name in names]
    await store.recover({"n": waits})
    for run_id in ids:
        await store.signal(run_id, "other")
    return ids


def without_foreign_keys(url: str, *statements: str) -> None:
    """As the `sqlite3` shell does it; on Postgres, once somebody has dropped the constraints."""
    if not url.startswith("sqlite"):
        for table in ("step_states", "checkpoints", "signals", "current_steps"):
            execute(url, f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {table}_workflow_state_id_fkey")
        execute(url, *statements)
        return
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
        for statement in statements:
            connection.execute(statement)


# --- rows whose workflow is gone -------------------------------------------------------------------------------------


async def test_rows_whose_workflow_is_gone_are_named_to_everybody(store: StateStore, database_url: str) -> None:
    gone, _ = await waiting(store, "gone", "stays")
    without_foreign_keys(database_url, f"DELETE FROM workflow_states WHERE id = '{gone}'")
    async with StateStore.open(database_url, namespace="another") as another:
        for report in (await store.verify(load=True), await another.verify()):
            assert not report.is_sound
            found = {(damage.table, damage.column, damage.workflow_state_id) for damage in report.damage}
            assert found == {
                (table, "workflow_state_id", str(gone)) for table in ("step_states", "checkpoints", "signals")
            }
            assert report.damaged_cells == len(report.damage)


async def test_rows_whose_workflow_is_gone_are_in_nobodys_way(store: StateStore, database_url: str) -> None:
    gone, stays = await waiting(store, "gone", "stays")
    without_foreign_keys(database_url, f"DELETE FROM workflow_states WHERE id = '{gone}'")
    await store.rekey()
    await store.prune_checkpoints(keep=1)
    await store.signal(stays, "go")
    assert [run.workflow_state_id for run in (await store.recover({"n": waits})).completed] == [stays]
    assert await store.delete_old_states(datetime.now(UTC) + LATER) == 1


@pytest.mark.parametrize("starts_first", [False, True])
async def test_a_run_that_is_started_anew_takes_over_nothing_of_the_one_that_was_deleted(
    database_url: str, starts_first: bool
) -> None:
    called: list[str] = []

    async def handler(run: Run) -> Any:
        await run.step("a", lambda: called.append("a"))
        return await run.wait_for("other", timeout=0.1)

    async with StateStore.open(database_url) as store:
        (gone,) = await waiting(store, "w")
        without_foreign_keys(database_url, f"DELETE FROM workflow_states WHERE id = '{gone}'")
        if starts_first:
            await store.start("n", workflow_id="w", context={})
        with pytest.raises(TimeoutError):
            await store.run("n", handler, workflow_id="w", context={})
        assert called == ["a"]
        assert (await store.verify()).is_sound


async def deleted_by_hand(store: StateStore, url: str) -> UUID:
    """The id of a run of which only steps, a checkpoint and a signal are left."""
    (gone,) = await waiting(store, "gone")
    without_foreign_keys(url, f"DELETE FROM workflow_states WHERE id = '{gone}'")
    return gone


@pytest.mark.parametrize("moves_the_time", [False, True])
@pytest.mark.parametrize("in_a_unit", [False, True])
async def test_a_new_state_takes_over_nothing_of_the_one_that_was_deleted(
    store: StateStore, database_url: str, in_a_unit: bool, moves_the_time: bool
) -> None:
    state = WorkflowState(id=await deleted_by_hand(store, database_url), workflow_id="anew", workflow_name="n")
    state.steps["mine"] = StepState(step_id="mine")
    if moves_the_time:
        state.updated_at = LONG_AGO
    if in_a_unit:
        async with store.begin() as uow:
            await uow.workflows.save(state)
    else:
        await store.save_workflow_state(state)
    await store.create_checkpoint(Checkpoint(workflow_state_id=state.id, step_id="mine", snapshot={"n": 1}))
    loaded = await store.load_workflow_state(state.id)
    assert list(loaded.steps) == ["mine"]
    assert [(found.seq, found.snapshot) for found in await checkpoints_of(store, "anew")] == [(1, {"n": 1})]
    assert await count_rows(store, "signals") == 0
    assert (await store.verify()).is_sound


async def test_a_fork_that_is_made_anew_takes_over_nothing_of_the_one_that_was_deleted(
    store: StateStore, database_url: str
) -> None:
    await store.run("n", done, workflow_id="w", context={})
    (origin,) = await checkpoints_of(store, "w")

    async def goes_on(run: Run) -> Any:
        await run.step("b", lambda: "b")
        return await run.wait_for("go")

    fork = await store.fork(origin.id, workflow_id="fork")
    await store.recover({"n": goes_on})
    await store.signal(fork.id, "go", "old")
    without_foreign_keys(database_url, f"DELETE FROM workflow_states WHERE id = '{fork.id}'")

    again = await store.fork(origin.id, workflow_id="fork")

    assert again.id == fork.id
    assert list(again.steps) == ["a"]
    assert await checkpoints_of(store, "fork") == []
    assert await count_rows(store, "signals") == 0


async def with_a_step_that_runs(store: StateStore) -> UUID:
    state = WorkflowState(workflow_id="w", workflow_name="n")
    await store.save_workflow_state(state)
    step = {"workflow_state_id": state.id, "step_id": "of the old one", "lease_token": 1, "started_at": LONG_AGO}
    async with store.begin() as uow:
        await uow.session.execute(insert(current_steps).values(step))
    return state.id


async def test_a_run_that_is_made_anew_does_nothing_that_the_deleted_one_did(
    store: StateStore, database_url: str
) -> None:
    old = await with_a_step_that_runs(store)
    without_foreign_keys(database_url, f"DELETE FROM workflow_states WHERE id = '{old}'")
    await store.save_workflow_state(WorkflowState(id=old, workflow_id="anew", workflow_name="n"))
    assert await count_rows(store, "current_steps") == 0


async def test_the_steps_that_run_are_deleted_where_foreign_keys_are_off(store: StateStore, database_url: str) -> None:
    run = await with_a_step_that_runs(store)
    without_foreign_keys(database_url)
    async with opened_engine(database_url) as engine, StateStore.open(engine=engine) as adopted:
        await adopted.delete(run)
    assert await count_rows(store, "current_steps") == 0


async def test_they_are_deleted_beside_a_blob_store(store: StateStore, database_url: str, tmp_path: Path) -> None:
    run = await with_a_step_that_runs(store)
    payloads = Payloads(blobs=BlobStore(f"file://{tmp_path / 'blobs'}", above=1_000))
    async with StateStore.open(database_url, payloads=payloads) as other:
        await other.delete(run)
    assert await count_rows(store, "current_steps") == 0


async def test_a_new_state_leaves_no_blob_of_the_one_that_was_deleted(database_url: str, tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    payloads = Payloads(blobs=BlobStore(f"file://{blobs}", above=1_000))
    async with StateStore.open(database_url, payloads=payloads) as store:
        old = WorkflowState(workflow_id="old", workflow_name="n")
        old.steps["a"] = StepState(step_id="a", outputs={"text": "x" * 3_000})
        await store.save_workflow_state(old)
        without_foreign_keys(database_url, f"DELETE FROM workflow_states WHERE id = '{old.id}'")
        new = WorkflowState(id=old.id, workflow_id="new", workflow_name="n", context={"text": "y" * 3_000})
        new.steps["a"] = StepState(step_id="a", outputs={"text": "z" * 3_000})
        await store.save_workflow_state(new)
        assert (await store.load_workflow_state(new.id)).steps["a"].outputs == {"text": "z" * 3_000}
        assert len(list(blobs.rglob(f"{old.id}/*"))) == 2


# --- namespaces that are none ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["''", "x'ff00'", "x'7a'"])
async def test_a_run_whose_namespace_is_none_is_named_to_everybody(sqlite_url: str, value: str) -> None:
    async with StateStore.open(sqlite_url) as store:
        damaged, sound = await waiting(store, "damaged", "sound")
        execute(sqlite_url, f"UPDATE workflow_states SET namespace = {value} WHERE id = '{damaged}'")
        report = await store.verify()
        assert ("workflow_states", "namespace", str(damaged)) in {
            (damage.table, damage.column, damage.workflow_state_id) for damage in report.damage
        }
        await store.signal(sound, "go")
        assert [run.workflow_state_id for run in (await store.recover({"n": waits})).completed] == [sound]


@pytest.mark.parametrize("table", ["workflow_states", "step_states"])
async def test_a_status_that_is_none_is_named(sqlite_url: str, table: str) -> None:
    async with StateStore.open(sqlite_url) as store:
        await waiting(store, "w")
        without_foreign_keys(sqlite_url, "PRAGMA ignore_check_constraints = ON", f"UPDATE {table} SET status = 'zzz'")
        assert ("status", table) in {(damage.column, damage.table) for damage in (await store.verify()).damage}


async def test_another_namespaces_row_that_says_it_is_a_child_is_neither_deleted_nor_in_the_way(
    store: StateStore, database_url: str
) -> None:
    await store.run("n", done, workflow_id="parent", context={})
    parent = (await row_of(store, "parent")).id
    async with StateStore.open(database_url, namespace="another") as another:
        for status in ("completed", "running"):
            name = f"says so, {status}"
            await another.run("n", done, workflow_id=name, context={})
            await change_row(another, (await row_of(another, name)).id, parent_id=parent, status=status)
    assert await store.delete_old_states(datetime.now(UTC) + LATER) == 1
    assert fetch(database_url, "SELECT status FROM workflow_states ORDER BY 1") == [("completed",), ("running",)]


# --- parents of each other -------------------------------------------------------------------------------------------


async def ring(store: StateStore, length: int, **columns: Any) -> Sequence[UUID]:
    """Runs of which each is the parent of the next, and the last that of the first."""
    names = [f"ring {at}" for at in range(length)]
    ids = [(await store.start("n", workflow_id=name, context={})).id for name in names]
    for at, run_id in enumerate(ids):
        await change_row(store, run_id, parent_id=ids[at - 1], **columns)
    return ids


@pytest.mark.parametrize("length", [1, 2, 3])
async def test_runs_that_are_parents_of_each_other_are_cancelled_and_resumed(store: StateStore, length: int) -> None:
    ids = await ring(store, length)
    await store.cancel(ids[0])
    statuses = {(await store.load_workflow_state(run_id)).status for run_id in ids}
    assert statuses == {"cancelled"}
    for run_id in ids:
        await change_row(store, run_id, status="failed")
    await store.resume(ids[0])
    assert len((await store.recover({"n": done})).completed) == length


@pytest.mark.parametrize("length", [1, 2, 3])
async def test_runs_that_are_parents_of_each_other_are_named(
    store: StateStore, database_url: str, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(verification, "_PAGE_ROWS", 2)
    in_ring = await ring(store, length)
    below, apart = await waiting(store, "below", "apart")
    await change_row(store, below, parent_id=in_ring[0])
    await change_row(store, apart, parent_id=uuid4())

    report = await store.verify()

    assert not report.is_sound
    assert report.damaged_cells == length
    assert {(found.workflow_state_id, found.column) for found in report.damage} == {
        (str(run_id), "parent_id") for run_id in in_ring
    }
    async with StateStore.open(database_url, namespace="theirs") as theirs:
        assert (await theirs.verify()).is_sound


@pytest.mark.parametrize("length", [1, 2, 3])
async def test_finished_runs_that_are_parents_of_each_other_are_deleted_together(
    store: StateStore, length: int
) -> None:
    await ring(store, length, status="completed")
    await store.run("n", done, workflow_id="sound", context={})
    cutoff = datetime.now(UTC) + LATER
    assert await store.delete_old_states(cutoff) == length + 1
    await ring(store, length, status="failed")
    await store.delete_old_states(cutoff)


@pytest.mark.parametrize("length", [1, 2])
async def test_a_worker_drives_runs_that_are_parents_of_each_other(store: StateStore, length: int) -> None:
    await ring(store, length)
    await store.start("n", workflow_id="sound", context={})
    async with Worker(store, {"n": done}, poll=0.05, handle_signals=False):
        for name in ("ring 0", f"ring {length - 1}", "sound"):
            await becomes(lambda row: row.status == "completed", store, name)


async def test_a_child_whose_parent_is_gone_comes_to_its_end_and_is_deleted(store: StateStore) -> None:
    run_id = (await store.start("n", workflow_id="w", context={})).id
    await change_row(store, run_id, parent_id=uuid4(), forked_from_id=uuid4())
    assert len((await store.recover({"n": done})).completed) == 1
    assert await store.delete_old_states(datetime.now(UTC) + LATER) == 1


# --- a run that cannot be addressed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["'zzz'", "x'ff00'", "17", "''"])
async def test_whoever_starts_a_run_whose_id_is_damaged_is_told_so_and_waits_for_nothing(
    sqlite_url: str, value: str
) -> None:
    async with StateStore.open(sqlite_url) as store:
        (damaged,) = await waiting(store, "w")
        without_foreign_keys(sqlite_url, f"UPDATE workflow_states SET id = {value} WHERE id = '{damaged}'")
        with pytest.raises(CorruptPayload):
            await store.run("n", done, workflow_id="w")
        with pytest.raises(CorruptPayload):
            await store.start("n", workflow_id="w")
        await store.run("n", done, workflow_id="another", context={})


# --- blobs -----------------------------------------------------------------------------------------------------------


async def test_missing_and_forged_blobs_harm_their_run_alone(database_url: str, tmp_path: Path) -> None:
    payloads = Payloads(blobs=BlobStore(f"file://{tmp_path}/blobs", above=1_000))

    async def large(run: Run) -> Any:
        await run.step("a", lambda: run.workflow_id * 1_000)
        await run.wait_for("go")
        return await run.step("b", lambda: "x" * 3_000)

    async with StateStore.open(database_url, payloads=payloads) as store:
        for name in ("missing", "forged", "sound"):
            await store.start("n", workflow_id=name, context={"text": name * 1_000})
        await store.recover({"n": large})
        for name, change in (("missing", Path.unlink), ("forged", lambda path: path.write_text('"another"'))):
            run_id = (await row_of(store, name)).id
            for path in [
                path for path in (tmp_path / "blobs").rglob("*") if path.is_file() and str(run_id) in str(path)
            ]:
                change(path)
        report = await store.verify(load=True)
        ids = {str((await row_of(store, name)).id) for name in ("missing", "forged")}
        assert {damage.workflow_state_id for damage in report.damage} == ids
        listed = await store.list_active_workflows(on_damaged=lambda _: None)
        assert [state.workflow_id for state in listed] == ["sound"]
        for name in ("missing", "forged", "sound"):
            await store.signal((await row_of(store, name)).id, "go")
        recovered = await store.recover({"n": large})
        assert [run.workflow_id for run in recovered.completed] == ["sound"]
        assert {run.workflow_id for run in recovered.failed} == {"missing", "forged"}
        assert all(isinstance(run.error, CorruptPayload) for run in recovered.failed)
        await store.collect_garbage()
        await store.delete_old_states(datetime.now(UTC) + LATER)


async def test_a_blob_that_cannot_be_read_hides_no_other_run(database_url: str, tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"

    def payloads(key: str) -> Payloads:
        return Payloads([AesGcm(KeyRing(KEYS, primary=key))], blobs=BlobStore(f"file://{blobs}", above=1_000))

    async with StateStore.open(database_url, payloads=payloads("old")) as store:
        for name in ("unreadable", "sound"):
            await store.start("n", workflow_id=name, context={"text": name * 1_000})
        unreadable = (await row_of(store, "unreadable")).id
        (path,) = [path for path in blobs.rglob("*") if path.is_file() and str(unreadable) in str(path)]
        path.unlink()
        path.mkdir()
        told: list[PayloadError] = []

        listed = await store.list_active_workflows(on_damaged=told.append)
        verified = await store.verify(load=True)
        async with StateStore.open(database_url, payloads=payloads("new")) as renewed:
            rekeyed = await renewed.rekey()

        assert [state.workflow_id for state in listed] == ["sound"]
        assert [error.about["workflow_state_id"] for error in told] == [unreadable]
        assert [damage.workflow_state_id for damage in verified.damage] == [str(unreadable)]
        assert [found.workflow_state_id for found in verified.unloadable] == [unreadable]
        assert (rekeyed.resealed, rekeyed.failed) == (1, 1)
        report = await store.recover({"n": done})
        assert {run.workflow_id: run.outcome for run in report.runs} == {
            "unreadable": "interrupted",
            "sound": "completed",
        }


async def test_a_blob_store_that_is_away_is_no_damage(store: StateStore, database_url: str, tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    payloads = Payloads(blobs=BlobStore(f"file://{blobs}", above=1_000))
    async with StateStore.open(database_url, payloads=payloads) as away:
        await away.start("n", workflow_id="w", context={"text": "x" * 3_000})
        blobs.rename(tmp_path / "elsewhere")
        for ask in (away.list_active_workflows, partial(away.verify, load=True), away.rekey):
            with pytest.raises(StoreUnavailable):
                await ask()
