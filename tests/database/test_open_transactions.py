"""Open transactions: a frozen process frees its locks before its lease ends, a busy one keeps them."""

import asyncio
import os
import signal
from functools import partial
from itertools import product
from multiprocessing.connection import Connection
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from orchestrator_state import Run, StateStore
from tests.chaos.children import Child
from tests.support.cases import case, gathered
from tests.support.engines import business, own_engine
from tests.support.running import row_of, seconds

pytestmark = pytest.mark.slow

TERM = 3.0  # seconds
# A transaction may idle for half a term, and is pinged every eighth: its process may stand still for over a second.
LONG_TERM = 4.0


async def take(session: Any, item: int = 1) -> str:
    await session.execute(text("INSERT INTO orders (id, item) VALUES (:item, 'the last one')"), {"item": item})
    return "taken"


WHOSE = ["ours", "the application's"]  # the engine


def opening(url: str, whose: str, namespace: str) -> Any:
    """A store on an engine of ours, or of the application's: of its connections no setting is ours."""
    engine = own_engine(url) if whose == "the application's" else None
    return StateStore.open(None if engine else url, engine=engine, namespace=namespace, lease_term=seconds(TERM))


def freezes(url: str, whose: str, item: int, pipe: Connection) -> None:
    """A worker that says when it is inside its transaction, and stays there."""

    async def dawdle(session: Any) -> None:
        await take(session, item)
        pipe.send("inside")
        await asyncio.sleep(60)

    async def work() -> None:
        async with opening(url, whose, whose) as store:
            await store.run("w", lambda run: run.transact("t", dawdle), workflow_id=whose)

    asyncio.run(work())


@pytest.fixture
async def shop_url(database_url: str) -> str:
    """The URL of a database that holds the application's table too."""
    async with StateStore.open(database_url) as store, store.begin() as uow:
        await (await uow.session.connection()).run_sync(business.create_all)
    return database_url


@pytest.mark.parametrize("backend", ["postgres"])  # of a SQLite file's lock nobody but its holder can let go
async def test_a_process_that_freezes_inside_a_transaction_frees_its_rows_before_its_lease_ends(shop_url: str) -> None:
    async def frees(whose: str, item: int) -> None:
        with case(whose), Child(freezes, shop_url, whose, item) as child:
            assert await child.message() == "inside"
            child.freeze()
            place = StateStore.open(shop_url, namespace=whose, lease_term=seconds(TERM))
            async with place as store, asyncio.timeout(TERM + 30):
                while (row := await row_of(store, whose)).status != "completed":
                    await store.recover({"w": lambda run: run.transact("t", partial(take, item=item))})
                    await asyncio.sleep(0.1)
        assert row.lease_token == 2

    await gathered(frees(whose, item) for item, whose in enumerate(WHOSE))


