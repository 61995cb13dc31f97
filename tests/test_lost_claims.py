"""A claim whose answer is lost: its repetition takes up what it claimed; else the next look does."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from orchestrator_state import Run, StateStore, StoreUnavailable, Worker
from tests.lost_answers import answer_lost
from tests.running import Effect, becomes, expire_lease, row_of, seconds


@pytest.fixture
async def near(database_url: str) -> AsyncIterator[StateStore]:
    """Another process's store on the same database, whose answers arrive."""
    async with StateStore.open(database_url) as store:
        yield store


async def handler(run: Run) -> Any:
    return await run.step("a", Effect(), "done")


async def test_recover_takes_up_what_it_claimed(store: StateStore, near: StateStore) -> None:
    for number in range(3):
        await near.start("n", workflow_id=f"w{number}")
    with answer_lost(store):
        report = await store.recover({"n": handler})
    assert sorted(run.workflow_id for run in report.completed) == ["w0", "w1", "w2"]
    assert {(await row_of(near, f"w{number}")).attempts for number in range(3)} == {0}


async def test_a_run_takes_up_what_it_created(store: StateStore) -> None:
    with answer_lost(store):
        assert await store.run("n", handler, workflow_id="w") == "done"
    row = await row_of(store, "w")
    assert (row.attempts, row.lease_token) == (0, 1)


async def test_a_run_takes_up_what_it_claimed(store: StateStore, near: StateStore) -> None:
    await near.start("n", workflow_id="w")
    with answer_lost(store):
        assert await store.run("n", handler, workflow_id="w") == "done"
    row = await row_of(store, "w")
    assert (row.attempts, row.lease_token) == (0, 1)


async def test_what_is_claimed_by_another_meanwhile_is_not_taken_up(store: StateStore, near: StateStore) -> None:
    """The lease of the first attempt ended before the repetition: the run is done by then."""
    state = await near.start("n", workflow_id="w")

    async def let_it_end() -> None:
        await expire_lease(near, state.id)
        assert (await near.recover({"n": handler})).completed

    with answer_lost(store, let_it_end):
        assert (await store.recover({"n": handler})).runs == []


def _refused(*_: Any) -> AbstractAsyncContextManager[None]:
    raise StoreUnavailable("the server is away", transient=True)


async def test_when_all_repetitions_fail_the_next_look_takes_the_run_up(
    database_url: str, near: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await near.start("n", workflow_id="w")
    async with StateStore.open(database_url, retry_timeout=seconds(0.2)) as store:
        database = store._transactions.database

        async def go_away() -> None:
            monkeypatch.setattr(database, "_session", _refused)

        with answer_lost(store, go_away), pytest.raises(StoreUnavailable) as raised:
            await store.recover({"n": handler})
        assert raised.value.outcome_unknown
        monkeypatch.undo()
        report = await store.recover({"n": handler})
    assert [run.workflow_id for run in report.completed] == ["w"]


async def test_a_worker_looks_for_it_as_soon_as_it_can(
    database_url: str, near: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not once the lease has ended, nor at its next look for the dead."""
    await near.start("n", workflow_id="w")
    async with StateStore.open(database_url, retry_timeout=seconds(0.2)) as store:
        database = store._transactions.database

        async def go_away() -> None:
            monkeypatch.setattr(database, "_session", _refused)

        worker = Worker(store, {"n": handler}, poll=0.1, handle_signals=False)
        with answer_lost(store, go_away):
            await worker._look_for_work()
        monkeypatch.undo()
        await worker._claim()
        await becomes(lambda row: row.status == "completed", near, "w")
        await worker._cancel_the_rest()
