"""One session, one commit: what is written together stands or falls together, in the database and in memory."""

import asyncio
import random
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import exc, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from orchestrator_state import (
    Checkpoint,
    ConfigurationError,
    InvalidPayload,
    OrchestratorStateError,
    StaleVersion,
    StateStore,
    StepState,
    UnitOfWork,
    WorkflowState,
)
from orchestrator_state.models import workflow_states
from tests.support.chance import dice
from tests.support.states import a_checkpoint, a_state, is_stored


class Regretted(Exception):
    """Raised in a block so that it rolls back."""


def in_memory(*things: WorkflowState | Checkpoint) -> list[object]:
    """Everything about them that a save changes."""
    return [
        (thing.version, thing.updated_at, thing._saved) if isinstance(thing, WorkflowState) else thing.seq
        for thing in things
    ]


# --- store.begin() ----------------------------------------------------------------------------------------------


async def test_nobody_sees_a_unit_before_its_block_ends_and_everybody_sees_all_of_it_after(store: StateStore) -> None:
    one, other = a_state("one"), a_state("other")
    checkpoint = a_checkpoint(one, 1)
    async with store.begin() as uow:
        await uow.workflows.save(one)
        await uow.workflows.save(other)
        await uow.checkpoints.add(checkpoint)
        assert await uow.workflows.get(one.id) == one
        assert await store.list_active_workflows() == []
        assert await store.get_latest_checkpoint(one.id) is None
    assert await is_stored(store, one)
    assert await is_stored(store, other)
    assert await store.get_latest_checkpoint(one.id) == checkpoint


async def test_any_exception_rolls_back_all_of_the_unit_and_comes_out_as_it_is(store: StateStore) -> None:
    old, new = a_state("old"), a_state("new")
    await store.save_workflow_state(old)
    checkpoint = a_checkpoint(old, 1)
    before = in_memory(old, new, checkpoint)

    async def unit(error: BaseException) -> None:
        async with store.begin() as uow:
            old.context = repr(error)
            await uow.workflows.save(old)
            await uow.workflows.save(new)
            await uow.checkpoints.add(checkpoint)
            raise error

    for error in (Regretted(), OSError("disk"), asyncio.CancelledError(), KeyboardInterrupt(), SystemExit(3)):
        with pytest.raises(type(error)) as raised:
            await unit(error)
        assert raised.value is error
        assert in_memory(old, new, checkpoint) == before
        assert (await store.load_workflow_state(old.id)).context == 0
        assert not await is_stored(store, new)
        assert await store.get_latest_checkpoint(old.id) is None

    for state in (old, new):
        await store.save_workflow_state(state)
        assert await is_stored(store, state)
    assert (old.version, new.version) == (2, 1)


async def test_a_cancelled_task_rolls_its_unit_back(store: StateStore) -> None:
    state = a_state()
    saved = asyncio.Event()

    async def unit() -> None:
        async with store.begin() as uow:
            await uow.workflows.save(state)
            saved.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(unit())
    await saved.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (state.version, await is_stored(store, state)) == (0, False)
    await store.save_workflow_state(state)
    assert await is_stored(store, state)


async def test_a_state_saved_twice_in_one_unit_moves_on_twice_and_goes_back_twice(store: StateStore) -> None:
    state = a_state()
    await store.save_workflow_state(state)
    before = in_memory(state)

    async def twice(*, regret: bool) -> None:
        async with store.begin() as uow:
            for count in (1, 2):
                state.context = {"count": count}
                state.steps[f"step {count}"] = StepState(step_id=f"step {count}")
                await uow.workflows.save(state)
            if regret:
                raise Regretted

    with pytest.raises(Regretted):
        await twice(regret=True)
    assert in_memory(state) == before
    await twice(regret=False)
    assert state.version == 3
    assert await is_stored(store, state)


async def test_a_failed_save_leaves_state_and_database_alone_and_the_unit_usable(store: StateStore) -> None:
    fresh, other = a_state(), a_state("other")
    await store.save_workflow_state(fresh)
    stale = await store.load_workflow_state(fresh.id)
    fresh.mark_running()
    await store.save_workflow_state(fresh)
    stale.mark_cancelled()
    before = in_memory(stale)
    async with store.begin() as uow:
        with pytest.raises(StaleVersion):
            await uow.workflows.save(stale)
        with pytest.raises(StaleVersion):
            await uow.workflows.save(a_state().model_copy(update={"id": fresh.id}))
        await uow.workflows.save(other)
    assert in_memory(stale) == before
    assert await is_stored(store, fresh)
    assert await is_stored(store, other)


