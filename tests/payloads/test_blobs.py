"""Large payloads in a blob store: they come back, damage is found, nothing refers to what is not there."""

import asyncio
import logging
import os
import stat
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from orchestrator_state import (
    Checkpoint,
    CheckpointNotFound,
    ConfigurationError,
    CorruptPayload,
    PayloadTooLarge,
    Run,
    StaleVersion,
    StateStore,
    StepState,
    StoreUnavailable,
    UnitOfWork,
    UnknownCodec,
    WorkflowNotFound,
    WorkflowState,
)
from orchestrator_state.compression import Zstd
from orchestrator_state.encryption import AesGcm, KeyRing, new_key
from orchestrator_state.hooks import FellBack
from orchestrator_state.models import checkpoints, signals, step_states, workflow_states
from orchestrator_state.payloads import REFERENCE_MARKER, BlobName, BlobStore, Offload, Payloads, Reference
from orchestrator_state.runs.journal import checkpoints as cadence
from orchestrator_state.transactions import StoreUnit
from tests.support.cases import case
from tests.support.raw_sql import execute, fetch
from tests.support.running import Effect, Failing, Log, checkpoints_of, expire_lease, row_of, steps_of, vanish
from tests.support.watched_blobs import WatchedBlobs
from tests.support.workflows import LONG_AGO, a_workflow, checkpointed, saved

LARGE = "canary " * 300
ABOVE = 1000


