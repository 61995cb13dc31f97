"""`health_check`: an answer, or an error in time, whatever state the server is in."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest

from orchestrator_state import InvalidPayload, StateStore, StoreUnavailable
from tests.support.held import checked_out, comes_true, no_task_is_left
from tests.support.postgres_server import PrivatePostgres


@contextmanager
def frozen(server: PrivatePostgres) -> Iterator[None]:
    """The server and all its backends are stopped: connections stay, and nothing answers."""
    assert server.process is not None
    master = psutil.Process(server.process.pid)
    processes = [master, *master.children(recursive=True)]
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)


@pytest.mark.process
async def test_of_a_frozen_server_it_says_so_in_time_and_leaves_nothing_behind(
    private_postgres: Callable[..., PrivatePostgres],
) -> None:
    server = private_postgres()
    with server.database() as name:
        async with StateStore.open(server.url(name), migrate=True) as store:
            await store.health_check()
            with frozen(server):
                async with asyncio.timeout(30):
                    with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.5 s"):
                        await store.health_check(timeout=0.5)
            assert await comes_true(no_task_is_left)
            assert checked_out(store) == 0
            await store.health_check()


async def test_its_limit_holds_also_for_the_wait_for_a_connection(store: StateStore) -> None:
    pool = store._transactions.database._pool
    held = [await pool.connect() for _ in range(20)]
    try:
        async with asyncio.timeout(30):
            with pytest.raises(StoreUnavailable):
                await store.health_check(timeout=0.2)
    finally:
        for connection in held:
            await connection.close()
    await store.health_check()


async def test_a_limit_that_is_no_duration_is_refused(store: StateStore) -> None:
    with pytest.raises(InvalidPayload):
        await store.health_check(timeout="5")  # type: ignore[arg-type]
