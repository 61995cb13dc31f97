"""Many at once on one database: nothing is lost, torn, doubled or left over. Each harness is seen to fail once."""

import asyncio
import random
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing, suppress
from datetime import datetime, timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import delete, exc, func, insert, select, update

from orchestrator_state import (
    Checkpoint,
    SchemaOutOfDate,
    StaleVersion,
    StateStore,
    StepState,
    WorkflowNotFound,
    WorkflowState,
)
from orchestrator_state.domain import utc_now
from orchestrator_state.models import checkpoints, step_states, workflow_states
from orchestrator_state.payloads import decode, encode
from tests.support.chance import tries
from tests.support.children import Child, child, ready, together

pytestmark = pytest.mark.process

PROCESSES = 4
STEPS = ("first", "second", "third")

Write = Callable[[StateStore, UUID], Awaitable[object]]
Read = Callable[[StateStore, UUID], Awaitable[list[Any]]]


def saved(url: str, *states: WorkflowState) -> None:
    async def main() -> None:
        async with StateStore.open(url) as store, store.begin() as uow:
            for state in states:
                await uow.workflows.save(state)

    asyncio.run(main())


def loaded(url: str, state_id: UUID) -> WorkflowState:
    async def main() -> WorkflowState:
        async with StateStore.open(url) as store:
            return await store.load_workflow_state(state_id)

    return asyncio.run(main())


# --- Lost updates -----------------------------------------------------------------------------------------------


async def increment(store: StateStore, state_id: UUID) -> None:
    while True:
        state = await store.load_workflow_state(state_id)
        state.context["count"] += 1
        try:
            return await store.save_workflow_state(state)
        except StaleVersion:
            await asyncio.sleep(random.uniform(0, 0.005))  # or the four would only trip each other up


async def increment_unguarded(store: StateStore, state_id: UUID) -> None:
    count = (await store.load_workflow_state(state_id)).context["count"]
    await asyncio.sleep(0.001)
    async with store.begin() as uow:
        text = encode({"count": count + 1}, "context")
        unguarded = update(workflow_states).where(workflow_states.c.id == state_id)
        await uow.session.execute(unguarded.values(context=text, context_digest=None))


async def repeat(pipe: Connection, _: int, url: str, write: Write, times: int, state_id: UUID) -> None:
    async with StateStore.open(url, pool_min=1) as store:
        ready(pipe)
        for _ in range(times):
            await write(store, state_id)
        pipe.send("done")


def count_of(url: str, write: Write, times: int) -> int:
    state = WorkflowState(workflow_id="w", workflow_name="n", context={"count": 0})
    saved(url, state)
    together(PROCESSES, repeat, url, write, times, state.id)
    return int(loaded(url, state.id).context["count"])


def test_four_processes_that_increment_one_workflow_lose_no_increment(database_url: str) -> None:
    assert count_of(database_url, increment, 100) == PROCESSES * 100


def test_the_count_shows_when_the_update_is_not_guarded(fresh_database_urls: Callable[[], str]) -> None:
    assert any(count_of(fresh_database_urls(), increment_unguarded, 25) < PROCESSES * 25 for _ in tries())


# --- Torn reads -------------------------------------------------------------------------------------------------


async def overwrite_until_told(pipe: Connection, url: str, state_id: UUID) -> None:
    """Save again and again a state whose context and steps all hold the same number."""
    async with StateStore.open(url, pool_min=1) as store:
        state = await store.load_workflow_state(state_id)
        number = 0
        while not pipe.poll():
            number += 1
            state.context = number
            for step in state.steps.values():
                step.outputs = number
            await store.save_workflow_state(state)
            if number == 1:
                pipe.send("begun")


async def numbers_of_a_load(store: StateStore, state_id: UUID) -> list[Any]:
    state = await store.load_workflow_state(state_id)
    return [state.context, *(step.outputs for step in state.steps.values())]


async def numbers_of_a_list(store: StateStore, state_id: UUID) -> list[Any]:
    (state,) = await store.list_active_workflows()
    return [state.context, *(step.outputs for step in state.steps.values())]


