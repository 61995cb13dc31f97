"""A process that saves is killed with SIGKILL at random moments: what it acknowledged before is there, whole."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from uuid import UUID

import pytest

from orchestrator_state import Checkpoint, StateStore, StepState, WorkflowState
from tests.support.chance import dice, tries
from tests.support.children import child

pytestmark = pytest.mark.process

ROUNDS = 30
KEEP = 3


@dataclass(frozen=True)
class Found:
    """What an observer finds after the kill."""

    state: WorkflowState
    checkpoints: list[Checkpoint]


@dataclass
class Acknowledged:
    """The last version and checkpoint number that the killed process found, or heard to be stored."""

    version: int
    seq: int

    def hear(self, messages: list[tuple[str, int]]) -> None:
        for kind, number in messages:
            setattr(self, kind, number)

    def contradictions(self, found: Found) -> Iterator[str]:
        version = found.state.version
        seqs = [checkpoint.seq or 0 for checkpoint in found.checkpoints]
        newest = max(seqs, default=0)
        if version not in (self.version, self.version + 1):
            yield f"version {self.version} was acknowledged, {version} is there"
        if newest not in (self.seq, self.seq + 1):
            yield f"checkpoint {self.seq} was acknowledged, {newest} is there"
        if seqs != list(range(newest, max(newest - KEEP, 0), -1)):
            yield f"not the newest {KEEP} checkpoints without a gap: {seqs}"
        numbers = [found.state.context, *(step.outputs for step in found.state.steps.values())]
        if set(numbers) != {version}:
            yield f"version {version} is half there: {numbers}"
        for checkpoint in found.checkpoints:
            if checkpoint.snapshot["context"] != checkpoint.snapshot["version"]:
                yield f"checkpoint {checkpoint.seq} is half there"


async def save_and_acknowledge(pipe: Connection, url: str, state_id: UUID, too_early: bool) -> None:
    """Save and checkpoint without end. The numbers in the state all equal the version that it will have."""
    async with StateStore.open(url, pool_min=1, keep_checkpoints=KEEP) as store:
        state = await store.load_workflow_state(state_id)
        latest = await store.get_latest_checkpoint(state_id)
        seq = (latest.seq if latest else 0) or 0
        pipe.send(("version", state.version))
        pipe.send(("seq", seq))
        while True:
            state.context = state.version + 1
            for step in state.steps.values():
                step.outputs = state.version + 1
            if too_early:
                pipe.send(("version", state.version + 1))
            await store.save_workflow_state(state)
            pipe.send(("version", state.version))
            checkpoint = Checkpoint(workflow_state_id=state_id, step_id="s", snapshot=state.to_snapshot())
            seq += 1
            if too_early:
                pipe.send(("seq", seq))
            await store.create_checkpoint(checkpoint)
            assert checkpoint.seq == seq
            pipe.send(("seq", seq))


async def look(url: str, state_id: UUID) -> Found:
    async with StateStore.open(url, pool_min=1) as store:
        state = await store.load_workflow_state(state_id)
        async with store.begin() as uow:
            return Found(state, await uow.checkpoints.list(state_id))


async def begin(url: str) -> WorkflowState:
    state = WorkflowState(workflow_id="w", workflow_name="n", context=1)
    state.steps = {name: StepState(step_id=name, outputs=1) for name in ("first", "second")}
    async with StateStore.open(url) as store:
        await store.save_workflow_state(state)
    return state


def is_sound(url: str) -> bool:
    if not url.startswith("sqlite"):
        return True
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        checks = ("PRAGMA integrity_check", "PRAGMA foreign_key_check")
        return [connection.execute(check).fetchall() for check in checks] == [[("ok",)], []]


def contradictions(url: str, *, too_early: bool, rounds: int) -> list[str]:
    """Kill a saving process `rounds` times, or until what it acknowledged and what is there do not agree."""
    chance = dice()
    state_id = asyncio.run(begin(url)).id
    heard = Acknowledged(version=1, seq=0)
    for number in range(rounds):
        with child(save_and_acknowledge, url, state_id, too_early) as saving:
            heard.hear([saving.hear() for _ in range(chance.randrange(2, 14))])
            time.sleep(chance.choice([0, 0, chance.uniform(0, 0.01)]))
            saving.kill()
            heard.hear(saving.hear_all())
        found = asyncio.run(look(url, state_id))
        wrong = list(heard.contradictions(found))
        if not is_sound(url):
            wrong.append("the file is damaged")
        if wrong:
            return [f"round {number}: {each}" for each in wrong]
    return []


def test_a_killed_process_loses_nothing_that_it_acknowledged_and_leaves_nothing_half(database_url: str) -> None:
    assert contradictions(database_url, too_early=False, rounds=ROUNDS) == []


def test_the_harness_sees_a_process_that_acknowledges_before_it_saves(fresh_database_urls: Callable[[], str]) -> None:
    assert any(contradictions(fresh_database_urls(), too_early=True, rounds=ROUNDS) for _ in tries())
