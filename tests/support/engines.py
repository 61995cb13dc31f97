"""Engines and tables that belong to the application, as the tests' application makes them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from sqlalchemy import Column, Integer, MetaData, String, Table, func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

business = MetaData()
orders = Table("orders", business, Column("id", Integer, primary_key=True), Column("item", String(50)))


def own_engine(url: str, **options: Any) -> AsyncEngine:
    """An engine as an application has it: on SQLite in the driver's legacy transaction mode, foreign keys off."""
    if url.startswith("sqlite"):
        return create_async_engine(url.replace("sqlite:", "sqlite+aiosqlite:"), **options)

    async def connect(**_: object) -> asyncpg.Connection:
        return await asyncpg.connect(url)

    return create_async_engine("postgresql+asyncpg://", async_creator=connect, **options)


@asynccontextmanager
async def opened_engine(url: str, **options: Any) -> AsyncIterator[AsyncEngine]:
    """`own_engine`, disposed of whatever becomes of the test: a connection that it left would fail the next one."""
    engine = own_engine(url, **options)
    try:
        yield engine
    finally:
        await engine.dispose()


async def create_orders(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(business.create_all)


async def count_orders(engine: AsyncEngine) -> int:
    async with AsyncSession(engine) as session:
        return await session.scalar(select(func.count()).select_from(orders)) or 0
