"""LISTEN/NOTIFY: Postgres wakes workers when there is something to do. Elsewhere, and behind PgBouncer, they poll.

A notification carries nothing but the namespace. It is a hint: a lost one costs a poll interval.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state.engine import Database

CHANNEL: Final = "orchestrator_state"


async def announce(session: AsyncSession, namespace: str) -> None:
    """Notify, with the commit of this transaction, that a run of `namespace` can be claimed."""
    if session.get_bind().dialect.name == "postgresql":
        await session.execute(select(func.pg_notify(CHANNEL, namespace)))


@asynccontextmanager
async def listening(database: Database, namespace: str, wake: Callable[[], object]) -> AsyncIterator[None]:
    """Call `wake` for each announcement in `namespace`, as long as the connection holds.

    It takes one connection of the pool. If that breaks, polling goes on.
    """
    if not database.can_listen:
        yield
        return

    def heard(_connection: object, _pid: int, _channel: str, payload: object) -> None:
        if payload == namespace:
            wake()

    async with contextlib.AsyncExitStack() as stack:
        try:
            connection = await stack.enter_async_context(database.reader.connect())
            raw: Any = (await connection.get_raw_connection()).driver_connection
            await raw.add_listener(CHANNEL, heard)
        except (SQLAlchemyError, OSError):
            yield
            return
        try:
            yield
        finally:
            with contextlib.suppress(Exception):
                await raw.remove_listener(CHANNEL, heard)
