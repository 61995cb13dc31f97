"""Whoever can write to the tables, or knows an id, changes nothing but rows of their own."""

from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state import Run, StateStore, UnprotectedPayload, WorkflowState
from orchestrator_state.compression import Zstd
from orchestrator_state.errors import CorruptPayload, DecryptionFailed, LeaseHeld, LeaseLost, PayloadTooLarge
from orchestrator_state.models import signals, step_states, workflow_states
from orchestrator_state.payloads import BlobStore, Payloads
from orchestrator_state.payloads.digests import digest_of
from orchestrator_state.records import SignalPlace, workflow_identity
from tests.support.payload_samples import encrypted
from tests.support.running import change_row, change_step, fetch, row_of, steps_of
from tests.support.watched_blobs import WatchedBlobs

LARGE = "x" * 5_000


async def screened(run: Run) -> object:
    return await run.step("screen", lambda: {"blocked": True})


async def waiting(run: Run) -> object:
    await run.step("screen", lambda: {"blocked": True})
    return await run.wait_for("go")


# --- deleting by id --------------------------------------------------------------------------------------------------


async def test_a_deletion_by_id_leaves_other_namespaces_alone(store: StateStore, database_url: str) -> None:
    mine, theirs = (WorkflowState(workflow_id="w", workflow_name="n") for _ in range(2))
    await store.save_workflow_state(mine)
    async with StateStore.open(database_url, namespace="theirs") as neighbour:
        await neighbour.save_workflow_state(theirs)
        async with store.begin() as uow:
            await uow.workflows.delete([mine.id, theirs.id])
        assert (await neighbour.load_workflow_state(theirs.id)).id == theirs.id
    assert await fetch(store, select(workflow_states.c.id)) == [(theirs.id,)]


async def test_a_run_that_a_worker_owns_is_not_deleted(store: StateStore) -> None:
    async def deletes_itself(run: Run) -> None:
        with pytest.raises(LeaseHeld):
            async with store.begin() as uow:
                await uow.workflows.delete([run.id])
        await run.step("goes on", lambda: None)

    await store.run("n", deletes_itself, workflow_id="w", context={})
    assert (await store.load_workflow_state_by_workflow_id("w")).status == "completed"


# --- a version that somebody else has moved on -----------------------------------------------------------------------


async def moved_on(session: AsyncSession) -> None:
    await session.execute(update(workflow_states).values(version=workflow_states.c.version + 1))


async def test_a_step_is_not_acknowledged_because_somebody_has_moved_the_version_on(store: StateStore) -> None:
    calls: list[str] = []

    async def interfered_with() -> str:
        calls.append("called")
        if len(calls) == 1:
            async with store.begin() as uow:
                await moved_on(uow.session)
        return "done"

    async def handler(run: Run) -> str:
        return await run.step("s", interfered_with)

    with pytest.raises(LeaseLost):
        await store.run("n", handler, workflow_id="w", context={})
    assert await store.run("n", handler, workflow_id="w") == "done"
    assert list(await steps_of(store, "w")) == ["s"]


async def test_a_transaction_that_moves_the_version_on_leaves_no_rows_without_its_step(store: StateStore) -> None:
    async def own_sql(session: AsyncSession) -> None:
        await session.execute(text("INSERT INTO ledger VALUES (1)"))
        await moved_on(session)

    async def handler(run: Run) -> None:
        await run.transact("t", own_sql)

    async with store.begin() as uow:
        await uow.session.execute(text("CREATE TABLE ledger (n INTEGER)"))
    with pytest.raises(LeaseLost):
        await store.run("n", handler, workflow_id="w", context={})
    assert await fetch(store, text("SELECT n FROM ledger")) == []
    assert await steps_of(store, "w") == {}


# --- ids that somebody else has guessed ------------------------------------------------------------------------------


async def parent(run: Run) -> object:
    return await run.child("child", screened)


