"""Damage to what is stored: found wherever it is read, told by id and place, and survived by runs."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, NoReturn
from uuid import UUID

import pytest
from sqlalchemy import select

from orchestrator_state import Checkpoint, CorruptPayload, PayloadError, Retry, Run, StateStore
from orchestrator_state.hooks import FellBack
from orchestrator_state.models import checkpoints, signals, step_states, workflow_states
from tests.support.cases import case
from tests.support.damage import (
    CONTEXT,
    CONTEXT_PATCH,
    DAMAGES,
    ERROR,
    INITIAL_CONTEXT,
    OUTPUTS,
    PLACES,
    RESULT,
    SIGNAL,
    SNAPSHOT,
    STEP_ERROR,
    Place,
    Stored,
    all_payload_columns,
    write_bytes,
)
from tests.support.running import Effect, Log, change_step, checkpoints_of, fetch, row_of, vanish

# --- workflows with every kind of payload ---


AGAIN_AT_ONCE = Retry(attempts=2, wait_initial=0, wait_jitter=0)


class Steps:
    """A handler with a payload in every column; it ends as `end` does."""

    def __init__(self, end: Callable[[], object] = vanish) -> None:
        self.end = end
        self.calls: list[str] = []
        self.contexts: list[Any] = []

    async def __call__(self, run: Run) -> Any:
        run.context["n"] = 1
        await run.step("z", self.effect, "z", {"from": run.workflow_id, "z": "ä"})
        run.append("log", f"{run.workflow_id} appended")
        await run.step("a", self.effect, "a", {"from": run.workflow_id, "a": "é"}, retry=AGAIN_AT_ONCE)
        run.append("log", "again")
        await run.step("b", self.effect, "b", "b")
        self.contexts.append(run.context)
        return self.end()

    async def effect(self, name: str, outputs: Any) -> Any:
        self.calls.append(name)
        if name == "a" and self.calls.count("a") % 2:
            raise LookupError(f"at first: {outputs['from']}")
        return outputs


def fail() -> NoReturn:
    raise LookupError("in the end")


def done() -> Any:
    return {"done": "ö"}


async def wait(run: Run) -> Any:
    return await run.wait_for("go")


ENDS: Mapping[Place, Callable[[], object]] = {ERROR: fail, RESULT: done}


async def a_run(store: StateStore, workflow_id: str, end: Callable[[], object] = vanish) -> Any:
    """The row of a run that came to its end, or was abandoned there."""
    with suppress(LookupError, asyncio.CancelledError):
        await store.run("n", Steps(end), workflow_id=workflow_id, context={"n": 0, "log": [], "of": workflow_id})
    return await row_of(store, workflow_id)


async def everything(store: StateStore) -> list[Any]:
    tables = (workflow_states, step_states, checkpoints, signals)
    return [sorted(await fetch(store, select(table)), key=repr) for table in tables]


# --- reading ---

Reads = Mapping[str, Callable[[StateStore, Any, UUID], Awaitable[object]]]


async def get_step(store: StateStore, row: Any, _: UUID) -> object:
    async with store.begin() as uow:
        return await uow.steps.get(row.id, "a")


async def list_steps(store: StateStore, row: Any, _: UUID) -> object:
    async with store.begin() as uow:
        return await uow.steps.list(row.id)


async def get_checkpoint(store: StateStore, _: Any, checkpoint_id: UUID) -> object:
    async with store.begin() as uow:
        return await uow.checkpoints.get(checkpoint_id)


async def list_checkpoints(store: StateStore, row: Any, _: UUID) -> object:
    async with store.begin() as uow:
        return await uow.checkpoints.list(row.id)


OF_A_STATE: Reads = {
    "load": lambda store, row, _: store.load_workflow_state(row.id),
    "load by workflow_id": lambda store, row, _: store.load_workflow_state_by_workflow_id(row.workflow_id),
    "restore": lambda store, _, checkpoint_id: store.restore_from_checkpoint(checkpoint_id),
    "rewind": lambda store, _, checkpoint_id: store.rewind(checkpoint_id),
}


async def list_active(store: StateStore, *_: Any) -> None:
    """A list names what it leaves out, and returns the others."""
    errors: list[PayloadError] = []
    listed = await store.list_active_workflows(on_damaged=errors.append)
    if errors:
        assert [state.workflow_id for state in listed] == ["other"]
        raise errors[0]
    assert len(listed) == 2


OF_ALL: Reads = {"list": list_active}
OF_A_STEP: Reads = {"get a step": get_step, "list steps": list_steps}
OF_THE_FIRST_CONTEXT: Reads = {"fork": lambda store, _, checkpoint_id: store.fork(checkpoint_id)}
OF_A_RESULT: Reads = {"run": lambda store, row, _: store.run("n", Steps(), workflow_id=row.workflow_id)}
OF_A_CHECKPOINT: Reads = {
    "get": get_checkpoint,
    "list checkpoints": list_checkpoints,
    "get the latest": lambda store, row, _: store.get_latest_checkpoint(row.id),
    "restore": OF_A_STATE["restore"],
    "rewind": OF_A_STATE["rewind"],
    **OF_THE_FIRST_CONTEXT,
}
READS: Mapping[Place, Reads] = {
    CONTEXT: {**OF_A_STATE, **OF_ALL},
    INITIAL_CONTEXT: OF_THE_FIRST_CONTEXT,
    RESULT: OF_A_RESULT,
    ERROR: OF_A_STATE,
    OUTPUTS: {**OF_A_STATE, **OF_ALL, **OF_A_STEP},
    STEP_ERROR: {**OF_A_STATE, **OF_ALL, **OF_A_STEP},
    CONTEXT_PATCH: {**OF_A_STATE, **OF_ALL, **OF_THE_FIRST_CONTEXT},
    SNAPSHOT: OF_A_CHECKPOINT,
}


def test_no_payload_column_is_left_out() -> None:
    # A damaged question is listed all the same: see `tests/runs/test_questions.py`.
    assert {str(place) for place in PLACES} | {"questions.question"} == all_payload_columns()
    assert {*READS, SIGNAL} == set(PLACES)


async def assert_corrupt(read: Awaitable[object], row: Any, place: Place) -> None:
    with pytest.raises(CorruptPayload) as raised:
        await read
    about = raised.value.about
    assert about["workflow_state_id"] == row.id
    assert place.column in str(about["path"]) or place is SIGNAL
    if place.step_id is not None:
        assert about["step_id"] == place.step_id


@pytest.mark.slow
@pytest.mark.parametrize("end", [vanish, *ENDS.values()])
async def test_damage_is_found_by_every_read_that_looks_at_it_and_nothing_is_written(
    store: StateStore, end: Callable[[], object]
) -> None:
    row, other = await a_run(store, "mine", end), await a_run(store, "other", end)
    latest = (await checkpoints_of(store, "mine"))[-1].id
    places = [place for place in READS if ENDS.get(place, vanish) is end]
    for place in places:
        mine, others = await place.read(store, row.id), await place.read(store, other.id)
        damages = {name: damage(mine, others) for name, damage in DAMAGES.items()}
        if place.table.c[place.column].nullable:
            damages["gone"] = (None, mine[1])  # type: ignore[assignment]
        before = await everything(store)
        for name, damaged in damages.items():
            with case(f"{place}: {name}"):
                await write(store, place, row.id, latest, damaged)
                for read in READS[place].values():
                    await assert_corrupt(read(store, row, latest), row, place)
                assert await place.read(store, row.id) == damaged
        await write(store, place, row.id, latest, mine)
        assert await everything(store) == before, place
    reads = {name: read for place in places for name, read in READS[place].items()}
    for name in sorted(reads, key=("rewind", "fork").__contains__):  # which change what there is, come last
        await reads[name](store, row, latest)


async def write(store: StateStore, place: Place, run_id: UUID, checkpoint_id: UUID, stored: Stored) -> None:
    if place is SNAPSHOT:
        await write_snapshot(store, checkpoint_id, stored)
    else:
        await place.write(store, run_id, stored)


async def write_snapshot(store: StateStore, checkpoint_id: UUID, stored: Stored) -> None:
    async with store.begin() as uow:
        await uow.session.execute(
            checkpoints.update()
            .where(checkpoints.c.id == checkpoint_id)
            .values(snapshot=stored[0], snapshot_digest=stored[1])
        )


async def test_a_damaged_signal_fails_its_run_and_is_not_consumed(store: StateStore) -> None:
    for name in ("mine", "other"):
        await store.start("n", workflow_id=name)
    row, other = await row_of(store, "mine"), await row_of(store, "other")
    for target in (row, other):
        await store.signal(target.id, "go", {"to": str(target.id)})
    mine, others = await SIGNAL.read(store, row.id), await SIGNAL.read(store, other.id)
    for name, damage in DAMAGES.items():
        await SIGNAL.write(store, row.id, damage(mine, others))
        await assert_corrupt(store.run("n", wait, workflow_id="mine"), row, SIGNAL)
        failed = await store.load_workflow_state(row.id)
        assert (failed.status, failed.steps) == ("failed", {}), name
        assert "CorruptPayload" in str(failed.error)
    await SIGNAL.write(store, row.id, mine)
    assert await store.run("n", wait, workflow_id="mine") == {"to": str(row.id)}


# --- cut anywhere ---


async def small(store: StateStore) -> Any:
    """A run with small payloads of characters of one, two and four bytes."""

    async def handler(run: Run) -> Any:
        run.context["é"] = "😀"
        await run.step("z", Effect())
        run.append("log", "é😀")
        await run.step("a", Effect(), "é😀")
        return "é😀"

    await store.run("n", handler, workflow_id="small", context={"é": "😀", "log": []})
    row = await row_of(store, "small")
    state = await store.load_workflow_state(row.id)
    state.error = state.steps["a"].error = "é😀"
    await store.save_workflow_state(state)
    return row


async def test_a_payload_cut_at_any_byte_is_corrupt(store: StateStore, database_url: str) -> None:
    row = await small(store)
    for place in READS:
        with case(place):
            await assert_corrupt_cut_anywhere(store, database_url, row, place)


async def assert_corrupt_cut_anywhere(store: StateStore, database_url: str, row: Any, place: Place) -> None:
    if place is SNAPSHOT:
        await store.create_checkpoint(Checkpoint(workflow_state_id=row.id, step_id="a", snapshot=["é😀"]))
        await store.cleanup_old_checkpoints(row.id, keep=1)
    newest = (await store._transactions.read(lambda uow: uow.past.list_checkpoint_ids(row.id)))[0]
    read = READS[place].get("fork") or next(iter(READS[place].values()))
    whole = await place.read(store, row.id)
    data = whole[0].encode()
    for end in range(len(data)):
        try:
            await place.write(store, row.id, (data[:end].decode(), whole[1]))
        except UnicodeDecodeError:
            write_bytes(database_url, place, row.id, data[:end])
        with pytest.raises(CorruptPayload):
            await read(store, row, newest)
    await place.write(store, row.id, whole)


# --- recovery ---

OF_EACH_KIND = {
    name: DAMAGES[name] for name in ("a flipped bit", "another valid JSON", "another row's", "garbage for a digest")
}


@pytest.mark.parametrize("place", [CONTEXT, INITIAL_CONTEXT, OUTPUTS, STEP_ERROR, CONTEXT_PATCH], ids=str)
async def test_recovery_takes_what_is_damaged_from_the_newest_checkpoint_and_says_so_in_four_places(
    database_url: str, caplog: pytest.LogCaptureFixture, place: Place
) -> None:
    log, handler = Log(), Steps(done)
    async with StateStore.open(database_url, hook=log) as store:
        healthy = await a_run(store, "healthy")
        others = await place.read(store, healthy.id)
        damaged = {}
        for name, damage in OF_EACH_KIND.items():
            row = await a_run(store, name)
            damaged[row.id] = (await checkpoints_of(store, name))[-1].seq
            await place.write(store, row.id, damage(await place.read(store, row.id), others))
        with caplog.at_level(logging.WARNING, "orchestrator_state"):
            report = await store.recover({"n": handler})
        assert {run.workflow_state_id for run in report.completed} == {healthy.id, *damaged}
        assert handler.calls == [], "no step ran again"
        step_ids = ("a",) if place.step_id else ()
        told = {run.workflow_state_id: run.fell_back for run in report.fell_back}
        assert told == {
            run_id: FellBack(workflow_state_id=run_id, name="n", token=2, step_ids=step_ids, seq=seq)
            for run_id, seq in damaged.items()
        }
        assert sorted(log.of(FellBack), key=repr) == sorted(told.values(), key=repr)
        warnings = [record.getMessage() for record in caplog.records if "damaged" in record.getMessage()]
        for run_id in damaged:
            [warning] = [warning for warning in warnings if str(run_id) in warning]
            state = await store.load_workflow_state(run_id)
            assert state.steps["a"].outputs["a"] == "é"
            if place.step_id:
                assert "damaged" in str(state.steps["a"].error)
                assert "'a'" in warning
        assert "at first" in str((await store.load_workflow_state(healthy.id)).steps["a"].error)


async def test_recovery_passes_over_checkpoints_that_are_damaged_or_belong_to_another_run(store: StateStore) -> None:
    handler = Steps(done)
    healthy = await a_run(store, "healthy")
    others = await SNAPSHOT.read(store, healthy.id)
    expected = {}
    for name, damage in OF_EACH_KIND.items():
        row = await a_run(store, name)
        *_, older, newest = await checkpoints_of(store, name)
        await write_snapshot(store, newest.id, damage(await SNAPSHOT.read(store, row.id), others))
        await change_step(store, row.id, "a", outputs="torn")
        expected[row.id] = older.seq
    report = await store.recover({"n": handler})
    assert len(report.completed) == len(expected) + 1
    assert {run.workflow_state_id: run.fell_back and run.fell_back.seq for run in report.fell_back} == expected
    assert handler.calls == []


async def test_a_run_that_cannot_be_saved_fails_alone(database_url: str) -> None:
    """Nothing of its context is left, and there is no checkpoint."""
    handler = Steps(done)
    async with StateStore.open(database_url, checkpoint_every=0) as store:
        lost, healthy = await a_run(store, "lost"), await a_run(store, "healthy")
        for place in (CONTEXT, INITIAL_CONTEXT):
            await place.write(store, lost.id, ("torn", "torn"))
        report = await store.recover({"n": handler})
        assert [run.workflow_state_id for run in report.completed] == [healthy.id]
        [failed] = report.failed
        assert isinstance(failed.error, CorruptPayload)
        assert failed.error.about["workflow_state_id"] == lost.id
        assert (await row_of(store, "lost")).status == "failed"
    assert handler.calls == []


async def test_a_damaged_step_that_no_checkpoint_has_runs_again_and_the_log_says_so(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Steps(done)
    async with StateStore.open(database_url, checkpoint_every=0) as store:
        row = await a_run(store, "mine")
        await OUTPUTS.write(store, row.id, ("torn", "torn"))
        with caplog.at_level(logging.WARNING, "orchestrator_state"):
            report = await store.recover({"n": handler})
    assert [run.fell_back and run.fell_back.seq for run in report.completed] == [None]
    assert {*handler.calls} == {"a"}
    assert f"run {row.id}: its damaged steps ('a',) are in no checkpoint, and run again" in caplog.messages


@pytest.mark.parametrize("place", [CONTEXT, OUTPUTS], ids=str)
async def test_a_flipped_bit_that_leaves_no_text_is_damage_like_any_other(sqlite_url: str, place: Place) -> None:
    """SQLite hands out whatever its file holds. Postgres refuses such a text, and a page that fails its checksum."""
    handler = Steps(done)
    async with StateStore.open(sqlite_url) as store:
        healthy, row = await a_run(store, "healthy"), await a_run(store, "mine")
        write_bytes(sqlite_url, place, row.id, b'{"\xff":1}')
        report = await store.recover({"n": handler})
        assert {run.workflow_state_id for run in report.completed} == {healthy.id, row.id}
        assert [run.workflow_state_id for run in report.fell_back] == [row.id]
    assert handler.calls == []
