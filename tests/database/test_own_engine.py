"""The application's engine, its session, its transaction: workflow state joins them and changes nothing about them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, func, insert, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import registry

from orchestrator_state import (
    Checkpoint,
    StaleVersion,
    StateStore,
    StoreUnavailable,
    UnitOfWork,
    WorkflowNotFound,
    WorkflowState,
)
from orchestrator_state.domain import utc_now
from orchestrator_state.models import checkpoints, step_states, workflow_states
from tests.support.engines import count_orders, create_orders, orders, own_engine
from tests.support.states import a_checkpoint, a_state, is_stored


class Order:
    """A row of the application's table."""

    def __init__(self, **columns: Any) -> None:
        for name, value in columns.items():
            setattr(self, name, value)


registry().map_imperatively(Order, orders)


class Regretted(Exception):
    """Raised in a block so that it rolls back."""


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """The application's own engine, on a database with our schema and a table of the application's."""
    engine = own_engine(database_url)
    try:
        await create_orders(engine)
        yield engine
    finally:
        await engine.dispose()


# --- UnitOfWork(session): the application's transaction ----------------------------------------------------------


async def write_both(engine: AsyncEngine, state: WorkflowState, checkpoint: Checkpoint, end: str) -> None:
    async with AsyncSession(engine) as session:
        uow = UnitOfWork(session)
        await session.execute(insert(orders).values(item="book"))
        await uow.workflows.save(state)
        await uow.checkpoints.add(checkpoint)
        match end:
            case "commit":
                await session.commit()
            case "rollback":
                await session.rollback()
            case "exception":
                raise Regretted


async def test_business_rows_and_workflow_state_commit_or_roll_back_together(engine: AsyncEngine) -> None:
    async with StateStore.open(engine=engine) as store:
        for end in ("rollback", "exception", "neither", "commit"):
            state = a_state(end)
            checkpoint = a_checkpoint(state, 1)
            with suppress(Regretted):
                await write_both(engine, state, checkpoint, end)
            kept = end == "commit"
            assert await count_orders(engine) == int(kept)
            assert (state.version, checkpoint.seq) == ((1, 1) if kept else (0, None))
            assert await is_stored(store, state) is kept
            assert await store.get_latest_checkpoint(state.id) == (checkpoint if kept else None)


async def test_the_repositories_of_a_caller_neither_commit_nor_end_the_callers_transaction(
    engine: AsyncEngine, database_url: str
) -> None:
    state = a_state()
    async with AsyncSession(engine) as session, session.begin():
        before = session.get_transaction()
        uow = UnitOfWork(session)
        await uow.workflows.save(state)
        await uow.workflows.save(state)
        await uow.checkpoints.add(a_checkpoint(state, 1))
        await uow.checkpoints.prune(state.id, keep=1)
        await uow.workflows.delete_finished(older_than=utc_now(), limit=10)
        await uow.steps.get(state.id, "load")
        assert session.get_transaction() is before
        async with StateStore.open(database_url) as onlooker:
            assert await onlooker.list_active_workflows() == []
        await session.rollback()
    assert state.version == 0


@pytest.mark.parametrize("how", ["session", "connection", "store first", "savepoint first"])
async def test_a_savepoint_that_comes_first_goes_with_the_transaction_around_it(engine: AsyncEngine, how: str) -> None:
    state = a_state()
    async with AsyncExitStack() as stack:
        if how in ("store first", "savepoint first"):
            await stack.enter_async_context(StateStore.open(engine=engine))
        connection = await stack.enter_async_context(engine.connect())
        outer = await connection.begin()
        own = how == "connection"
        bind = connection if own else engine
        session = await stack.enter_async_context(AsyncSession(bind, join_transaction_mode="create_savepoint"))
        uow = None if how == "savepoint first" else UnitOfWork(session)
        async with session.begin_nested():
            await session.execute(insert(orders).values(item="book"))
            await (uow or UnitOfWork(session)).workflows.save(state)
        await (session.commit() if own else session.rollback())
        await outer.rollback()
    assert await count_orders(engine) == 0
    async with StateStore.open(engine=engine) as store:
        assert not await is_stored(store, state)


async def test_a_session_in_which_a_flush_has_failed_says_that_it_is_to_be_rolled_back(engine: AsyncEngine) -> None:
    state = a_state()
    async with AsyncSession(engine) as session:
        await session.execute(insert(orders).values(id=1, item="book"))
        session.add(Order(id=1, item="the same"))
        with suppress(IntegrityError):
            await session.flush()
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match=r"failed before.*roll it back") as refused:
                await UnitOfWork(session).workflows.save(state)
            assert refused.value.failed_before
        await session.rollback()
        await UnitOfWork(session).workflows.save(state)
        await session.commit()
    async with StateStore.open(engine=engine) as store:
        assert await is_stored(store, state)


