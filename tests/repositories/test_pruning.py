"""Whoever prunes keeps the same checkpoints: each kind of a run's commit, a checkpoint made by hand, and a cleanup."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any, Literal, NamedTuple
from uuid import UUID, uuid4

import pytest
from sqlalchemy import insert

from orchestrator_state import Run, StateStore
from orchestrator_state.models import checkpoints
from tests.support.workflows import LONG_AGO, checkpointed, saved


class Event(NamedTuple):
    """What happens to the checkpoints of a workflow."""

    kind: Literal["made", "made by older software", "cleaned up"]
    label: str
    keep: int


def some_events(seed: int, most: int) -> list[Event]:
    dice = random.Random(seed)
    kinds: Sequence[Any] = ("made", "made", "made", "made by older software", "cleaned up")
    return [Event(dice.choice(kinds), f"checkpoint {number}", dice.randint(1, most)) for number in range(15)]


def as_told(events: Sequence[Event], keep: int) -> list[list[str]]:
    """The labels of the checkpoints after each of `events`, newest first: what is promised."""
    there: list[str] = []
    history = []
    for event in events:
        if event.kind != "cleaned up":
            there.insert(0, event.label)
        if event.kind != "made by older software":
            del there[keep if event.kind == "made" else event.keep :]
        history.append([*there])
    return history


async def seen(
    store: StateStore, workflow_state_id: UUID, events: Sequence[Event], make: Callable[[str], Awaitable[object]]
) -> list[list[str]]:
    """The same, as it comes about; `make` makes a checkpoint of that label."""
    history = []
    for number, event in enumerate(events):
        if event.kind == "made":
            await make(event.label)
        elif event.kind == "cleaned up":
            await store.cleanup_old_checkpoints(workflow_state_id, keep=event.keep)
        else:
            await _insert_without_number(store, workflow_state_id, event.label, number)
        async with store.begin() as uow:
            history.append([checkpoint.step_id for checkpoint in await uow.checkpoints.list(workflow_state_id)])
    return history


async def _insert_without_number(store: StateStore, workflow_state_id: UUID, label: str, second: int) -> None:
    row = {"id": uuid4(), "workflow_state_id": workflow_state_id, "step_id": label, "snapshot": "{}"}
    async with store.begin() as uow:
        await uow.session.execute(insert(checkpoints).values(timestamp=LONG_AGO + timedelta(seconds=second), **row))


async def in_a_run(store: StateStore, events: Sequence[Event], *, transacts: bool) -> list[list[str]]:
    async def nothing(*_: object) -> None:
        return None

    async def handler(run: Run) -> list[list[str]]:
        def make(label: str) -> Awaitable[None]:
            return run.transact(label, nothing) if transacts else run.step(label, nothing)

        return await seen(store, run.id, events, make)

    return await store.run("prunes", handler)


@pytest.mark.parametrize("keep", [1, 2, 4])
async def test_all_who_prune_keep_the_same_checkpoints(database_url: str, keep: int, seed: int) -> None:
    events = some_events(seed, most=keep + 1)
    promised = as_told(events, keep)
    async with StateStore.open(database_url, keep_checkpoints=keep, checkpoint_every=1) as store:
        state = await saved(store)
        assert await seen(store, state.id, events, lambda label: checkpointed(store, state, label)) == promised
        assert await in_a_run(store, events, transacts=False) == promised
        assert await in_a_run(store, events, transacts=True) == promised


@pytest.mark.parametrize("keep", [1, 3])
async def test_runs_that_commit_together_prune_as_each_does_by_itself(database_url: str, keep: int, seed: int) -> None:
    of_each = [some_events(seed + number, most=keep + 1) for number in range(4)]
    async with StateStore.open(database_url, keep_checkpoints=keep, checkpoint_every=1) as store:
        found = await asyncio.gather(*(in_a_run(store, events, transacts=False) for events in of_each))
    assert found == [as_told(events, keep) for events in of_each]
