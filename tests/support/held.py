"""What a store still holds: connections, locks, tasks."""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from urllib.parse import urlsplit

from orchestrator_state import StateStore
from tests.support.postgres_server import Postgres


def checked_out(store: StateStore) -> int:
    """How many connections of the store's pool are in use."""
    return store._transactions.database._pool.sync_engine.pool.checkedout()  # type: ignore[attr-defined, no-any-return]


def holds_no_lock(url: str, postgres: Postgres | None) -> bool:
    """Whether nobody holds a lock, or a transaction open, in this database."""
    if postgres is not None:
        open_transactions = "SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND state <> 'idle'"
        return not postgres.execute(open_transactions, urlsplit(url).path[1:])
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            return False
        return True


def nothing_is_held(store: StateStore, url: str, postgres: Postgres | None) -> bool:
    return checked_out(store) == 0 and holds_no_lock(url, postgres)


def no_task_is_left() -> bool:
    return asyncio.all_tasks() == {asyncio.current_task()}


async def comes_true(condition: Callable[[], bool], *, within: float = 30) -> bool:
    """Whether it comes to be so. Not at once: the driver's threads and the server end what was cancelled."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True
