"""`run.transact` on both databases: business rows and the step that wrote them commit together, exactly once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, func, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from orchestrator_state import ConfigurationError, InvalidPayload, LeaseLost, Run, StateStore
from tests.support.running import (
    Effect,
    VanishesEverywhere,
    change_row,
    count_rows,
    row_of,
    steps_of,
    until_done,
    vanish,
)

business = MetaData()
orders = Table("orders", business, Column("id", Integer, primary_key=True), Column("item", String(50), nullable=False))


@pytest.fixture
async def shop_url(database_url: str) -> str:
    """The URL of a database that holds the application's table too."""
    async with StateStore.open(database_url) as store, store.begin() as uow:
        await (await uow.session.connection()).run_sync(business.create_all)
    return database_url


@pytest.fixture
async def shop(shop_url: str) -> AsyncIterator[StateStore]:
    async with StateStore.open(shop_url) as store:
        yield store


async def place_order(session: AsyncSession, item: str = "book") -> int:
    """Returns how many orders there are now."""
    await session.execute(insert(orders).values(item=item))
    return int((await session.execute(select(func.count()).select_from(orders))).scalar_one())


async def order(run: Run) -> int:
    return await run.transact("order", place_order)


# --- exactly once ---


async def test_rows_and_step_are_there_and_the_result_is_returned(shop: StateStore) -> None:
    assert await shop.run("order", order, workflow_id="w") == 1
    step = (await shop.load_workflow_state_by_workflow_id("w")).steps["order"]
    assert (step.status, step.outputs) == ("completed", 1)
    assert await count_rows(shop, "orders") == 1


async def test_a_worker_that_vanishes_at_every_event_writes_the_rows_exactly_once(shop_url: str) -> None:
    async def handler(run: Run) -> list[int]:
        return [await run.transact(f"order {item}", place_order, item) for item in ("book", "pen")]

    hook = VanishesEverywhere()
    async with StateStore.open(shop_url, hook=hook) as shop:
        assert await until_done(lambda: shop.run("order", handler, workflow_id="w")) == [1, 2]
        assert await count_rows(shop, "orders") == 2
    assert len(hook.moments) >= 2 * 3


async def test_by_contrast_a_step_that_writes_by_itself_may_write_twice(shop_url: str) -> None:
    async with StateStore.open(shop_url, hook=VanishesEverywhere()) as shop:

        async def write() -> int:
            async with shop.begin() as uow:
                return await place_order(uow.session)

        async def handler(run: Run) -> int:
            return await run.step("order", write)

        await until_done(lambda: shop.run("order", handler, workflow_id="w"))
        assert await count_rows(shop, "orders") == 2


