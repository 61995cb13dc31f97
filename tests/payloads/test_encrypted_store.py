"""A store whose payloads are encrypted: nothing readable leaves it, and nothing else opens what it wrote."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID

import pytest
from sqlalchemy import select, update

from orchestrator_state import (
    Checkpoint,
    DecryptionFailed,
    PayloadError,
    Run,
    StateStore,
    StepState,
    UnknownCodec,
    UnprotectedPayload,
    WorkflowState,
)
from orchestrator_state.compression import Zstd
from orchestrator_state.encryption import AesGcm, KeyRing, new_key
from orchestrator_state.models import metadata, workflow_states
from orchestrator_state.payloads import Payloads
from orchestrator_state.payloads.digests import digest_of
from orchestrator_state.records import SignalPlace, checkpoint_identity, step_identity, workflow_identity
from tests.support.cases import case
from tests.support.damage import CONTEXT, ERROR, OUTPUTS, PLACES, RESULT, SIGNAL, SNAPSHOT, Place
from tests.support.postgres_server import Postgres
from tests.support.raw_sql import SQLITE
from tests.support.running import Effect, expire_lease, fetch, row_of, vanish

RING = KeyRing({"key-1": new_key()}, "key-1")
LATER = KeyRing({"key-2": new_key()}, "key-2")
IMPOSTOR = KeyRing({"key-1": new_key()}, "key-1")


def encrypted(ring: KeyRing = RING, *, strict: bool = False) -> Payloads:
    return Payloads([Zstd(threshold=1), AesGcm(ring)], strict=strict)


@pytest.fixture
async def vault(database_url: str) -> AsyncIterator[StateStore]:
    async with StateStore.open(database_url, payloads=encrypted()) as store:
        yield store


# --- nothing readable is stored ---


class Canaries:
    """Every payload holds one of its own, so that a leak tells where it comes from."""

    def __init__(self) -> None:
        self.all: list[str] = []

    def __call__(self, where: str) -> str:
        canary = f"canary-in-{where.replace(' ', '-')}-7f3a"
        if canary not in self.all:
            self.all.append(canary)
        return canary


class Life:
    """A handler that stores a payload in every way, and loses its worker once."""

    def __init__(self, canary: Canaries) -> None:
        self.canary = canary
        self.crashes = 1

    async def __call__(self, run: Run) -> Any:
        canary = self.canary
        run.context["set"] = canary("context")
        await run.step("load", Effect(), [canary("outputs")])
        run.append("log", canary("appended"))
        with suppress(LookupError):
            await run.step("fails", fail, canary)
        await run.transact("write", lambda _: asyncio.sleep(0, canary("transacted")))
        assert await run.child("child", self.child, context={"c": canary("child context")}) == canary("child result")
        await run.checkpoint("label")
        assert await run.wait_for("go") == canary("signal")
        await run.step("pay", Effect(), canary("intended"), on_unknown="raise")
        if self.crashes:
            self.crashes -= 1
            vanish()
        return canary("result")

    async def child(self, run: Run) -> str:
        await run.step("inner", Effect(), self.canary("child outputs"))
        return self.canary("child result")


async def live(store: StateStore, canary: Canaries) -> None:
    """A whole life: every call that writes a payload."""
    handler = Life(canary)
    await by_hand(store, canary)
    await store.start("n", workflow_id="run", context={"first": canary("first context")})
    row = await row_of(store, "run")
    await store.signal(row.id, "go", canary("signal"))
    await store.signal(row.id, "never consumed", canary("waiting signal"))
    await store.pause(row.id)
    await store.resume(row.id)
    with suppress(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="run")
    await expire_lease(store, row.id)
    assert len((await store.recover({"n": handler})).completed) == 1
    assert await store.run("n", handler, workflow_id="run") == canary("result")
    latest = await store.get_latest_checkpoint(row.id)
    assert latest is not None
    fork = await store.fork(latest.id, workflow_id="fork")
    assert await store.run("n", handler, workflow_id="fork") == canary("result")
    assert (await store.load_workflow_state(fork.id)).steps["load"].outputs == [canary("outputs")]
    await store.rewind(latest.id)
    await store.cancel(row.id)
    await store.cancel((await store.start("n", workflow_id="cancelled", context={"c": canary("cancelled")})).id)
    with pytest.raises(LookupError):
        await store.run("n", breaks(canary), workflow_id="breaks")

    async def asks(run: Run) -> None:
        await run.ask("anything", canary("prompt"), choices=[canary("choice")])

    await store.start("asks", workflow_id="asks", context={})
    await store.recover({"asks": asks})


def breaks(canary: Canaries) -> Callable[[Run], Awaitable[NoReturn]]:
    async def handler(_: Run) -> NoReturn:
        raise LookupError(canary("error of a run"))

    return handler


def fail(canary: Canaries) -> NoReturn:
    raise LookupError(canary("error of a step"))


async def by_hand(store: StateStore, canary: Canaries) -> None:
    state = WorkflowState(workflow_id="by hand", workflow_name="n", context=canary("saved context"))
    state.error = canary("saved error")
    state.steps["s"] = StepState(step_id="s", outputs=canary("saved outputs"), error=canary("saved step error"))
    await store.save_workflow_state(state)
    checkpoint = Checkpoint(workflow_state_id=state.id, step_id="s", snapshot=state.to_snapshot())
    await store.create_checkpoint(checkpoint)
    state.context = [canary("changed context")]
    await store.save_workflow_state(state)
    await store.save_workflow_state(await store.restore_from_checkpoint(checkpoint.id))
    state = await store.load_workflow_state(state.id)
    assert (state.context, state.error) == (canary("saved context"), canary("saved error"))
    assert state.steps["s"].outputs == canary("saved outputs")


def files_of(sqlite_url: str) -> bytes:
    path = Path(sqlite_url.removeprefix(SQLITE))
    return b"".join(file.read_bytes() for file in sorted(path.parent.glob(f"{path.name}*")))


@pytest.fixture
def raw(backend: str, database_url: str, postgres: Postgres) -> Callable[[], bytes]:
    """All that is stored: the files of SQLite, log included, or what pg_dump writes."""

    def dump() -> bytes:
        program = str(postgres.binaries / "pg_dump")
        return subprocess.run([program, "--dbname", database_url], check=True, stdout=subprocess.PIPE).stdout

    return dump if backend == "postgres" else lambda: files_of(database_url)


@pytest.mark.parametrize("protected", [True, False], ids=["encrypted", "plain"])
async def test_neither_the_files_nor_a_dump_hold_a_payload(
    database_url: str, raw: Callable[[], bytes], protected: bool
) -> None:
    """And without the codec they hold all, so the search does find what is there."""
    canary = Canaries()
    async with StateStore.open(database_url, payloads=encrypted() if protected else Payloads()) as store:
        await live(store, canary)
        open_still = raw()
    closed = raw()
    found = [text for text in canary.all if text.encode() in open_still + closed]
    if protected:
        assert found == []
    else:
        assert set(canary.all) - set(found) <= {canary("changed context")}, "which was changed back"
    assert b"by hand" in closed, "ids and names stay readable"
    assert len(canary.all) == 22


async def test_every_payload_of_a_life_is_an_envelope(vault: StateStore) -> None:
    await live(vault, Canaries())
    for table in metadata.tables.values():
        for column in table.columns:
            if f"{column.name}_digest" in table.columns:
                stored = [text for (text,) in await fetch(vault, select(column)) if text is not None]
                assert stored, column
                assert not [text for text in stored if "aes-gcm=key-1:" not in text[:40]], column


# --- other keys ---


class Steps:
    def __init__(self) -> None:
        self.effect = Effect()
        self.abandons = True

    async def __call__(self, run: Run) -> Any:
        run.context["n"] = 1
        await run.step("a", self.effect, "a")
        run.append("log", "b")
        await run.transact("b", lambda _: self.effect("b"))
        if self.abandons:
            vanish()
        child = await run.child("child", self.child)
        return [await run.wait_for("go"), child]

    async def child(self, run: Run) -> Any:
        return await run.step("inner", self.effect, "c")


@pytest.fixture
async def abandoned(vault: StateStore) -> UUID:
    """The id of a run that waits for a worker, and has its signal."""
    with suppress(asyncio.CancelledError):
        await vault.run("n", Steps(), workflow_id="w", context={"log": []})
    row = await row_of(vault, "w")
    await vault.signal(row.id, "go", "on")
    id_: UUID = row.id
    return id_


STRANGERS: dict[str, tuple[Payloads, type[PayloadError], dict[str, object]]] = {
    "a wrong key": (encrypted(IMPOSTOR), DecryptionFailed, {"key_id": "key-1"}),
    "an unknown key": (encrypted(LATER), DecryptionFailed, {"key_id": "key-1"}),
    "an unknown codec": (Payloads([Zstd()]), UnknownCodec, {"tag": "aes-gcm=key-1"}),
    "no codecs": (Payloads(), UnknownCodec, {}),
}


@pytest.mark.parametrize(("payloads", "kind", "about"), STRANGERS.values(), ids=STRANGERS)
async def test_a_run_that_cannot_be_read_is_left_for_whoever_has_the_key(
    database_url: str,
    vault: StateStore,
    abandoned: UUID,
    payloads: Payloads,
    kind: type[PayloadError],
    about: dict[str, object],
) -> None:
    handler = Steps()
    handler.abandons = False
    latest = await vault.get_latest_checkpoint(abandoned)
    assert latest is not None
    before = await vault.load_workflow_state(abandoned)
    async with StateStore.open(database_url, payloads=payloads) as stranger:
        for call in (
            stranger.load_workflow_state(abandoned),
            stranger.list_active_workflows(),
            stranger.restore_from_checkpoint(latest.id),
            stranger.fork(latest.id),
            stranger.rewind(latest.id),
            stranger.run("n", handler, workflow_id="w"),
        ):
            with pytest.raises(kind) as refused:
                await call
            assert type(refused.value) is kind
            assert {"workflow_state_id": abandoned, **about}.items() <= refused.value.about.items()
        await vault.resume(abandoned)
        async with stranger.begin() as uow:
            await uow.session.execute(update(workflow_states).values(wake_at=None))
        report = await stranger.recover({"n": handler})
        assert [(type(run.error), run.outcome) for run in report.runs] == [(kind, "interrupted")]
    after = await vault.load_workflow_state(abandoned)
    assert (after.status, after.context, after.steps) == ("running", before.context, before.steps)
    assert handler.effect.calls == []
    assert await vault.run("n", handler, workflow_id="w") == ["on", "c"]
    assert handler.effect.calls == ["c"]
    assert await vault.run("n", handler, workflow_id="w") == ["on", "c"]


async def test_a_signal_or_a_child_under_another_key_does_not_fail_the_run(
    database_url: str, vault: StateStore
) -> None:
    """A fleet in the middle of a change of keys: this worker has the old one only."""
    handler = Steps()
    handler.abandons = False
    both = encrypted(KeyRing({"key-2": LATER._keys["key-2"], "key-1": RING._keys["key-1"]}, "key-2"))
    with suppress(asyncio.CancelledError):
        await vault.run("n", Steps(), workflow_id="w", context={"log": []})
    row = await row_of(vault, "w")
    async with StateStore.open(database_url, payloads=both) as newer:
        await newer.signal(row.id, "go", "on")
        for _ in range(2):
            with pytest.raises(DecryptionFailed):
                await vault.run("n", handler, workflow_id="w")
            state = await vault.load_workflow_state(row.id)
            assert (state.status, state.error) == ("running", None)
            assert [str(step.status) for step in state.steps.values()] == ["completed"] * len(state.steps)
        assert await newer.run("n", handler, workflow_id="w") == ["on", "c"]
        with pytest.raises(DecryptionFailed):
            await vault.run("n", handler, workflow_id="w")
    assert handler.effect.calls == ["c"]


async def test_a_damaged_step_does_not_run_again_because_the_checkpoints_are_under_another_key(
    vault: StateStore, abandoned: UUID
) -> None:
    handler = Steps()
    handler.abandons = False
    await OUTPUTS.write(vault, abandoned, ("torn", "torn"))
    checkpoints = metadata.tables["checkpoints"]
    for (checkpoint_id,) in await fetch(vault, select(checkpoints.c.id)):
        sealed = encrypted(LATER).seal("{}", checkpoint_identity(abandoned, checkpoint_id))
        change = update(checkpoints).where(checkpoints.c.id == checkpoint_id)
        async with vault.begin() as uow:
            await uow.session.execute(change.values(snapshot=sealed.text, snapshot_digest=sealed.digest))
    with pytest.raises(DecryptionFailed):
        await vault.run("n", handler, workflow_id="w")
    assert handler.effect.calls == []
    assert (await row_of(vault, "w")).status == "running"


# --- moved ---


IDENTITIES: dict[Place, Callable[[UUID, UUID], str]] = {
    CONTEXT: lambda id_, _: workflow_identity(id_, "context"),
    ERROR: lambda id_, _: workflow_identity(id_, "error"),
    RESULT: lambda id_, _: workflow_identity(id_, "result"),
    OUTPUTS: lambda id_, _: step_identity(id_, "a", "outputs"),
    SNAPSHOT: checkpoint_identity,
    SIGNAL: lambda id_, own_id: SignalPlace(id_, own_id, "default", "go").identity,
}


async def test_a_ciphertext_moved_to_another_row_with_a_digest_made_for_it_does_not_open(vault: StateStore) -> None:
    """The digest is no secret: whoever may write to the table can make one."""
    for place in IDENTITIES:
        with case(place):
            await moved_to_another_row_it_does_not_open(vault, place)


async def moved_to_another_row_it_does_not_open(vault: StateStore, place: Place) -> None:
    async def handler(run: Run) -> Any:
        await run.step("a", Effect(), "outputs")
        return "result"

    ids = []
    names = [f"{place}: mine", f"{place}: other"]
    for name in names:
        await vault.run("n", handler, workflow_id=name)
        state = await vault.load_workflow_state_by_workflow_id(name)
        state.error = "error"
        await vault.save_workflow_state(state)
        await vault.cleanup_old_checkpoints(state.id, keep=1)
        ids.append(state.id)
        if place is SIGNAL:
            waiting = await vault.start("n", workflow_id=f"{name} waits")
            await vault.signal(waiting.id, "go", name)
            ids[-1] = waiting.id
    mine, other = ids
    key = metadata.tables[place.table.name].c
    row_id = mine
    if place in (SNAPSHOT, SIGNAL):
        [(row_id,)] = await fetch(vault, select(key.id).where(key.workflow_state_id == mine))
    stolen, _ = await place.read(vault, other)
    await place.write(vault, mine, (stolen, digest_of(stolen, IDENTITIES[place](mine, row_id))))

    reads: dict[Place, Callable[[], Awaitable[object]]] = {
        SIGNAL: lambda: vault.run("n", wait, workflow_id=f"{names[0]} waits"),
        SNAPSHOT: lambda: vault.get_latest_checkpoint(mine),
        RESULT: lambda: vault.run("n", handler, workflow_id=names[0]),
    }
    with pytest.raises(DecryptionFailed) as refused:
        await reads.get(place, lambda: vault.load_workflow_state(mine))()
    assert refused.value.about["workflow_state_id"] == mine


async def wait(run: Run) -> Any:
    return await run.wait_for("go")


# --- what was there before, and next to it ---


async def test_what_was_stored_before_stays_readable_unless_reading_is_strict(database_url: str) -> None:
    handler = Steps()
    async with StateStore.open(database_url) as plain:
        with suppress(asyncio.CancelledError):
            await plain.run("n", handler, workflow_id="w", context={"log": []})
        row = await row_of(plain, "w")
        await plain.signal(row.id, "go", "on")
        latest = await plain.get_latest_checkpoint(row.id)
        assert latest is not None
    handler.abandons = False
    handler.effect.calls.clear()
    async with StateStore.open(database_url, payloads=encrypted(strict=True)) as strict:
        for call in (
            strict.load_workflow_state(row.id),
            strict.list_active_workflows(),
            strict.restore_from_checkpoint(latest.id),
            strict.fork(latest.id),
            strict.run("n", handler, workflow_id="w"),
        ):
            with pytest.raises(UnprotectedPayload) as refused:
                await call
            assert refused.value.about["workflow_state_id"] == row.id
        assert handler.effect.calls == []
        new = WorkflowState(workflow_id="new", workflow_name="n", context="new")
        await strict.save_workflow_state(new)
        assert (await strict.load_workflow_state(new.id)).context == "new"
    async with StateStore.open(database_url, payloads=encrypted()) as vault:
        assert (await vault.load_workflow_state(row.id)).steps["a"].outputs == "a"
        assert await vault.run("n", handler, workflow_id="w") == ["on", "c"]
    assert handler.effect.calls == ["c"]


async def test_namespaces_with_keys_of_their_own_do_not_open_each_others_payloads(database_url: str) -> None:
    def open_store(namespace: str, ring: KeyRing) -> Any:
        return StateStore.open(database_url, namespace=namespace, payloads=encrypted(ring))

    rings = {name: RING.for_namespace(name) for name in ("one", "two")}
    states = {}
    for name, ring in rings.items():
        async with open_store(name, ring) as store:
            await store.run("n", steps_done, workflow_id="w", context={"of": name})
            states[name] = await store.load_workflow_state_by_workflow_id("w")
            assert states[name].context == {"of": name}
    async with open_store("one", rings["two"]) as intruder:
        with pytest.raises(DecryptionFailed):
            await intruder.load_workflow_state(states["one"].id)


async def steps_done(run: Run) -> Any:
    return await run.step("a", Effect(), "done")


async def test_an_envelope_cut_anywhere_and_digested_anew_is_refused(vault: StateStore) -> None:
    state = WorkflowState(workflow_id="w", workflow_name="n", context="short")
    await vault.save_workflow_state(state)
    whole, _ = await CONTEXT.read(vault, state.id)
    for end in range(len(whole)):
        cut = whole[:end]
        await CONTEXT.write(vault, state.id, (cut, digest_of(cut, workflow_identity(state.id, "context"))))
        with pytest.raises(PayloadError):
            await vault.load_workflow_state(state.id)


def test_no_place_is_left_out() -> None:
    assert set(IDENTITIES) < set(PLACES)