async def swallow(uow: UnitOfWork, statement: str) -> None:
    with suppress(exc.DBAPIError):
        await uow.session.execute(text(statement))
        pytest.fail("the statement was to fail")


@pytest.mark.parametrize(
    "statement",
    ["INSERT INTO workflow_states (id) VALUES (NULL)", "SELECT nothing FROM nowhere"],
    ids=["constraint", "syntax"],
)
async def test_a_unit_that_went_on_after_a_failed_statement_is_kept_or_refused_but_never_silently_lost(
    store: StateStore, statement: str
) -> None:
    """Postgres answers the COMMIT of a transaction with a failed statement with ROLLBACK, and no error."""
    early, late = a_state("early"), a_state("late")
    acknowledged = False
    with suppress(OrchestratorStateError):
        async with store.begin() as uow:
            await uow.workflows.save(early)
            await swallow(uow, statement)
            with suppress(OrchestratorStateError):
                await uow.workflows.save(late)
        acknowledged = True
    for state in (early, late):
        assert await is_stored(store, state) is (state.version == 1)
    assert await is_stored(store, early) is acknowledged


async def test_a_failed_statement_in_a_savepoint_costs_no_more_than_the_savepoint(store: StateStore) -> None:
    early, lost, late = a_state("early"), a_state("lost"), a_state("late")
    async with store.begin() as uow:
        await uow.workflows.save(early)
        with suppress(exc.DBAPIError):
            async with uow.session.begin_nested():
                await uow.workflows.save(lost)
                await uow.session.execute(text("SELECT nothing FROM nowhere"))
        await uow.workflows.save(late)
    assert [await is_stored(store, state) for state in (early, lost, late)] == [True, False, True]
    assert [state.version for state in (early, lost, late)] == [1, 0, 1]


async def test_a_unit_inside_a_unit_is_refused_by_name_and_the_outer_one_goes_on(store: StateStore) -> None:
    outer, inner = a_state("outer"), a_state("inner")
    async with store.begin() as uow:
        await uow.workflows.save(outer)
        with pytest.raises(ConfigurationError, match="use that uow"):
            await store.save_workflow_state(inner)
        with pytest.raises(ConfigurationError, match="use that uow"):
            await store.create_checkpoint(a_checkpoint(outer, 1))
        with pytest.raises(ConfigurationError, match="use that uow"):
            async with store.begin():
                pytest.fail("a second unit has begun")
    assert (inner.version, await is_stored(store, outer)) == (0, True)
    await store.save_workflow_state(inner)
    assert await is_stored(store, inner)


async def test_a_unit_kept_after_its_block_does_nothing_and_holds_nothing(store: StateStore) -> None:
    """Its writes would never be committed, and on SQLite would keep everybody else from writing."""
    state = a_state()
    async with store.begin() as uow:
        pass
    with pytest.raises((OrchestratorStateError, exc.InvalidRequestError)):
        await uow.workflows.save(state)
    assert state.version == 0
    assert store._transactions.database._pool.sync_engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await store.save_workflow_state(a_state("next"))


async def test_an_object_of_the_callers_that_its_table_cannot_hold_is_no_damage_of_ours(postgres_url: str) -> None:
    class Base(DeclarativeBase):
        pass

    class Reading(Base):
        __tablename__ = "readings"
        id: Mapped[int] = mapped_column(primary_key=True)

    async with StateStore.open(postgres_url) as store:
        async with store.begin() as uow:
            await uow.session.execute(text("CREATE TABLE readings (id SMALLINT PRIMARY KEY)"))

        async def save() -> None:
            async with store.begin() as uow:
                uow.session.add(Reading(id=70_000))
                await uow.workflows.save(a_state("one"))

        with pytest.raises(InvalidPayload):
            await save()
        assert await store.list_active_workflows() == []


# --- Savepoints -------------------------------------------------------------------------------------------------


