"""An engine beside another: the same database, events and settings, but a pool of its own.

What must not wait, as the renewal of a lease, does not queue for a connection behind what may take long.
"""

from __future__ import annotations

from sqlalchemy import Pool, StaticPool, event
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry, SingletonThreadPool

from orchestrator_state.database.internals import EngineBeside, greenlet_spawn


def engine_beside(engine: AsyncEngine) -> AsyncEngine:
    """Return an engine with a pool of its own, which connects when it is first used, as `engine` would.

    Where the one connection of a pool is the database, as in memory, that is `engine` itself.
    """
    if isinstance(engine.sync_engine.pool, StaticPool | SingletonThreadPool):
        return engine
    return AsyncEngine(EngineBeside(engine.sync_engine))


async def close_beside(beside: AsyncEngine) -> None:
    """Close the connections of an engine that `engine_beside` made; those of the other one stay."""
    if isinstance(beside.sync_engine, EngineBeside):
        close_what_comes_back(beside.sync_engine.pool)
        await greenlet_spawn(beside.sync_engine.pool.dispose)


def close_what_comes_back(pool: Pool) -> None:
    """Before `pool` is disposed of, which leaves those connections alone that are in use at the moment.

    A call that was cancelled may still be rolling back. What it returns later would never be closed, but when Python
    collects it.
    """

    def close(_: object, entry: ConnectionPoolEntry) -> None:
        entry.invalidate()

    event.listen(pool, "checkin", close)


def leave_connections(beside: AsyncEngine) -> Pool:
    """In a forked child, start anew without closing the parent's connections, which are returned to be kept alive."""
    left = beside.sync_engine.pool
    if isinstance(beside.sync_engine, EngineBeside):
        beside.sync_engine.pool = left.recreate()
    return left
