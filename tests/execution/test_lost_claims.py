"""A claim whose answer is lost: its repetition takes up what it claimed; else the next look does."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from orchestrator_state import Run, StateStore, StoreUnavailable, Worker
from tests.support.absences import absence_of
from tests.support.interleaving import just_before
from tests.support.lost_answers import answer_lost
from tests.support.running import Effect, becomes, change_row, expire_lease, row_of, seconds


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


async def test_when_all_repetitions_fail_the_next_look_takes_the_run_up(database_url: str, near: StateStore) -> None:
    await near.start("n", workflow_id="w")
    async with StateStore.open(database_url, retry_timeout=seconds(0.2)) as store:
        with (
            absence_of(store) as absence,
            answer_lost(store, absence.begin),
            pytest.raises(StoreUnavailable) as raised,
        ):
            await store.recover({"n": handler})
        assert raised.value.outcome_unknown
        report = await store.recover({"n": handler})
    assert [run.workflow_id for run in report.completed] == ["w"]


async def test_a_worker_looks_for_it_as_soon_as_it_can(database_url: str, near: StateStore) -> None:
    """And not once the lease has ended, nor at its next look for the dead."""
    await near.start("n", workflow_id="w")
    async with StateStore.open(database_url, retry_timeout=seconds(0.2)) as store:
        worker = Worker(store, {"n": handler}, poll=0.1, handle_signals=False)
        with absence_of(store) as absence, answer_lost(store, absence.begin):
            await worker._look_for_work()
        await worker._claim()
        await becomes(lambda row: row.status == "completed", near, "w")
        await worker._cancel_the_rest()


async def test_a_parent_takes_up_a_child_whose_claim_was_cancelled(database_url: str) -> None:
    """And does not wait until the lease ends, which nobody renews."""

    async def parent(run: Run) -> Any:
        return await run.child("part", handler)

    async with StateStore.open(database_url, lease_term=seconds(3600)) as store, asyncio.timeout(60):
        running = asyncio.create_task(store.run("n", parent, workflow_id="w"))

        async def cancel() -> None:
            running.cancel()

        with answer_lost(store, cancel, commit=2), pytest.raises(asyncio.CancelledError):
            await running
        child = await row_of(store, f"{(await row_of(store, 'w')).id}/child:part")
        assert (child.status, child.lease_token) == ("running", 1)
        assert await store.run("n", parent, workflow_id="w") == "done"


# --- a claim that is cancelled ---


async def cancelled_at_the_commit(store: StateStore, work: Coroutine[Any, Any, object], number: int) -> None:
    """Cancel `work` once its COMMIT of that number has taken effect, and before it hears of it."""
    task = asyncio.create_task(work)

    async def cancel() -> None:
        task.cancel()

    with answer_lost(store, cancel, commit=number, is_late=True), pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("is_new", [True, False])
async def test_a_run_whose_call_is_cancelled_while_it_is_claimed_is_let_go_of(
    store: StateStore, near: StateStore, is_new: bool
) -> None:
    if not is_new:
        await near.start("n", workflow_id="w")
    await cancelled_at_the_commit(store, store.run("n", handler, workflow_id="w"), 1)
    row = await row_of(near, "w")
    assert (row.status, row.lease_expires_at, row.attempts) == ("running", None, 0)
    assert await near.run("n", handler, workflow_id="w") == "done"


async def test_runs_that_are_claimed_while_recover_is_cancelled_are_let_go_of(
    store: StateStore, near: StateStore
) -> None:
    for number in range(3):
        await near.start("n", workflow_id=f"w{number}")
    await cancelled_at_the_commit(store, store.recover({"n": handler}), 1)
    assert [(await row_of(near, f"w{number}")).lease_expires_at for number in range(3)] == [None] * 3
    assert len((await near.recover({"n": handler})).completed) == 3


async def test_a_child_that_is_started_while_its_parent_is_cancelled_is_let_go_of(
    store: StateStore, near: StateStore
) -> None:
    async def parent(run: Run) -> Any:
        return await run.child("n", handler)

    await cancelled_at_the_commit(store, store.run("parent", parent, workflow_id="w"), 2)
    above = await row_of(near, "w")
    assert (await row_of(near, f"{above.id}/child:n")).lease_expires_at is None
    assert await near.run("parent", parent, workflow_id="w") == "done"


async def test_a_run_that_is_being_given_up_while_recover_is_cancelled_is_let_go_of(
    store: StateStore, near: StateStore
) -> None:
    """Too many workers vanished over it: no handler of it is called, in whose end it would be let go of."""
    state = await near.start("n", workflow_id="w")
    await change_row(near, state.id, attempts=1000)

    async def at_this_moment() -> None:
        while store._executor.keeper.has(state.id):  # noqa: ASYNC110 - until the claim is over
            await asyncio.sleep(0)
        recovering.cancel()

    with just_before(store, "SELECT step_states.step_id", at_this_moment):
        recovering = asyncio.create_task(store.recover({"n": handler}))
        await asyncio.wait({recovering})
    assert recovering.cancelled()
    row = await row_of(near, "w")
    assert (row.status, row.lease_expires_at) == ("running", None)
    assert len((await near.recover({"n": handler})).failed) == 1


async def test_what_was_claimed_by_a_call_that_does_not_know_of_it_is_let_go_of(
    database_url: str, near: StateStore
) -> None:
    """It raises, and its process may live on without ever asking for that run again."""
    async with StateStore.open(database_url, retry_timeout=seconds(0.001)) as store:
        with answer_lost(store), pytest.raises(StoreUnavailable) as raised:
            await store.run("n", handler, workflow_id="w")
        assert raised.value.outcome_unknown
        row = await row_of(near, "w")
        assert (row.status, row.lease_expires_at) == ("running", None)
    assert await near.run("n", handler, workflow_id="w") == "done"