async def ids_of(url: str, namespace: str) -> dict[str, UUID]:
    """What a parent and its child are given for ids, by name."""
    async with StateStore.open(url, namespace=namespace) as store:
        await store.run("parent", parent, workflow_id="w", context={})
        query = select(workflow_states.c.workflow_name, workflow_states.c.id)
        ids = {row.workflow_name: row.id for row in await fetch(store, query)}
        async with store.begin() as uow:
            await uow.workflows.delete([*ids.values()])
    return ids


@pytest.mark.parametrize("taken", ["parent", "child"])
async def test_an_id_that_a_neighbour_has_taken_fails_nobody(database_url: str, store: StateStore, taken: str) -> None:
    ids = await ids_of(database_url, "default")
    squatter = WorkflowState(id=ids[taken], workflow_id="squatter", workflow_name="n")
    async with StateStore.open(database_url, namespace="neighbour") as neighbour:
        await neighbour.save_workflow_state(squatter)
        assert await store.run("parent", parent, workflow_id="w", context={}) == {"blocked": True}
        assert await store.run("parent", parent, workflow_id="w") == {"blocked": True}
        assert (await neighbour.load_workflow_state(squatter.id)).version == 1
    assert len(await fetch(store, select(workflow_states.c.id))) == 3


async def test_a_child_is_found_again_when_the_neighbour_that_had_its_id_is_gone(
    database_url: str, store: StateStore
) -> None:
    called: list[str] = []

    async def child(run: Run) -> object:
        await run.step("effect", lambda: called.append("child"))
        return await run.wait_for("go")

    async def handler(run: Run) -> object:
        return await run.child("child", child)

    ids = await ids_of(database_url, "default")
    async with StateStore.open(database_url, namespace="neighbour") as neighbour:
        squatter = WorkflowState(id=ids["child"], workflow_id="squatter", workflow_name="n")
        await neighbour.save_workflow_state(squatter)
        await store.start("parent", workflow_id="w", context={})
        handlers = {"parent": handler, "child": child}
        await store.recover(handlers)
        async with neighbour.begin() as uow:
            await uow.workflows.delete([squatter.id])
        query = select(workflow_states.c.id).where(workflow_states.c.workflow_name == "child")
        ((child_id,),) = await fetch(store, query)
        await store.signal(child_id, "go", "on")
        await store.recover(handlers)
        assert await store.run("parent", handler, workflow_id="w") == "on"
    assert called == ["child"]


# --- NULL in the place of what was sealed ----------------------------------------------------------------------------


async def test_a_result_that_was_replaced_by_null_is_unprotected(database_url: str) -> None:
    async with StateStore.open(database_url, payloads=encrypted("k", strict=True)) as store:
        await store.run("n", screened, workflow_id="w", context={})
        await change_row(store, (await row_of(store, "w")).id, result=None, result_digest=None)
        with pytest.raises(UnprotectedPayload) as refused:
            await store.run("n", screened, workflow_id="w")
        assert refused.value.about["path"] == "result"


async def test_outputs_that_were_replaced_by_null_are_unprotected(database_url: str) -> None:
    async with StateStore.open(database_url, payloads=encrypted("k", strict=True)) as store:
        run_id = (await store.start("n", workflow_id="w", context={})).id
        await store.recover({"n": waiting})
        await change_step(store, run_id, "screen", outputs=None, outputs_digest=None)
        with pytest.raises(UnprotectedPayload) as refused:
            await store.load_workflow_state(run_id)
        assert refused.value.about["step_id"] == "screen"
        assert not (await store.verify(load=True)).is_sound


async def test_null_beside_its_digest_is_not_taken_for_what_older_software_wrote(database_url: str) -> None:
    async def handler(run: Run) -> object:
        return [await run.step("screen", lambda: "clean"), await run.wait_for("go")]

    async with StateStore.open(database_url, payloads=encrypted("k", strict=True)) as store:
        run_id = (await store.start("n", workflow_id="w", context={})).id
        await store.recover({"n": handler})
        await change_step(store, run_id, "screen", outputs=None)
        await change_row(store, run_id, digested_at=None)
        with pytest.raises(CorruptPayload):
            await store.load_workflow_state(run_id)
        await store.signal(run_id, "go", "on")
        assert await store.run("n", handler, workflow_id="w") == ["clean", "on"]
        await change_row(store, run_id, result=None, digested_at=None)
        with pytest.raises(CorruptPayload):
            await store.run("n", handler, workflow_id="w")


