"""A connection cut around the COMMIT: a call settles by itself, and what it cannot know it says."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from orchestrator_state import (
    Run,
    StaleVersion,
    StateStore,
    StepState,
    StoreUnavailable,
)
from tests.support.chance import dice
from tests.support.cutting_proxy import CuttingProxy, Fault
from tests.support.postgres_proxy import opened_impatient
from tests.support.running import Effect, steps_of
from tests.support.running import checkpoints_of as runs_checkpoints
from tests.support.states import a_checkpoint, a_state, checkpoints_of, is_stored

pytestmark = pytest.mark.usefixtures("soon_given_up")

CUTS = (Fault.CUT_BEFORE, Fault.CUT_AFTER, Fault.SILENCE_AFTER)


@pytest.fixture
async def proxy(postgres_url: str) -> AsyncIterator[CuttingProxy]:
    with tempfile.TemporaryDirectory(prefix="cut-") as directory:
        async with CuttingProxy(postgres_url, Path(directory)).running() as proxy:
            yield proxy


@pytest.fixture
async def distant(proxy: CuttingProxy) -> AsyncIterator[StateStore]:
    """A store whose connections go through the proxy."""
    async with opened_impatient(proxy.url, pool_min=1) as store:
        yield store


@pytest.fixture
async def near(postgres_url: str) -> AsyncIterator[StateStore]:
    """A store on the same database whose connections nobody cuts."""
    async with StateStore.open(postgres_url, pool_min=1) as store:
        yield store


@pytest.mark.parametrize("fault", CUTS)
async def test_a_save_settles_by_itself_whatever_became_of_its_commit(
    distant: StateStore, near: StateStore, proxy: CuttingProxy, fault: Fault
) -> None:
    state = a_state()
    for version in (1, 2):
        state.context = version
        state.steps[f"step {version}"] = StepState(step_id=f"step {version}")
        proxy.fail_next_commit(fault)
        await distant.save_workflow_state(state)
        assert proxy.faults == version
        assert state.version == version
        assert await near.load_workflow_state(state.id) == state


@pytest.mark.parametrize("fault", CUTS)
async def test_a_checkpoint_settles_by_itself_and_is_never_doubled(
    distant: StateStore, near: StateStore, proxy: CuttingProxy, fault: Fault
) -> None:
    state = a_state()
    await near.save_workflow_state(state)
    made = [a_checkpoint(state, number) for number in range(2)]
    for number, checkpoint in enumerate(made, 1):
        proxy.fail_next_commit(fault)
        await distant.create_checkpoint(checkpoint)
        assert (proxy.faults, checkpoint.seq) == (number, number)
    assert await checkpoints_of(near, state) == made[::-1]


@pytest.mark.parametrize("fault", [Fault.CUT_BEFORE, Fault.CUT_AFTER])
async def test_deletion_and_pruning_settle_by_themselves(
    distant: StateStore, near: StateStore, proxy: CuttingProxy, fault: Fault
) -> None:
    old, state = a_state("old"), a_state()
    old.mark_completed()
    for each in (old, state):
        await near.save_workflow_state(each)
    for number in range(4):
        await near.create_checkpoint(a_checkpoint(state, number))
    proxy.fail_next_commit(fault)
    await distant.cleanup_old_checkpoints(state.id, keep=2)
    proxy.fail_next_commit(fault)
    await distant.delete_old_states(old.updated_at + timedelta(seconds=1))
    assert proxy.faults == 2
    assert [checkpoint.snapshot for checkpoint in await checkpoints_of(near, state)] == [3, 2]
    assert [await is_stored(near, each) for each in (old, state)] == [False, True]


async def test_another_writers_equal_save_is_not_taken_for_ones_own(
    distant: StateStore, near: StateStore, proxy: CuttingProxy
) -> None:
    """Two workers count from 5 to 6 at once. One COMMIT never arrives: only one of them has counted."""
    state = a_state()
    state.context = {"count": 5}
    await near.save_workflow_state(state)
    mine, theirs = [await near.load_workflow_state(state.id) for _ in range(2)]
    mine.context["count"] = theirs.context["count"] = 6
    proxy.fail_next_commit(Fault.CUT_BEFORE, then=lambda: near.save_workflow_state(theirs))
    with pytest.raises(StaleVersion):
        await distant.save_workflow_state(mine)
    assert theirs.version == 2


async def test_a_save_that_landed_is_not_called_stale_because_another_followed_it(
    distant: StateStore, near: StateStore, proxy: CuttingProxy
) -> None:
    """Called stale, the caller would repeat the change on a fresh copy: counted twice."""
    state = a_state()
    await near.save_workflow_state(state)

    async def follow() -> None:
        fresh = await near.load_workflow_state(state.id)
        fresh.context += 1
        await near.save_workflow_state(fresh)

    state.context += 1
    proxy.fail_next_commit(Fault.CUT_AFTER, then=follow)
    with suppress(StoreUnavailable):  # "I do not know" is an honest answer too
        await distant.save_workflow_state(state)
    assert (await near.load_workflow_state(state.id)).context == 2


async def test_four_workers_count_right_although_every_third_commit_is_cut(
    distant: StateStore, near: StateStore, proxy: CuttingProxy
) -> None:
    state = a_state()
    await near.save_workflow_state(state)
    acknowledged = unknown = 0
    chance = dice()

    async def count(store: StateStore) -> None:
        nonlocal acknowledged, unknown
        for number in range(12):
            if number % 3 == 0:
                proxy.fail_next_commit(chance.choice([Fault.CUT_BEFORE, Fault.CUT_AFTER]))
            while True:
                fresh = await store.load_workflow_state(state.id)
                fresh.context += 1
                try:
                    await store.save_workflow_state(fresh)
                    acknowledged += 1
                except StaleVersion:
                    continue
                except StoreUnavailable as error:
                    unknown += error.outcome_unknown
                break

    await asyncio.gather(*(count(store) for store in (distant, distant, near, near)))
    assert proxy.faults
    assert acknowledged <= (await near.load_workflow_state(state.id)).context <= acknowledged + unknown


async def test_the_harness_sees_a_blind_repetition_count_twice(
    distant: StateStore, near: StateStore, proxy: CuttingProxy
) -> None:
    state = a_state()
    await near.save_workflow_state(state)

    async def count_blindly() -> None:
        async with distant.begin() as uow:
            await uow.session.execute(text("UPDATE workflow_states SET checkpoint_seq = checkpoint_seq + 1"))

    proxy.fail_next_commit(Fault.CUT_AFTER)
    with pytest.raises(StoreUnavailable) as raised:
        await count_blindly()
    assert raised.value.outcome_unknown
    await count_blindly()
    async with near.begin() as uow:
        assert await uow.session.scalar(text("SELECT checkpoint_seq FROM workflow_states")) == 2


@pytest.mark.parametrize("fault", [Fault.CUT_BEFORE, Fault.CUT_AFTER])
@pytest.mark.parametrize("call", ["save", "checkpoint"])
async def test_when_the_server_stays_away_the_error_says_that_the_outcome_is_unknown(
    proxy: CuttingProxy, fault: Fault, call: str
) -> None:
    async def go_away() -> None:
        proxy.refusing = True

    patience = timedelta(seconds=0.3)
    async with StateStore.open(proxy.url, pool_min=1, retry_timeout=patience) as store:
        state = a_state()
        await store.save_workflow_state(state)
        state.context += 1
        proxy.fail_next_commit(fault, then=go_away)
        with pytest.raises(StoreUnavailable) as raised:
            await (store.save_workflow_state(state) if call == "save" else store.create_checkpoint(a_checkpoint(state)))
        assert raised.value.outcome_unknown


@pytest.mark.parametrize("fault", CUTS)
async def test_steps_that_commit_together_settle_by_themselves_and_are_never_doubled(
    distant: StateStore, near: StateStore, proxy: CuttingProxy, fault: Fault
) -> None:
    calls = Effect()
    meet = asyncio.Barrier(5)

    async def handler(run: Run) -> None:
        await run.step("before", Effect())
        await meet.wait()
        if run.context["n"] == 0:
            proxy.fail_next_commit(fault, marker=b"precious")
        await run.step("s", calls, "precious")
        await run.step("after", Effect())

    await asyncio.gather(*(distant.run("w", handler, workflow_id=f"w {n}", context={"n": n}) for n in range(5)))
    assert proxy.faults == 1
    assert len(calls.calls) == 5
    for n in range(5):
        assert list(await steps_of(near, f"w {n}")) == ["before", "s", "after"]
        assert [checkpoint.seq for checkpoint in await runs_checkpoints(near, f"w {n}")][-1] in (3, 4)
        assert len(await runs_checkpoints(near, f"w {n}")) == 3


@pytest.mark.parametrize("fault", [Fault.CUT_BEFORE, Fault.CUT_AFTER])
async def test_a_step_whose_server_stays_away_is_not_taken_for_done(
    proxy: CuttingProxy, near: StateStore, fault: Fault
) -> None:
    async def go_away() -> None:
        proxy.refusing = True

    async def handler(run: Run) -> None:
        await run.step("before", Effect())
        proxy.fail_next_commit(fault, go_away, marker=b"precious")
        await run.step("s", Effect(), "precious")

    patience = timedelta(seconds=0.3)
    async with StateStore.open(proxy.url, pool_min=1, retry_timeout=patience) as store:
        with pytest.raises(StoreUnavailable) as raised:
            await store.run("w", handler, workflow_id="w")
    assert raised.value.outcome_unknown
    assert ("s" in await steps_of(near, "w")) is (fault is Fault.CUT_AFTER)