async def test_a_commit_whose_answer_was_lost_is_found_again_and_nothing_is_counted_twice(
    shop: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialect = shop._transactions.database._pool.sync_engine.dialect
    commit = dialect.do_commit
    placed: list[str] = []
    lost: list[str] = []

    def commit_and_lose_the_answer(connection: Any) -> None:
        commit(connection)
        if placed and not lost:
            lost.append("answer")
            raise ConnectionResetError

    async def place(session: AsyncSession, item: str) -> int:
        placed.append(item)
        return await place_order(session, item)

    async def handler(run: Run) -> list[Any]:
        run.append("log", "before")
        first = await run.transact("order", place, "book")
        run.append("log", "after")
        return [first, await run.transact("another", place, "pen"), run.context["log"]]

    monkeypatch.setattr(dialect, "do_commit", commit_and_lose_the_answer)
    assert await shop.run("order", handler, workflow_id="w") == [1, 2, ["before", "after"]]
    assert (lost, placed) == (["answer"], ["book", "pen"])
    assert await count_rows(shop, "orders") == 2
    assert (await shop.load_workflow_state_by_workflow_id("w")).context == {"log": ["before", "after"]}
    assert [step.position for step in (await steps_of(shop, "w")).values()] == [0, 1]


async def test_context_changed_in_the_transaction_is_saved_with_it(shop: StateStore) -> None:
    async def handler(run: Run) -> Any:
        async def place(session: AsyncSession) -> int:
            run.context["ordered"] = await place_order(session)
            return 1

        await run.transact("order", place)
        if not attempts:
            attempts.append(1)
            vanish()
        return run.context

    attempts: list[int] = []
    with pytest.raises(asyncio.CancelledError):
        await shop.run("order", handler, workflow_id="w")
    assert await shop.run("order", handler, workflow_id="w") == {"ordered": 1}
    assert await count_rows(shop, "orders") == 1


# --- failure ---


async def test_a_failure_rolls_the_rows_back_and_is_recorded(shop: StateStore) -> None:
    async def place_and_fail(session: AsyncSession) -> None:
        await place_order(session)
        raise LookupError("out of stock")

    async def handler(run: Run) -> None:
        await run.transact("order", place_and_fail)

    with pytest.raises(LookupError):
        await shop.run("order", handler, workflow_id="w")
    assert await count_rows(shop, "orders") == 0
    step = (await steps_of(shop, "w"))["order"]
    assert (step.status, step.error, step.retry_count) == ("failed", "LookupError: out of stock", 1)


async def test_a_violated_constraint_is_the_applications_error_and_is_not_repeated(shop: StateStore) -> None:
    calls = []

    async def place_twice(session: AsyncSession) -> None:
        calls.append(1)
        for _ in range(2):
            await session.execute(insert(orders).values(id=7, item="book"))

    async def handler(run: Run) -> None:
        await run.transact("order", place_twice)

    with pytest.raises(IntegrityError):
        await shop.run("order", handler, workflow_id="w")
    assert (await count_rows(shop, "orders"), len(calls)) == (0, 1)
    assert (await row_of(shop, "w")).status == "failed"


async def test_outputs_that_cannot_be_stored_roll_the_rows_back(shop: StateStore) -> None:
    async def place(session: AsyncSession) -> object:
        await place_order(session)
        return object()

    async def handler(run: Run) -> Any:
        return await run.transact("order", place)

    with pytest.raises(InvalidPayload):
        await shop.run("order", handler, workflow_id="w")
    assert await count_rows(shop, "orders") == 0


async def test_a_worker_that_lost_its_lease_writes_no_rows(shop: StateStore) -> None:
    async def handler(run: Run) -> int:
        await change_row(shop, run.id, lease_token=99)
        return await run.transact("order", place_order)

    with pytest.raises(LeaseLost):
        await shop.run("order", handler, workflow_id="w")
    assert await count_rows(shop, "orders") == 0
    assert await steps_of(shop, "w") == {}


async def test_a_transaction_that_the_database_gave_up_on_is_repeated_as_a_whole(
    shop: StateStore, shop_url: str, backend: str
) -> None:
    calls = []

    async def place(session: AsyncSession) -> int:
        calls.append(await place_order(session))
        if len(calls) < 3:
            await make_the_database_give_up(session, shop_url, backend)
        return calls[-1]

    async def handler(run: Run) -> int:
        return await run.transact("order", place)

    await shop.run("order", handler, workflow_id="w")
    assert (len(calls), await count_rows(shop, "orders")) == (3, 1)
    step = (await steps_of(shop, "w"))["order"]
    assert (step.status, step.retry_count) == ("completed", 0), "the database's troubles are no failure of the step"


async def make_the_database_give_up(session: AsyncSession, url: str, backend: str) -> None:
    """Raise what the driver raises, for real: a serialization failure, or a file that another connection holds."""
    if backend == "postgres":
        await session.execute(text("DO $$ BEGIN RAISE EXCEPTION 'conflict' USING ERRCODE = '40001'; END $$"))
    engine = create_async_engine(url.replace("sqlite:", "sqlite+aiosqlite:"), connect_args={"timeout": 0})
    try:
        async with engine.begin() as connection:
            await connection.execute(insert(orders).values(item="in the way"))
    finally:
        await engine.dispose()


class Wrapped(Exception):
    """The application's own, in which it hides what happened."""


async def raised(session: AsyncSession, url: str, backend: str) -> None:
    await make_the_database_give_up(session, url, backend)


async def wrapped(session: AsyncSession, url: str, backend: str) -> None:
    try:
        await make_the_database_give_up(session, url, backend)
    except Exception as error:  # noqa: BLE001 - as code that wraps everything does
        raise ExceptionGroup("", [error, ValueError("and more")]) from None


async def hidden(session: AsyncSession, *_: str) -> None:
    """On the session's own connection, which remembers."""
    with suppress(DBAPIError):
        await session.execute(text(LOCK_TIMEOUT))
    raise Wrapped


async def swallowed(session: AsyncSession, *_: str) -> None:
    with suppress(DBAPIError):
        await session.execute(text(LOCK_TIMEOUT))


async def cut_off(session: AsyncSession, *_: str) -> None:
    """The server ends the connection; what the function raises then is a consequence."""
    pid = await session.scalar(text("SELECT pg_backend_pid()"))
    raw = (await (await session.connection()).get_raw_connection()).driver_connection
    assert raw is not None
    with suppress(Exception):
        await raw.execute("SELECT pg_terminate_backend($1)", pid)
    raise OSError("the connection is gone")


LOCK_TIMEOUT = "DO $$ BEGIN RAISE EXCEPTION 'locked' USING ERRCODE = '55P03'; END $$"


@pytest.mark.parametrize("fault", [raised, wrapped])
async def test_a_fault_of_the_database_is_no_failure_of_the_step_however_it_comes_out(
    shop: StateStore, shop_url: str, backend: str, fault: Callable[..., Awaitable[None]]
) -> None:
    await _outlasts(fault, shop, shop_url, backend)


@pytest.mark.parametrize("backend", ["postgres"], indirect=True)
@pytest.mark.parametrize("fault", [hidden, swallowed, cut_off])
async def test_nor_is_what_postgres_alone_can_do_to_an_open_transaction(
    shop: StateStore, shop_url: str, backend: str, fault: Callable[..., Awaitable[None]]
) -> None:
    await _outlasts(fault, shop, shop_url, backend)


async def _outlasts(fault: Callable[..., Awaitable[None]], shop: StateStore, shop_url: str, backend: str) -> None:
    calls = []

    async def place(session: AsyncSession) -> str:
        calls.append(1)
        await place_order(session)
        if len(calls) == 1:
            await fault(session, shop_url, backend)
        return "placed"

    async def handler(run: Run) -> str:
        return await run.transact("order", place)

    assert await shop.run("order", handler, workflow_id="w") == "placed"
    assert (len(calls), await count_rows(shop, "orders")) == (2, 1)
    assert (await steps_of(shop, "w"))["order"].retry_count == 0


async def of_their_own(session: AsyncSession) -> None:
    await session.execute(text("SELECT * FROM no_table_of_theirs"))


async def of_a_file(_: AsyncSession) -> None:
    raise FileNotFoundError("the menu")


async def swallowed_by_itself(session: AsyncSession) -> None:
    with suppress(DBAPIError):
        await of_their_own(session)
    await place_order(session)


@pytest.mark.parametrize("function", [of_their_own, of_a_file, swallowed_by_itself])
async def test_what_the_functions_own_statements_deserve_fails_the_step_at_once(
    shop: StateStore, function: Callable[..., Awaitable[None]]
) -> None:
    calls = []

    async def counted(session: AsyncSession) -> None:
        calls.append(1)
        await function(session)

    async def handler(run: Run) -> None:
        await run.transact("order", counted)

    with pytest.raises((DBAPIError, FileNotFoundError, ConfigurationError)):
        await shop.run("order", handler, workflow_id="w")
    assert (len(calls), (await row_of(shop, "w")).status) == (1, "failed")


async def test_a_migration_of_the_table_that_it_uses_is_no_failure_of_the_step(shop_url: str) -> None:
    """Its connection has prepared the statement for the table as it was."""

    async def look(session: AsyncSession) -> list[int]:
        return [len(row) for row in await session.execute(text("SELECT * FROM dishes"))]

    async def handler(run: Run) -> list[list[int]]:
        return [await run.transact(f"look {number}", look) for number in range(3)]

    async def migrated(run: Run) -> list[list[int]]:
        before = await run.transact("before", look)
        await alter(text("ALTER TABLE dishes ADD COLUMN price INTEGER"))
        return [before, await run.transact("after", look)]

    async with StateStore.open(shop_url) as other, StateStore.open(shop_url, pool_min=1, pool_max=1) as shop:

        async def alter(statement: Any) -> None:
            async with other.begin() as uow:
                await uow.session.execute(statement)

        await alter(text("CREATE TABLE dishes (name INTEGER)"))
        await alter(text("INSERT INTO dishes VALUES (1)"))
        assert await shop.run("n", handler) == [[1], [1], [1]], "it is prepared"
        assert await shop.run("m", migrated) == [[1], [2]]


# --- the session belongs to the run ---


@pytest.mark.parametrize("swallowed", [False, True])
async def test_a_function_that_commits_by_itself_is_refused(shop: StateStore, swallowed: bool) -> None:
    async def place_and_commit(session: AsyncSession) -> None:
        await place_order(session)
        try:
            await session.commit()
        except ConfigurationError:
            if not swallowed:
                raise
        raise LookupError("later")

    async def handler(run: Run) -> None:
        await run.transact("order", place_and_commit)

    with pytest.raises(LookupError if swallowed else ConfigurationError):
        await shop.run("order", handler, workflow_id="w")
    assert await count_rows(shop, "orders") == 0, "nothing was committed"


async def test_a_savepoint_is_no_commit(shop: StateStore) -> None:
    async def place(session: AsyncSession) -> str:
        try:
            async with session.begin_nested():
                await session.execute(insert(orders).values(id=1, item="rolled back"))
                await session.execute(insert(orders).values(id=1, item="the same id"))
        except DBAPIError:
            async with session.begin_nested():
                await session.execute(insert(orders).values(id=1, item="second choice"))
        return "placed"

    async def handler(run: Run) -> str:
        return await run.transact("order", place)

    assert await shop.run("order", handler, workflow_id="w") == "placed"
    assert await count_rows(shop, "orders") == 1


async def test_pending_objects_are_flushed_before_the_commit(shop: StateStore) -> None:
    """The ORM's unit of work counts too: what was only added is written."""
    from sqlalchemy.orm import registry

    class Order:
        item: str

    mapping = registry()
    mapping.map_imperatively(Order, orders)

    async def place(session: AsyncSession) -> None:
        added = Order()
        added.item = "book"
        session.add(added)

    async def handler(run: Run) -> None:
        await run.transact("order", place)

    try:
        await shop.run("order", handler)
    finally:
        mapping.dispose()
    assert await count_rows(shop, "orders") == 1


async def test_a_step_inside_the_function_is_refused_instead_of_waiting_for_ever(shop: StateStore) -> None:
    async def handler(run: Run) -> Any:
        async def place(session: AsyncSession) -> Any:
            await place_order(session)
            return await run.step("inside", Effect())

        return await run.transact("order", place)

    with pytest.raises(ConfigurationError, match="step 'order' called a step of its own run"):
        await shop.run("order", handler, workflow_id="w")
    assert await count_rows(shop, "orders") == 0


async def test_transactions_side_by_side_each_commit(shop: StateStore) -> None:
    async def handler(run: Run) -> int:
        calls = (run.transact("order", place_order, f"item {n}") for n in range(10))
        return len(await asyncio.gather(*calls, *(run.step("step", Effect(), n) for n in range(10))))

    assert await shop.run("order", handler, workflow_id="w") == 20
    assert await count_rows(shop, "orders") == 10
    assert len(await steps_of(shop, "w")) == 20


async def test_a_neighbour_does_not_commit_before_it_is_known_what_became_of_a_cancelled_transaction(
    shop: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialect = shop._transactions.database._pool.sync_engine.dialect
    commit = dialect.do_commit
    transacting: list[asyncio.Task[int]] = []
    beside = asyncio.Event()

    def commit_and_cancel(connection: Any) -> None:
        commit(connection)
        if transacting and asyncio.current_task() is transacting[0]:
            transacting[0].cancel()

    async def place(session: AsyncSession) -> int:
        await beside.wait()
        await asyncio.sleep(0.05)  # until the neighbour waits for its turn
        return await place_order(session)

    async def handler(run: Run) -> Any:
        if await row_steps(shop):
            await run.transact("order", place)
            await run.step("beside", beside.set)
            return run.context["log"]
        run.append("log", "once")
        transacting.append(asyncio.ensure_future(run.transact("order", place)))
        await asyncio.sleep(0)
        neighbour = asyncio.ensure_future(run.step("beside", beside.set))
        await asyncio.gather(*transacting, neighbour, return_exceptions=True)
        return vanish()

    monkeypatch.setattr(dialect, "do_commit", commit_and_cancel)
    with pytest.raises(asyncio.CancelledError):
        await shop.run("order", handler, workflow_id="w", context={"log": []})
    assert {step.position for step in (await steps_of(shop, "w")).values()} == {0, 1}
    assert await shop.run("order", handler, workflow_id="w") == ["once"]


async def row_steps(store: StateStore) -> int:
    return await count_rows(store, "step_states")
