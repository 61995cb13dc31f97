"""`store.rekey`: every payload as the store would write it now, beside live runs, and to be killed at any moment."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from orchestrator_state import Run, StateStore, WorkflowState
from orchestrator_state.encryption import AesGcm, KeyRing
from orchestrator_state.hooks import FellBack
from orchestrator_state.maintenance import rekeying
from orchestrator_state.maintenance.rekeying import RekeyReport
from orchestrator_state.payloads import PLAIN, Payloads
from tests.support.interleaving import just_after
from tests.support.payload_samples import CANARY, COLUMNS, encrypted, fill, stored
from tests.support.raw_sql import contents, execute, fetch
from tests.support.running import Effect, Gate, Log, row_of, vanish
from tests.support.watched_blobs import WatchedBlobs

K1, K2 = encrypted("k1"), encrypted("k1", "k2")
ONLY_K2 = encrypted("k2", strict=True)
NOT_ENCRYPTED = Payloads(readers=[AesGcm(KeyRing({"k1": b"k1".ljust(32)}, "k1"))])


def total(url: str) -> int:
    return sum(map(len, stored(url).values()))


def texts(url: str) -> list[str]:
    return [text for payloads in stored(url).values() for text, _ in payloads]


def all_else(url: str) -> list[Any]:
    """What is in the database besides payloads and their digests."""
    payloads = {name for _, column in COLUMNS for name in (column, f"{column}_digest")}
    found: list[Any] = []
    for table in ("workflow_states", "step_states", "checkpoints", "signals"):
        kind = "pragma_table_info('{0}')" if url.startswith("sqlite") else "information_schema.columns"
        name = "name" if url.startswith("sqlite") else "column_name"
        where = "" if url.startswith("sqlite") else f" WHERE table_name = '{table}'"
        columns = sorted({row[0] for row in fetch(url, f"SELECT {name} FROM {kind.format(table)}{where}")} - payloads)
        found.append(sorted(fetch(url, f"SELECT {', '.join(columns)} FROM {table}"), key=repr))
    return found


@pytest.mark.parametrize(
    ("before", "after", "reader"),
    [
        pytest.param(PLAIN, K1, encrypted("k1", strict=True), id="plain to encrypted"),
        pytest.param(K1, K2, ONLY_K2, id="to another key"),
        pytest.param(K1, NOT_ENCRYPTED, PLAIN, id="encrypted to plain"),
    ],
)
async def test_afterwards_a_store_that_knows_only_the_new_way_reads_everything_and_nothing_else_changed(
    database_url: str, before: Payloads, after: Payloads, reader: Payloads
) -> None:
    async with StateStore.open(database_url, payloads=before) as store:
        await fill(store)
        states = [await store.load_workflow_state_by_workflow_id(name) for name in ("ended", "failed", "waiting")]
    kept, count = all_else(database_url), total(database_url)
    async with StateStore.open(database_url, payloads=after) as store:
        planned = await store.rekey(dry_run=True)
        assert planned == RekeyReport(resealed=count)
        done: list[tuple[int, int]] = []
        report = await store.rekey(progress=lambda *rows: done.append(rows))
        assert report == RekeyReport(resealed=count)
        assert report.is_complete
        assert done[0][0] == 0
        assert done[-1][0] == done[-1][1]
        assert await store.rekey() == RekeyReport(current=count)
    assert all_else(database_url) == kept
    assert all(text.startswith("~payload:aes-gcm") == (reader is not PLAIN) for text in texts(database_url))
    async with StateStore.open(database_url, payloads=reader) as store:
        assert (await store.verify(load=True)).is_sound
        for state in states:
            loaded = await store.load_workflow_state(state.id)
            assert loaded == state
            assert loaded.steps == state.steps
            checkpoint = await store.get_latest_checkpoint(state.id)
            assert checkpoint is None or checkpoint.snapshot["workflow_id"] == state.workflow_id
        assert await store.run("ends", _ended_before, workflow_id="ended") == [CANARY]
        assert (await store.recover({"waits": _waits})).completed
        assert await store.run("waits", _waits, workflow_id="waiting") == {"note": CANARY}


async def test_a_dry_run_writes_nothing(database_url: str) -> None:
    async with StateStore.open(database_url) as store:
        await fill(store)
    before = contents(database_url)
    async with StateStore.open(database_url, payloads=K1) as store:
        await store.rekey(dry_run=True)
    assert contents(database_url) == before


async def test_payloads_without_a_digest_get_one(store: StateStore, database_url: str) -> None:
    await fill(store)
    execute(database_url, *(f"UPDATE {table} SET {column}_digest = NULL" for table, column in COLUMNS))
    assert (await store.rekey()).resealed == total(database_url)
    report = await store.verify()
    assert (report.intact, report.undigested) == (report.payloads, 0)


async def test_what_older_software_wrote_is_sealed_too_and_then_verified(database_url: str) -> None:
    async with StateStore.open(database_url) as store:
        await fill(store)
    execute(
        database_url,
        "UPDATE workflow_states SET updated_at = '2050-01-01T00:00:00+00:00'",
        "UPDATE workflow_states SET context = '{\"from\":\"older\"}' WHERE workflow_id = 'ended'",
    )
    async with StateStore.open(database_url, payloads=K1) as store:
        assert (await store.rekey()).is_complete
        report = await store.verify()
        assert (report.intact, report.unverified) == (report.payloads, 0)
    async with StateStore.open(database_url, payloads=encrypted("k1", strict=True)) as store:
        assert (await store.load_workflow_state_by_workflow_id("ended")).context["from"] == "older"


async def test_a_digest_that_older_software_left_behind_is_made_anew(store: StateStore, database_url: str) -> None:
    await fill(store)
    execute(
        database_url,
        "UPDATE workflow_states SET context = '{\"from\":\"older\"}', updated_at = '2050-01-01T00:00:00+00:00'"
        " WHERE workflow_id = 'waiting'",
    )
    assert (await store.rekey()).resealed == 1
    assert (await store.verify()).unverified == 0


async def test_what_does_not_open_is_told_and_stays_and_stops_nothing(database_url: str) -> None:
    async with StateStore.open(database_url, payloads=K1) as store:
        await fill(store)
    execute(database_url, "UPDATE signals SET payload = substr(payload, 1, 50)")
    before = stored(database_url)
    async with StateStore.open(database_url, payloads=K2) as store:
        report = await store.rekey()
    assert (report.failed, report.resealed) == (1, total(database_url) - 1)
    assert not report.is_complete
    [unreadable] = report.unreadable
    assert unreadable.error == "CorruptPayload"
    assert unreadable.identity.startswith("signals/")
    assert stored(database_url)["signals", "payload"] == before["signals", "payload"]


async def test_only_one_namespace_is_written(database_url: str) -> None:
    async with StateStore.open(database_url, namespace="other") as other:
        await fill(other)
    before = contents(database_url)
    async with StateStore.open(database_url, payloads=K1) as store:
        assert await store.rekey() == RekeyReport()
    assert contents(database_url) == before


# --- beside others ---


async def test_a_live_run_goes_on_and_keeps_its_lease(database_url: str) -> None:
    reached = Gate()

    async def handler(run: Run) -> Any:
        run.context["first"] = CANARY
        await run.step("before", lambda: CANARY)
        await run.step("during", reached)
        run.context["second"] = CANARY
        await run.step("after", lambda: CANARY)
        return dict(run.context)

    async with (
        StateStore.open(database_url, payloads=K1) as worker,
        StateStore.open(database_url, payloads=K2) as operator,
    ):
        live = asyncio.create_task(worker.run("live", handler, workflow_id="w", context={"note": CANARY}))
        await reached.reached.wait()
        before = await row_of(worker, "w")
        assert (await operator.rekey()).resealed > 0
        after = await row_of(worker, "w")
        assert (after.version, after.lease_token, after.updated_at) == (
            before.version,
            before.lease_token,
            before.updated_at,
        )
        reached.opened.set()
        assert await live == {"note": CANARY, "first": CANARY, "second": CANARY}
        await operator.rekey()
    async with StateStore.open(database_url, payloads=ONLY_K2) as store:
        assert (await store.load_workflow_state_by_workflow_id("w")).context["second"] == CANARY
        assert (await store.verify(load=True)).is_sound


async def test_runs_that_commit_all_the_time_lose_nothing(database_url: str) -> None:
    async def handler(run: Run) -> int:
        for number in range(15):
            run.context[f"k-{number}"] = number
            await run.step(f"s-{number}", lambda number: number, number)
        return len(run.context)

    async with (
        StateStore.open(database_url, payloads=K2) as worker,
        StateStore.open(database_url, payloads=K2) as operator,
    ):
        async with StateStore.open(database_url, payloads=K1) as older:
            for number in range(6):
                await older.start("busy", workflow_id=f"w-{number}", context={"note": CANARY})
        runs = asyncio.gather(*(worker.run("busy", handler, workflow_id=f"w-{number}") for number in range(6)))
        while not runs.done():
            await operator.rekey()
            await asyncio.sleep(0)
        assert await runs == [16] * 6
        assert (await operator.rekey()).is_complete
    async with StateStore.open(database_url, payloads=ONLY_K2) as store:
        assert (await store.verify(load=True)).is_sound
        for number in range(6):
            state = await store.load_workflow_state_by_workflow_id(f"w-{number}")
            assert [step.outputs for step in state.steps.values()] == list(range(15))


async def test_a_row_that_changed_since_it_was_read_is_left_for_the_next_pass(database_url: str) -> None:
    async with StateStore.open(database_url) as store:
        await store.save_workflow_state(WorkflowState(workflow_id="w", workflow_name="n", context={"is": "old"}))
    async with StateStore.open(database_url, payloads=K1) as store, StateStore.open(database_url) as other:
        with just_after(store, PAGE, changing(other), times=3):
            assert await store.rekey() == RekeyReport(resealed=1)
        assert (await store.load_workflow_state_by_workflow_id("w")).context == {"changes": 3}


async def test_what_changes_at_each_attempt_is_counted_as_left(database_url: str) -> None:
    async with StateStore.open(database_url, payloads=K1) as store, StateStore.open(database_url) as other:
        await other.save_workflow_state(WorkflowState(workflow_id="w", workflow_name="n", context={"changes": 0}))
        with just_after(store, PAGE, changing(other), times=10):
            report = await store.rekey()
        assert report == RekeyReport(left=1)
        assert not report.is_complete
        assert (await other.load_workflow_state_by_workflow_id("w")).context == {"changes": 10}


# In what reads a page to be sealed. Each pass reads two: the row, and then no more.
PAGE = "workflow_states.initial_context_digest"


def changing(other: StateStore) -> Callable[[], Awaitable[None]]:
    """The context, each time."""
    changes = itertools.count(1)

    async def change() -> None:
        state = await other.load_workflow_state_by_workflow_id("w")
        state.context = {"changes": next(changes)}
        await other.save_workflow_state(state)

    return change


async def test_a_row_that_somebody_has_locked_is_not_waited_for(postgres_url: str) -> None:
    async with StateStore.open(postgres_url) as store:
        await fill(store)
        run = await row_of(store, "ended")
        async with StateStore.open(postgres_url, payloads=K1) as operator, store._transactions.begin() as uow:
            await uow.runs.lock(run.id)
            report = await operator.rekey()
            assert report.left == 3  # context, initial_context, result
        async with StateStore.open(postgres_url, payloads=K1) as operator:
            assert await operator.rekey() == RekeyReport(current=report.resealed, resealed=3)


async def test_killed_at_any_moment_it_is_finished_by_the_next(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rekeying, "_BATCH", 3)
    async with StateStore.open(database_url) as store:
        await fill(store)
        expected = [await store.load_workflow_state_by_workflow_id(name) for name in ("ended", "failed", "waiting")]
    async with StateStore.open(database_url, payloads=K1) as store:
        turns = 0
        while True:
            task = asyncio.create_task(store.rekey())
            for _ in range(turns := turns + 1):
                await asyncio.sleep(0.001)
            if task.done():
                break
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            for state in expected:
                assert await store.load_workflow_state(state.id) == state
        assert task.result().is_complete
        assert turns > 1
        assert await store.rekey() == RekeyReport(current=total(database_url))
    assert all(text.startswith("~payload:aes-gcm=k1:") for text in texts(database_url))


async def _ended_before(_: Run) -> Any:
    raise AssertionError("a finished run does not run again")


async def _waits(run: Run) -> Any:
    return await run.wait_for("hello")


# --- blobs ---

LARGE = f"{CANARY} " * 200


def in_blobs(tmp_path: Path, *keys: str) -> Payloads:
    ring = KeyRing({key: key.encode().ljust(32) for key in keys}, keys[-1])
    return Payloads([AesGcm(ring)], blobs=WatchedBlobs(f"file://{tmp_path}/blobs", above=1000))


def blob_names(tmp_path: Path) -> set[str]:
    return {str(path.relative_to(tmp_path / "blobs")) for path in (tmp_path / "blobs").glob("*/*/*")}


async def large_run(store: StateStore, *, effect: Effect, abandons: bool = False) -> Any:
    async def handler(run: Run) -> Any:
        fetched = await run.step("a", effect, LARGE)
        run.context["large"] = LARGE * 2
        await run.step("b", lambda: 1)
        if abandons:
            vanish()
        return fetched

    return await store.run("n", handler, workflow_id="w", context={"large": LARGE})


async def test_blobs_are_encrypted_anew_and_the_old_ones_removed(database_url: str, tmp_path: Path) -> None:
    effect = Effect()
    async with StateStore.open(database_url, payloads=in_blobs(tmp_path, "k1")) as store:
        await large_run(store, effect=effect)
        state = await store.load_workflow_state_by_workflow_id("w")
        await store.collect_garbage(older_than=0)
    old = blob_names(tmp_path)
    async with StateStore.open(database_url, payloads=in_blobs(tmp_path, "k1", "k2")) as store:
        assert (await store.rekey(dry_run=True)).is_complete
        assert blob_names(tmp_path) == old
        report = await store.rekey()
        assert (report.is_complete, report.current) == (True, 0)
    new = blob_names(tmp_path)
    assert len(new) == len(old)
    assert not new & old
    for name in new:
        assert (tmp_path / "blobs" / name).read_text().startswith("~payload:aes-gcm=k2:")
    async with StateStore.open(database_url, payloads=in_blobs(tmp_path, "k2")) as store:
        assert (await store.verify(load=True)).is_sound
        assert await store.load_workflow_state(state.id) == state
        assert await large_run(store, effect=effect) == LARGE
        assert await store.rekey() == RekeyReport(current=report.resealed)
        assert await store.collect_garbage(older_than=0) == 0


async def test_a_run_that_is_resumed_while_its_blobs_are_encrypted_anew_is_not_damaged(
    database_url: str, tmp_path: Path
) -> None:
    """It has read its rows, and then the blobs that they refer to are gone."""
    effect, log = Effect(), Log()
    async with StateStore.open(database_url, payloads=in_blobs(tmp_path, "k1")) as store:
        with suppress(asyncio.CancelledError):
            await large_run(store, effect=effect, abandons=True)
    payloads, rekeyed = in_blobs(tmp_path, "k1", "k2"), list[RekeyReport]()
    assert isinstance(payloads.blobs, WatchedBlobs)

    async def rekey_first() -> None:
        if not rekeyed:
            rekeyed.append(RekeyReport())
            async with StateStore.open(database_url, payloads=in_blobs(tmp_path, "k1", "k2")) as operator:
                rekeyed[:] = [await operator.rekey()]

    payloads.blobs.before_reading = rekey_first
    async with StateStore.open(database_url, payloads=payloads, hook=log) as store:
        assert await large_run(store, effect=effect) == LARGE
    assert rekeyed[0].resealed
    assert (effect.calls, log.of(FellBack)) == ([LARGE], [])


@pytest.mark.parametrize("shared", ["meanwhile", "before"])
async def test_a_blob_that_two_columns_share_is_not_removed_from_under_one_of_them(
    database_url: str, tmp_path: Path, shared: str
) -> None:
    """The first context is kept by copying the reference."""
    state = WorkflowState(workflow_id="w", workflow_name="n", context={"large": LARGE})
    async with StateStore.open(database_url, payloads=in_blobs(tmp_path, "k1")) as store:
        await store.save_workflow_state(state)
    digest = "context_digest" if shared == "meanwhile" else "NULL"
    keep = f"UPDATE workflow_states SET initial_context = context, initial_context_digest = {digest}"
    keys = ("k1", "k2") if shared == "meanwhile" else ("k1",)

    async def copy() -> None:
        execute(database_url, keep)

    if shared == "before":
        await copy()
    async with StateStore.open(database_url, payloads=in_blobs(tmp_path, *keys)) as store:
        with just_after(store, PAGE, copy) if shared == "meanwhile" else nullcontext():
            assert (await store.rekey()).is_complete
    async with StateStore.open(database_url, payloads=in_blobs(tmp_path, keys[-1])) as store:
        assert (await store.verify(load=True)).is_sound
        assert (await store.load_workflow_state(state.id)).context == {"large": LARGE}