class FreezesAtCommit:
    """Once it is told to: at the next COMMIT of this process, before that is sent."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self.is_due = pipe, False
        event.listen(Engine, "commit", self._freeze)

    def _freeze(self, _: object) -> None:
        if self.is_due:
            self._pipe.send("frozen")
            os.kill(os.getpid(), signal.SIGSTOP)

    async def now(self) -> None:
        self.is_due = True

    async def in_a_while(self) -> None:
        """Until the next renewal of leases."""
        self.is_due = True
        await asyncio.sleep(60)


def freezes_between(url: str, whose: str, moment: str, pipe: Connection) -> None:
    """A worker that freezes between a statement of ours and its COMMIT."""
    name = f"{whose}, {moment}"

    async def work() -> None:
        async with opening(url, whose, name) as store:
            await drive(store, FreezesAtCommit(pipe))

    async def drive(store: StateStore, freezer: FreezesAtCommit) -> None:
        async def handler(run: Run) -> str:
            if moment == "a step":
                await run.step("s", freezer.now)
            elif moment == "a renewal":
                await run.step("s", freezer.in_a_while)
            elif moment == "a block of the caller's":
                await run.step("s", in_a_block)
            await freezer.now()
            return "taken"

        async def in_a_block() -> None:
            async with store.begin() as uow:
                somebody = text("UPDATE workflow_states SET user_id = 'somebody' WHERE namespace = :namespace")
                await uow.session.execute(somebody, {"namespace": store.namespace})
                await freezer.now()

        freezer.is_due = moment == "the claim"
        await store.run("w", handler, workflow_id=name)

    asyncio.run(work())


MOMENTS = [
    *product(WHOSE, ["the claim", "a step", "a renewal", "the end"]),
    ("ours", "a block of the caller's"),  # of its own engine's the application says how long they may idle
]


@pytest.mark.parametrize("backend", ["postgres"])
async def test_nor_does_one_that_freezes_between_a_statement_and_its_commit_keep_its_run_from_others(
    shop_url: str,
) -> None:
    async def keeps_nothing(whose: str, moment: str) -> None:
        name = f"{whose}, {moment}"
        with case(name):
            async with StateStore.open(shop_url, namespace=name, lease_term=seconds(TERM)) as store:
                await store.start("w", workflow_id=name)
                with Child(freezes_between, shop_url, whose, moment) as child:
                    assert await child.message() == "frozen"
                    async with asyncio.timeout(TERM + 30):
                        while (await row_of(store, name)).status != "completed":
                            await store.recover({"w": lambda run: run.step("s", lambda: "taken")})
                            await asyncio.sleep(0.1)

    await gathered(keeps_nothing(*each) for each in MOMENTS)


async def test_a_transaction_may_idle_for_as_long_as_its_process_lives(shop_url: str, backend: str) -> None:
    """And a block of the caller's for longer than a lease, on Postgres: on SQLite one may write at a time."""
    async with StateStore.open(shop_url, lease_term=seconds(LONG_TERM)) as store:
        await gathered([_step_that_idles(store)] if backend == "sqlite" else [_step_that_idles(store), _block(store)])


async def _step_that_idles(store: StateStore) -> None:
    calls = 0

    async def idle(session: Any) -> str:
        nonlocal calls
        calls += 1
        await take(session)
        await asyncio.sleep(1.2 * LONG_TERM)  # more than twice what a transaction may idle
        return await session.scalar(text("SELECT item FROM orders"))  # type: ignore[no-any-return]

    assert await store.run("w", lambda run: run.transact("t", idle)) == "the last one"
    assert calls == 1


async def _block(store: StateStore) -> None:
    async with store.begin() as uow:
        await take(uow.session, 2)
        await asyncio.sleep(1.2 * LONG_TERM)
        assert await uow.session.scalar(text("SELECT item FROM orders")) == "the last one"


async def test_pings_do_not_disturb_a_transaction_that_is_busy(shop_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator_state.database.sessions.open_transactions._PINGS_PER_LIMIT", 32)

    async def busy(session: Any) -> str:
        for item in range(1, 500):
            await take(session, item)
        async with session.begin_nested():
            await take(session, 1000)
            await asyncio.sleep(0.3)
        return "done"

    async with StateStore.open(shop_url, lease_term=seconds(LONG_TERM)) as store:
        assert await store.run("w", lambda run: run.transact("t", busy)) == "done"


async def test_runs_that_transact_leave_the_pool_to_others_and_all_of_them_end(database_url: str) -> None:
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def slow(session: Any) -> None:
        await session.execute(text("SELECT 1"))
        inside.set()
        await go_on.wait()

    async def handler(run: Run) -> str:
        await run.transact("t", slow)
        return "done"

    options: Any = {"pool_min": 0, "pool_max": 2, "pool_timeout": seconds(2), "lease_term": seconds(LONG_TERM)}
    async with StateStore.open(database_url, **options) as store:
        runs = asyncio.gather(*(store.run("w", handler, workflow_id=f"w{n}") for n in range(12)))
        await inside.wait()
        for _ in range(5):  # for longer than anybody waits for a connection, or a turn to write
            await store.health_check()
            await asyncio.sleep(0.5)
        go_on.set()
        assert await runs == ["done"] * 12


@pytest.mark.parametrize("backend", ["postgres"])  # on SQLite there is one transaction that writes, and no second
async def test_a_run_inside_a_transaction_of_another_does_not_wait_for_its_place(database_url: str) -> None:
    async with StateStore.open(database_url, pool_min=0, pool_max=2) as store:

        async def inner(session: Any) -> str:
            return "inner"

        async def outer(session: Any) -> str:
            return await asyncio.create_task(store.run("inner", lambda run: run.transact("t", inner)))

        async with asyncio.timeout(60):
            assert await store.run("outer", lambda run: run.transact("t", outer)) == "inner"
