"""What is measured: each operation does its work between `begin` and `end` of the meter."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from uuid import uuid4

from orchestrator_state import Run, StateStore, StepState, WorkflowState
from scripts.road.meter import Meter

_STEPS: Final = 20
_RECORDED: Final = 100


async def _answer(number: int) -> dict[str, Any]:
    return {"answer": f"the {number}th", "tokens": number, "scores": [0.25, 0.5]}


async def _step(store: StateStore, meter: Meter, size: int) -> None:
    """One after another, of one run."""

    async def handler(run: Run) -> None:
        await _take_steps(run, size)
        meter.begin()
        await _take_steps(run, 2 * size)
        meter.end(2 * size)

    await store.run("road", handler)


async def _step_of_many(store: StateStore, meter: Meter, size: int) -> None:
    """Of `size` runs at once, of 20 steps each."""
    there, begun, done = asyncio.Semaphore(0), asyncio.Event(), asyncio.Semaphore(0)

    async def handler(run: Run) -> None:
        there.release()
        await begun.wait()
        await _take_steps(run, _STEPS)
        done.release()

    async with asyncio.TaskGroup() as group:
        for _ in range(size):
            group.create_task(store.run("road", handler))
        for _ in range(size):
            await there.acquire()
        meter.begin()
        begun.set()
        for _ in range(size):
            await done.acquire()
        meter.end(size * _STEPS)


async def _load(store: StateStore, meter: Meter, size: int) -> None:
    """`store.run` of a run that was left with 100 steps on record, until its handler is called."""

    async def handler(_: Run) -> None:
        meter.end()

    workflow_id = await _left_run(store)
    for _ in range(max(1, size // 5)):
        meter.begin()
        await _leave(store, workflow_id, handler)


async def _reused_step(store: StateStore, meter: Meter, size: int) -> None:
    """A step that is on record, passed through by a handler that is resumed."""

    async def handler(run: Run) -> None:
        meter.begin()
        await _take_steps(run)
        meter.end(_RECORDED)

    workflow_id = await _left_run(store)
    for _ in range(max(1, size // 10)):
        await _leave(store, workflow_id, handler)


async def _left_run(store: StateStore) -> str:
    """The id of a run that a worker has left after 100 steps."""
    workflow_id = str(uuid4())
    await _leave(store, workflow_id, _take_steps)
    return workflow_id


async def _take_steps(run: Run, steps: int = _RECORDED) -> None:
    for number in range(steps):
        await run.step("step", _answer, number)


async def _leave(store: StateStore, workflow_id: str, begin: Callable[[Run], Awaitable[None]]) -> None:
    """Run it, or resume it, and leave it as it is after `begin`."""
    has_begun = asyncio.Event()

    async def handler(run: Run) -> None:
        await begin(run)
        has_begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(store.run("left", handler, workflow_id=workflow_id))
    await has_begun.wait()
    task.cancel()
    await asyncio.wait([task])


async def _recovery(store: StateStore, meter: Meter, size: int) -> None:
    """`store.recover` of one abandoned run: claimed, loaded, driven through its 20 steps on record, and ended."""
    for _ in range(max(1, size // 5)):
        await _recover(store, meter, 1)


async def _recover(store: StateStore, meter: Meter, runs: int) -> None:
    """The same of many, in one `store.recover`."""

    async def handler(run: Run) -> None:
        for number in range(_STEPS):
            await run.step(f"step {number}", _answer, number)

    async with store.begin() as uow:
        for _ in range(runs):
            await uow.workflows.save(await _workflow())
    meter.begin()
    report = await store.recover({"abandoned": handler}, concurrency=runs)
    meter.end(runs)
    assert len(report.completed) == runs


async def _save(store: StateStore, meter: Meter, size: int) -> None:
    """`store.save_workflow_state` of a workflow of 20 steps, one of them changed."""
    state = await _workflow()
    await store.save_workflow_state(state)
    for number in range(size):
        state.steps["step 7"].outputs = await _answer(number)
        meter.begin()
        await store.save_workflow_state(state)
        meter.end()


async def _workflow() -> WorkflowState:
    state = WorkflowState(workflow_id=str(uuid4()), workflow_name="abandoned", context={"inputs": {"page": 1}})
    state.mark_running()
    for number in range(_STEPS):
        step = state.steps[f"step {number}"] = StepState(step_id=f"step {number}")
        step.mark_running()
        step.mark_completed(await _answer(number))
    return state


Operation = Callable[[StateStore, Meter, int], Awaitable[None]]
OPERATIONS: Final[Mapping[str, Operation]] = {
    "step": _step,
    "step of many": _step_of_many,
    "recovery": _recovery,
    "recovery of many": _recover,
    "reused step": _reused_step,  # leaves runs that a recovery would look at
    "load": _load,
    "save": _save,
}
