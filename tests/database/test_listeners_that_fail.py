"""A listener of SQLAlchemy's that raises is no fault of the run whose statement it hears: the step commits once."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, event

from orchestrator_state import Run, StateStore
from tests.support.cases import case
from tests.support.running import Effect

HEARD = ("before_cursor_execute", "after_cursor_execute", "begin", "commit")


@contextmanager
def failing_once(name: str, nth: int) -> Iterator[list[None]]:
    """Let a listener raise at the `nth` event. Yields a list with an item for each event."""
    heard: list[None] = []

    def fail(*_: object) -> None:
        heard.append(None)
        if len(heard) == nth:
            raise RuntimeError("the listener's own")

    event.listen(Engine, name, fail)
    try:
        yield heard
    finally:
        event.remove(Engine, name, fail)


async def test_a_step_is_committed_once_whatever_a_listener_raises(store: StateStore) -> None:
    for name in HEARD:
        for nth in (1, 2, 3):
            with case(f"{name}, {nth}"):
                await is_committed_once(store, name, nth)


async def is_committed_once(store: StateStore, name: str, nth: int) -> None:
    workflow_id = f"{name} {nth}"
    effects = [Effect() for _ in range(4)]
    heard: list[int] = []

    async def handler(run: Run) -> list[object]:
        before = await run.step("before", effects[0], 0)
        with failing_once(name, nth) as events:
            rest = [await run.step(f"step {n}", effects[n], n) for n in (1, 2, 3)]
        heard.append(len(events))
        return [before, *rest]

    assert await store.run("n", handler, workflow_id=workflow_id) == [0, 1, 2, 3]
    assert heard[0] >= nth
    assert [len(effect.calls) for effect in effects] == [1, 1, 1, 1]
    state = await store.load_workflow_state_by_workflow_id(workflow_id)
    assert {step_id: step.outputs for step_id, step in state.steps.items()} == {
        "before": 0,
        "step 1": 1,
        "step 2": 2,
        "step 3": 3,
    }