class Place:
    """A blob store, and a look into it past the package."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.blobs = WatchedBlobs(url, above=ABOVE)

    def names(self) -> set[str]:
        return {name for name in self.blobs._find("") if "/" in name}

    def write(self, name: str, content: bytes) -> None:
        self.blobs._files.pipe_file(self.blobs._path(name), content)

    def read(self, name: str) -> bytes:
        content: bytes = self.blobs._files.cat_file(self.blobs._path(name))
        return content

    def remove(self, name: str) -> None:
        self.blobs._files.rm_file(self.blobs._path(name))

    def unmount(self) -> None:
        """Leave an empty directory, as there is below a volume."""
        root = Path(self.blobs._root)
        root.rename(root.with_name("unmounted"))
        root.mkdir()

    def mount(self) -> None:
        root = Path(self.blobs._root)
        root.rmdir()
        root.with_name("unmounted").rename(root)

    def directories(self) -> set[str]:
        """Of the workflows; empty for what has no directories."""
        root = Path(self.blobs._root)
        return {path.name for path in root.glob("*/*")} if self.url.startswith("file:") else set()


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(f"file://{tmp_path}/blobs" if request.param == "file" else f"memory://{uuid4()}")


@pytest.fixture
def on_disk(tmp_path: Path) -> Place:
    return Place(f"file://{tmp_path}/blobs")


@asynccontextmanager
async def opened(url: str, place: Place, *codecs: Any, **options: Any) -> AsyncIterator[StateStore]:
    async with StateStore.open(url, payloads=Payloads(codecs, blobs=place.blobs), **options) as store:
        yield store


@pytest.fixture
async def store(database_url: str, on_disk: Place) -> AsyncIterator[StateStore]:
    async with opened(database_url, on_disk) as store:
        yield store


def stored_references(url: str) -> set[str]:
    """The names of the blobs that any row refers to."""
    columns = [
        (table.name, column.name)
        for table in (workflow_states, step_states, checkpoints, signals)
        for column in table.c
        if f"{column.name}_digest" in table.c
    ]
    rows = [row for table, column in columns for row in fetch(url, f'SELECT "{column}" FROM "{table}"')]
    return {reference.name for reference in Reference.all_in(rows)}


def large_workflow(**fields: Any) -> WorkflowState:
    state = a_workflow("load", "split", context={"large": LARGE}, **fields)
    state.steps["load"].mark_completed({"outputs": LARGE})
    state.steps["split"].outputs = [LARGE, 1]
    return state


async def saved_large(store: StateStore, **fields: Any) -> WorkflowState:
    state = large_workflow(**fields)
    await store.save_workflow_state(state)
    return state


# --- round trips ---


async def test_large_payloads_of_a_state_come_back_and_are_not_in_the_rows(database_url: str, place: Place) -> None:
    async with opened(database_url, place) as store:
        state = large_workflow(status="failed", error=LARGE)
        await store.save_workflow_state(state)
        checkpoint = await checkpointed(store, state)
        assert await store.load_workflow_state(state.id) == state
        assert await store.load_workflow_state_by_workflow_id(state.workflow_id) == state
        assert await store.get_latest_checkpoint(state.id) == checkpoint
        assert await store.restore_from_checkpoint(checkpoint.id) == state
        async with store.begin() as uow:
            assert await uow.steps.get(state.id, "load") == state.steps["load"]
            assert await uow.steps.list(state.id) == list(state.steps.values())
            assert await uow.checkpoints.list(state.id) == [checkpoint]
    assert len(place.names()) == 5
    assert place.names() == stored_references(database_url)
    for table, column in [("workflow_states", "context"), ("step_states", "outputs"), ("checkpoints", "snapshot")]:
        assert all("canary" not in text for (text,) in fetch(database_url, f"SELECT {column} FROM {table}"))


async def test_what_is_changed_later_and_what_is_active_come_back(database_url: str, place: Place) -> None:
    async with opened(database_url, place) as store:
        state = await saved_large(store, status="running")
        state.context["more"] = LARGE
        state.steps["load"].outputs = "small"
        del state.steps["split"]
        await store.save_workflow_state(state)
        assert await store.list_active_workflows() == [state]
        assert len(stored_references(database_url)) == 1


async def test_only_what_is_longer_than_the_threshold_as_it_is_stored_is_moved(
    database_url: str, on_disk: Place
) -> None:
    async with opened(database_url, on_disk) as store:
        await saved(store, context="x" * (ABOVE - 2))
        assert not on_disk.names()
        await saved(store, context="x" * (ABOVE - 1))
        assert len(on_disk.names()) == 1
        await saved(store, context="é" * (ABOVE // 2))
        assert len(on_disk.names()) == 2
    async with opened(database_url, on_disk, Zstd()) as store:
        state = await saved(store, context=LARGE * 10)
        assert len(on_disk.names()) == 2
        assert await store.load_workflow_state(state.id) == state


async def handle(run: Run) -> Any:
    run.context["large"] = LARGE
    first = await run.step("first", Effect(), [LARGE])
    answer = await run.wait_for("answer")

    async def charge(session: AsyncSession) -> list[str]:
        return [LARGE, "charged"]

    run.context["first"] = LARGE
    charged = await run.transact("charge", charge)
    await run.checkpoint("by-hand")
    return [first, answer, charged]


RESULT = [[LARGE], {"ok": LARGE}, [LARGE, "charged"]]


async def test_a_run_keeps_its_large_payloads_in_blobs_and_is_resumed_from_them(
    database_url: str, place: Place
) -> None:
    crash = Failing(LookupError("the worker is gone"))

    async def handler(run: Run) -> Any:
        result = await handle(run)
        await run.step("crash", crash)
        assert run.context == {"given": LARGE, "large": LARGE, "first": LARGE}
        return result

    async with opened(database_url, place) as store:
        state = await store.start("n", workflow_id="w", context={"given": LARGE})
        await store.signal(state.id, "answer", {"ok": LARGE})
        with pytest.raises(LookupError):
            await store.run("n", handler, workflow_id="w")
    async with opened(database_url, place) as store:
        assert await store.run("n", handler, workflow_id="w") == RESULT
        assert await store.run("n", handler, workflow_id="w") == RESULT
        assert all("canary" not in str(step) for step in (await steps_of(store, "w")).values())
        assert "canary" not in str(await row_of(store, "w"))
        assert stored_references(database_url) <= place.names()


async def test_a_fork_and_a_rewind_have_blobs_of_their_own(database_url: str, place: Place) -> None:
    async def handler(run: Run) -> Any:
        run.context["large"] = LARGE
        await run.step("a", Effect(), LARGE)
        before = dict(run.context)
        run.context["larger"] = LARGE
        await run.step("b", Effect(), 1)
        return [before, run.context]

    async with opened(database_url, place) as store:
        expected = await store.run("n", handler, workflow_id="w", context={"given": LARGE})
        first, _ = await checkpoints_of(store, "w")
        fork = await store.fork(first.id, workflow_id="fork")
        of_fork = {name for name in place.names() if str(fork.id) in name}
        assert stored_references(database_url) <= place.names()
        await store.rewind(first.id)
        assert (await store.load_workflow_state(fork.id)).context == {"given": LARGE, "large": LARGE}
        assert await store.run("n", handler, workflow_id="fork") == expected
        assert await store.run("n", handler, workflow_id="w") == expected
        assert of_fork
        assert stored_references(database_url) <= place.names()


async def test_a_unit_of_work_on_the_callers_session_uploads_before_it_writes(
    database_url: str, on_disk: Place
) -> None:
    driver = database_url.replace("sqlite://", "sqlite+aiosqlite://").replace("postgresql://", "postgresql+asyncpg://")
    engine = create_async_engine(driver)
    try:
        async with opened(database_url, on_disk) as store, AsyncSession(engine) as session:
            uow = UnitOfWork(session, payloads=store.payloads)
            state = large_workflow()
            await uow.workflows.save(state)
            assert len(on_disk.names()) == 3
            assert await uow.workflows.get(state.id) == state
            await session.rollback()
            state = large_workflow()
            await uow.workflows.save(state)
            await session.commit()
            assert await store.load_workflow_state(state.id) == state
    finally:
        await engine.dispose()


async def test_a_small_limit_is_met_before_anything_is_uploaded(database_url: str, on_disk: Place) -> None:
    async with opened(database_url, on_disk, max_payload_bytes=1500) as store:
        with pytest.raises(PayloadTooLarge):
            await saved_large(store)
    assert not on_disk.names()


async def test_a_payload_in_a_blob_is_as_encrypted_as_one_in_a_row(database_url: str, on_disk: Place) -> None:
    keys = KeyRing({"a": new_key()}, "a")
    async with opened(database_url, on_disk, AesGcm(keys)) as store:
        state = await saved_large(store)
        assert on_disk.names()
        assert all(b"canary" not in on_disk.read(name) for name in on_disk.names())
        assert all(on_disk.read(name).startswith(b"~payload:aes-gcm=a:") for name in on_disk.names())
    payloads = Payloads([AesGcm(keys)], blobs=on_disk.blobs, strict=True)
    async with StateStore.open(database_url, payloads=payloads) as store:
        assert await store.load_workflow_state(state.id) == state


# --- damage ---


def damage_missing(place: Place, name: str) -> None:
    place.remove(name)


def damage_truncated(place: Place, name: str) -> None:
    place.write(name, place.read(name)[:-1])


def damage_flipped(place: Place, name: str) -> None:
    content = bytearray(place.read(name))
    content[len(content) // 2] ^= 1
    place.write(name, bytes(content))


def damage_binary(place: Place, name: str) -> None:
    place.write(name, b"\xff\xfe" * 100)


DAMAGES = [damage_missing, damage_truncated, damage_flipped, damage_binary]


@pytest.mark.parametrize("strict", [False, True])
async def test_a_damaged_blob_is_a_corrupt_payload(database_url: str, place: Place, strict: bool) -> None:
    codecs = [AesGcm(KeyRing({"a": new_key()}, "a"))] if strict else []
    async with StateStore.open(database_url, payloads=Payloads(codecs, blobs=place.blobs, strict=strict)) as store:
        for damage in DAMAGES:
            before = place.names()
            state = await saved(store, context=LARGE)
            [name] = place.names() - before
            damage(place, name)
            with case(damage.__name__), pytest.raises(CorruptPayload) as caught:
                await store.load_workflow_state(state.id)
            assert (caught.value.path, caught.value.about["workflow_state_id"]) == ("context", state.id)
            assert "canary" not in str(caught.value)


async def test_a_reference_in_another_row_does_not_open(database_url: str, store: StateStore) -> None:
    state = await saved_large(store)
    async with store.begin() as uow:
        query = select(step_states.c.outputs, step_states.c.outputs_digest).where(step_states.c.step_id == "load")
        outputs, digest = (await uow.session.execute(query)).one()
        await uow.session.execute(
            update(step_states).where(step_states.c.step_id == "split").values(outputs=outputs, outputs_digest=digest)
        )
    with pytest.raises(CorruptPayload):
        await store.load_workflow_state(state.id)


@pytest.mark.parametrize("digest", ["kept", "gone"])
@pytest.mark.parametrize("at", [len(REFERENCE_MARKER), -1])
async def test_a_damaged_reference_does_not_open(store: StateStore, digest: str, at: int) -> None:
    state = await saved(store, context=LARGE)
    async with store.begin() as uow:
        context = (await uow.session.execute(select(workflow_states.c.context))).scalar_one()
        flipped = list(context)
        flipped[at] = "0" if flipped[at] != "0" else "1"
        values = {"context": "".join(flipped)} | ({"context_digest": None} if digest == "gone" else {})
        await uow.session.execute(update(workflow_states).values(values))
    with pytest.raises(CorruptPayload):
        await store.load_workflow_state(state.id)


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_run_whose_blob_is_damaged_falls_back_to_its_checkpoint(
    database_url: str, on_disk: Place, damage: Any
) -> None:
    log, effect, last = Log(), Effect(), Failing(LookupError("not yet"))

    async def handler(run: Run) -> Any:
        return [await run.step("a", effect, LARGE), await run.step("b", last)]

    async with opened(database_url, on_disk, hook=log) as store:
        with pytest.raises(LookupError):
            await store.run("n", handler, workflow_id="w")
        reference = Reference.parse((await steps_of(store, "w"))["a"].outputs)
        assert reference is not None
        damage(on_disk, reference.name)
        assert await store.run("n", handler, workflow_id="w") == [LARGE, "done"]
        assert effect.calls == [LARGE]
        assert [event.step_ids for event in log.of(FellBack)] == [("a",)]


async def test_without_the_place_of_the_blobs_a_run_is_left_as_it_is(database_url: str, on_disk: Place) -> None:
    effect, last = Effect(), Failing(LookupError("not yet"))

    async def handler(run: Run) -> Any:
        return [await run.step("a", effect, LARGE), await run.step("b", last)]

    async with opened(database_url, on_disk) as store:
        with pytest.raises(LookupError):
            await store.run("n", handler, workflow_id="w")
        on_disk.unmount()
        before = await steps_of(store, "w")
        with pytest.raises(StoreUnavailable, match="not mounted"):
            await store.run("n", handler, workflow_id="w")
        assert await steps_of(store, "w") == before
        on_disk.mount()
        assert await store.run("n", handler, workflow_id="w") == [LARGE, "done"]
        assert effect.calls == [LARGE]


async def test_without_a_blob_store_a_reference_is_no_damage(database_url: str, store: StateStore) -> None:
    state = await saved_large(store)
    async with StateStore.open(database_url) as other:
        with pytest.raises(UnknownCodec) as caught:
            await other.load_workflow_state(state.id)
    assert caught.value.tag == "blob"


# --- uploads that fail, transactions that fail ---


class Full(BlobStore):
    """Its disk is full."""

    def _put(self, name: str, content: bytes) -> None:
        raise OSError(28, "No space left on device: canary-path")


async def test_what_cannot_be_uploaded_is_not_saved(database_url: str, tmp_path: Path) -> None:
    payloads = Payloads(blobs=Full(f"file://{tmp_path}/full", above=ABOVE))
    async with StateStore.open(database_url, payloads=payloads, retry_timeout=timedelta(seconds=0.3)) as store:
        state = large_workflow()
        with pytest.raises(StoreUnavailable) as caught:
            await store.save_workflow_state(state)
        assert "canary" not in str(caught.value)
        assert state.version == 0
        with pytest.raises(WorkflowNotFound):
            await store.load_workflow_state(state.id)

        async def handler(run: Run) -> Any:
            return await run.step("a", Effect(), LARGE)

        with pytest.raises(StoreUnavailable):
            await store.run("n", handler, workflow_id="w")
        assert await steps_of(store, "w") == {}


async def test_a_step_that_was_paid_for_outlasts_a_blob_store_that_is_away_for_a_moment(
    database_url: str, on_disk: Place
) -> None:
    effect = Effect()

    async def paid() -> Any:
        on_disk.unmount()
        asyncio.get_running_loop().call_later(1, on_disk.mount)
        return await effect(LARGE)

    async def handler(run: Run) -> Any:
        await run.step("first", Effect(), LARGE)
        return await run.step("paid", paid)

    async with opened(database_url, on_disk) as store:
        assert await store.run("n", handler, workflow_id="w") == LARGE
    assert effect.calls == [LARGE]


class Slow(BlobStore):
    over: threading.Event

    def _put(self, name: str, content: bytes) -> None:
        self.over.wait(60)


async def test_a_call_that_takes_too_long_is_unavailability(tmp_path: Path) -> None:
    slow = Slow(f"file://{tmp_path}/slow", timeout=timedelta(milliseconds=50))
    slow.over = threading.Event()
    try:
        with pytest.raises(StoreUnavailable, match="longer"):
            await slow.put("a", b"")
    finally:
        slow.over.set()


class Watched(BlobStore):
    """Calls back from where it writes."""

    store: StateStore
    loop: asyncio.AbstractEventLoop

    def _put(self, name: str, content: bytes) -> None:
        asyncio.run_coroutine_threadsafe(self.store.health_check(), self.loop).result(30)
        asyncio.run_coroutine_threadsafe(self._write_something(), self.loop).result(30)
        super()._put(name, content)

    async def _write_something(self) -> None:
        async with self.store.begin() as uow:
            await uow.workflows.save(a_workflow("x"))


async def test_no_connection_is_held_and_no_lock_while_a_blob_is_uploaded(database_url: str, tmp_path: Path) -> None:
    blobs = Watched(f"file://{tmp_path}/watched", above=ABOVE)
    async with (
        StateStore.open(database_url, pool_min=1, pool_max=1, payloads=Payloads(blobs=blobs)) as store,
        StateStore.open(database_url, payloads=Payloads(blobs=blobs)) as other,
    ):
        blobs.store, blobs.loop = store, asyncio.get_running_loop()
        state = await saved_large(store)
        await checkpointed(store, state)
        run = await store.start("n", workflow_id="w", context={"given": LARGE})
        await store.signal(run.id, "answer", {"ok": LARGE})

        async def handler(run: Run) -> Any:
            run.context["large"] = LARGE
            await run.step("a", Effect(), LARGE)
            return [LARGE, await run.wait_for("answer")]

        assert await store.run("n", handler, workflow_id="w") == [LARGE, {"ok": LARGE}]
        assert (await other.load_workflow_state_by_workflow_id("w")).context == {"given": LARGE, "large": LARGE}


async def test_a_transaction_that_is_refused_leaves_garbage_and_no_reference(
    database_url: str, on_disk: Place, store: StateStore
) -> None:
    state = await saved_large(store)
    stale = await store.load_workflow_state(state.id)
    state.context = "small"
    await store.save_workflow_state(state)
    stale.context = LARGE * 2
    with pytest.raises(StaleVersion):
        await store.save_workflow_state(stale)
    assert len(on_disk.names()) == 4
    assert await store.collect_garbage(older_than=0) == 2
    assert on_disk.names() == stored_references(database_url)
    assert await store.load_workflow_state(state.id) == state


async def test_a_worker_that_vanishes_after_each_upload_leaves_no_dangling_reference(
    database_url: str, on_disk: Place
) -> None:
    """The crash between blob and commit, at every upload of a run."""
    uploads, deadly = 0, 0

    async def count_and_vanish() -> None:
        nonlocal uploads
        uploads += 1
        if uploads == deadly:
            vanish()

    on_disk.blobs.after_writing = count_and_vanish

    async def handler(run: Run) -> Any:
        run.context["large"] = LARGE
        return [await run.step("a", Effect(), LARGE), await run.step("b", Effect(), [LARGE])]

    async with opened(database_url, on_disk) as store:
        vanished = True
        while vanished:
            vanished, uploads, deadly = False, 0, deadly + 1
            workflow_id = f"w{deadly}"
            try:
                await store.run("n", handler, workflow_id=workflow_id)
            except asyncio.CancelledError:
                vanished = True
                await expire_lease(store, (await row_of(store, workflow_id)).id)
            assert stored_references(database_url) <= on_disk.names()
            assert await store.run("n", handler, workflow_id=workflow_id) == [LARGE, [LARGE]]
        assert deadly > 4
        await store.collect_garbage(older_than=0)
        assert stored_references(database_url) == on_disk.names()
        assert await store.run("n", handler, workflow_id="w1") == [LARGE, [LARGE]]


# --- garbage ---


async def test_deleted_workflows_and_pruned_checkpoints_take_their_blobs_with_them(
    database_url: str, place: Place
) -> None:
    async with opened(database_url, place) as store:
        old = await saved_large(store, status="completed", updated_at=LONG_AGO)
        kept = await saved_large(store)
        for _ in range(3):
            await checkpointed(store, old)
            await checkpointed(store, kept)
        assert len(place.names()) == 12
        assert await store.cleanup_old_checkpoints(kept.id, keep=1) == 2
        assert len(place.names()) == 10
        assert await store.delete_old_states(older_than=LONG_AGO + timedelta(1)) == 1
        assert place.names() == stored_references(database_url)
        assert len(place.names()) == 4
        assert await store.load_workflow_state(kept.id) == kept
        assert str(old.id) not in place.directories()


async def test_a_runs_superseded_snapshots_are_removed_as_it_goes_on(database_url: str, on_disk: Place) -> None:
    async def handler(run: Run) -> None:
        for number in range(6):
            await run.step("a", Effect(), number)

    async with opened(database_url, on_disk, keep_checkpoints=2) as store:
        await store.run("n", handler, workflow_id="w", context={"given": LARGE})
        assert len(await checkpoints_of(store, "w")) == 2
        assert stored_references(database_url) <= on_disk.names()
        assert len(on_disk.names()) <= len(stored_references(database_url)) + 1  # the context, folded at the end


async def test_what_a_rolled_back_unit_deleted_stays(database_url: str, on_disk: Place, store: StateStore) -> None:
    state = await saved_large(store)
    await checkpointed(store, state)

    async def unit() -> None:
        async with store.begin() as uow:
            await uow.checkpoints.prune(state.id, keep=0)
            raise LookupError

    with pytest.raises(LookupError):
        await unit()
    assert len(on_disk.names()) == 4
    assert await store.get_latest_checkpoint(state.id)


async def test_what_a_try_deleted_that_was_repeated_stays(on_disk: Place, store: StateStore) -> None:
    state = await saved_large(store)
    checkpoint = await checkpointed(store, state)
    tries: list[None] = []

    async def delete_at_first(uow: StoreUnit) -> None:
        tries.append(None)
        if len(tries) == 1:
            await uow.checkpoints.prune(state.id, keep=0)
            raise StoreUnavailable("a deadlock", transient=True)

    await store._transactions.write(delete_at_first)
    assert await store.get_latest_checkpoint(state.id) == checkpoint


async def test_a_row_that_is_deleted_while_its_blob_is_read_is_not_found_rather_than_damaged(
    on_disk: Place, store: StateStore
) -> None:
    state = await saved(store)
    older = await checkpointed(store, state, snapshot=LARGE)
    newer = await checkpointed(store, state, snapshot=[LARGE])

    untouched = on_disk.blobs.before_reading

    async def prune() -> None:
        on_disk.blobs.before_reading = untouched  # pruning reads, too
        await store.cleanup_old_checkpoints(state.id, keep=1)

    on_disk.blobs.before_reading = prune
    with pytest.raises(CheckpointNotFound):
        await store._transactions.read(lambda uow: uow.checkpoints.get(older.id))
    assert await store.get_latest_checkpoint(state.id) == newer


async def test_what_is_deleted_and_written_again_in_one_unit_stays(store: StateStore) -> None:
    state = await saved_large(store)
    checkpoint = Checkpoint(workflow_state_id=state.id, step_id="load", snapshot=LARGE)
    async with store.begin() as uow:
        await uow.checkpoints.add(checkpoint)
        await uow.checkpoints.prune(state.id, keep=0)
        await uow.checkpoints.add(checkpoint)
    assert await store.get_latest_checkpoint(state.id) == checkpoint


async def test_only_old_unreferenced_blobs_of_the_namespace_are_garbage(database_url: str, place: Place) -> None:
    async with opened(database_url, place) as store, opened(database_url, place, namespace="b") as other:
        state, others = await saved_large(store), await saved_large(other)
        for owner, workflow in ((store, state), (other, others)):
            workflow.context = LARGE * 2
            await owner.save_workflow_state(workflow)
        assert len(place.names()) == 8
        place.write("default/notes.txt", b"somebody's own")
        assert await store.collect_garbage() == 0  # too young
        assert await store.collect_garbage(older_than=0) == 1
        assert await store.collect_garbage(older_than=0) == 0
        assert len(place.names()) == 8
        assert await store.load_workflow_state(state.id) == state
        assert await other.load_workflow_state(others.id) == others


async def test_a_blob_whose_row_has_not_committed_yet_is_not_garbage(on_disk: Place, store: StateStore) -> None:
    state = large_workflow()
    async with store.begin() as uow:
        await uow.workflows.save(state)
        assert len(on_disk.names()) == 3
        assert await store.collect_garbage() == 0
    assert await store.load_workflow_state(state.id) == state


async def test_the_first_context_of_a_run_is_not_garbage_once_another_has_replaced_it(
    database_url: str, on_disk: Place, store: StateStore
) -> None:
    last, seen = Failing(LookupError("not yet")), list[Any]()

    async def handler(run: Run) -> Any:
        seen.append(dict(run.context))
        run.context["large"] = 1
        await run.step("a", Effect(), 1)
        return await run.step("b", last)

    with pytest.raises(LookupError):
        await store.run("n", handler, workflow_id="w", context={"large": LARGE})
    await store.collect_garbage(older_than=0)
    assert await store.run("n", handler, workflow_id="w") == "done"
    assert seen == [{"large": LARGE}] * 2


async def test_collecting_while_others_write_removes_nothing_that_is_referred_to(
    database_url: str, on_disk: Place
) -> None:
    async with opened(database_url, on_disk) as store, opened(database_url, on_disk) as collector:

        async def write(number: int) -> WorkflowState:
            state = await saved_large(store, workflow_id=str(number))
            for _ in range(5):
                state.context = LARGE + str(_)
                await store.save_workflow_state(state)
            return state

        async def collect() -> None:
            while True:
                await collector.collect_garbage()
                await asyncio.sleep(0)

        collecting = asyncio.create_task(collect())
        states = await asyncio.gather(*map(write, range(8)))
        collecting.cancel()
        for state in states:
            assert await store.load_workflow_state(state.id) == state
        assert await collector.collect_garbage(older_than=0) == 8 * 5
        for state in states:
            assert await store.load_workflow_state(state.id) == state


class Stubborn(BlobStore):
    def _remove(self, name: str) -> None:
        raise PermissionError("canary-path")


async def test_a_blob_that_cannot_be_removed_is_left_with_a_warning(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    payloads = Payloads(blobs=Stubborn(f"file://{tmp_path}/stubborn", above=ABOVE))
    async with StateStore.open(database_url, payloads=payloads) as store:
        state = await saved_large(store)
        await checkpointed(store, state)
        with caplog.at_level(logging.WARNING, "orchestrator_state"):
            assert await store.cleanup_old_checkpoints(state.id, keep=0) == 1
        assert "garbage" in caplog.text
        assert "canary" not in caplog.text


async def test_without_a_blob_store_there_is_no_garbage(database_url: str) -> None:
    async with StateStore.open(database_url) as store:
        assert await store.collect_garbage(older_than=0) == 0


# --- the place itself ---


def test_a_place_that_cannot_be_opened_is_a_configuration_error_without_its_url() -> None:
    for url in ("nonsense://user:canary@host/x", "s3://canary/x"):
        with pytest.raises(ConfigurationError) as caught:
            BlobStore(url)
        assert "canary" not in str(caught.value)
    with pytest.raises(ConfigurationError):
        BlobStore("memory://x", above=0)
    assert "canary" not in repr(BlobStore("memory://canary"))


def test_each_namespace_has_a_directory_that_every_file_system_takes() -> None:
    assert BlobName.directory_of("team-1") == "team-1"
    others = [BlobName.directory_of(name) for name in ("..", "a/b", "Team-1", "é", "x" * 200, "")]
    assert len(set(others)) == len(others)
    assert all(name.isascii() and name.islower() and "/" not in name and "." not in name for name in others)


async def test_it_is_on_the_disk_before_the_row_refers_to_it(
    on_disk: Place, store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    await saved(store, context=LARGE)
    [name] = on_disk.names()
    path = Path(on_disk.blobs._path(name))
    assert {str(path), str(path.parent), str(path.parent.parent), on_disk.blobs._root} <= set(synced)


async def test_a_save_that_removes_a_large_step_uploads_what_is_new_once(
    database_url: str, on_disk: Place, store: StateStore
) -> None:
    state = await saved_large(store)
    del state.steps["load"]
    state.steps["more"] = StepState(step_id="more", outputs=LARGE)
    await store.save_workflow_state(state)
    assert on_disk.names() == stored_references(database_url)


async def test_verify_finds_a_blob_that_is_damaged(place: Place, database_url: str) -> None:
    async with opened(database_url, place) as store:
        state = await saved_large(store)
        assert (await store.verify(load=True)).is_sound
        references = await steps_of(store, state.workflow_id)
        reference = Reference.parse(references["load"].outputs)
        assert reference is not None
        content = place.read(reference.name)
        for damage in DAMAGES:
            damage(place, reference.name)
            report = await store.verify()
            assert (report.damaged, report.intact) == (1, report.payloads - 1)
            [found] = report.damage
            assert (found.table, found.column, found.step_id) == ("step_states", "outputs", "load")
            assert ("is not there" if damage is damage_missing else "digest") in found.reason
            assert "canary" not in repr(found)
            place.write(reference.name, content)
        assert (await store.verify()).is_sound


async def test_verify_takes_no_row_for_damaged_that_changed_while_its_blob_was_read(
    on_disk: Place, store: StateStore
) -> None:
    state = await saved_large(store)
    asked: list[None] = []

    async def change() -> None:
        asked.append(None)
        if len(asked) == 2:  # the first is the context
            state.steps.clear()
            await store.save_workflow_state(state)

    on_disk.blobs.before_reading = change
    assert (await store.verify()).is_sound
    assert len(asked) > 1


async def test_a_place_that_is_not_mounted_any_more_takes_nothing(on_disk: Place, store: StateStore) -> None:
    kept = await saved(store, context=LARGE)
    on_disk.unmount()
    with pytest.raises(StoreUnavailable, match="not mounted"):
        await saved(store, context=LARGE * 2)
    on_disk.mount()
    assert await store.load_workflow_state(kept.id) == kept
    await saved(store, context=LARGE * 3)


@pytest.mark.parametrize("change", ["by hand", "by older software"])
async def test_many_blobs_are_moved_together_and_before_the_transaction(
    database_url: str, store: StateStore, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(cadence, "_SMALL", -1)  # deltas only, which a change of the context makes whole
    monkeypatch.setattr(cadence, "_LEAST_ADDED", 10**9)

    async def handler(run: Run) -> None:
        for number in range(8):
            await run.step(f"step-{number}", Effect(), LARGE)
        vanish()

    with suppress(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    moved: list[bool] = []
    move = Offload.move

    async def note(self: Offload) -> None:
        moved.append(self.ahead)
        await move(self)

    if change == "by hand":
        state = await store.load_workflow_state_by_workflow_id("w")
        state.context = {"edited": True}
        monkeypatch.setattr(Offload, "move", note)
        await store.save_workflow_state(state)
        assert moved == [True, True]  # what the deltas refer to, and what they become
    else:
        execute(database_url, "UPDATE workflow_states SET updated_at = '2031-01-01T08:00:00.000000+00:00'")
        monkeypatch.setattr(Offload, "move", note)
        with suppress(asyncio.CancelledError):
            await store.run("n", handler, workflow_id="w")
        assert moved == [False, True]  # the steps are read, in no transaction, and written


def modes_below(directory: Path) -> dict[str, int]:
    return {str(place.relative_to(directory)): stat.S_IMODE(place.stat().st_mode) for place in directory.rglob("*")}


async def test_a_directory_of_blobs_is_its_owners_alone(tmp_path: Path) -> None:
    root = tmp_path / "new" / "place"
    before = os.umask(0o022)
    try:
        blobs = BlobStore(f"file://{root}", above=1)
        await blobs.put("name/space/blob", b"secret")
        assert await blobs.get("name/space/blob", max_bytes=100) == b"secret"
    finally:
        os.umask(before)
    found = modes_below(tmp_path)
    files = {name for name in found if name.endswith(("blob", ".txt"))}
    assert len(files) == 2
    assert {found[name] for name in files} == {0o600}
    assert {mode for name, mode in found.items() if name not in files} == {0o700}