async def test_a_session_goes_on_after_a_rollback_and_each_transaction_keeps_its_own_account(
    engine: AsyncEngine,
) -> None:
    state = a_state()
    async with AsyncSession(engine) as session:
        uow = UnitOfWork(session)
        versions: list[int] = []
        for end in (session.commit, session.rollback, session.commit, session.rollback):
            state.context = {"count": len(versions)}
            await uow.workflows.save(state)
            await end()
            versions.append(state.version)
    assert versions == [1, 1, 2, 2]


# --- The store on the application's engine ----------------------------------------------------------------------


async def increment_by_store(engine: AsyncEngine, state: WorkflowState) -> None:
    async with StateStore.open(engine=engine) as store:
        fresh = await store.load_workflow_state(state.id)
        fresh.context += 1
        await store.save_workflow_state(fresh)


async def increment_by_session(engine: AsyncEngine, state: WorkflowState) -> None:
    async with AsyncSession(engine) as session, session.begin():
        uow = UnitOfWork(session)
        fresh = await uow.workflows.get(state.id)
        fresh.context += 1
        await asyncio.sleep(0.001)
        await uow.workflows.save(fresh)
        await session.execute(insert(orders).values(item="one more"))


@pytest.mark.parametrize("increment", [increment_by_store, increment_by_session])
async def test_no_update_is_lost_on_the_applications_engine(
    engine: AsyncEngine, increment: Callable[[AsyncEngine, WorkflowState], Awaitable[None]]
) -> None:
    async with StateStore.open(engine=engine) as store:
        state = a_state()
        await store.save_workflow_state(state)

        async def five_times() -> None:
            done = 0
            while done < 5:
                with suppress(StaleVersion, StoreUnavailable):
                    await increment(engine, state)
                    done += 1

        await asyncio.gather(*(five_times() for _ in range(6)))
        assert (await store.load_workflow_state(state.id)).context == 30
        if increment is increment_by_session:
            assert await count_orders(engine) == 30


async def orphans(engine: AsyncEngine) -> int:
    async with AsyncSession(engine) as session:
        found = 0
        for table in (step_states, checkpoints):
            owned = table.c.workflow_state_id.in_(select(workflow_states.c.id))
            found += await session.scalar(select(func.count()).select_from(table).where(~owned)) or 0
        return found


async def test_deletion_leaves_no_orphan_also_where_foreign_keys_are_off(engine: AsyncEngine, backend: str) -> None:
    if backend == "sqlite":
        async with engine.connect() as connection:
            assert await connection.scalar(text("PRAGMA foreign_keys")) == 0
    async with StateStore.open(engine=engine) as store:
        states = [a_state(str(number)) for number in range(3)]
        for state in states:
            state.mark_completed()
            state.updated_at = utc_now() - timedelta(days=2)
            await store.save_workflow_state(state)
            await store.create_checkpoint(a_checkpoint(state, 1))
        assert await store.delete_old_states(utc_now() - timedelta(days=1)) == 3
        assert await orphans(engine) == 0
        with pytest.raises(WorkflowNotFound):
            await store.create_checkpoint(a_checkpoint(states[0], 1))
        states[0].context = "late"
        with pytest.raises(WorkflowNotFound):
            await store.save_workflow_state(states[0])
    assert await orphans(engine) == 0


async def test_the_store_leaves_the_applications_engine_open_and_its_transactions_as_they_were(
    engine: AsyncEngine,
) -> None:
    async with StateStore.open(engine=engine) as store:
        await store.save_workflow_state(a_state())
        begun: list[str] = []
        event.listen(engine.sync_engine, "before_cursor_execute", lambda _c, _d, statement, *_: begun.append(statement))
        async with engine.begin() as connection:
            await connection.execute(insert(orders).values(item="book"))
        assert len(begun) == 1, "a statement of ours came into the application's transaction"
    assert engine.sync_engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert await count_orders(engine) == 1


async def test_a_rolled_back_unit_leaves_nothing_on_the_applications_engine_either(engine: AsyncEngine) -> None:
    """The driver's legacy mode begins a transaction where it likes; the unit is one all the same."""
    state = a_state()
    async with StateStore.open(engine=engine) as store:
        with suppress(Regretted):
            async with store.begin() as uow:
                await uow.session.execute(select(workflow_states.c.id))
                await uow.workflows.save(state)
                await uow.session.execute(insert(orders).values(item="book"))
                await uow.checkpoints.add(a_checkpoint(state, 1))
                raise Regretted
        assert (state.version, await is_stored(store, state), await count_orders(engine)) == (0, False, 0)