async def numbers_of_two_selects(store: StateStore, state_id: UUID) -> list[Any]:
    async with store._transactions.database.reading() as session:
        context = await session.scalar(select(workflow_states.c.context))
        await asyncio.sleep(0.001)
        outputs = (await session.scalars(select(step_states.c.outputs))).all()
    return [decode(text or "null", "number") for text in [context, *outputs]]


def reads_beside_a_writer(url: str, read: Read, enough: Callable[[list[list[Any]]], bool]) -> list[list[Any]]:
    """The numbers that each of many reads saw, until it was `enough`."""
    state = WorkflowState(workflow_id="w", workflow_name="n", context=0)
    state.steps = {step_id: StepState(step_id=step_id, outputs=0) for step_id in STEPS}
    saved(url, state)
    reads: list[list[Any]] = []

    async def main() -> None:
        async with StateStore.open(url) as store:
            while not enough(reads):
                reads.append(await read(store, state.id))

    with child(overwrite_until_told, url, state.id) as writer:
        writer.hear()
        asyncio.run(main())
        writer.pipe.send("stop")
        writer.finish()
    assert all(len(numbers) == 1 + len(STEPS) for numbers in reads)
    return reads


def is_torn(numbers: list[Any]) -> bool:
    return len(set(numbers)) > 1


@pytest.mark.parametrize(("read", "times"), [(numbers_of_a_load, 300), (numbers_of_a_list, 50)])
def test_no_read_beside_a_writer_is_torn(database_url: str, read: Read, times: int) -> None:
    def enough(reads: list[list[Any]]) -> bool:
        return len(reads) >= times and len({numbers[0] for numbers in reads}) >= 10

    assert not [numbers for numbers in reads_beside_a_writer(database_url, read, enough) if is_torn(numbers)]


def test_the_harness_sees_two_selects_tear(database_url: str) -> None:
    def enough(reads: list[list[Any]]) -> bool:
        return bool(reads) and is_torn(reads[-1])

    assert is_torn(reads_beside_a_writer(database_url, numbers_of_two_selects, enough)[-1])


# --- Forty writers on one SQLite file ---------------------------------------------------------------------------

WRITERS = 40
SAVES = 3


async def write_own(store: StateStore, name: str) -> None:
    """Save a workflow of one's own `SAVES` times, with a checkpoint each time."""
    state = WorkflowState(workflow_id=name, workflow_name="n")
    for number in range(SAVES):
        state.context = number
        await store.save_workflow_state(state)
        checkpoint = Checkpoint(workflow_state_id=state.id, step_id="s", snapshot=number)
        await store.create_checkpoint(checkpoint)


async def five_writers(pipe: Connection, process: int, url: str) -> None:
    async with StateStore.open(url) as store:
        ready(pipe)
        await asyncio.gather(*(write_own(store, f"{process}.{number}") for number in range(5)))
        pipe.send("done")


async def forty_tasks(url: str) -> None:
    async with StateStore.open(url) as store:
        await asyncio.gather(*(write_own(store, str(number)) for number in range(WRITERS)))


async def forty_stores(url: str) -> None:
    async with AsyncExitStack() as stack:
        opening = [stack.enter_async_context(StateStore.open(url, pool_max=1, pool_min=1)) for _ in range(WRITERS)]
        stores = await asyncio.gather(*opening)
        await asyncio.gather(*(write_own(store, str(number)) for number, store in enumerate(stores)))


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda url: asyncio.run(forty_tasks(url)), id="forty tasks of one store"),
        pytest.param(lambda url: together(8, five_writers, url), id="eight processes of five tasks"),
        pytest.param(lambda url: asyncio.run(forty_stores(url)), id="forty stores in one process"),
    ],
)
def test_forty_writers_on_one_sqlite_file_all_succeed_from_its_creation_on(
    write: Callable[[str], object], empty_sqlite_url: str
) -> None:
    write(empty_sqlite_url)
    with closing(sqlite3.connect(empty_sqlite_url.removeprefix("sqlite:///"))) as connection:
        versions = connection.execute("SELECT version, count(*) FROM workflow_states GROUP BY version").fetchall()
        assert versions == [(SAVES, WRITERS)]
        assert connection.execute("SELECT count(*) FROM checkpoints").fetchall() == [(SAVES * WRITERS,)]
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_no_store_that_meets_others_at_a_new_sqlite_file_is_told_to_try_again(tmp_path: Path) -> None:
    """Without waiting ourselves about one meeting in ten went wrong: SQLite refuses at once to turn to WAL twice."""
    for number in range(60):
        opening = [StateStore.open(tmp_path / f"{number}.db", migrate=False) for _ in range(4)]
        told = await asyncio.gather(*opening, return_exceptions=True)
        assert {type(error) for error in told} == {SchemaOutOfDate}


