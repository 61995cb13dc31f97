"""`store.erase` on both databases: everything of one user goes and nothing else, and a dry run counts the same."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from orchestrator_state import (
    BlobStore,
    ConfigurationError,
    EraseReport,
    InvalidPayload,
    LeaseLost,
    Payloads,
    Run,
    StateStore,
    StoreUnavailable,
)
from orchestrator_state.maintenance import erasure
from orchestrator_state.models import workflow_states
from tests.support.fated_commits import FatedCommits
from tests.support.raw_sql import fetch as raw
from tests.support.running import Effect, Gate, change_row, count_rows, fetch, row_of
from tests.support.states import a_state

ANN = "Ann%_'\";--\N{SNOWMAN}"
HANGING = {"steps": "step_states", "checkpoints": "checkpoints", "signals": "signals"}
NONE = EraseReport(workflows=0, steps=0, checkpoints=0, signals=0, blobs=0, owned=())


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[StateStore]:
    async with StateStore.open(database_url) as store:
        yield store


async def child(run: Run) -> Any:
    return await run.wait_for("go on")


async def parent(run: Run) -> Any:
    await run.step("first", Effect(), "canary of " + str(run.user_id))
    return await run.child("child", child)


HANDLERS = {"parent": parent, "child": child}


async def runs_of(store: StateStore, user: str | None, *names: str) -> list[UUID]:
    """Of each name a parent and a child that waits, with a signal."""
    started = [await store.start("parent", workflow_id=name, user_id=user) for name in names]
    await store.recover(HANDLERS)
    for state in started:
        await store.signal(state.id, "unread", "canary")
    return [state.id for state in started]


async def users(store: StateStore) -> list[str | None]:
    return [row.user_id for row in await fetch(store, select(workflow_states.c.user_id).order_by("user_id"))]


async def test_everything_of_a_user_goes_and_nothing_of_another(store: StateStore) -> None:
    await runs_of(store, ANN, "a", "b")
    by_hand = a_state("by hand")
    by_hand.user_id = ANN
    await store.save_workflow_state(by_hand)
    counts = {kind: await count_rows(store, table) for kind, table in HANGING.items()}
    assert all(counts.values())
    await runs_of(store, "Bob", "c")
    await runs_of(store, None, "d")
    expected = EraseReport(workflows=5, blobs=0, owned=(), **counts)
    before = await users(store), await count_rows(store, "requests")
    assert await store.erase(user_id=ANN, dry_run=True) == expected
    assert (await users(store), await count_rows(store, "requests")) == before
    assert await store.erase(user_id=ANN) == expected
    assert sorted(map(str, await users(store))) == ["Bob", "Bob", "None", "None"]
    assert await count_rows(store, "signals") == 2
    assert await store.erase(user_id=ANN) == await store.erase(user_id=ANN, dry_run=True) == NONE


async def test_no_text_of_the_user_is_left_in_any_table(database_url: str, store: StateStore) -> None:
    await runs_of(store, ANN, "a")
    await store.erase(user_id=ANN)
    for table in ("workflow_states", *HANGING.values()):
        assert raw(database_url, f"SELECT * FROM {table}") == []
    assert "Ann" not in str(raw(database_url, "SELECT * FROM requests"))


async def test_another_namespace_is_not_touched(database_url: str, store: StateStore) -> None:
    async with StateStore.open(database_url, namespace="tenant") as tenant:
        await runs_of(tenant, ANN, "a")
        assert await store.erase(user_id=ANN, force=True) == NONE
        assert await users(tenant) == [ANN, ANN]


@pytest.mark.parametrize("force", [False, True])
async def test_a_run_with_a_live_owner_is_left_with_its_family_and_named(
    store: StateStore, other: StateStore, force: bool
) -> None:
    gate = Gate()

    async def owned(run: Run) -> Any:
        return await run.step("first", gate, 1)

    async def calls(run: Run) -> Any:
        return await run.child("owned", owned)

    task = asyncio.create_task(store.run("n", calls, workflow_id="owned", user_id=ANN))
    await gate.reached.wait()
    running = {row.id for row in await fetch(store, select(workflow_states.c.id))}
    await runs_of(store, ANN, "a")
    dry = await other.erase(user_id=ANN, dry_run=True, force=force)
    report = await other.erase(user_id=ANN, force=force)
    assert report == dry
    assert (report.workflows, set(report.owned)) == ((4, set()) if force else (2, running))
    assert {row.id for row in await fetch(store, select(workflow_states.c.id))} == (set() if force else running)
    gate.opened.set()
    if force:
        with pytest.raises(LeaseLost):
            await task
        assert await users(store) == []
    else:
        assert await task == 1
        assert (await other.erase(user_id=ANN)).workflows == 2


async def test_a_child_of_an_owned_run_is_left_with_it(store: StateStore, other: StateStore) -> None:
    gate = Gate()

    async def calls(run: Run) -> Any:
        return [await run.child("child", child), await run.step("last", gate)]

    state = await store.start("n", workflow_id="w", user_id=ANN)
    await store.recover({"n": calls, "child": child})
    waiting = next(row for row in await fetch(store, select(workflow_states)) if row.parent_id == state.id)
    await store.signal(waiting.id, "go on")
    task = asyncio.create_task(store.run("n", calls, workflow_id="w", user_id=ANN))
    await gate.reached.wait()
    assert await other.erase(user_id=ANN) == replace(NONE, owned=(state.id,))
    gate.opened.set()
    await task
    assert len(await users(store)) == 2


async def test_a_child_whose_parent_is_somebody_elses_goes_alone(store: StateStore) -> None:
    [bobs] = await runs_of(store, "Bob", "b")
    waiting = next(row for row in await fetch(store, select(workflow_states)) if row.parent_id == bobs)
    await change_row(store, waiting.id, user_id=ANN)
    assert (await store.erase(user_id=ANN)).workflows == 1
    assert [run.workflow_state_id for run in (await store.recover(HANDLERS)).runs if run.name == "parent"] == [bobs]
    assert len(await users(store)) == 2


async def test_rows_that_are_each_others_parents_go_too(store: StateStore) -> None:
    first, second = [await store.start("n", workflow_id=name, user_id=ANN) for name in ("a", "b")]
    await change_row(store, first.id, parent_id=second.id)
    await change_row(store, second.id, parent_id=first.id)
    assert (await store.erase(user_id=ANN, dry_run=True)).workflows == 2
    assert (await store.erase(user_id=ANN)).workflows == 2
    assert await users(store) == []


@pytest.mark.parametrize("user", ["", " " * 0, None, 7, b"Ann", "A" * 256, "A\0", "\ud800"])
async def test_what_is_no_user_is_refused(store: StateStore, user: Any) -> None:
    await runs_of(store, None, "a")
    with pytest.raises(InvalidPayload, match="user_id"):
        await store.erase(user_id=user)
    assert len(await users(store)) == 2


async def test_odd_flags_are_refused(store: StateStore) -> None:
    with pytest.raises(ConfigurationError, match="dry_run must be True or False"):
        await store.erase(user_id=ANN, dry_run="yes")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="force must be True or False"):
        await store.erase(user_id=ANN, force=None)  # type: ignore[arg-type]


# --- interrupted and repeated ---


async def test_it_goes_page_by_page_and_is_finished_by_a_second_call(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure, "_FAMILIES", 2)
    monkeypatch.setattr(erasure, "_LISTED", 3)
    await runs_of(store, ANN, *"abcdefg")
    calls = 0
    once = erasure.Erasure._once

    async def cut_off(self: Any, work: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise asyncio.CancelledError
        return await once(self, work)

    with monkeypatch.context() as patched:
        patched.setattr(erasure.Erasure, "_once", cut_off)
        with pytest.raises(asyncio.CancelledError):
            await store.erase(user_id=ANN)
    left = len(await users(store))
    assert 0 < left < 14
    assert (await store.erase(user_id=ANN)).workflows == left
    assert await users(store) == []


@pytest.mark.parametrize("fates", [["refused"], ["answer lost"], ["refused", "answer lost", "answer lost"]])
async def test_commits_that_are_refused_or_whose_answers_are_lost_are_counted_once(
    database_url: str, store: StateStore, fates: Any
) -> None:
    await runs_of(store, ANN, "a", "b")
    expected = await store.erase(user_id=ANN, dry_run=True)
    async with StateStore.open(database_url) as fated:
        commits = FatedCommits(fated)
        commits.fates.extend(fates)
        assert await fated.erase(user_id=ANN) == expected
        assert commits.faults == len(fates)
    assert await users(store) == []


async def test_two_at_the_same_time_delete_each_run_once(store: StateStore, other: StateStore) -> None:
    await runs_of(store, ANN, *"abcdef")
    reports = await asyncio.gather(store.erase(user_id=ANN), other.erase(user_id=ANN))
    assert sum(report.workflows for report in reports) == 12
    assert await users(store) == []


# --- blobs ---


class Blobs:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = BlobStore(directory.as_uri(), above=1000)

    def files(self) -> set[Path]:
        return {path for path in self.directory.rglob("*") if path.is_file() and len(path.name) == 32}


async def large(run: Run) -> str:
    run.context["text"] = "canary" * 500
    return await run.step("a", Effect(), "canary" * 400)


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs")


async def test_blobs_go_with_the_rows_and_are_counted(database_url: str, blobs: Blobs) -> None:
    async with StateStore.open(database_url, payloads=Payloads(blobs=blobs.store)) as store:
        await store.run("n", large, workflow_id="b", user_id="Bob")
        kept = blobs.files()
        await store.run("n", large, workflow_id="a", user_id=ANN)
        mine = blobs.files() - kept
        some = next(iter(mine))
        some.with_name(some.name[:-10] + "0123456789").write_text("of a row that was written over")
        dry = await store.erase(user_id=ANN, dry_run=True)
        assert (dry.workflows, dry.blobs) == (1, len(mine) + 1)
        assert await store.erase(user_id=ANN) == dry
        assert blobs.files() == kept
        assert await store.run("n", large, workflow_id="b") == "canary" * 400


async def test_without_the_blob_store_nothing_is_erased(database_url: str, blobs: Blobs) -> None:
    async with (
        StateStore.open(database_url, payloads=Payloads(blobs=blobs.store)) as store,
        StateStore.open(database_url) as without,
    ):
        await store.run("n", large, workflow_id="a", user_id=ANN)
        for dry_run in (True, False):
            with pytest.raises(ConfigurationError, match="open the store with it"):
                await without.erase(user_id=ANN, dry_run=dry_run)
        assert await users(store) == [ANN]


async def test_where_the_blob_store_is_away_the_rows_stay_and_a_second_call_finishes(
    database_url: str, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any) -> None:
        raise StoreUnavailable("the blob store is away, for the test")

    async with StateStore.open(database_url, payloads=Payloads(blobs=blobs.store)) as store:
        await store.run("n", large, workflow_id="a", user_id=ANN)
        with monkeypatch.context() as patched:
            patched.setattr(BlobStore, "remove", away)
            with pytest.raises(StoreUnavailable):
                await store.erase(user_id=ANN)
        assert (await row_of(store, "a")).user_id == ANN
        assert (await store.erase(user_id=ANN)).workflows == 1
        assert blobs.files() == set()
        assert await users(store) == []
