"""An application joins its own tables to ours, through the models that it imports."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import exc, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased, joinedload, selectinload

import orchestrator_state
from orchestrator_state import Checkpoint, Run, StateStore, StepState, WorkflowState, WorkflowStatus
from orchestrator_state.column_types import render_item
from orchestrator_state.models import CheckpointRow, SignalRow, StepRow, WorkflowRow
from tests.support.engines import own_engine
from tests.support.old_databases import upgrade
from tests.support.raw_sql import contents
from tests.top.own_alembic.application import Application
from tests.top.own_alembic.joined import Base, Note, Order


@pytest.fixture
async def session(store: StateStore, database_url: str) -> AsyncIterator[AsyncSession]:
    """A session of the application's, on an engine of its own, with its tables in the database of `store`."""
    engine = own_engine(database_url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(engine) as session:
        yield session
    await engine.dispose()


async def an_order(session: AsyncSession, store: StateStore, item: str = "book") -> WorkflowState:
    """An order, a note and the workflow of both, in one commit."""
    state = WorkflowState(workflow_id=f"order-{item}", workflow_name="Fulfil", context={"item": item})
    state.steps = {name: StepState(step_id=name) for name in ("reserve", "ship")}
    async with session.begin():
        uow = store.unit_of_work(session)
        await uow.workflows.save(state)
        await uow.checkpoints.add(Checkpoint(workflow_state_id=state.id, step_id="reserve", snapshot=1))
        session.add(Order(item=item, workflow_state_id=state.id))
        session.add(Note(about=state.id, text=f"about the {item}"))
    return state


# --- reading ---


async def test_rows_of_the_application_are_selected_with_ours(store: StateStore, session: AsyncSession) -> None:
    state = await an_order(session, store)
    session.add(Order(item="without"))
    by_key = select(Order, WorkflowRow).join(WorkflowRow, WorkflowRow.id == Order.workflow_state_id)
    ((order, row),) = (await session.execute(by_key)).all()
    assert (order.item, row.id, row.status, row.updated_at) == ("book", state.id, "pending", state.updated_at)
    by_relationship = select(Order.item, WorkflowRow.workflow_id).join(Order.workflow)
    assert (await session.execute(by_relationship)).all() == [("book", "order-book")]
    by_value = select(Note.text).join(WorkflowRow, WorkflowRow.id == Note.about)
    assert (await session.scalars(by_value.where(WorkflowRow.status == WorkflowStatus.PENDING))).all() == [
        "about the book"
    ]
    unfinished = select(func.count()).select_from(Order).join(Order.workflow).join(WorkflowRow.steps)
    assert await session.scalar(unfinished.where(StepRow.status != "completed")) == 2


async def test_relationships_are_loaded_when_they_are_asked_for(store: StateStore, session: AsyncSession) -> None:
    state = await an_order(session, store)
    await store.signal(state.id, "hurry")
    everything = select(WorkflowRow).options(
        selectinload(WorkflowRow.steps).joinedload(StepRow.workflow),
        selectinload(WorkflowRow.checkpoints).joinedload(CheckpointRow.workflow),
        selectinload(WorkflowRow.signals).joinedload(SignalRow.workflow),
    )
    row = (await session.scalars(everything)).one()
    assert [step.step_id for step in row.steps] == ["reserve", "ship"]
    assert [(checkpoint.seq, checkpoint.snapshot) for checkpoint in row.checkpoints] == [(1, "1")]
    assert [signal.name for signal in row.signals] == ["hurry"]
    hanging: list[StepRow | CheckpointRow | SignalRow] = [*row.steps, *row.checkpoints, *row.signals]
    assert {each.workflow for each in hanging} == {row}
    order = (await session.scalars(select(Order).options(joinedload(Order.workflow)))).one()
    assert order.workflow is row


async def test_nothing_is_loaded_behind_the_back(store: StateStore, session: AsyncSession) -> None:
    await an_order(session, store)
    row = (await session.scalars(select(WorkflowRow))).one()
    for name in ("steps", "checkpoints", "signals", "parent", "children"):
        with pytest.raises(exc.InvalidRequestError, match="raise"):
            getattr(row, name)


async def test_parents_and_children_know_each_other_within_a_namespace(
    store: StateStore, session: AsyncSession
) -> None:
    async def child(run: Run) -> Any:
        return await run.step("work", lambda: 1)

    async def parent(run: Run) -> Any:
        return [await run.child("part", child), await run.child("part", child)]

    await store.run("n", parent, workflow_id="w")
    family = select(WorkflowRow).options(selectinload(WorkflowRow.children), selectinload(WorkflowRow.parent))
    rows = {row.id: row for row in await session.scalars(family)}
    (eldest,) = (row for row in rows.values() if row.parent is None)
    assert eldest.workflow_name == "n"
    assert [row.parent for row in eldest.children] == [eldest, eldest]
    assert not [grandchild for row in eldest.children for grandchild in row.children]
    part = aliased(WorkflowRow)
    counted = select(func.count()).select_from(WorkflowRow).join(WorkflowRow.children.of_type(part))
    assert await session.scalar(counted) == 2
    eldest.children[0].namespace = "another"
    await session.flush()
    assert await session.scalar(counted) == 1


# --- writing ---


async def test_what_is_put_into_a_relationship_is_not_written(
    store: StateStore, session: AsyncSession, database_url: str
) -> None:
    state = await an_order(session, store)
    before = contents(database_url)
    row = (await session.scalars(select(WorkflowRow).options(selectinload(WorkflowRow.steps)))).one()
    row.steps.append(StepRow(step_id="forged", status="completed"))
    del row.steps[0]
    await session.commit()
    assert contents(database_url) == before
    assert await store.load_workflow_state(state.id) == state


async def test_the_repositories_read_the_database_and_not_what_the_session_remembers(
    store: StateStore, session: AsyncSession
) -> None:
    state = await an_order(session, store)
    row = (await session.scalars(select(WorkflowRow).options(selectinload(WorkflowRow.steps)))).one()
    state.mark_running()
    await store.save_workflow_state(state)
    uow = store.unit_of_work(session)
    assert row.status == "pending"
    if session.get_bind().dialect.name == "postgresql":  # whose statements each see what has been committed by then
        assert await uow.workflows.get(state.id) == state
    await session.rollback()
    assert await uow.workflows.get(state.id) == state
    assert (await uow.steps.list(state.id))[0].step_id == "reserve"


async def test_our_statements_leave_the_objects_of_the_session_unflushed(
    store: StateStore, session: AsyncSession
) -> None:
    state = await an_order(session, store)
    session.add(Order(item="unfinished"))
    uow = store.unit_of_work(session)
    await uow.workflows.get(state.id)
    await uow.checkpoints.prune(state.id, keep=0)
    state.mark_running()
    await uow.workflows.save(state)
    assert len(session.new) == 1


async def test_a_foreign_key_to_a_workflow_is_one(store: StateStore, session: AsyncSession) -> None:
    state = await an_order(session, store)
    async with session.begin():
        await store.unit_of_work(session).workflows.delete([state.id])
    order = (await session.scalars(select(Order))).one()
    if session.get_bind().dialect.name == "postgresql":  # the application's SQLite engine has foreign keys off
        assert order.workflow_state_id is None
    async with session.begin_nested():
        assert await session.scalar(select(func.count()).select_from(StepRow)) == 0


# --- where the tables are ---


async def test_tables_in_a_schema_of_their_own_are_joined_through_a_translation(empty_postgres_url: str) -> None:
    engine = own_engine(empty_postgres_url)
    in_ours = {"schema_translate_map": {None: "ours"}}
    async with StateStore.open(empty_postgres_url, db_schema="ours", migrate=True) as store:
        state = WorkflowState(workflow_id="w", workflow_name="n")
        state.steps["load"] = StepState(step_id="load")
        await store.save_workflow_state(state)
    async with AsyncSession(engine) as session:
        await session.connection(execution_options=in_ours)
        rows = await session.scalars(select(WorkflowRow).options(selectinload(WorkflowRow.steps)))
        assert [[step.step_id for step in row.steps] for row in rows] == [["load"]]
    await engine.dispose()


@pytest.mark.parametrize("taken_in", [True, False])
def test_autogenerate_finds_no_difference_with_foreign_keys_to_our_tables(
    tmp_path: Path, empty_database_url: str, *, taken_in: bool
) -> None:
    def not_ours(name: str | None, kind: str, _: Any) -> bool:
        return kind != "table" or name not in orchestrator_state.metadata.tables

    options: dict[str, Any] = {"render_item": render_item}
    if taken_in:
        options["target_metadata"] = [orchestrator_state.metadata, Base.metadata]
    else:
        asyncio.run(upgrade(empty_database_url))
        options |= {"target_metadata": Base.metadata, "include_name": not_ours}
    application = Application(tmp_path / "alembic", empty_database_url, options)
    revision = application.revise()
    assert "['workflow_states.id']" in revision
    application.upgrade()
    application.check()
    assert "    pass\n" in application.revise()
