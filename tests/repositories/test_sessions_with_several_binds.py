"""An application's session that knows several databases: a unit of work on it is of one of them, in all its calls."""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from orchestrator_state import Checkpoint, StateStore, UnitOfWork, WorkflowState
from orchestrator_state.models import (
    Base,
    CheckpointRow,
    SignalRow,
    StepRow,
    WorkflowRow,
    checkpoints,
    signals,
    step_states,
    workflow_states,
)
from tests.support.cases import case
from tests.support.engines import opened_engine

MODELS: Final = (WorkflowRow, StepRow, CheckpointRow, SignalRow)
TABLES: Final = (workflow_states, step_states, checkpoints, signals)
Make = Callable[[AsyncEngine, AsyncEngine], AsyncSession]


def routing(engine: AsyncEngine, other: AsyncEngine) -> AsyncSession:
    class ByMapper(Session):
        def get_bind(self, mapper: Any = None, **_: Any) -> Any:
            is_ours = mapper is not None and issubclass(mapper.class_, Base)
            return (engine if is_ours else other).sync_engine

    return AsyncSession(sync_session_class=ByMapper)


SESSIONS: Final[dict[str, Make]] = {
    "our tables": lambda engine, _: AsyncSession(binds=dict.fromkeys(TABLES, engine)),
    "our models": lambda engine, _: AsyncSession(binds=dict.fromkeys(MODELS, engine)),
    "our base": lambda engine, _: AsyncSession(binds={Base: engine}),
    "our tables, another for the rest": lambda engine, other: AsyncSession(other, binds=dict.fromkeys(TABLES, engine)),
    "our base, another for the rest": lambda engine, other: AsyncSession(other, binds={Base: engine}),
    "a route by mapper": routing,
}


@pytest.fixture
async def engines(database_url: str) -> AsyncIterator[tuple[AsyncEngine, AsyncEngine]]:
    """The other database has no tables, and may be of another kind."""
    async with opened_engine(database_url) as engine, opened_engine("sqlite:///:memory:") as other:
        yield engine, other


async def test_all_calls_of_a_unit_find_our_tables(engines: tuple[AsyncEngine, AsyncEngine]) -> None:
    for name, make in SESSIONS.items():
        async with make(*engines) as session:
            with case(name):
                await all_calls_find_our_tables(session)


async def all_calls_find_our_tables(session: AsyncSession) -> None:
    uow = UnitOfWork(session)
    state = WorkflowState(workflow_id="w", workflow_name="n")
    await uow.workflows.save(state)
    checkpoint = Checkpoint(workflow_state_id=state.id, step_id="a", snapshot="{}")
    await uow.checkpoints.add(checkpoint)
    await session.commit()
    assert await uow.workflows.find(state.id) == state
    assert await uow.checkpoints.find_latest(state.id) == checkpoint
    assert [each.id for each in await uow.workflows.list_active()] == [state.id]
    assert await uow.steps.list(state.id) == []
    await uow.workflows.delete([state.id])
    await session.commit()
    assert await uow.workflows.find(state.id) is None


async def test_a_sleeping_parent_is_woken_when_its_child_is_deleted(
    engines: tuple[AsyncEngine, AsyncEngine], store: StateStore
) -> None:
    for name, make in SESSIONS.items():
        async with make(*engines) as session:
            with case(name):
                await a_parent_is_woken(session, store)


async def a_parent_is_woken(session: AsyncSession, store: StateStore) -> None:
    parent, child = await store.start("n"), await store.start("n")
    async with store.begin() as uow:
        await uow.session.execute(update(WorkflowRow).where(WorkflowRow.id == child.id).values(parent_id=parent.id))
        asleep = update(WorkflowRow).where(WorkflowRow.id == parent.id)
        await uow.session.execute(asleep.values(wake_at=datetime.now(UTC) + timedelta(days=1)))
    await UnitOfWork(session).workflows.delete([child.id])
    await session.commit()
    async with store.begin() as uow:
        wake_at = await uow.session.scalar(select(WorkflowRow.wake_at).where(WorkflowRow.id == parent.id))
    assert wake_at is not None
    assert wake_at < datetime.now(UTC) + timedelta(hours=1)
