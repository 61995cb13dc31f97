"""What a call has found is still so when it acts on it, whoever commits in between.

On Postgres: SQLite lets nobody in between two statements of a transaction.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from orchestrator_state import (
    AesGcm,
    BlobStore,
    CheckpointNotFound,
    Conflict,
    KeyRing,
    LeaseHeld,
    Payloads,
    Run,
    StateStore,
)
from orchestrator_state.encryption import new_key
from tests.support.interleaving import done_or_waiting, just_after, just_before
from tests.support.running import Effect, Gate, checkpoints_of, expire_lease, row_of
from tests.support.workflows import saved


class Stores(NamedTuple):
    """Three of one database."""

    one: StateStore
    other: StateStore
    onlooker: StateStore


@pytest.fixture
async def stores(postgres_url: str) -> AsyncIterator[Stores]:
    async with AsyncExitStack() as opened:
        yield Stores(*[await opened.enter_async_context(StateStore.open(postgres_url)) for _ in range(3)])


async def test_a_lease_that_its_late_owner_renews_at_that_moment_is_not_taken(stores: Stores) -> None:
    gate = Gate()

    async def waits(run: Run) -> Any:
        return await run.step("work", gate, "done")

    owned = asyncio.create_task(stores.other.run("n", waits, workflow_id="a"))
    await gate.reached.wait()
    await expire_lease(stores.onlooker, (await row_of(stores.onlooker, "a")).id)
    renew = stores.other._executor.keeper._renew
    with just_before(stores.one, "UPDATE workflow_states", renew), pytest.raises(LeaseHeld):
        await stores.one.run("n", one_step, workflow_id="a")
    gate.opened.set()
    assert await owned == "done"


async def test_a_run_that_is_deleted_while_it_is_started_again_leaves_its_id_to_the_new_one(stores: Stores) -> None:
    """By that id alone two that start it at the same time are told from two runs."""
    ids: list[UUID] = []

    async def start() -> None:
        ids.append((await stores.other.start("n", workflow_id="a")).id)

    async def forget() -> None:
        await delete(stores.other, ids[0])

    with (
        just_before(stores.one, "INSERT INTO workflow_states", start),
        just_before(stores.one, "SELECT workflow_states", forget, passing=1),
    ):
        started = await stores.one.start("n", workflow_id="a")
    assert started.id == ids[0]


async def test_a_run_of_another_name_in_the_place_of_a_deleted_one_is_not_claimed_for_it(
    stores: Stores,
) -> None:
    was = await stores.one.start("n", workflow_id="a")

    async def replace() -> None:
        await delete(stores.other, was.id)
        await stores.other.start("another", workflow_id="a")

    with just_before(stores.one, "UPDATE workflow_states", replace), pytest.raises(Conflict):
        await stores.one.run("n", one_step, workflow_id="a")
    assert (await row_of(stores.one, "a")).status == "pending"


async def test_checkpoints_that_are_pruned_while_a_run_is_rewound_leave_as_many_as_were_to_be_kept(
    stores: Stores,
) -> None:
    await stores.one.run("n", three_steps, workflow_id="a")
    oldest, *_ = await checkpoints_of(stores.one, "a")
    pruning: list[asyncio.Task[int]] = []

    async def prune() -> None:
        pruning.append(asyncio.create_task(stores.other.prune_checkpoints(keep=1)))
        await done_or_waiting(pruning[0], stores.onlooker)

    with just_before(stores.one, "UPDATE workflow_states", prune):  # the checkpoints after it are deleted by then
        await stores.one.rewind(oldest.id)
    await pruning[0]
    assert [checkpoint.id for checkpoint in await checkpoints_of(stores.one, "a")] == [oldest.id]


async def test_a_run_of_which_checkpoints_are_being_pruned_is_claimed_all_the_same(stores: Stores) -> None:
    state = await stores.one.start("n", workflow_id="a")
    async with stores.other.begin() as uow:
        await uow.checkpoints.prune(state.id, keep=1)
        report = await stores.one.recover({"n": three_steps})
    assert [run.workflow_id for run in report.completed] == ["a"]


async def test_a_failed_child_that_is_resumed_while_its_parent_is_cancelled_keeps_what_it_starts(
    stores: Stores,
) -> None:
    parent = await stores.one.start("n", workflow_id="parent")
    child, grandchild = uuid4(), uuid4()
    await create_child(stores.one, child, parent.id, status="failed")
    resuming: list[asyncio.Task[None]] = []

    async def go_on() -> None:
        await stores.other.resume(child)
        await create_child(stores.other, grandchild, child, status="pending")

    async def resume() -> None:
        resuming.append(asyncio.create_task(go_on()))
        await done_or_waiting(resuming[0], stores.onlooker)

    # Its parent's children are looked for, and asked; then theirs are looked for.
    with just_before(stores.one, "workflow_states.parent_id IN", resume, passing=2):
        await stores.one.cancel(parent.id)
    await resuming[0]
    statuses = [(await stores.one.load_workflow_state(run)).status for run in (parent.id, child, grandchild)]
    assert statuses == ["cancelled", "pending", "pending"]


@pytest.mark.parametrize("call", ["rewind", "fork"])
async def test_a_checkpoint_that_is_deleted_with_its_run_at_that_moment_is_not_found(stores: Stores, call: str) -> None:
    await stores.one.run("n", three_steps, workflow_id="a")
    row = await row_of(stores.one, "a")
    oldest, *_ = await checkpoints_of(stores.one, "a")

    async def forget() -> None:
        await delete(stores.other, row.id)

    with just_before(stores.one, "FOR UPDATE", forget), pytest.raises(CheckpointNotFound):
        await getattr(stores.one, call)(oldest.id)


async def test_a_start_that_finds_a_run_which_is_deleted_at_that_moment_makes_another(stores: Stores) -> None:
    await stores.one.run("n", one_step, workflow_id="a")
    row = await row_of(stores.one, "a")

    async def forget() -> None:
        await delete(stores.other, row.id)

    with just_after(stores.one, "SELECT workflow_states", forget):
        started = await stores.one.start("n", workflow_id="a")
    assert (started.status, started.version) == ("pending", 1)


async def test_a_state_that_is_rekeyed_while_a_block_reads_it_is_read_all_the_same(
    postgres_url: str, tmp_path: Path
) -> None:
    keys, blobs = {"old": new_key(), "new": new_key()}, BlobStore(f"file://{tmp_path}/blobs", above=1000)
    async with StateStore.open(postgres_url, payloads=Payloads([AesGcm(KeyRing(keys, "old"))], blobs=blobs)) as store:
        state = await saved(store, context={"large": "canary " * 300})
    payloads = Payloads([AesGcm(KeyRing(keys, "new"))], blobs=blobs)
    async with (
        StateStore.open(postgres_url, payloads=payloads) as one,
        StateStore.open(postgres_url, payloads=payloads) as other,
        one.begin() as uow,
    ):
        with just_after(one, "WITH wanted", other.rekey):
            assert (await uow.workflows.get(state.id)).context == state.context


# --- parts ---


async def one_step(run: Run) -> Any:
    return await run.step("work", Effect(), 1)


async def three_steps(run: Run) -> None:
    for number in range(3):
        await run.step(f"work {number}", Effect(), number)


async def delete(store: StateStore, workflow_state_id: UUID) -> None:
    async with store.begin() as uow:
        await uow.workflows.delete([workflow_state_id])


async def create_child(store: StateStore, child: UUID, parent: UUID, *, status: str) -> None:
    columns = {"id": child, "parent_id": parent, "workflow_id": str(child), "workflow_name": "n", "context": "{}"}
    async with store._transactions.begin() as uow:
        await uow.claims.create(columns | {"status": status})


# --- what contradicts itself, and nobody changes -----------------------------------------------------------------


async def test_a_start_that_another_unique_index_refuses_is_a_conflict(database_url: str) -> None:
    async with StateStore.open(database_url) as store, asyncio.timeout(60):
        async with store.begin() as uow:
            await uow.session.execute(text("CREATE UNIQUE INDEX of_the_application ON workflow_states (user_id)"))
        await store.start("n", workflow_id="a", user_id="somebody")
        with pytest.raises(Conflict, match="unique index"):
            await store.start("n", workflow_id="b", user_id="somebody")


async def test_a_signal_that_a_trigger_keeps_out_is_a_conflict(postgres_url: str) -> None:
    async with StateStore.open(postgres_url) as store, asyncio.timeout(60):
        run = await store.start("n", workflow_id="a")
        async with store.begin() as uow:
            body = "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
            await uow.session.execute(text(body))
            trigger = "CREATE TRIGGER keep BEFORE UPDATE ON workflow_states FOR EACH ROW EXECUTE FUNCTION keep()"
            await uow.session.execute(text(trigger))
        with pytest.raises(Conflict, match="trigger"):
            await store.signal(run.id, "go")