async def test_a_savepoint_takes_back_only_what_was_saved_in_it(store: StateStore) -> None:
    state = a_state()
    checkpoints_made = [a_checkpoint(state, number) for number in range(3)]
    async with store.begin() as uow:
        await uow.workflows.save(state)
        await uow.checkpoints.add(checkpoints_made[0])
        before = in_memory(state)
        savepoint = await uow.session.begin_nested()
        state.context = {"count": 1}
        await uow.workflows.save(state)
        await uow.checkpoints.add(checkpoints_made[1])
        assert (state.version, checkpoints_made[1].seq) == (2, 2)
        await savepoint.rollback()
        assert in_memory(state, checkpoints_made[1]) == [*before, None]
        await uow.workflows.save(state)
        await uow.checkpoints.add(checkpoints_made[2])
    assert state.version == 2
    assert [checkpoint.seq for checkpoint in checkpoints_made] == [1, None, 2]
    assert await is_stored(store, state)


@pytest.mark.parametrize("regret", [True, False])
async def test_what_a_released_savepoint_saved_shares_the_fate_of_the_unit(store: StateStore, *, regret: bool) -> None:
    state = a_state()
    await store.save_workflow_state(state)
    checkpoint = a_checkpoint(state, 1)
    before = in_memory(state, checkpoint)
    with suppress(Regretted):
        async with store.begin() as uow:
            async with uow.session.begin_nested(), uow.session.begin_nested():
                state.context = "changed"
                await uow.workflows.save(state)
                await uow.checkpoints.add(checkpoint)
            assert (state.version, checkpoint.seq) == (2, 1)
            if regret:
                raise Regretted
    assert (in_memory(state, checkpoint) == before) is regret
    assert await is_stored(store, state) is not regret
    latest = await store.get_latest_checkpoint(state.id)
    assert latest == (None if regret else checkpoint)


async def stored_numbers(session: AsyncSession, states: list[WorkflowState]) -> dict[object, tuple[int, int]]:
    """What this session sees of the states: version and last checkpoint number."""
    columns = workflow_states.c
    wanted = select(columns.id, columns.version, columns.checkpoint_seq)
    rows = await session.execute(wanted.where(columns.id.in_([state.id for state in states])))
    return {row.id: (row.version, row.checkpoint_seq) for row in rows}


async def random_unit(store: StateStore, chance: random.Random, states: list[WorkflowState]) -> None:
    """Saves, checkpoints, savepoints begun, rolled back and released in any order; memory in step at every point."""
    made: list[Checkpoint] = []
    async with store.begin() as uow:
        savepoints: list[Any] = []
        for _ in range(chance.randrange(1, 12)):
            state = chance.choice(states)
            match chance.choice(["save", "save", "checkpoint", "begin", "roll back", "release"]):
                case "save":
                    state.context = chance.random()
                    await uow.workflows.save(state)
                case "checkpoint" if state.version:
                    made.append(a_checkpoint(state, 1))
                    await uow.checkpoints.add(made[-1])
                case "begin":
                    savepoints.append(await uow.session.begin_nested())
                case "roll back" if savepoints:
                    await savepoints.pop().rollback()
                case "release" if savepoints:
                    await savepoints.pop().commit()
            there = await stored_numbers(uow.session, states)
            for state in states:
                version, last = there.get(state.id, (0, 0))
                numbers = [made_one.seq for made_one in made if made_one.workflow_state_id == state.id]
                assert state.version == version
                assert max((number for number in numbers if number), default=last) == last
        for savepoint in reversed(savepoints):
            await savepoint.commit()
        if chance.random() < 0.5:
            raise Regretted


async def test_memory_is_in_step_with_the_database_through_any_nest_of_savepoints(store: StateStore) -> None:
    chance = dice()
    for _ in range(20):
        states = [a_state(str(number)) for number in range(2)]
        await store.save_workflow_state(states[0])
        with suppress(Regretted):
            await random_unit(store, chance, states)
        async with store.begin() as uow:
            there = await stored_numbers(uow.session, states)
        assert [state.version for state in states] == [there.get(state.id, (0, 0))[0] for state in states]
        for state in states:
            state.context = "afterwards"
            await store.save_workflow_state(state)
            assert await is_stored(store, state)
