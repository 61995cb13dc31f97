"""`store.verify` finds damage wherever it is, without keys, and tells it from what older software wrote."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel

from orchestrator_state import Run, StateSchema, StateStore, StepState, WorkflowState
from orchestrator_state.maintenance import Damage, VerifyReport, verification
from orchestrator_state.models import checkpoints
from orchestrator_state.payloads import BlobStore, Payloads
from tests.support.cases import case
from tests.support.payload_samples import CANARY, COLUMNS, encrypted, fill, stored
from tests.support.raw_sql import contents, execute, fetch
from tests.support.running import LONG_AGO, row_of


async def only_damage(store: StateStore) -> Damage:
    report = await store.verify()
    assert (report.damaged, report.is_sound) == (1, False)
    [damage] = report.damage
    return damage


async def test_every_payload_of_a_sound_database_is_intact_and_nothing_is_written(
    store: StateStore, database_url: str
) -> None:
    await fill(store)
    before = contents(database_url)
    report = await store.verify(load=True)
    total = sum(map(len, stored(database_url).values()))
    assert report == VerifyReport(payloads=total, intact=total, loaded=2)
    assert report.is_sound
    assert contents(database_url) == before
    assert all(stored(database_url).values())  # there is one of each kind


async def test_a_changed_payload_is_found_in_every_column(store: StateStore, database_url: str) -> None:
    await fill(store)
    for table, column in COLUMNS:
        [(text,), *_] = fetch(database_url, f"SELECT {column} FROM {table} WHERE {column} IS NOT NULL ORDER BY 1")
        count = len(fetch(database_url, f"SELECT 1 FROM {table} WHERE {column} = '{text}'"))
        execute(database_url, f"UPDATE {table} SET {column} = {column} || ' ' WHERE {column} = '{text}'")
        report = await store.verify()
        with case(f"{table}.{column}"):
            assert report.damaged == len(report.damage) == count
            for damage in report.damage:
                assert (damage.table, damage.column) == (table, column)
                assert "does not match its digest" in damage.reason
                assert CANARY not in repr(damage)
        execute(database_url, f"UPDATE {table} SET {column} = '{text}' WHERE {column} = '{text} '")


async def test_damage_is_told_with_the_ids_of_its_row(store: StateStore, database_url: str) -> None:
    await fill(store)
    row = await row_of(store, "ended")
    execute(database_url, "UPDATE step_states SET outputs = '1' WHERE step_id = 'two'")
    damage = await only_damage(store)
    assert (damage.workflow_state_id, damage.step_id) == (str(row.id), "two")
    execute(database_url, "DELETE FROM step_states WHERE step_id = 'two'", "UPDATE signals SET payload = '1'")
    [(signal_id,)] = fetch(database_url, "SELECT id FROM signals")
    assert (await only_damage(store)).signal_id == str(signal_id)
    execute(database_url, "DELETE FROM signals")
    [(checkpoint_id,), *_] = fetch(database_url, "SELECT id FROM checkpoints")
    execute(database_url, f"UPDATE checkpoints SET snapshot = '1' WHERE id = '{checkpoint_id}'")
    assert (await only_damage(store)).checkpoint_id == str(checkpoint_id)


async def test_a_payload_that_is_gone_and_one_in_the_wrong_place_are_damage(
    store: StateStore, database_url: str
) -> None:
    await fill(store)
    execute(database_url, "UPDATE step_states SET outputs = NULL WHERE step_id = 'two'")
    assert "is gone" in (await only_damage(store)).reason
    [(text, digest)] = fetch(database_url, "SELECT payload, payload_digest FROM signals")
    execute(
        database_url,
        f"UPDATE step_states SET outputs = '{text}', outputs_digest = '{digest}' WHERE step_id = 'two'",
    )
    assert "moved here" in (await only_damage(store)).reason


async def test_damage_is_found_without_the_keys(database_url: str) -> None:
    async with StateStore.open(database_url, payloads=encrypted("a")) as store:
        await fill(store)
    async with StateStore.open(database_url) as without_keys:
        assert (await without_keys.verify()).is_sound
        execute(database_url, "UPDATE signals SET payload = substr(payload, 1, 40)")
        assert (await only_damage(without_keys)).table == "signals"


async def test_bytes_that_are_no_text_are_damage_and_hide_no_other(sqlite_url: str) -> None:
    async with StateStore.open(sqlite_url) as store:
        await fill(store)
        sound = (await store.verify()).payloads
        execute(
            sqlite_url,
            "UPDATE workflow_states SET context = CAST(x'7b22ff227d' AS TEXT) WHERE workflow_id = 'waiting'",
            "UPDATE step_states SET error = CAST(x'ff' AS TEXT), error_digest = NULL WHERE step_id = 'two'",
            "UPDATE signals SET payload = x'00ff'",
        )
        report = await store.verify(load=True)
        assert {(damage.table, damage.column) for damage in report.damage} == {
            ("workflow_states", "context"),
            ("step_states", "error"),
            ("signals", "payload"),
        }
        assert report.payloads == sound + 1
        assert [(one.workflow_id, one.error) for one in report.unloadable] == [("waiting", "CorruptPayload")]


async def test_what_older_software_changed_is_not_damage_unless_it_is_no_json(
    store: StateStore, database_url: str
) -> None:
    await fill(store)
    of_run = "WHERE workflow_id = 'ended'"
    execute(
        database_url, f"UPDATE workflow_states SET context = '[1]', updated_at = '2050-01-01T00:00:00+00:00' {of_run}"
    )
    report = await store.verify()
    assert (report.unverified, report.damaged) == (1, 0)
    execute(database_url, f"UPDATE workflow_states SET context = '[1' {of_run}")
    assert "JSON" in (await only_damage(store)).reason


async def test_an_encoded_payload_that_changed_is_damage_also_after_older_software_wrote(database_url: str) -> None:
    async with StateStore.open(database_url, payloads=encrypted("a")) as store:
        await fill(store)
        execute(
            database_url,
            "UPDATE workflow_states SET context = substr(context, 1, 50), updated_at = '2050-01-01T00:00:00+00:00'"
            " WHERE workflow_id = 'ended'",
        )
        assert (await only_damage(store)).column == "context"


async def test_payloads_without_a_digest_are_counted_and_have_to_be_json(store: StateStore, database_url: str) -> None:
    await fill(store)
    execute(database_url, "UPDATE checkpoints SET snapshot_digest = NULL", "UPDATE step_states SET error_digest = NULL")
    report = await store.verify()
    old = stored(database_url)
    assert report.is_sound
    assert report.undigested == len(old["checkpoints", "snapshot"]) + len(old["step_states", "error"])
    execute(database_url, "UPDATE signals SET payload_digest = NULL, payload = '{\"a\":}'")
    assert "JSON" in (await only_damage(store)).reason


async def test_only_one_namespace_is_looked_at(store: StateStore, database_url: str) -> None:
    async with StateStore.open(database_url, namespace="other") as other:
        await fill(other)
        execute(database_url, "UPDATE signals SET payload = '1'")
        assert (await store.verify(load=True)) == VerifyReport()
        assert (await other.verify()).damaged == 1


async def test_every_row_is_looked_at_once_whatever_the_size_of_a_page(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(11):
        state = WorkflowState(workflow_id=f"w-{number}", workflow_name="many", context={"n": number})
        for step in range(number):
            state.steps[f"s-{step}"] = _step(f"s-{step}")
        await store.save_workflow_state(state)
    for rows in (1, 2, 7):
        monkeypatch.setattr(verification, "_PAGE_ROWS", rows)
        seen: list[tuple[int, int]] = []
        report = await store.verify(load=True, progress=lambda *counts, seen=seen: seen.append(counts))
        with case(rows):
            assert (report.payloads, report.intact, report.loaded) == (66, 66, 11)
            assert seen[0] == (0, 66)
            assert seen[-1] == (66, 66)


async def test_large_payloads_come_in_small_pages(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(14):
        await store.save_workflow_state(
            WorkflowState(workflow_id=f"w-{number}", workflow_name="large", context={"text": "x" * 1_000_000})
        )
    done: list[int] = []
    report = await store.verify(progress=lambda rows, _: done.append(rows))
    assert report.intact == 14
    assert done == [0, 2, 4, 6, 8, 10, 12, 14]


async def test_large_payloads_behind_many_small_ones_come_in_small_pages_too(store: StateStore) -> None:
    for number in range(30):
        text = "x" if number < 20 else "x" * 1_500_000
        await store.save_workflow_state(
            WorkflowState(id=UUID(int=number), workflow_id="w", workflow_name="n", context=text)
        )
    done: list[int] = []
    await store.verify(progress=lambda rows, _: done.append(rows))
    assert done == [0, *range(21, 31)]


async def test_blobs_come_in_small_pages_too(database_url: str, tmp_path: Path) -> None:
    payloads = Payloads(blobs=BlobStore(f"file://{tmp_path}/blobs", above=1_000))
    async with StateStore.open(database_url, payloads=payloads) as store:
        for number in range(6):
            context = "x" * 1_500_000
            await store.save_workflow_state(
                WorkflowState(workflow_id=f"w-{number}", workflow_name="n", context=context)
            )
        done: list[int] = []
        report = await store.verify(progress=lambda rows, _: done.append(rows))
    assert report.intact == 6
    assert done == [0, 1, 2, 3, 4, 5, 6]


async def test_the_list_of_damage_is_bounded_and_the_count_is_not(store: StateStore, database_url: str) -> None:
    await fill(store)
    parent = (await row_of(store, "waiting")).id
    damaged = {"workflow_state_id": parent, "step_id": "s", "timestamp": LONG_AGO, "snapshot": "1"}
    damaged["snapshot_digest"] = "that of something else"
    async with store.begin() as uow:
        await uow.session.execute(
            checkpoints.insert(), [damaged | {"id": uuid4(), "seq": number} for number in range(1, 1002)]
        )
    report = await store.verify()
    assert len(report.damage) == 1000
    assert report.damaged == 1001


# --- loading ---


async def test_what_does_not_load_is_told_with_its_place_and_stops_nothing(database_url: str) -> None:
    async with StateStore.open(database_url, payloads=encrypted("lost")) as store:
        await store.start("waits", workflow_id="unreadable", context={"note": CANARY})
        await store.run("ends", _returns, workflow_id="finished, so nobody loads it")
    async with StateStore.open(database_url) as store:
        for number in itertools.count():
            state = await store.start("waits", workflow_id=f"readable-{number}")
            if number and str(state.id) > str((await row_of(store, "unreadable")).id):
                break
        report = await store.verify(load=True)
        assert report.damaged == 0
        assert not report.is_sound
        assert (report.loaded, report.failed) == (number + 1, 1)
        [unloadable] = report.unloadable
        assert (unloadable.workflow_id, unloadable.what, unloadable.error, unloadable.path) == (
            "unreadable",
            "workflow",
            "UnknownCodec",
            "context",
        )
        assert "aes-gcm=lost" in unloadable.message


async def test_the_newest_checkpoint_is_loaded_too(database_url: str) -> None:
    async with StateStore.open(database_url, payloads=encrypted("lost")) as store:
        with pytest.raises(RuntimeError):
            await store.run("fails", _fails, workflow_id="w")
        await store.resume((await row_of(store, "w")).id)
    execute(database_url, "UPDATE checkpoints SET snapshot = '~payload:gone:AAAA', snapshot_digest = NULL")
    async with StateStore.open(database_url, payloads=encrypted("lost")) as store:
        [unloadable] = (await store.verify(load=True)).unloadable
        assert (unloadable.what, unloadable.error) == ("newest checkpoint", "UnknownCodec")


@pytest.mark.parametrize(
    ("table", "column"),
    [("workflow_states", "initial_context"), ("step_states", "context_patch"), ("step_states", "outputs")],
)
async def test_what_only_a_resumed_run_reads_is_opened_too(database_url: str, table: str, column: str) -> None:
    async with StateStore.open(database_url) as store:
        with pytest.raises(RuntimeError):
            await store.run("fails", _fails, workflow_id="w")
        await store.resume((await row_of(store, "w")).id)
        assert (await store.verify(load=True)).is_sound
        where = f"WHERE {column} IS NOT NULL"
        execute(database_url, f"UPDATE {table} SET {column} = '~payload:gone:AAAA', {column}_digest = NULL {where}")
        report = await store.verify(load=True)
        assert report.failed == 1
        assert {one.error for one in report.unloadable} == {"UnknownCodec"}


@pytest.mark.parametrize(
    ("fails", "error"), [("missing", "UpcasterMissing"), ("raise", "UpcasterFailed"), ("type", "StateMismatch")]
)
async def test_what_the_types_of_tomorrow_refuse_is_told(database_url: str, fails: str, error: str) -> None:
    async with StateStore.open(database_url) as store:
        with pytest.raises(RuntimeError):
            await store.run("fails", _fails, workflow_id="w")
        await store.resume((await row_of(store, "w")).id)

    class Tomorrow(BaseModel):
        a: int

    schema = StateSchema("fails", version=2, state=Tomorrow)
    upcasters: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "raise": lambda context: {"a": context["b"]},
        "type": lambda context: {"a": CANARY},
    }
    if fails in upcasters:
        schema.upcast(1)(upcasters[fails])
    before = contents(database_url)
    async with StateStore.open(database_url, schemas=[schema]) as store:
        report = await store.verify(load=True)
    assert report.damaged == 0
    assert {one.error for one in report.unloadable} == {error}
    assert {one.what for one in report.unloadable} == {"workflow", "newest checkpoint"}
    assert CANARY not in repr(report)
    assert contents(database_url) == before


async def test_also_a_context_that_is_passed_through_has_to_upcast(database_url: str) -> None:
    async with StateStore.open(database_url) as store:
        with pytest.raises(RuntimeError):
            await store.run("fails", _fails, workflow_id="w")
        await store.resume((await row_of(store, "w")).id)
    schema = StateSchema("fails", version=2)
    schema.upcast(1)(lambda context: {"was": context["a"]})  # the first context had no such key yet
    async with StateStore.open(database_url, schemas=[schema]) as store:
        await store.load_workflow_state_by_workflow_id("w")
        [unloadable] = (await store.verify(load=True)).unloadable
        assert (unloadable.what, unloadable.error) == ("workflow", "UpcasterFailed")


async def _returns(run: Run) -> Any:
    return CANARY


async def _fails(run: Run) -> None:
    run.context["a"] = 1
    await run.step("one", lambda: 1)
    raise RuntimeError("as planned")


def _step(step_id: str) -> StepState:
    step = StepState(step_id=step_id)
    step.mark_completed({"step": step_id})
    return step
