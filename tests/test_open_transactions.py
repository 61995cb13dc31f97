"""Transactions that are open while the caller's code runs: a frozen process frees its locks, a busy one keeps them."""

import asyncio
from multiprocessing.connection import Connection
from typing import Any

import pytest
from sqlalchemy import text

from orchestrator_state import Run, StateStore
from tests.chaos.children import Child
from tests.engines import business
from tests.running import row_of, seconds

TERM = 3.0  # seconds


async def take(session: Any, item: int = 1) -> str:
    await session.execute(text("INSERT INTO orders (id, item) VALUES (:item, 'the last one')"), {"item": item})
    return "taken"


def freezes(url: str, pipe: Connection) -> None:
    """A worker that says when it is inside its transaction, and stays there."""

    async def dawdle(session: Any) -> None:
        await take(session)
        pipe.send("inside")
        await asyncio.sleep(60)

    async def work() -> None:
        async with StateStore.open(url, lease_term=seconds(TERM)) as store:
            await store.run("w", lambda run: run.transact("t", dawdle), workflow_id="w")

    asyncio.run(work())


@pytest.fixture
async def shop_url(database_url: str) -> str:
    """The URL of a database that holds the application's table too."""
    async with StateStore.open(database_url) as store, store.begin() as uow:
        await (await uow.session.connection()).run_sync(business.create_all)
    return database_url


@pytest.mark.parametrize("backend", ["postgres"])  # of a SQLite file's lock nobody but its holder can let go
@pytest.mark.parametrize("engine", ["ours", "the application's"])
async def test_a_process_that_freezes_inside_a_transaction_frees_its_rows_before_its_lease_ends(
    shop_url: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "the application's":  # of its connections no setting is ours
        monkeypatch.setattr("orchestrator_state.engine._server_settings", lambda *_, **__: {})
    with Child(freezes, shop_url) as child:
        assert await child.message() == "inside"
        child.freeze()
        async with StateStore.open(shop_url, lease_term=seconds(TERM)) as store, asyncio.timeout(TERM + 5):
            while (row := await row_of(store, "w")).status != "completed":
                await store.recover({"w": lambda run: run.transact("t", take)})
                await asyncio.sleep(0.1)
    assert row.lease_token == 2


async def test_a_transaction_may_idle_for_as_long_as_its_process_lives(shop_url: str) -> None:
    calls = 0

    async def idle(session: Any) -> str:
        nonlocal calls
        calls += 1
        await take(session)
        await asyncio.sleep(2)  # four times what a transaction may idle
        return await session.scalar(text("SELECT item FROM orders"))  # type: ignore[no-any-return]

    async with StateStore.open(shop_url, lease_term=seconds(1)) as store:
        assert await store.run("w", lambda run: run.transact("t", idle)) == "the last one"
    assert calls == 1


async def test_pings_do_not_disturb_a_transaction_that_is_busy(shop_url: str) -> None:
    async def busy(session: Any) -> str:
        for item in range(1, 200):
            await take(session, item)
        async with session.begin_nested():
            await take(session, 1000)
            await asyncio.sleep(0.05)
        return "done"

    async with StateStore.open(shop_url, lease_term=seconds(0.1)) as store:
        assert await store.run("w", lambda run: run.transact("t", busy)) == "done"


async def test_runs_that_transact_leave_the_pool_to_others_and_all_of_them_end(database_url: str) -> None:
    async def slow(session: Any) -> None:
        await session.execute(text("SELECT 1"))
        await asyncio.sleep(0.3)

    async def handler(run: Run) -> str:
        await run.transact("t", slow)
        return "done"

    options: Any = {"pool_min": 0, "pool_max": 2, "pool_timeout": seconds(1), "lease_term": seconds(2)}
    async with StateStore.open(database_url, **options) as store:
        runs = asyncio.gather(*(store.run("w", handler, workflow_id=f"w{n}") for n in range(12)))
        while not runs.done():
            await store.health_check()
            await asyncio.sleep(0.05)
        assert await runs == ["done"] * 12


@pytest.mark.parametrize("backend", ["postgres"])  # on SQLite there is one transaction that writes, and no second
async def test_a_run_inside_a_transaction_of_another_does_not_wait_for_its_place(database_url: str) -> None:
    async with StateStore.open(database_url, pool_min=0, pool_max=2) as store:

        async def inner(session: Any) -> str:
            return "inner"

        async def outer(session: Any) -> str:
            return await asyncio.create_task(store.run("inner", lambda run: run.transact("t", inner)))

        async with asyncio.timeout(20):
            assert await store.run("outer", lambda run: run.transact("t", outer)) == "inner"
