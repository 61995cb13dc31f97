"""Clean-up on both databases never deletes a child run whose parent may call it again: a family goes together."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import insert, select

from orchestrator_state import DeletionProgress, Run, StateStore
from orchestrator_state.maintenance import retention
from orchestrator_state.models import workflow_states
from tests.support.running import Effect, change_row, fetch, row_of

TOMORROW = timedelta(days=1)


def the_future() -> datetime:
    return datetime.now(UTC) + TOMORROW


async def child(run: Run) -> Any:
    return await run.child("grandchild", grandchild) + await run.step("pay", pay, 7)


async def grandchild(run: Run) -> Any:
    return await run.step("pay", pay, 5)


async def parent(run: Run) -> Any:
    return await run.child("child", child)


pay = Effect()


@pytest.fixture(autouse=True)
def nothing_paid() -> None:
    pay.calls.clear()


async def whose_parent_forgot(store: StateStore, status: str) -> Any:
    """The row of a parent in `status` that has not recorded what its finished child returned."""
    await store.run("parent", parent, workflow_id="w")
    row = await row_of(store, "w")
    async with store.begin() as uow:
        state = await uow.workflows.get(row.id)
        state.steps.clear()
        await uow.workflows.save(state)
    await change_row(store, row.id, status=status, result=None, completed_at=None, lease_expires_at=None)
    return row


async def names(store: StateStore) -> set[str]:
    return {name for (name,) in await fetch(store, select(workflow_states.c.workflow_name))}


@pytest.mark.parametrize("status", ["pending", "running", "paused"])
async def test_a_finished_child_whose_parent_goes_on_is_kept_and_not_called_again(
    store: StateStore, status: str
) -> None:
    row = await whose_parent_forgot(store, status)
    told: list[DeletionProgress] = []
    assert await store.delete_old_states(the_future(), progress=told.append) == 1, "the grandchild's result is recorded"
    assert told[-1] == DeletionProgress(deleted=1, total=1)
    assert await names(store) == {"parent", "child"}
    await change_row(store, row.id, status="running")
    assert await store.run("parent", parent, workflow_id="w") == 12
    assert pay.calls == [5, 7]


async def test_a_failed_parent_that_is_too_young_keeps_its_child(store: StateStore) -> None:
    row = await whose_parent_forgot(store, "failed")
    cutoff = datetime.now(UTC)
    await change_row(store, row.id, updated_at=cutoff + TOMORROW)
    assert await store.delete_old_states(cutoff) == 1
    assert await names(store) == {"parent", "child"}


@pytest.mark.parametrize("status", ["failed", "cancelled"])
async def test_a_family_goes_with_its_eldest_in_one_transaction(
    store: StateStore, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_ROWS", 1)
    await whose_parent_forgot(store, status)
    told: list[int] = []
    async with store._transactions.begin() as uow:
        assert await uow.retention.count_finished(older_than=the_future()) == 3
    assert await store.delete_old_states(the_future(), progress=lambda progress: told.append(progress.deleted)) == 3
    assert 2 not in told, "the child without its parent"
    assert await names(store) == set()


async def test_a_unit_deletes_a_family_as_a_whole(store: StateStore) -> None:
    await whose_parent_forgot(store, "failed")
    async with store.begin() as uow:
        assert await uow.workflows.delete_finished(older_than=the_future(), limit=9) == 3
    assert await names(store) == set()


@pytest.mark.parametrize("generation", ["child", "grandchild"])
async def test_a_parent_stays_while_one_that_descends_from_it_lives(store: StateStore, generation: str) -> None:
    await store.run("parent", parent, workflow_id="w")
    [(living,)] = await fetch(store, select(workflow_states.c.id).where(workflow_states.c.workflow_name == generation))
    await change_row(store, living, status="pending")
    await store.delete_old_states(the_future())
    assert {"parent", generation} <= await names(store)
    await change_row(store, living, status="cancelled")
    await store.delete_old_states(the_future())
    assert await names(store) == set()


async def test_families_that_have_to_stay_do_not_stand_in_the_way_of_others(store: StateStore) -> None:
    """They are the eldest, and as many as are looked at together."""
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    statuses = {"parent": "failed", "child": "completed", "grandchild": "paused"}
    rows: list[dict[str, Any]] = []
    for _ in range(200):
        above = None
        for name, status in statuses.items():
            row = {"id": uuid4(), "workflow_id": name, "workflow_name": name, "status": status, "context": "{}"}
            rows.append(row | {"started_at": long_ago, "updated_at": long_ago, "parent_id": above})
            above = row["id"]
    async with store.begin() as uow:
        await uow.session.execute(insert(workflow_states), rows)
    for number in range(3):
        await store.run("other", grandchild, workflow_id=f"other-{number}")
    assert await store.delete_old_states(the_future()) == 3
    assert await names(store) == {*statuses}


async def test_families_whose_members_are_found_one_by_one_do_not_end_a_deletion_early(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A completed parent and its child are two rows of a page, and one family."""
    monkeypatch.setattr(retention, "_WORKFLOWS", 3)
    for number in range(5):
        await store.run("parent", parent, workflow_id=f"w{number}")
    assert await store.delete_old_states(older_than=the_future()) == 15
    assert await names(store) == set()


async def test_however_many_are_kept_by_their_children_the_others_are_found(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_WORKFLOWS", 2)
    for number in range(4):
        await store.run("parent", parent, workflow_id=f"w{number}")
        children = [run for run in await store.list_runs(name="grandchild") if run.status == "completed"]
        await change_row(store, children[0].id, status="running", completed_at=None)
    await store.run("grandchild", grandchild, workflow_id="alone")
    assert await store.delete_old_states(older_than=the_future()) == 1
    assert len(await names(store)) == 3
