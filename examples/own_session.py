"""A row of the application's own and the workflow's state commit together, or not at all.

`python examples/own_session.py` prints

    both are there: 1 invoice, workflow completed
    neither was changed: 1 invoice, workflow completed

The database is DATABASE_URL, else ./workflows.db.
"""

import asyncio
import os
from uuid import UUID, uuid4

from sqlalchemy import func, make_url, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from orchestrator_state import StateStore, WorkflowState

DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}


class Base(DeclarativeBase):
    pass


class Invoice(Base):
    """The application's own table. `workflow` ties it to the workflow that wrote it."""

    __tablename__ = "example_invoices"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    workflow: Mapped[UUID]
    cents: Mapped[int]


async def charge(store: StateStore, session: AsyncSession, state: WorkflowState, cents: int) -> None:
    """Write the invoice and finish the workflow. The caller commits both."""
    session.add(Invoice(workflow=state.id, cents=cents))
    state.mark_completed()
    await store.unit_of_work(session).workflows.save(state)


def send_receipt() -> None:
    raise ConnectionError("the mail server is down")


async def show(engine: AsyncEngine, store: StateStore, workflow: UUID, outcome: str) -> None:
    async with AsyncSession(engine) as session:
        count = await session.scalar(select(func.count()).where(Invoice.workflow == workflow))
    status = (await store.load_workflow_state(workflow)).status
    print(f"{outcome}: {count} invoice, workflow {status}")


async def main() -> None:
    url = make_url(os.environ.get("DATABASE_URL", "sqlite:///workflows.db"))
    engine = create_async_engine(url.set(drivername=DRIVERS[url.drivername]))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    sessions = async_sessionmaker(engine, expire_on_commit=False)

    # The store uses the application's engine: there is no second pool.
    async with StateStore.open(engine=engine, migrate=True) as store:
        state = WorkflowState(workflow_id="order-7", workflow_name="Bill an order")
        state.mark_running()
        await store.save_workflow_state(state)

        async with sessions.begin() as session:
            await charge(store, session, state, cents=1250)
        await show(engine, store, state.id, "both are there")

        try:
            async with sessions.begin() as session:
                session.add(Invoice(workflow=state.id, cents=1250))
                state.context = {"receipt": "sent"}
                await store.unit_of_work(session).workflows.save(state)
                send_receipt()
        except ConnectionError:
            await show(engine, store, state.id, "neither was changed")
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
