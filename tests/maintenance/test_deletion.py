"""`store.delete` on both databases: one run goes with its children, and no owner writes into what comes after it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select

from orchestrator_state import (
    BlobStore,
    ConfigurationError,
    Conflict,
    InvalidPayload,
    LeaseHeld,
    LeaseLost,
    Payloads,
    Run,
    StateStore,
    WorkflowNotFound,
)
from orchestrator_state.maintenance import retention
from orchestrator_state.models import workflow_states
from tests.support.fated_commits import FatedCommits
from tests.support.lost_answers import answer_lost
from tests.support.running import (
    Effect,
    Gate,
    Stubborn,
    becomes,
    change_row,
    count_rows,
    expire_lease,
    fetch,
    row_of,
    steps_of,
)
from tests.support.states import a_state

TABLES = ("workflow_states", "step_states", "checkpoints", "signals")


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[StateStore]:
    async with StateStore.open(database_url) as store:
        yield store


async def grandchild(run: Run) -> Any:
    return await run.step("deep", Effect())


async def child(run: Run) -> Any:
    await run.child("grandchild", grandchild)
    return await run.wait_for("go on")


async def parent(run: Run) -> Any:
    await run.step("first", Effect())
    return await run.child("child", child)


HANDLERS = {"parent": parent, "child": child, "grandchild": grandchild}


async def a_family(store: StateStore) -> Any:
    """The row of a parent whose child waits, with an unread signal."""
    state = await store.start("parent", workflow_id="w")
    await store.recover(HANDLERS)
    await store.signal(state.id, "nobody asks")
    return await row_of(store, "w")


async def all_rows(store: StateStore) -> dict[str, int]:
    return {table: await count_rows(store, table) for table in TABLES}


async def ids(store: StateStore) -> set[UUID]:
    return {row.id for row in await fetch(store, select(workflow_states.c.id))}


NOTHING = dict.fromkeys(TABLES, 0)


async def test_a_run_goes_with_all_its_descendants_and_all_that_hangs_on_them(store: StateStore) -> None:
    row = await a_family(store)
    assert all((await all_rows(store)).values())
    assert await store.delete(str(row.id)) == 3
    assert await all_rows(store) == NOTHING
    with pytest.raises(WorkflowNotFound):
        await store.delete(row.id)


async def test_other_runs_stay(store: StateStore) -> None:
    row = await a_family(store)
    await store.run("n", grandchild, workflow_id="v")
    await store.delete(row.id)
    assert await ids(store) == {(await row_of(store, "v")).id}
    assert list(await steps_of(store, "v")) == ["deep"]


@pytest.mark.parametrize("status", ["pending", "running", "paused", "completed", "failed", "cancelled"])
async def test_a_run_of_any_status_that_nobody_owns_is_deleted(store: StateStore, status: str) -> None:
    state = a_state()
    await store.save_workflow_state(state)
    await change_row(store, state.id, status=status)
    assert await store.delete(state.id) == 1
    assert await all_rows(store) == NOTHING


# --- owners ---


async def test_an_owned_run_is_refused_and_nothing_changes(store: StateStore, other: StateStore) -> None:
    gate = Gate()

    async def owned(run: Run) -> Any:
        return await run.step("first", gate, 1)

    task = asyncio.create_task(store.run("n", owned, workflow_id="w"))
    await gate.reached.wait()
    row = await row_of(store, "w")
    with pytest.raises(LeaseHeld) as held:
        await other.delete(row.id)
    assert (held.value.workflow_state_id, held.value.owner) == (row.id, row.lease_owner)
    assert await row_of(store, "w") == row
    gate.opened.set()
    assert await task == 1


async def test_a_run_whose_descendant_is_owned_is_refused(store: StateStore, other: StateStore) -> None:
    row = await a_family(store)
    [waiting] = await fetch(store, select(workflow_states).where(workflow_states.c.workflow_name == "child"))
    task = asyncio.create_task(store.run("child", child, workflow_id=waiting.workflow_id))
    await becomes(lambda row: row.lease_expires_at is not None, store, waiting.workflow_id)
    before = await all_rows(store)
    with pytest.raises(LeaseHeld) as held:
        await other.delete(row.id)
    assert held.value.workflow_state_id == waiting.id
    assert await all_rows(store) == before
    await store.delete(row.id, force=True)
    with pytest.raises(LeaseLost):
        await task
    assert await all_rows(store) == NOTHING


async def test_a_run_whose_owner_vanished_is_deleted(store: StateStore) -> None:
    gate = Gate()

    async def owned(run: Run) -> Any:
        return await run.step("first", gate, 1)

    task = asyncio.create_task(store.run("n", owned, workflow_id="w"))
    await gate.reached.wait()
    row = await row_of(store, "w")
    await expire_lease(store, row.id)
    assert await store.delete(row.id) == 1
    gate.opened.set()
    with pytest.raises(LeaseLost):
        await task
    assert await all_rows(store) == NOTHING


@pytest.mark.parametrize("deletes_here", [True, False])
@pytest.mark.parametrize("starts_here", [True, False])
async def test_the_owner_that_was_deleted_writes_nothing_into_a_new_run_of_the_same_name(
    store: StateStore, other: StateStore, deletes_here: bool, starts_here: bool
) -> None:
    step, gate = Stubborn(), Gate()

    async def hangs(run: Run) -> Any:
        return await run.step("first", step)

    async def works(run: Run) -> Any:
        return await run.step("first", gate, "of the new one")

    task = asyncio.create_task(store.run("n", hangs, workflow_id="w"))
    await step.reached.wait()
    old = await row_of(store, "w")
    assert await (store if deletes_here else other).delete(old.id, force=True) == 1
    starting = store if starts_here else other
    again = asyncio.create_task(starting.run("n", works, workflow_id="w"))
    await gate.reached.wait()
    new = await row_of(store, "w")
    assert (new.id, new.lease_token, new.version) == (old.id, old.lease_token, old.version)
    step.let_go.set()
    with pytest.raises(LeaseLost):
        await task
    assert (await row_of(store, "w"), await steps_of(store, "w")) == (new, {})
    gate.opened.set()
    assert await again == "of the new one"


async def test_a_start_that_a_worker_claims_is_as_safe(store: StateStore, other: StateStore) -> None:
    step, gate = Stubborn(), Gate()

    async def hangs(run: Run) -> Any:
        return await run.step("first", step)

    async def works(run: Run) -> Any:
        return await run.step("first", gate, "of the new one")

    await store.start("n", workflow_id="w")
    first = asyncio.create_task(store.recover({"n": hangs}))
    await step.reached.wait()
    old = await row_of(store, "w")
    await other.delete(old.id, force=True)
    await other.start("n", workflow_id="w")
    second = asyncio.create_task(store.recover({"n": works}))
    await gate.reached.wait()
    step.let_go.set()
    assert [run.outcome for run in (await first).runs] == ["lost"]
    gate.opened.set()
    assert [run.outcome for run in (await second).runs] == ["completed"]
    assert (await steps_of(store, "w"))["first"].outputs == '"of the new one"'


async def test_a_claim_and_a_deletion_at_the_same_time_leave_one_of_them(store: StateStore, other: StateStore) -> None:
    for number in range(10):
        state = await store.start("grandchild", workflow_id=f"w{number}")
        report, deleted = await asyncio.gather(
            store.recover({"grandchild": grandchild}), other.delete(state.id), return_exceptions=True
        )
        assert not isinstance(report, BaseException)
        if isinstance(deleted, LeaseHeld):
            assert [run.outcome for run in report.runs] == ["completed"]
            await other.delete(state.id)
        else:
            assert deleted == 1
            assert {run.outcome for run in report.runs} <= {"completed"}
    assert await all_rows(store) == NOTHING


# --- children ---


async def test_a_child_whose_parent_would_call_it_again_is_refused(store: StateStore) -> None:
    row = await a_family(store)
    [waiting] = await fetch(store, select(workflow_states).where(workflow_states.c.workflow_name == "child"))
    before = await all_rows(store)
    with pytest.raises(Conflict, match=f"run {waiting.id} is a child of run {row.id}, which is running"):
        await store.delete(waiting.id)
    assert await all_rows(store) == before


async def test_a_child_of_a_completed_parent_is_deleted_alone(store: StateStore) -> None:
    row = await a_family(store)
    [waiting] = await fetch(store, select(workflow_states).where(workflow_states.c.workflow_name == "child"))
    await store.signal(waiting.id, "go on")
    await store.recover(HANDLERS)
    await store.recover(HANDLERS)
    assert (await row_of(store, "w")).status == "completed"
    assert await store.delete(waiting.id) == 2
    assert await ids(store) == {row.id}


async def test_a_child_that_is_deleted_by_force_is_called_anew_by_a_parent_that_sleeps(store: StateStore) -> None:
    await a_family(store)
    [waiting] = await fetch(store, select(workflow_states).where(workflow_states.c.workflow_name == "child"))
    assert await store.delete(waiting.id, force=True) == 2
    await store.recover(HANDLERS)
    [again] = await fetch(store, select(workflow_states).where(workflow_states.c.workflow_name == "child"))
    assert again.id == waiting.id
    await store.signal(again.id, "go on", "yes")
    await store.recover(HANDLERS)
    await store.recover(HANDLERS)
    assert await store.run("parent", parent, workflow_id="w") == "yes"


async def test_a_child_that_is_deleted_by_force_is_called_anew_by_a_parent_that_waits_in_its_place(
    store: StateStore, other: StateStore
) -> None:
    gate = Gate()

    async def slow(run: Run) -> Any:
        await run.wait_for("go on")
        return await run.step("first", gate, "old")

    async def quick(run: Run) -> Any:
        return await run.step("first", Effect(), "new")

    async def calls(run: Run) -> Any:
        return await run.child("child", quick)

    await a_family(store)
    [waiting] = await fetch(store, select(workflow_states).where(workflow_states.c.workflow_name == "child"))
    await store.signal(waiting.id, "go on")
    theirs = asyncio.create_task(other.recover({"child": slow}))
    await gate.reached.wait()
    task = asyncio.create_task(store.run("parent", calls, workflow_id="w"))
    await becomes(lambda row: row.lease_expires_at is not None, store, "w")
    await other.delete(waiting.id, force=True)
    assert [run.outcome for run in (await theirs).runs] == ["lost"]
    assert await task == "new"


# --- what is refused, what is repeated ---


async def test_unknown_ids_those_of_another_namespace_and_odd_arguments_are_refused(
    database_url: str, store: StateStore
) -> None:
    row = await a_family(store)
    before = await all_rows(store)
    async with StateStore.open(database_url, namespace="tenant") as tenant:
        for force in (False, True):
            with pytest.raises(WorkflowNotFound):
                await tenant.delete(row.id, force=force)
    for force in (False, True):
        with pytest.raises(WorkflowNotFound):
            await store.delete(uuid4(), force=force)
    with pytest.raises(InvalidPayload, match="workflow_state_id is not a UUID"):
        await store.delete("'; DROP TABLE workflow_states; --")
    with pytest.raises(ConfigurationError, match="force must be True or False"):
        await store.delete(row.id, force="yes")  # type: ignore[arg-type]
    assert await all_rows(store) == before


async def test_a_row_of_another_namespace_that_says_it_is_a_child_stays(database_url: str, store: StateStore) -> None:
    row = await a_family(store)
    async with StateStore.open(database_url, namespace="tenant") as tenant:
        forged = await tenant.start("n", workflow_id="theirs")
        await change_row(tenant, forged.id, parent_id=row.id)
        await store.delete(row.id)
        assert await ids(tenant) == {forged.id}


async def test_rows_that_are_each_others_parents_go_together(store: StateStore) -> None:
    first, second = [await store.start("n", workflow_id=name) for name in ("a", "b")]
    await change_row(store, first.id, parent_id=second.id)
    await change_row(store, second.id, parent_id=first.id)
    assert await store.delete(first.id, force=True) == 2
    assert await all_rows(store) == NOTHING


async def test_a_lost_answer_is_a_deletion_all_the_same_and_spares_what_was_started_since(
    store: StateStore, other: StateStore
) -> None:
    row = await a_family(store)

    async def start_again() -> None:
        await other.run("parent", grandchild, workflow_id="w")

    with answer_lost(store, start_again):
        assert await store.delete(row.id) == 3
    assert (await row_of(store, "w")).status == "completed"


async def test_commits_that_are_refused_or_lost_leave_nothing_half_done(database_url: str, store: StateStore) -> None:
    row = await a_family(store)
    async with StateStore.open(database_url) as fated:
        commits = FatedCommits(fated)
        commits.fates.extend(["refused", "answer lost"])
        assert await fated.delete(row.id) == 3
    assert await all_rows(store) == NOTHING


async def test_what_is_too_much_for_one_transaction_is_cancelled_first_and_finished_by_a_second_call(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_ROWS", 10)
    monkeypatch.setattr("orchestrator_state.maintenance.erasure.let_others_in", _cut_off)
    state = await store.start("n", workflow_id="w")
    for number in range(30):
        await store.signal(state.id, "n", number)
    for left in (20, 10, 0):
        with pytest.raises(asyncio.CancelledError):
            await store.delete(state.id)
        assert await count_rows(store, "signals") == left
        assert (await row_of(store, "w")).status == "cancelled"
        assert (await store.recover({"n": grandchild})).runs == []
    assert await store.delete(state.id) == 1
    assert await all_rows(store) == NOTHING


async def _cut_off(_: Any) -> None:
    raise asyncio.CancelledError


# --- blobs ---


async def test_blobs_go_with_the_run_also_those_that_no_row_refers_to(database_url: str, tmp_path: Path) -> None:
    def files() -> list[Path]:
        return [path for path in (tmp_path / "blobs").rglob("*") if path.is_file() and len(path.parts[-1]) == 32]

    async def large(run: Run) -> str:
        run.context["text"] = "canary" * 500
        return await run.step("a", Effect(), "canary" * 400)

    blobs = BlobStore((tmp_path / "blobs").as_uri(), above=1000)
    async with StateStore.open(database_url, payloads=Payloads(blobs=blobs)) as store:
        await store.run("n", large, workflow_id="w")
        await store.run("n", large, workflow_id="v")
        row, kept = await row_of(store, "w"), await row_of(store, "v")
        mine = {path for path in files() if str(row.id) in str(path)}
        theirs = {path for path in files() if str(kept.id) in str(path)}
        assert len(mine) >= 2
        next(iter(mine)).with_name(next(iter(mine)).name[:-10] + "0123456789").write_text("left by a crash")
        async with StateStore.open(database_url) as without:
            with pytest.raises(ConfigurationError, match="are in a blob store"):
                await without.delete(row.id)
        assert await store.delete(row.id) == 1
        assert {*files()} == theirs
