"""A run that kills its workers is found and put aside on both databases, and its neighbours are spared."""

import asyncio
import itertools
import os
from functools import partial
from multiprocessing.connection import Connection
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select

from orchestrator_state import Run, StateStore, Worker
from orchestrator_state.execution.suspects import Suspects
from orchestrator_state.models import workflow_states
from orchestrator_state.repositories.runs import Suspect
from tests.support.children import child
from tests.support.running import (
    LONG_AGO,
    Effect,
    Gate,
    becomes,
    change_row,
    expire_lease,
    fetch,
    row_of,
    seconds,
    vanish,
)

pytestmark = pytest.mark.process


async def steps(run: Run) -> str:
    await run.step("first", Effect())
    await run.step("second", Effect())
    return "done"


async def vanished(store: StateStore, workflow_id: str, attempts: int, name: str = "n") -> Any:
    """The row of a run that is abandoned, over which so many workers will have vanished once it is claimed."""
    state = await store.start(name, workflow_id=workflow_id)
    await change_row(store, state.id, status="running", attempts=attempts - 1, lease_expires_at=LONG_AGO)
    return await row_of(store, workflow_id)


# --- the budget ---


async def test_a_finished_step_gives_a_run_its_budget_back(store: StateStore) -> None:
    gate = Gate()

    async def handler(run: Run) -> int:
        await run.step("first", Effect())
        await run.step("under way", gate)
        return run.attempts

    await vanished(store, "w", attempts=9)
    task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    await gate.reached.wait()
    row = await row_of(store, "w")
    assert (row.attempts, row.has_progressed) == (9, 1)
    await change_row(store, row.id, lease_expires_at=LONG_AGO, lease_token=99)
    gate.opened.set()
    assert await store.run("n", handler, workflow_id="w") == 1
    await asyncio.wait([task])


async def test_a_failed_step_and_an_intent_give_no_budget_back(store: StateStore) -> None:
    async def fail() -> None:
        raise LookupError

    async def handler(run: Run) -> None:
        with pytest.raises(LookupError):
            await run.step("fails", fail, on_unknown="raise")
        vanish()

    await vanished(store, "w", attempts=5)
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    row = await row_of(store, "w")
    assert (row.attempts, row.has_progressed) == (5, 0)


async def test_workers_that_vanished_before_the_last_finished_step_do_not_count(database_url: str) -> None:
    async def handler(run: Run) -> str:
        calls.append(run.attempts)
        for number in range(len(calls)):
            await run.step(f"step {number}", Effect())
        if len(calls) < 5:
            vanish()
        return "done"

    calls: list[int] = []
    async with StateStore.open(database_url, max_attempts=2) as store:
        await store.start("n", workflow_id="w")
        for _ in range(4):
            with pytest.raises(asyncio.CancelledError):
                await store.run("n", handler, workflow_id="w")
            await expire_lease(store, (await row_of(store, "w")).id)
        assert len((await store.recover({"n": handler})).completed) == 1
    assert calls == [0, 1, 1, 1, 1]


async def test_what_was_under_way_by_its_own_word_is_named(database_url: str) -> None:
    gate = Gate()

    async def handler(run: Run) -> None:
        await run.step("charge", gate, on_unknown="raise")

    async with StateStore.open(database_url, max_attempts=2) as store:
        task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
        await gate.reached.wait()
        row = await row_of(store, "w")
        await change_row(store, row.id, attempts=2, lease_expires_at=LONG_AGO, lease_token=99)
        await store.recover({"n": handler})
        error = str((await store.load_workflow_state(row.id)).error)
        assert "3 workers vanished" in error
        assert "'charge' under way" in error
        gate.opened.set()
        await asyncio.wait([task])


# --- who is tried with whom ---