def test_a_plain_begin_would_let_a_locked_error_escape(sqlite_url: str) -> None:
    path = sqlite_url.removeprefix("sqlite:///")
    saved(sqlite_url, WorkflowState(workflow_id="w", workflow_name="n"))
    with (
        closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as one,
        closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as other,
    ):
        one.execute("BEGIN")
        one.execute("SELECT version FROM workflow_states").fetchall()
        other.execute("UPDATE workflow_states SET version = version + 1")
        with pytest.raises(sqlite3.OperationalError, match="database is locked"):
            one.execute("UPDATE workflow_states SET version = version + 1")


# --- Checkpoint numbers -----------------------------------------------------------------------------------------

CHECKPOINTS = 4


class Regretted(Exception):
    """Raised in a unit of work so that it rolls back."""


async def checkpoint_and_regret(store: StateStore, state_id: UUID) -> list[int | None]:
    """Create `CHECKPOINTS` and return their numbers; beside them, add as many in units that roll back."""
    numbers = []
    for number in range(CHECKPOINTS):
        checkpoint = Checkpoint(workflow_state_id=state_id, step_id="s", snapshot=number)
        regretted = checkpoint.model_copy()
        with suppress(Regretted):
            async with store.begin() as uow:
                await uow.checkpoints.add(regretted)
                raise Regretted
        assert regretted.seq is None
        await store.create_checkpoint(checkpoint)
        numbers.append(checkpoint.seq)
    return numbers


async def checkpoint_by_hand(store: StateStore, state_id: UUID) -> list[int | None]:
    """Number the checkpoints in the way that first comes to mind."""
    for _ in range(CHECKPOINTS):
        async with store._transactions.database.reading() as session:
            last = await session.scalar(select(func.max(checkpoints.c.seq))) or 0
        await asyncio.sleep(0.001)
        row = Checkpoint(workflow_state_id=state_id, step_id="s", snapshot=0).model_dump()
        async with store.begin() as uow:
            await uow.session.execute(insert(checkpoints).values(row | {"seq": last + 1, "snapshot": "0"}))
    return []


async def report(
    pipe: Connection, _: int, url: str, number: Callable[[StateStore, UUID], Awaitable[list[int | None]]], of: UUID
) -> None:
    async with StateStore.open(url, pool_min=1, keep_checkpoints=1000) as store:
        ready(pipe)
        try:
            tasks = await asyncio.gather(*(number(store, of) for _ in range(3)))
            pipe.send([seq for task in tasks for seq in task])
        except exc.IntegrityError:
            pipe.send(["refused"])


def test_checkpoints_created_at_once_are_numbered_without_gap_or_double(database_url: str) -> None:
    state = WorkflowState(workflow_id="w", workflow_name="n")
    saved(database_url, state)
    told = [seq for said in together(PROCESSES, report, database_url, checkpoint_and_regret, state.id) for seq in said]
    expected = list(range(1, PROCESSES * 3 * CHECKPOINTS + 1))

    async def stored() -> list[int | None]:
        async with StateStore.open(database_url) as store, store.begin() as uow:
            return [checkpoint.seq for checkpoint in await uow.checkpoints.list(state.id)]

    assert sorted(told) == expected
    assert asyncio.run(stored()) == expected[::-1]


def test_numbers_taken_without_the_row_lock_collide(fresh_database_urls: Callable[[], str]) -> None:
    def collide(url: str) -> bool:
        state = WorkflowState(workflow_id="w", workflow_name="n")
        saved(url, state)
        return ["refused"] in together(PROCESSES, report, url, checkpoint_by_hand, state.id)

    assert any(collide(fresh_database_urls()) for _ in tries())


# --- Deletion beside writers ------------------------------------------------------------------------------------

OLD = 220
FIRST_REVIVED = 10
LAST_REVIVED = 110

Remove = Callable[[StateStore, datetime, Callable[[], None]], Awaitable[int]]


