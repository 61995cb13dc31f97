"""A store that is opened or closed, and somebody cancels that, or the server goes away, at any await of it."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import Engine, event, text

from orchestrator_state import ConfigurationError, StateStore, StoreUnavailable
from tests.support.cutting_proxy import CuttingProxy
from tests.support.engines import opened_engine
from tests.support.held import comes_true, holds_no_lock
from tests.support.postgres_proxy import Link, PostgresProxy
from tests.support.postgres_server import Postgres
from tests.support.running import Effect


class CancelledAt:
    """Awaits `work` and has its task cancelled at the n-th time that it waits for something."""

    def __init__(self, work: Coroutine[Any, Any, object], number: int) -> None:
        self._work, self._left = work, number

    @property
    def was_cancelled(self) -> bool:
        return self._left <= 0

    def __await__(self) -> Generator[Any, Any, None]:
        resume: Callable[[], Any] = partial(self._work.send, None)
        while True:
            try:
                awaited = resume()
            except StopIteration:
                return
            self._left -= 1
            if self._left == 0:
                cancel_this_task()
            try:
                resume = partial(self._work.send, (yield awaited))
            except BaseException as error:  # noqa: BLE001 - it is passed on
                resume = partial(self._work.throw, error)


def cancel_at(beginning: str, request: pytest.FixtureRequest) -> None:
    """Cancel whoever sends a statement of that beginning, until the test ends."""

    def cancel(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith(beginning):
            cancel_this_task()

    event.listen(Engine, "before_cursor_execute", cancel)
    request.addfinalizer(lambda: event.remove(Engine, "before_cursor_execute", cancel))


def cancel_this_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


async def cancelled_at_each_await(work: Callable[[], Coroutine[Any, Any, object]]) -> list[int]:
    """Cancel `work` at its first await, anew at its second, and so on; at which of them it ended in anything else."""
    others, number, came_to_its_end = [], 0, False
    while not came_to_its_end:
        number += 1
        attempt = CancelledAt(work(), number)
        task = asyncio.ensure_future(_awaited(attempt))
        await asyncio.wait({task})
        came_to_its_end = not attempt.was_cancelled
        if came_to_its_end:
            await task
        elif not task.cancelled():
            others.append(number)
    assert number > 1, "it waited for nothing"
    return others


async def _awaited(attempt: Awaitable[None]) -> None:
    await attempt


async def test_an_opening_that_is_cancelled_at_any_await_is_cancelled(database_url: str) -> None:
    async def open_and_close() -> None:
        await (await StateStore.open(database_url, pool_min=1)).close()

    assert await cancelled_at_each_await(open_and_close) == []


async def test_a_migration_that_is_cancelled_while_a_table_is_rebuilt_is_cancelled(
    empty_sqlite_url: str, request: pytest.FixtureRequest
) -> None:
    cancel_at("INSERT INTO _alembic_tmp", request)
    with pytest.raises(asyncio.CancelledError):
        await StateStore.open(empty_sqlite_url)


async def test_what_is_cancelled_on_an_own_engine_leaves_no_lock_on_a_sqlite_file(
    empty_sqlite_url: str, request: pytest.FixtureRequest
) -> None:
    """Also while somebody keeps the exception, and with it a cursor whose rows were not fetched any more."""
    cancel_at("INSERT INTO orchestrator_state_version", request)
    async with opened_engine(empty_sqlite_url) as engine:
        with pytest.raises(asyncio.CancelledError) as kept:
            await StateStore.open(engine=engine, migrate=True)
        assert await comes_true(lambda: holds_no_lock(empty_sqlite_url, None), within=3)
        assert kept.tb is not None


async def test_a_closing_that_is_cancelled_at_any_await_closes_everything(
    database_url: str, backend: str, postgres: Postgres
) -> None:
    async def use(store: StateStore) -> None:
        await asyncio.gather(*(store.run("n", lambda run: run.step("s", Effect())) for _ in range(3)))

    def is_connected() -> bool:
        if backend == "sqlite":
            return Path(f"{database_url.removeprefix('sqlite:///')}-wal").exists()  # until the last one is closed
        rows = postgres.execute("SELECT 1 FROM pg_stat_activity WHERE datname = $1", urlsplit(database_url).path[1:])
        return bool(rows)

    number, was_cancelled = 0, True
    while was_cancelled:
        number += 1
        store = await StateStore.open(database_url, pool_min=3)
        await use(store)
        attempt = CancelledAt(store.close(), number)
        task = asyncio.ensure_future(_awaited(attempt))
        await asyncio.wait({task})
        was_cancelled = attempt.was_cancelled
        await store.close()
        assert await comes_true(lambda: not is_connected())
        with pytest.raises(ConfigurationError, match="closed"):
            await store.health_check()
    assert number > 1


async def test_a_closing_whose_task_was_cut_off_as_its_loop_ended_is_begun_anew(database_url: str) -> None:
    store = await StateStore.open(database_url)
    first = asyncio.ensure_future(store.close())
    await asyncio.sleep(0)
    (closing,) = (task for task in asyncio.all_tasks() if task.get_name() == "orchestrator_state closing")
    closing.cancel()
    await asyncio.wait({first})
    await store.close()
    with pytest.raises(ConfigurationError, match="closed"):
        await store.health_check()


class _SlowToRollBack(PostgresProxy):
    """Lets the server hear of a ROLLBACK when it is told to."""

    def __init__(self, url: str, directory: Path) -> None:
        super().__init__(url, directory)
        self.reached, self.goes_on, self.is_slow = asyncio.Event(), asyncio.Event(), False

    async def pass_on(self, link: Link) -> None:
        while data := await link.message():
            if self.is_slow and b"ROLLBACK" in data:
                self.reached.set()
                await self.goes_on.wait()
            link.to_server.write(data)


async def test_a_connection_that_comes_back_after_its_store_is_closed_is_closed_too(
    postgres_url: str, tmp_path: Path, postgres: Postgres
) -> None:
    def is_connected() -> bool:
        return bool(
            postgres.execute("SELECT 1 FROM pg_stat_activity WHERE datname = $1", urlsplit(postgres_url).path[1:])
        )

    async def unit() -> None:
        async with store.begin() as uow:
            await uow.session.execute(text("SELECT 1"))
            raise ValueError

    async with _SlowToRollBack(postgres_url, tmp_path).running() as proxy:
        store = await StateStore.open(proxy.url, pool_min=1)
        proxy.is_slow = True
        task = asyncio.ensure_future(unit())
        await proxy.reached.wait()
        task.cancel()
        await asyncio.wait({task})
        await store.close()
        proxy.goes_on.set()
        assert await comes_true(lambda: not is_connected())


class _Impatient(CuttingProxy):
    """Cuts each connection off at the n-th message of its client."""

    after = 0

    async def pass_on(self, link: Link) -> None:
        for _ in range(self.after):
            link.to_server.write(await link.message())
            await link.to_server.drain()


async def test_a_server_that_goes_away_at_any_message_of_an_opening_is_unavailable(
    postgres_url: str, tmp_path: Path
) -> None:
    async with _Impatient(postgres_url, tmp_path).running() as proxy:
        for proxy.after in range(12):
            with pytest.raises(StoreUnavailable):
                await StateStore.open(proxy.url, pool_min=1)


async def test_a_failed_migration_leaves_the_applications_connection_its_foreign_keys(empty_sqlite_url: str) -> None:
    async with opened_engine(empty_sqlite_url, pool_size=1, max_overflow=0) as engine:
        event.listen(engine.sync_engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys=ON"))
        async with engine.begin() as connection:
            await connection.exec_driver_sql("CREATE TABLE checkpoints (of_something_else INTEGER)")
        with pytest.raises(ConfigurationError, match="checkpoints"):
            await StateStore.open(engine=engine, migrate=True)
        async with engine.connect() as connection:
            assert (await connection.exec_driver_sql("PRAGMA foreign_keys")).scalar() == 1
