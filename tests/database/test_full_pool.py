"""A pool without a free connection: a run waits for one, and who calls the store from outside is told soon."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import TimeoutError as PoolIsFull
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator_state import Run, StateStore, StoreUnavailable, Worker, WorkflowState, WorkflowStatus
from tests.support.cases import case, gathered
from tests.support.engines import opened_engine
from tests.support.running import becomes, row_of, seconds, steps_of

FULL_FOR = 0.5  # seconds: several times what a call waits for a connection
SHORT = 0.1


class Shop:
    """A store with one connection, who takes it away, and a store that has its own `near` by, to look with."""

    def __init__(self, store: StateStore, near: StateStore, engine: AsyncEngine) -> None:
        self.store = store
        self.near = near
        self._engine = engine
        self._taken = AsyncExitStack()
        self.freed = asyncio.Event()

    async def fill_the_pool(self) -> None:
        """Takes the connection as soon as whoever has it for a moment, such as the note on running steps, is done."""
        while True:
            with suppress(PoolIsFull):
                await self._taken.enter_async_context(self._engine.connect())
                return

    async def free_the_pool(self) -> None:
        await self._taken.aclose()
        self.freed.set()

    async def fill_for_a_while(self) -> None:
        await self.fill_the_pool()
        self._later = asyncio.get_running_loop().call_later(
            FULL_FOR, lambda: setattr(self, "_freeing", asyncio.create_task(self.free_the_pool()))
        )


WHOSE = ["ours", "the application's"]  # the engine with the pool


@pytest.fixture(params=WHOSE)
async def shop(database_url: str, request: pytest.FixtureRequest) -> AsyncIterator[Shop]:
    async with _opened(database_url, request.param) as shop:
        yield shop


@asynccontextmanager
async def _opened(url: str, whose: str) -> AsyncIterator[Shop]:
    # So long a patience that nothing which is repeated for as long can be taken for an answer.
    options: Any = {"retry_timeout": seconds(3600), "pool_timeout": seconds(SHORT)}
    async with StateStore.open(url) as near:
        if whose == "ours":
            async with StateStore.open(url, pool_min=0, pool_max=1, **options) as store:
                yield Shop(store, near, store._transactions.database._pool)
            return
        async with (
            opened_engine(url, pool_size=1, max_overflow=0, pool_timeout=SHORT) as engine,
            StateStore.open(engine=engine, **options) as store,
        ):
            yield Shop(store, near, engine)


# --- what a run has to get done ---------------------------------------------------------------------------------------


async def test_a_step_that_was_paid_for_outlasts_a_full_pool(shop: Shop) -> None:
    calls = 0

    async def paid() -> str:
        nonlocal calls
        calls += 1
        await shop.fill_for_a_while()
        return "answer"

    assert await shop.store.run("w", lambda run: run.step("paid", paid), workflow_id="w") == "answer"
    assert (calls, (await row_of(shop.near, "w")).attempts) == (1, 0)


async def write(session: Any) -> str:
    return str(await session.scalar(text("SELECT 'written'")))


NEXT: dict[str, Callable[[Run], Awaitable[Any]]] = {
    "a transaction": lambda run: run.transact("t", write),
    "an intent": lambda run: run.step("s", lambda: "called", on_unknown="raise"),
    "a checkpoint": lambda run: run.checkpoint("here"),
    "a signal": lambda run: run.wait_for("go"),
    "a wait that ends": lambda run: run.sleep(0.1),
    "a child": lambda run: run.child("kid", lambda kid: kid.step("s", lambda: "called")),
    "its end": lambda _: asyncio.sleep(0),
}


class Pair:
    """A run of which one branch has paid for something, and the other comes to a call while the pool is full."""

    def __init__(self, shop: Shop, what: str) -> None:
        self._shop, self._what = shop, what
        self._go_on, self.under_way = asyncio.Event(), asyncio.Event()
        self.calls = 0

    async def start(self) -> None:
        started = await self._shop.near.start("w", workflow_id=self._what)
        await self._shop.near.signal(started.id, "go")
        self._run = asyncio.create_task(self._shop.store.run("w", self._handler, workflow_id=self._what))
        under_way = asyncio.create_task(self.under_way.wait())
        await asyncio.wait({self._run, under_way}, return_when=asyncio.FIRST_COMPLETED)

    async def end(self) -> None:
        with case(self._what):
            self._go_on.set()
            assert await self._run == "answer"
            assert (self.calls, (await row_of(self._shop.near, self._what)).attempts) == (1, 0)

    async def _handler(self, run: Run) -> Any:
        return (await asyncio.gather(run.step("paid", self._paid), self._neighbour(run)))[0]

    async def _paid(self) -> str:
        self.calls += 1
        self.under_way.set()
        await self._shop.freed.wait()
        await asyncio.sleep(SHORT)
        return "answer"

    async def _neighbour(self, run: Run) -> None:
        await self._go_on.wait()
        await self._shop.fill_for_a_while()
        await NEXT[self._what](run)


@pytest.mark.parametrize("whose", WHOSE)
async def test_a_step_under_way_is_not_cut_off_because_its_neighbour_needs_a_connection(
    database_url: str, whose: str
) -> None:
    """Whatever stops one branch of a run cancels the others, and what they have paid for is paid for again."""
    async with AsyncExitStack() as stack:
        pairs = [Pair(await stack.enter_async_context(_opened(database_url, whose)), what) for what in NEXT]
        for pair in pairs:
            await pair.start()
        await gathered(pair.end() for pair in pairs)


async def test_a_failure_is_recorded_once_there_is_a_connection(shop: Shop) -> None:
    async def declined() -> None:
        await shop.fill_for_a_while()
        raise LookupError("declined")

    with pytest.raises(LookupError):
        await shop.store.run("w", lambda run: run.step("s", declined), workflow_id="w")
    assert (await row_of(shop.near, "w")).status == WorkflowStatus.FAILED
    assert (await steps_of(shop.near, "w"))["s"].retry_count == 1


async def test_a_worker_goes_on_looking(shop: Shop) -> None:
    await shop.store.start("w", workflow_id="w")
    await shop.fill_for_a_while()
    async with Worker(shop.store, {"w": lambda run: run.step("s", lambda: "done")}, poll=0.1, handle_signals=False):
        await shop.freed.wait()
        await becomes(lambda row: row.status == WorkflowStatus.COMPLETED, shop.near, "w")


# --- who calls the store ----------------------------------------------------------------------------------------------


CALLS: dict[str, Callable[[StateStore, WorkflowState], Awaitable[Any]]] = {
    "signal": lambda store, state: store.signal(state.id, "go"),
    "cancel": lambda store, state: store.cancel(state.id),
    "start": lambda store, _: store.start("w", workflow_id="another"),
    "save": lambda store, _: store.save_workflow_state(WorkflowState(workflow_id="s", workflow_name="s")),
    "load": lambda store, state: store.load_workflow_state(state.id),
    "list": lambda store, _: store.list_active_workflows(),
    "health_check": lambda store, _: store.health_check(timeout=60),
}


async def test_a_call_of_the_store_fails_fast_and_says_which_settings_are_about_it(shop: Shop) -> None:
    state = await shop.store.start("w", workflow_id="w")
    for name, call in CALLS.items():
        with case(name):
            await shop.fill_the_pool()
            async with asyncio.timeout(30):
                with pytest.raises(StoreUnavailable, match=r"pool_max.*pool_size.*pool_timeout") as refusal:
                    await call(shop.store, state)
            assert (refusal.value.crowded, refusal.value.outcome_unknown) == (True, False)
            await shop.free_the_pool()
            assert (await row_of(shop.near, "w")).status == WorkflowStatus.PENDING, "it had no effect"


@pytest.mark.parametrize("backend", ["sqlite"])  # where the writers of a process take turns
async def test_so_does_one_that_waits_for_its_turn_to_write(shop: Shop) -> None:
    state = await shop.store.start("w", workflow_id="w")
    async with shop.store.begin(), asyncio.timeout(30):
        other = asyncio.create_task(shop.store.signal(state.id, "go"))
        with pytest.raises(StoreUnavailable, match="pool_timeout") as refusal:
            await other
    assert refusal.value.crowded
