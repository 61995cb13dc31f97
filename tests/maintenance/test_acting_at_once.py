"""Forced cancels, deletions, erasures, workers and starts at the same time, cut off anywhere, on both databases."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import select

from orchestrator_state import Conflict, Run, StateStore, WorkflowNotFound
from orchestrator_state.models import checkpoints, signals, step_states, workflow_states
from tests.support.chance import dice
from tests.support.running import Effect, count_rows, fetch


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[StateStore]:
    async with StateStore.open(database_url) as store:
        yield store


async def leaf(run: Run) -> Any:
    return await run.step("leaf", Effect(), 1)


async def middle(run: Run) -> Any:
    return [await run.child("leaf", leaf), await run.step("middle", Effect(), 2)]


async def root(run: Run) -> Any:
    return await asyncio.gather(run.child("middle", middle), run.child("leaf", leaf))


HANDLERS = {"root": root, "middle": middle, "leaf": leaf}


async def _orphans(store: StateStore) -> list[Any]:
    known = select(workflow_states.c.id)
    return [
        row
        for table in (step_states, checkpoints, signals)
        for row in await fetch(store, select(table).where(table.c.workflow_state_id.not_in(known)))
    ]


async def _act(store: StateStore, chance: random.Random) -> None:
    rows = await fetch(store, select(workflow_states.c.id))
    if not rows:
        return
    target = chance.choice(rows).id
    acts: list[Callable[[], Awaitable[object]]] = [
        lambda: store.cancel(target, force=True),
        lambda: store.delete(target, force=True),
        lambda: store.delete(target),
        lambda: store.erase(user_id="ann"),
        lambda: store.erase(user_id="ann", force=True),
        lambda: store.signal(target, "n", once=True),
    ]
    try:
        async with asyncio.timeout(chance.choice([0.0005, 0.002, 0.01, 5])):
            await chance.choice(acts)()
    except (Conflict, WorkflowNotFound, TimeoutError):
        pass


async def test_whatever_happens_at_once_nothing_is_left_over_and_everything_ends(
    store: StateStore, other: StateStore
) -> None:
    chance = dice()
    for number in range(12):
        name, user = f"w{number % 4}", chance.choice(["ann", "bob"])
        await store.start("root", workflow_id=name, user_id=user)
        working = [asyncio.create_task(each.recover(HANDLERS)) for each in (store, other)]
        await asyncio.gather(*(_act(chance.choice([store, other]), chance) for _ in range(6)))
        await asyncio.gather(*working)
    assert await _orphans(store) == []
    await store.recover(HANDLERS)
    left = await fetch(store, select(workflow_states.c.status, workflow_states.c.lease_expires_at))
    assert {row.status for row in left} <= {"completed", "cancelled", "failed"}
    for user in ("ann", "bob"):
        assert (await store.erase(user_id=user)).owned == ()
    for table in ("workflow_states", "step_states", "checkpoints", "signals"):
        assert await count_rows(store, table) == 0