async def delete_old(store: StateStore, before: datetime, wait_for_the_others: Callable[[], None]) -> int:
    wait_for_the_others()
    return await store.delete_old_states(before)


async def delete_by_hand(store: StateStore, before: datetime, wait_for_the_others: Callable[[], None]) -> int:
    """Look for what is old, and delete it later by its id."""
    async with store._transactions.database.reading() as session:
        found = select(workflow_states.c.id).where(workflow_states.c.updated_at < before)
        ids = (await session.scalars(found)).all()
    wait_for_the_others()
    async with store.begin() as uow:
        await uow.session.execute(delete(workflow_states).where(workflow_states.c.id.in_(ids)))
    return len(ids)


async def delete_and_tell(pipe: Connection, url: str, remove: Remove) -> None:
    async with StateStore.open(url, pool_min=1) as store:
        pipe.send(await remove(store, utc_now() - timedelta(days=1), partial(ready, pipe)))


async def revive(store: StateStore, states: list[WorkflowState]) -> set[UUID]:
    """Take failed workflows up again; return those whose save was acknowledged."""
    revived: set[UUID] = set()
    for state in states:
        state.mark_running()
        state.steps["second"] = StepState(step_id="second")
        try:
            await store.save_workflow_state(state)
        except WorkflowNotFound:
            continue
        revived.add(state.id)
        with suppress(WorkflowNotFound):  # then the save is lost, which is what the tests look for
            await store.create_checkpoint(Checkpoint(workflow_state_id=state.id, step_id="s", snapshot=1))
    return revived


def old_states() -> list[WorkflowState]:
    """Failed ones, the youngest first: deletion begins at the other end."""
    states = [WorkflowState(workflow_id=f"w{number}", workflow_name="n") for number in range(OLD)]
    for number, state in enumerate(states):
        state.steps["first"] = StepState(step_id="first")
        state.mark_failed("once")
        state.updated_at = utc_now() - timedelta(days=10, minutes=number)
    return states


async def revive_beside(url: str, states: list[WorkflowState], deleting: list[Child]) -> tuple[set[UUID], int]:
    """Some are taken up again before the deletion begins, some beside it, some never."""
    async with StateStore.open(url) as store:
        for each in deleting:
            await asyncio.to_thread(each.hear)
        revived = await revive(store, states[:FIRST_REVIVED])
        for each in deleting:
            each.pipe.send("go")
        revived |= await revive(store, states[FIRST_REVIVED:LAST_REVIVED])
        return revived, sum([await asyncio.to_thread(each.hear) for each in deleting])


async def what_is_left(url: str) -> tuple[set[UUID], set[UUID]]:
    """The ids of the workflows, and those to which steps and checkpoints belong."""
    async with StateStore.open(url) as store, store.begin() as uow:
        ids = set(await uow.session.scalars(select(workflow_states.c.id)))
        owners = [select(table.c.workflow_state_id) for table in (step_states, checkpoints)]
        return ids, set(await uow.session.scalars(owners[0])) | set(await uow.session.scalars(owners[1]))


def deletion_beside_revival(url: str, remove: Remove) -> tuple[set[UUID], set[UUID], int]:
    """The workflows whose revival was acknowledged, those that are there afterwards, and how many were deleted."""
    states = old_states()
    saved(url, *states)
    with child(delete_and_tell, url, remove) as one, child(delete_and_tell, url, remove) as other:
        revived, deleted = asyncio.run(revive_beside(url, states, [one, other]))
    ids, owners = asyncio.run(what_is_left(url))
    assert owners <= ids, "children without their parent are left"
    return revived, ids, deleted


def test_delete_old_states_takes_nothing_that_a_writer_took_up_again(database_url: str) -> None:
    revived, ids, deleted = deletion_beside_revival(database_url, delete_old)
    assert revived == ids, "what was acknowledged is gone, or what is old has stayed"
    assert deleted + len(ids) == OLD
    assert deleted >= OLD - LAST_REVIVED
    assert len(revived) >= FIRST_REVIVED


def test_the_harness_sees_a_deletion_that_looks_first_and_deletes_later(database_url: str) -> None:
    revived, ids, _ = deletion_beside_revival(database_url, delete_by_hand)
    assert not revived <= ids
