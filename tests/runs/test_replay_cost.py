"""What a resumed run spends on recorded steps, in instructions of Python: the same on every machine, however busy."""

import asyncio
import sys
from statistics import median
from types import FrameType
from typing import Any, Self

import pytest

from orchestrator_state import Run, StateStore
from tests.support.running import vanish

MOST = 620
MOST_WITH_A_CHANGE = 1450


async def nothing() -> None:
    """A step's function."""


class Instructions:
    """Counts the instructions of Python code in its block, in functions that are called from there."""

    def __init__(self) -> None:
        self.count = 0

    def _notice(self, frame: FrameType, event: str, _: Any) -> Any:
        frame.f_trace_opcodes = True
        self.count += event == "opcode"
        return self._notice

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)


async def instructions_for_each_recorded_step(store: StateStore, steps: int, *, changes: bool) -> float:
    """The median: now and then the run lets the event loop go on, and then others are counted."""
    attempts = 0
    instructions = Instructions()
    counts: list[int] = []

    async def pass_through(run: Run) -> None:
        for number in range(steps):
            before = instructions.count
            if changes:
                run.context["n"] = number
            await run.step(f"step {number}", nothing)
            counts.append(instructions.count - before)

    async def handler(run: Run) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            await pass_through(run)
            vanish()
        counts.clear()
        with instructions:
            await pass_through(run)

    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id=f"{steps} steps", context={"n": -1})
    await store.run("n", handler, workflow_id=f"{steps} steps", context={"n": -1})
    assert attempts == 2
    return median(counts)


async def test_a_recorded_step_is_passed_by_the_short_way(store: StateStore) -> None:
    assert await instructions_for_each_recorded_step(store, 40, changes=False) <= MOST


async def test_a_recorded_change_is_made_by_the_short_way(store: StateStore) -> None:
    assert await instructions_for_each_recorded_step(store, 40, changes=True) <= MOST_WITH_A_CHANGE


@pytest.mark.parametrize("changes", [False, True], ids=["without", "with a change in each"])
async def test_a_recorded_step_costs_the_same_however_many_there_are(store: StateStore, *, changes: bool) -> None:
    few = await instructions_for_each_recorded_step(store, 20, changes=changes)
    many = await instructions_for_each_recorded_step(store, 200, changes=changes)
    assert many <= few * 1.1 + 1