def let_turns_be_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The turns of suspects and of all others. They are still several times as long as what is done in them."""
    monkeypatch.setattr("orchestrator_state.execution.suspects._PATIENCE", 0.8)
    monkeypatch.setattr("orchestrator_state.execution.suspects._ALONE", 1.2)


@pytest.fixture
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    let_turns_be_short(monkeypatch)


class Together:
    """A handler that notes how many of its runs are in their first step at the same time.

    With `company`, the first of them waits for another to join it.
    """

    def __init__(self, *, company: bool = False) -> None:
        self.now: set[str] = set()
        self.most = 0
        self.met = asyncio.Event()
        if not company:
            self.met.set()

    async def __call__(self, run: Run) -> str:
        await run.step("first", self.work, run.workflow_id)
        await run.step("second", asyncio.sleep, 0.01)
        return "done"

    async def work(self, workflow_id: str) -> None:
        self.now.add(workflow_id)
        self.most = max(self.most, len(self.now))
        if self.most > 1:
            self.met.set()
        await self.met.wait()
        await asyncio.sleep(0.02)
        self.now.discard(workflow_id)


@pytest.mark.parametrize(("attempts", "most"), [(1, 9), (2, 9), (3, 4), (4, 2), (5, 1), (10, 1)])
async def test_runs_that_vanished_together_are_tried_again_apart(store: StateStore, attempts: int, most: int) -> None:
    handler = Together(company=most > 1)
    for number in range(9):
        await vanished(store, f"w-{number}", attempts)
    report = await store.recover({"n": handler})
    assert len(report.completed) == 9
    assert handler.most <= most
    assert (handler.most > 1) == (most > 1)


async def test_the_least_suspect_are_tried_first(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        order.append(run.workflow_id)
        await run.step("first", Effect())

    order: list[str] = []
    for attempts in (9, 7, 5, 8, 6):
        await vanished(store, f"w-{attempts}", attempts)
    await store.recover({"n": handler})
    assert order == ["w-5", "w-6", "w-7", "w-8", "w-9"]


async def test_those_that_rested_the_longest_are_tried_first(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        order.append(run.workflow_id)
        await run.step("first", Effect())

    order: list[str] = []
    for minutes, attempts in ((3, 9), (1, 7), (2, 5)):
        row = await vanished(store, f"w-{attempts}", attempts)
        await change_row(store, row.id, lease_expires_at=LONG_AGO + seconds(60 * minutes))
    await store.recover({"n": handler})
    assert order == ["w-7", "w-5", "w-9"]


async def test_no_newcomer_is_claimed_beside_one_that_is_tried_alone(store: StateStore) -> None:
    gate, newcomer = Gate(), Gate()
    newcomer.opened.set()

    async def suspect(run: Run) -> None:
        await run.step("work", gate)

    async def fresh(run: Run) -> None:
        await run.step("work", newcomer)

    await vanished(store, "suspect", 10, "suspect")
    async with Worker(store, {"suspect": suspect, "fresh": fresh}, poll=0.05, handle_signals=False):
        await gate.reached.wait()
        await store.start("fresh", workflow_id="fresh")
        await asyncio.sleep(0.5)
        assert not newcomer.reached.is_set()
        gate.opened.set()
        await becomes(lambda row: row.status == "completed", store, "fresh")


def test_one_that_is_tried_alone_waits_until_the_others_have_ended() -> None:
    suspects, other, suspect = Suspects(), uuid4(), Suspect(uuid4(), attempts=5)
    suspects.add(other, 0)
    assert suspects.choose([suspect], beside=0) == []
    suspects.remove(other)
    assert suspects.choose([suspect], beside=1) == []
    assert suspects.choose([suspect], beside=0) == [suspect.workflow_state_id]


@pytest.mark.usefixtures("short_turns")
async def test_those_that_have_never_vanished_need_not_wait_for_suspects(store: StateStore) -> None:
    gate, fresh = Gate(), Gate()

    async def stuck(run: Run) -> None:
        await run.step("stuck", gate)

    async def healthy(run: Run) -> None:
        await run.step("work", fresh)

    for number in range(2):
        await vanished(store, f"stuck-{number}", 5, "stuck")
    await store.start("healthy", workflow_id="healthy")
    task = asyncio.create_task(store.recover({"stuck": stuck, "healthy": healthy}))
    await gate.reached.wait()
    await fresh.reached.wait()
    assert [row.attempts for row in await fetch(store, select(workflow_states.c.attempts).order_by("attempts"))] == [
        0,
        4,
        5,
    ]
    gate.opened.set()
    fresh.opened.set()
    assert len((await task).completed) == 3


async def test_a_child_is_tried_before_the_parent_that_vanishes_with_it(store: StateStore) -> None:
    async def parent(run: Run) -> None:
        order.append("parent")

    async def part(run: Run) -> None:
        order.append("child")

    order: list[str] = []
    row = await vanished(store, "parent", 5, "parent")
    below = await vanished(store, "child", 6, "child")
    await change_row(store, below.id, parent_id=row.id)
    await store.recover({"parent": parent, "child": part})
    assert order == ["child", "parent"]


async def test_the_workers_that_vanished_over_a_child_do_not_count_against_the_runs_above_it(store: StateStore) -> None:
    """A run whose children kill their workers, one after the other, and which goes on without them."""

    async def above(run: Run) -> None:
        attempts[run.workflow_id] = run.attempts

    async def never(run: Run) -> None:
        raise AssertionError("it has used up its budget")

    attempts: dict[str, int] = {}
    family = [await vanished(store, name, 10, "above") for name in ("grandparent", "parent")]
    family.append(await vanished(store, "child", 11, "child"))
    for one, other in itertools.pairwise(family):
        await change_row(store, other.id, parent_id=one.id)
    report = await store.recover({"above": above, "child": never})
    assert (await row_of(store, "child")).status == "failed"
    assert len(report.completed) == 2
    assert attempts == {"grandparent": 1, "parent": 1}


async def test_a_worker_lets_a_suspect_rest_and_a_recovery_does_not(store: StateStore) -> None:
    row = await vanished(store, "w", 7)
    await change_row(store, row.id, lease_expires_at=row.updated_at)
    async with store._transactions.begin() as uow:
        owner, choose = store._executor.keeper.owner, partial(Suspects().choose, beside=0)
        assert list(await uow.claims.claim_suspects(["n"], owner, 9, choose, patient=True)) == []
        assert list(await uow.claims.claim_abandoned(["n"], owner, 9)) == []
    assert len((await store.recover({"n": steps})).completed) == 1


async def test_a_worker_tries_all_suspects_one_after_the_other(store: StateStore) -> None:
    handler = Together()
    for number in range(5):
        await vanished(store, f"w-{number}", 6)
    async with Worker(store, {"n": handler}, poll=0.1, handle_signals=False):
        for number in range(5):
            while (await row_of(store, f"w-{number}")).status != "completed":  # noqa: ASYNC110 - a worker's commit
                await asyncio.sleep(0.02)
    assert handler.most == 1


# --- in processes that die ---


async def poison(run: Run) -> None:
    await run.step("boom", lambda: os._exit(9))


async def innocent(run: Run) -> str:
    await run.step("first", Effect())
    await run.step("slow", asyncio.sleep, 0.15)
    return "fine"


HANDLERS = {"poison": poison, "innocent": innocent}


async def recover_all(pipe: Connection, url: str) -> None:
    let_turns_be_short(pytest.MonkeyPatch())  # for as long as this process lives
    async with StateStore.open(url, max_attempts=6) as store:
        await store.recover(HANDLERS)
    pipe.send("recovered")


async def test_one_run_that_kills_its_process_is_put_aside_and_all_others_finish(database_url: str) -> None:
    async with StateStore.open(database_url) as store:
        for number in range(6):
            await store.start("innocent", workflow_id=f"innocent-{number}")
        state = await store.start("poison", workflow_id="poison")
        for _ in range(12):
            with child(recover_all, database_url) as process:
                if await asyncio.to_thread(_survives, process):
                    break
        rows = await fetch(store, select(workflow_states.c.workflow_name, workflow_states.c.status))
        assert sorted(map(tuple, rows)) == [("innocent", "completed")] * 6 + [("poison", "failed")]
        assert "7 workers vanished" in str((await store.load_workflow_state(state.id)).error)


async def test_newcomers_that_kill_without_end_do_not_harm_an_innocent_run(database_url: str) -> None:
    """However many there are: each life of the worker meets a new one, and those of before."""
    async with StateStore.open(database_url) as store:
        await vanished(store, "innocent", 3, "innocent")
        for number in range(3):
            await vanished(store, f"poison-{number}", 5, "poison")
        for life in range(100):
            await store.start("poison", workflow_id=f"newcomer-{life}")
            with child(recover_all, database_url) as process:
                await asyncio.to_thread(process.hear_all)
            if (await row_of(store, "innocent")).status != "running":
                break
        assert (await row_of(store, "innocent")).status == "completed"


def _survives(process: Any) -> bool:
    try:
        return bool(process.hear() == "recovered")
    except EOFError:
        return False
