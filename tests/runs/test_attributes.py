"""Attributes: what a run is to be found by, set at its start, by its handler and from outside."""

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import pytest

from orchestrator_state import InvalidPayload, PayloadTooLarge, Run, StateStore, WorkflowNotFound


async def attributes_of(store: StateStore) -> Mapping[str, Any]:
    (run,) = await store.list_runs()
    return run.attributes


async def test_attributes_are_set_at_the_start_by_the_handler_and_from_outside(store: StateStore) -> None:
    async def handler(run: Run) -> object:
        await run.set_attributes(order=42, tier=None)
        return await run.wait_for("go")

    state = await store.start("n", workflow_id="w", context={}, attributes={"tier": "gold", "region": "eu"})
    assert await attributes_of(store) == {"tier": "gold", "region": "eu"}
    await store.recover({"n": handler})
    assert await attributes_of(store) == {"order": 42, "region": "eu"}
    await store.set_attributes(state.id, order=43, urgent=True)
    await store.signal(state.id, "go")
    await store.recover({"n": handler})
    assert await attributes_of(store) == {"order": 43, "region": "eu", "urgent": True}
    assert [run.id for run in await store.list_runs(attributes={"order": 43, "urgent": True})] == [state.id]
    assert (await store.load_workflow_state(state.id)).status == "completed"


async def test_a_live_run_is_not_disturbed_from_outside(store: StateStore) -> None:
    async def handler(run: Run) -> object:
        await run.step("a", lambda: 1)
        await store.set_attributes(run.id, seen=True)
        await run.set_attributes(done=True)
        return await run.step("b", lambda: 2)

    assert await store.run("n", handler, context={}, attributes={}) == 2
    assert await attributes_of(store) == {"seen": True, "done": True}


async def test_a_fork_has_the_attributes_that_its_steps_have_set(store: StateStore) -> None:
    async def handler(run: Run) -> object:
        await run.set_attributes(order=42)
        return await run.step("a", lambda: 1)

    await store.run("n", handler, workflow_id="w", context={})
    (run,) = await store.list_runs()
    checkpoint = await store.get_latest_checkpoint(run.id)
    assert checkpoint is not None
    assert checkpoint.id is not None
    fork = await store.fork(checkpoint.id)
    assert (await store.get_run(fork.id)).attributes == {"order": 42}


async def test_what_can_be_no_attributes_is_refused_and_changes_nothing(store: StateStore) -> None:
    state = await store.start("n", context={}, attributes={str(number): 1 for number in range(64)})
    with pytest.raises(PayloadTooLarge):
        await store.set_attributes(state.id, more=1)
    with pytest.raises(InvalidPayload, match="a name in attributes must be a str, not int"):
        await store.start("n", context={}, attributes={5: 1})  # type: ignore[dict-item]
    with pytest.raises(InvalidPayload):
        await store.set_attributes(state.id, nested={"a": 1})  # type: ignore[arg-type]
    with pytest.raises(WorkflowNotFound):
        await store.set_attributes(uuid4(), a=1)
    with pytest.raises(InvalidPayload):
        await store.start("n", context={}, attributes={"a": object()})  # type: ignore[dict-item]
    await store.set_attributes(state.id, **{"0": None}, more=1)
    attributes = await attributes_of(store)
    assert len(attributes) == 64
    assert attributes["more"] == 1
