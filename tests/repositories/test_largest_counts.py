"""A count that stands at the largest number of its column makes no other number of itself, and harms no neighbour."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import delete, text

from orchestrator_state import Checkpoint, CorruptPayload, OrchestratorStateError, Run, StateStore
from orchestrator_state.models import workflow_states
from tests.support.cases import case
from tests.support.raw_sql import execute
from tests.support.running import Failing, Gate, change_row, fetch, row_of

COUNTS = ("version", "lease_token", "attempts", "checkpoint_seq", "signal_seq", "faults")
OTHER_COUNTS = (("step_states", "position"), ("step_states", "retry_count"), ("checkpoints", "seq"), ("signals", "seq"))
NOT_WHOLE = {"sqlite": "typeof({}) <> 'integer'", "postgres": "{} IS NULL"}


async def waits(run: Run) -> Any:
    await run.step("a", lambda: "a")
    return await run.wait_for("go")


def largest(backend: str) -> int:
    return (2**63 if backend == "sqlite" else 2**31) - 1


async def assert_all_are_whole(store: StateStore, backend: str) -> None:
    columns = [*(("workflow_states", count) for count in COUNTS), *OTHER_COUNTS]
    broken = [
        (f"SELECT '{table}.{column}' FROM {table} WHERE {NOT_WHOLE[backend].format(column)}")
        for table, column in columns
    ]
    assert await fetch(store, text(" UNION ALL ".join(broken))) == []


async def refusals(*asks: Callable[[], Awaitable[object]]) -> list[CorruptPayload]:
    refused = []
    for ask in asks:
        try:
            await ask()
        except CorruptPayload as error:
            refused.append(error)
        except OrchestratorStateError:
            continue  # another status than it asks for
    return refused


def requests(store: StateStore, name: str, run_id: UUID, checkpoint_id: UUID) -> list[Callable[[], Awaitable[object]]]:
    async def save() -> None:
        state = await store.load_workflow_state(run_id)
        state.context["more"] = 1
        await store.save_workflow_state(state)

    return [
        save,
        partial(store.create_checkpoint, Checkpoint(workflow_state_id=run_id, step_id="c", snapshot={})),
        partial(store.signal, run_id, "go"),
        partial(store.pause, run_id),
        partial(store.resume, run_id),
        partial(store.fork, checkpoint_id),
        partial(store.rewind, checkpoint_id),
        partial(store.run, "n", waits, workflow_id=name),
        partial(store.recover, {"n": waits}),
        partial(store.cancel, run_id),
    ]


@pytest.mark.slow
async def test_no_request_makes_another_number_of_a_count_that_cannot_grow(store: StateStore, backend: str) -> None:
    for column in COUNTS:
        with case(column):
            await requests_leave_it_whole(store, backend, column)
            async with store.begin() as uow:
                await uow.session.execute(delete(workflow_states))


async def requests_leave_it_whole(store: StateStore, backend: str, column: str) -> None:
    numbers = {f"{below} below the largest": largest(backend) - below for below in (0, 1, 2)}
    names = ("before", *numbers, "after")
    ids = {name: (await store.start("n", workflow_id=name, context={})).id for name in names}
    await store.recover({"n": waits})
    latest = {name: await store.get_latest_checkpoint(ids[name]) for name in numbers}
    for name, number in numbers.items():
        checkpoint = latest[name]
        assert checkpoint is not None
        with case(name):
            for each in requests(store, name, ids[name], checkpoint.id):
                await change_row(store, ids[name], **{column: number})
                await refusals(each)
                await assert_all_are_whole(store, backend)
    for neighbour in ("before", "after"):
        await store.signal(ids[neighbour], "go")
    await store.verify(load=True)
    recovered = await store.recover({"n": waits})
    assert {"before", "after"} <= {run.workflow_id for run in recovered.completed}
    await assert_all_are_whole(store, backend)


@pytest.mark.parametrize("ask", ["pause", "cancel"])
@pytest.mark.parametrize("column", ["version", "lease_token"])
async def test_whoever_asks_something_of_it_is_told_the_same_on_both_databases(
    store: StateStore, database_url: str, backend: str, column: str, ask: str
) -> None:
    run_id = (await store.start("n", workflow_id="w", context={})).id
    execute(database_url, f"UPDATE workflow_states SET {column} = {largest(backend)}")
    with pytest.raises(CorruptPayload, match="a stored number cannot grow") as caught:
        await getattr(store, ask)(run_id)
    assert caught.value.about["workflow_state_id"] == run_id
    assert (await row_of(store, "w")).status == "pending"
    report = await store.verify()
    assert [damage.column for damage in report.damage] == [column]


@pytest.mark.parametrize("column", ["version", "lease_token", "checkpoint_seq"])
async def test_a_run_under_way_of_which_a_count_cannot_grow_any_more_harms_nobody(
    database_url: str, backend: str, column: str
) -> None:
    gate = Gate()

    async def handler(run: Run) -> str:
        await run.step("a", gate)
        await run.step("b", lambda: "b")
        return "done"

    async with StateStore.open(database_url) as store:
        for name in ("before", "damaged", "after"):
            await store.start("n", workflow_id=name, context={})
        damaged = (await row_of(store, "damaged")).id

        async def spoil() -> None:
            await gate.reached.wait()
            await change_row(store, damaged, **{column: largest(backend)})
            gate.opened.set()

        report, _ = await asyncio.gather(store.recover({"n": handler}), spoil())
        await assert_all_are_whole(store, backend)
    assert {"before", "after"} <= {run.workflow_id for run in report.completed}
    if column == "checkpoint_seq":
        assert len(report.completed) == 3


async def test_a_parent_is_tried_again_beside_a_child_of_which_a_count_cannot_grow(
    store: StateStore, database_url: str, backend: str
) -> None:
    async def fails(run: Run) -> None:
        raise ValueError

    async def parent(run: Run) -> Any:
        return await run.child("child", fails, context={})

    await store.start("n", workflow_id="w", context={})
    await store.recover({"n": parent})
    run_id = (await row_of(store, "w")).id
    execute(database_url, f"UPDATE workflow_states SET version = {largest(backend)} WHERE parent_id = '{run_id}'")
    await store.resume(run_id)
    assert (await row_of(store, "w")).status == "pending"
    await assert_all_are_whole(store, backend)


async def test_a_step_that_fails_once_more_has_failed_for_its_own_reason(
    store: StateStore, database_url: str, backend: str
) -> None:
    step = Failing(*(ValueError("its own") for _ in range(3)))

    async def handler(run: Run) -> Any:
        return await run.step("a", step)

    for _ in range(3):
        with pytest.raises(ValueError, match="its own"):
            await store.run("n", handler, workflow_id="w", context={})
        execute(database_url, f"UPDATE step_states SET retry_count = {largest(backend)}")
    assert await store.run("n", handler, workflow_id="w") == "done"
    await assert_all_are_whole(store, backend)