@pytest.mark.parametrize("status", ["completed", "skipped"])
async def test_a_forged_step_skips_nothing(database_url: str, status: str) -> None:
    called: list[str] = []

    async def handler(run: Run) -> object:
        return await run.step("screen", lambda: called.append("screen"))

    async with StateStore.open(database_url, payloads=encrypted("k", strict=True)) as store:
        run_id = (await store.start("n", workflow_id="w", context={})).id
        async with store.begin() as uow:
            forged = {"workflow_state_id": run_id, "step_id": "screen", "status": status, "position": 0}
            await uow.session.execute(step_states.insert().values(forged))
        with pytest.raises(UnprotectedPayload):
            await store.run("n", handler, workflow_id="w")
        assert called == []


async def test_without_strict_reading_null_is_none_as_it_was(store: StateStore) -> None:
    await store.run("n", screened, workflow_id="w", context={})
    await change_row(store, (await row_of(store, "w")).id, result=None, result_digest=None)
    assert await store.run("n", screened, workflow_id="w") is None


# --- signals ---------------------------------------------------------------------------------------------------------


async def approved(run: Run) -> object:
    return await run.wait_for("approved")


@pytest.mark.parametrize("strict", [False, True])
async def test_a_signal_that_was_renamed_does_not_open(database_url: str, strict: bool) -> None:
    async with StateStore.open(database_url, payloads=encrypted("k", strict=strict)) as store:
        run_id = (await store.start("n", workflow_id="w", context={})).id
        await store.signal(run_id, "asked", {"ok": True})
        async with store.begin() as uow:
            await uow.session.execute(signals.update().values(name="approved"))
        with pytest.raises(DecryptionFailed) as refused:
            await store.run("n", approved, workflow_id="w")
        assert refused.value.about["workflow_state_id"] == run_id


async def of_older_software(store: StateStore, run_id: UUID) -> None:
    """Store the one signal as it was stored before it was bound to its name."""
    ((signal_id,),) = await fetch(store, select(signals.c.id))
    sealed = store.payloads.seal('"yes"', SignalPlace(run_id, signal_id, "", "").identity)
    async with store.begin() as uow:
        columns = {"payload": sealed.text, "payload_digest": sealed.digest}
        await uow.session.execute(signals.update().values(columns))


async def test_a_signal_that_older_software_has_encrypted_is_delivered(database_url: str) -> None:
    async with StateStore.open(database_url, payloads=encrypted("k")) as store:
        run_id = (await store.start("n", workflow_id="w", context={})).id
        await store.signal(run_id, "approved")
        await of_older_software(store, run_id)
        assert await store.run("n", approved, workflow_id="w") == "yes"


async def test_strict_reading_takes_such_a_signal_once_it_is_rekeyed(database_url: str) -> None:
    async with StateStore.open(database_url, payloads=encrypted("k", strict=True)) as store:
        run_id = (await store.start("n", workflow_id="w", context={})).id
        await store.signal(run_id, "approved")
        await of_older_software(store, run_id)
        with pytest.raises(DecryptionFailed):
            await store.run("n", approved, workflow_id="w")
        report = await store.rekey()
        assert (report.resealed, report.failed) == (1, 0)
        assert (await store.rekey()).resealed == 0
        await change_row(store, run_id, wake_at=None)
        assert await store.run("n", approved, workflow_id="w") == "yes"


# --- references to blobs ---------------------------------------------------------------------------------------------


def blobs_in(place: Path) -> set[Path]:
    return {path for path in place.rglob("*") if path.is_file() and path.parent != place}


async def large_state(store: StateStore, name: str) -> UUID:
    state = WorkflowState(workflow_id=name, workflow_name="n", context=[name, LARGE])
    await store.save_workflow_state(state)
    return state.id


