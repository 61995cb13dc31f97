"""LISTEN/NOTIFY: Postgres wakes workers when there is something to do. Elsewhere, and behind PgBouncer, they poll.

A notification carries nothing but the namespace. It is a hint: a lost one costs a poll interval.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, NoReturn

from sqlalchemy import Connection, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator_state import hooks
from orchestrator_state.concurrency import settled
from orchestrator_state.database.engine import Database

CHANNEL: Final = "orchestrator_state"


async def notify(connection: AsyncConnection, namespace: str) -> None:
    """Notify, with the commit of this transaction, that a run of `namespace` can be claimed."""
    await connection.execute(select(func.pg_notify(CHANNEL, namespace)))


@asynccontextmanager
async def listening_to_server(database: Database, namespace: str, wake: Callable[[], object]) -> AsyncIterator[None]:
    """Call `wake` for each announcement in `namespace` of any process.

    It listens on a connection of its own beside the pool's. While that is broken, polling goes on.
    """

    def heard(_connection: object, _pid: int, _channel: str, payload: object) -> None:
        if payload == namespace:
            wake()

    listener = asyncio.create_task(_listen(database, heard, wake), name="orchestrator_state listener")
    try:
        yield
    finally:
        await settled(listener)


async def _listen(database: Database, heard: Callable[..., None], wake: Callable[[], object]) -> NoReturn:
    """Listen for ever; after each break call `wake` once, for what was announced meanwhile."""
    while True:
        try:
            async with database.reader.connect() as connection:
                raw: Any = (await connection.get_raw_connection()).driver_connection
                # So that it takes no place of the pool, and no later user of it hears what we listen to.
                await connection.run_sync(Connection.detach)
                broken = asyncio.Event()
                raw.add_termination_listener(partial(_set, broken))
                await raw.add_listener(CHANNEL, heard)
                wake()
                await broken.wait()
        except Exception as error:  # noqa: BLE001 - it is a hint, and polling goes on
            hooks.logger.warning("cannot listen for announcements (%s); polling goes on", type(error).__name__)
        await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311 - spreads load, guards nothing


def _set(broken: asyncio.Event, _connection: object) -> None:
    broken.set()