@pytest.mark.parametrize("namespace", ["default", "theirs"])
async def test_a_forged_reference_opens_no_other_blob_and_removes_none(
    database_url: str, tmp_path: Path, namespace: str
) -> None:
    payloads = Payloads(blobs=BlobStore(f"file://{tmp_path}/blobs", above=1_000))
    async with (
        StateStore.open(database_url, payloads=payloads) as store,
        StateStore.open(database_url, payloads=payloads, namespace=namespace) as owner,
    ):
        victim, forger = await large_state(owner, "victim"), await large_state(store, "forger")
        (stolen,) = await fetch(
            owner,
            select(workflow_states.c.context, workflow_states.c.context_digest).where(workflow_states.c.id == victim),
        )
        await change_row(store, forger, context=stolen[0], context_digest=stolen[1])
        with pytest.raises(CorruptPayload):
            await store.load_workflow_state(forger)
        async with store.begin() as uow:
            await uow.workflows.delete([forger])
        assert (await owner.load_workflow_state(victim)).context == ["victim", LARGE]


async def test_a_forged_reference_within_a_workflow_does_not_remove_what_another_row_refers_to(
    database_url: str, tmp_path: Path
) -> None:
    payloads = Payloads(blobs=BlobStore(f"file://{tmp_path}/blobs", above=1_000))
    async with StateStore.open(database_url, payloads=payloads) as store:
        state = WorkflowState(workflow_id="w", workflow_name="n", context=LARGE)
        await store.save_workflow_state(state)
        ((reference,),) = await fetch(store, select(workflow_states.c.context))
        async with store.begin() as uow:
            forged = {"workflow_state_id": state.id, "step_id": "a", "status": "completed", "outputs": reference}
            await uow.session.execute(step_states.insert().values(forged))
            await uow.steps._delete(step_states.delete())
        assert (await store.load_workflow_state(state.id)).context == LARGE


async def test_no_more_of_a_blob_is_read_than_was_written(database_url: str, tmp_path: Path) -> None:
    blobs = WatchedBlobs(f"file://{tmp_path}/blobs", above=1_000)
    async with StateStore.open(database_url, payloads=Payloads(blobs=blobs)) as store:
        state_id = await large_state(store, "w")
        (blob,) = blobs_in(tmp_path / "blobs")
        written = blob.stat().st_size
        blob.write_bytes(blob.read_bytes() + b" " * 1_000_000)
        with pytest.raises(CorruptPayload):
            await store.load_workflow_state(state_id)
        assert max(blobs.lengths) == written + 1


async def test_a_blob_whose_name_has_no_length_is_read_up_to_the_limit(database_url: str, tmp_path: Path) -> None:
    """Older software made such names."""
    payloads = Payloads(blobs=BlobStore(f"file://{tmp_path}/blobs", above=1_000))
    async with StateStore.open(database_url, payloads=payloads) as store:
        state_id = await large_state(store, "w")
        (blob,) = blobs_in(tmp_path / "blobs")
        older = blob.with_name("0" + blob.name[1:])
        blob.rename(older)
        ((reference,),) = await fetch(store, select(workflow_states.c.context))
        renamed = reference.replace(blob.name, older.name)
        digest = digest_of(renamed, workflow_identity(state_id, "context"))
        await change_row(store, state_id, context=renamed, context_digest=digest)
        assert (await store.load_workflow_state(state_id)).context == ["w", LARGE]


# --- what opens to more than it is -----------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1_100_000, 60_000_000])
async def test_a_compressed_payload_opens_to_no_more_than_a_payload_may_have(database_url: str, length: int) -> None:
    async with StateStore.open(database_url, payloads=Payloads([Zstd()]), max_payload_bytes=70_000_000) as generous:
        state = WorkflowState(workflow_id="w", workflow_name="n", context="x" * length)
        await generous.save_workflow_state(state)
    async with StateStore.open(database_url, payloads=Payloads([Zstd()]), max_payload_bytes=1_000_000) as store:
        with pytest.raises(PayloadTooLarge) as refused:
            await store.load_workflow_state(state.id)
        assert refused.value.about["workflow_state_id"] == state.id
