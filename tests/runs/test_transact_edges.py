"""The edges of `run.transact`: what its function's statements deserve, what the database did, whose transaction it is.

Each function is called with the session; some do to its connection what they should not.
"""

import asyncio
import itertools
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import delete, insert, text
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError, PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import registry

from orchestrator_state import ConfigurationError, StateStore, WorkflowStatus
from tests.support.cases import case
from tests.support.cutting_proxy import CuttingProxy, Fault
from tests.support.engines import business, create_orders, opened_engine, orders
from tests.support.postgres_proxy import opened_impatient
from tests.support.running import count_rows, row_of, seconds, steps_of

_mapping = registry(metadata=business)


class Order:
    id: int
    item: str


_mapping.map_imperatively(Order, orders)

PATIENCE = 0.05  # seconds

Function = Callable[[AsyncSession], Awaitable[object]]


@asynccontextmanager
async def opened(url: str, whose: str, **options: Any) -> AsyncIterator[StateStore]:
    async with opened_engine(url) as engine:
        await create_orders(engine)
        if whose == "ours":
            async with StateStore.open(url, **options) as store:
                yield store
        else:
            async with StateStore.open(engine=engine, **options) as store:
                yield store


@pytest.fixture(params=["ours", "the application's"])
async def shop(database_url: str, request: pytest.FixtureRequest) -> AsyncIterator[StateStore]:
    # An hour of patience: what is repeated that should fail is seen by its calls, and by the clock of the test.
    async with opened(database_url, request.param, retry_timeout=seconds(3600)) as shop:
        yield shop


class Counted:
    """Calls the function, and counts."""

    def __init__(self, function: Function, *, only_first: bool = False) -> None:
        self._function, self._only_first = function, only_first
        self.calls = 0

    async def __call__(self, session: AsyncSession) -> str:
        self.calls += 1
        if self.calls == 1 or not self._only_first:
            await self._function(session)
        return "placed"


async def transact(shop: StateStore, workflow_id: str, function: Function) -> Any:
    return await shop.run("w", lambda run: run.transact("order", function), workflow_id=workflow_id)


async def place(session: AsyncSession, order_id: int = 1) -> None:
    await session.execute(insert(orders).values(id=order_id, item="book"))


async def raw(session: AsyncSession) -> Any:
    return (await (await session.connection()).get_raw_connection()).driver_connection


def is_postgres(session: AsyncSession) -> bool:
    return session.get_bind().dialect.name == "postgresql"


# --- the caller's own mistakes ----------------------------------------------------------------------------------------


async def gives_the_driver_too_many_values(session: AsyncSession) -> None:
    connection = await raw(session)
    if is_postgres(session):
        await connection.fetch("SELECT $1::int", 1, 2)
    else:
        await connection.execute("SELECT ?", (1, 2))


async def gives_a_statement_too_many_values(session: AsyncSession) -> None:
    statement = "SELECT $1::int" if is_postgres(session) else "SELECT ?"
    await (await session.connection()).exec_driver_sql(statement, (1, 2))


async def gives_it_too_few(session: AsyncSession) -> None:
    statement = "SELECT $1::int, $2::int" if is_postgres(session) else "SELECT ?, ?"
    await (await session.connection()).exec_driver_sql(statement, (1,))


async def goes_on_after_a_flush_that_failed(session: AsyncSession) -> None:
    await place(session)
    duplicate = Order()
    duplicate.id, duplicate.item = 1, "book"
    session.add(duplicate)
    with suppress(IntegrityError):
        await session.flush()
    await session.execute(text("SELECT 1"))


async def swallows_a_flush_that_failed(session: AsyncSession) -> None:
    with suppress(PendingRollbackError):
        await goes_on_after_a_flush_that_failed(session)


async def loses_patience_with_a_statement(session: AsyncSession) -> None:
    """As a function with a deadline of its own does: nothing is wrong with the database."""
    statement = await slow(session)
    async with asyncio.timeout(PATIENCE):
        await session.execute(statement)


async def loses_patience_and_says_nothing(session: AsyncSession) -> None:
    with suppress(TimeoutError):
        await loses_patience_with_a_statement(session)


async def slow(session: AsyncSession) -> Any:
    """A statement that takes longer than anybody's patience, and no time of the processor's."""
    over = threading.Event()
    if not is_postgres(session):
        await (await raw(session)).create_function("pg_sleep", 1, over.wait)
    asyncio.get_running_loop().call_later(10 * PATIENCE, over.set)  # by the same clock
    return text("SELECT pg_sleep(30)")


async def uses_a_session_that_it_has_closed(session: AsyncSession) -> None:
    connection = await session.connection()
    await session.close()
    await connection.execute(text("SELECT 1"))


async def begins_a_second_transaction(session: AsyncSession) -> None:
    await session.begin()


async def asks_for_a_cursor_of_the_driver_that_was_never_declared(session: AsyncSession) -> None:
    connection = await raw(session)
    await connection.execute("FETCH 1 FROM nothing")


OWN_ERRORS = (
    *(DBAPIError, InvalidRequestError, PendingRollbackError, ConfigurationError, TimeoutError),
    *(asyncpg.InterfaceError, asyncpg.PostgresError, sqlite3.Error),
)
MISTAKES = [
    gives_the_driver_too_many_values,
    gives_a_statement_too_many_values,
    gives_it_too_few,
    goes_on_after_a_flush_that_failed,
    swallows_a_flush_that_failed,
    loses_patience_with_a_statement,
    loses_patience_and_says_nothing,
    uses_a_session_that_it_has_closed,
    begins_a_second_transaction,
    asks_for_a_cursor_of_the_driver_that_was_never_declared,
]


async def test_a_mistake_of_the_functions_own_fails_the_step_at_once(shop: StateStore) -> None:
    await _each_fails_at_once(shop, MISTAKES)


async def _each_fails_at_once(shop: StateStore, functions: Sequence[Function]) -> None:
    for function in functions:
        with case(name := function.__name__):
            counted = Counted(function)
            async with asyncio.timeout(50):
                with pytest.raises(OWN_ERRORS):
                    await transact(shop, name, counted)
            assert (counted.calls, (await row_of(shop, name)).status) == (1, WorkflowStatus.FAILED)
            assert (await steps_of(shop, name))["order"].retry_count == 1
            assert await count_rows(shop, "orders") == 0


async def swallows_what_the_driver_refused(session: AsyncSession) -> None:
    await place(session)
    with suppress(asyncpg.PostgresError):
        await (await raw(session)).execute("SELECT * FROM nothing_of_theirs")


async def leaves_a_savepoint_open_in_which_a_statement_failed(session: AsyncSession) -> None:
    await place(session)
    await session.begin_nested()
    with suppress(DBAPIError):
        await session.execute(text("SELECT * FROM nothing_of_theirs"))


@pytest.mark.parametrize("backend", ["postgres"])  # SQLite goes on after a statement that failed
async def test_so_does_one_that_postgres_lets_nothing_follow(shop: StateStore) -> None:
    await _each_fails_at_once(
        shop, [swallows_what_the_driver_refused, leaves_a_savepoint_open_in_which_a_statement_failed]
    )


# --- what the database did, whatever the function made of it ----------------------------------------------------------


DEADLOCK = "DO $$ BEGIN RAISE EXCEPTION 'deadlock' USING ERRCODE = '40P01'; END $$"


async def goes_on_after_a_deadlock(session: AsyncSession) -> None:
    """What comes of it says nothing of the deadlock any more."""
    with suppress(DBAPIError):
        await session.execute(text(DEADLOCK))
    await place(session)


async def rolls_back_after_a_deadlock(session: AsyncSession) -> None:
    try:
        await session.execute(text(DEADLOCK))
    except DBAPIError:
        await session.rollback()
        raise LookupError("no luck") from None


async def swallows_a_deadlock_in_a_flush(session: AsyncSession) -> None:
    with suppress(PendingRollbackError):
        await goes_on_after_a_deadlock_in_a_flush(session)


async def goes_on_after_a_deadlock_in_a_flush(session: AsyncSession) -> None:
    await session.execute(
        text(f"CREATE OR REPLACE FUNCTION pg_temp.refuse() RETURNS trigger LANGUAGE plpgsql AS $f$ {_RAISE} $f$")
    )
    await session.execute(
        text("CREATE TRIGGER refuse BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION pg_temp.refuse()")
    )
    order = Order()
    order.id, order.item = 1, "book"
    session.add(order)
    with suppress(DBAPIError):
        await session.flush()
    await session.execute(text("SELECT 1"))


_RAISE = "BEGIN RAISE EXCEPTION 'deadlock' USING ERRCODE = '40P01'; END"


async def rolls_back_after_its_connection_was_cut(session: AsyncSession) -> None:
    pid = await session.scalar(text("SELECT pg_backend_pid()"))
    try:
        await session.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
    except DBAPIError:
        await session.rollback()
        raise LookupError("no luck") from None


FAULTS = [
    goes_on_after_a_deadlock,
    rolls_back_after_a_deadlock,
    goes_on_after_a_deadlock_in_a_flush,
    swallows_a_deadlock_in_a_flush,
    rolls_back_after_its_connection_was_cut,
]


@pytest.mark.parametrize("backend", ["postgres"])
async def test_a_fault_is_no_failure_of_the_step_although_the_function_covers_it(shop: StateStore) -> None:
    for function in FAULTS:
        with case(name := function.__name__):
            counted = Counted(function, only_first=True)
            assert await transact(shop, name, counted) == "placed"
            assert counted.calls == 2
            assert (await steps_of(shop, name))["order"].retry_count == 0


@pytest.mark.usefixtures("soon_given_up")
async def test_a_server_that_does_not_answer_a_statement_fails_no_step(postgres_url: str, tmp_path: Path) -> None:
    """The driver gives up on it with a `TimeoutError`, as if it were the function's own."""
    async with CuttingProxy(postgres_url, tmp_path).running() as proxy, opened(postgres_url, "ours"):

        async def meets_silence(session: AsyncSession) -> None:
            proxy.fail_next_commit(Fault.SILENCE_AFTER, marker=b"SELECT 'anybody'")
            await session.execute(text("SELECT 'anybody'"))

        counted = Counted(meets_silence, only_first=True)
        async with opened_impatient(proxy.url, lease_term=seconds(60)) as far:
            assert await transact(far, "w", counted) == "placed"
            assert (counted.calls, (await steps_of(far, "w"))["order"].retry_count) == (2, 0)


# --- whose the transaction is -----------------------------------------------------------------------------------------


async def by_text(session: AsyncSession, end: str) -> None:
    await session.execute(text(end))


async def by_the_connection(session: AsyncSession, end: str) -> None:
    await (await session.connection()).exec_driver_sql(end)


async def by_the_driver(session: AsyncSession, end: str) -> None:
    await (await raw(session)).execute(end)


async def by_the_driver_with_a_comment(session: AsyncSession, end: str) -> None:
    await (await raw(session)).execute(f"/* that's it */ {end}")


async def and_begins_another(session: AsyncSession, end: str) -> None:
    await session.execute(text(end))
    await session.execute(text("BEGIN"))


async def by_sqlalchemy(session: AsyncSession, end: str) -> None:
    connection = await session.connection()
    await (connection.commit() if end == "COMMIT" else connection.rollback())


async def by_the_session(session: AsyncSession, end: str) -> None:
    await (session.commit() if end == "COMMIT" else session.rollback())


WAYS = [
    by_text,
    by_the_connection,
    by_the_driver,
    by_the_driver_with_a_comment,
    and_begins_another,
    by_sqlalchemy,
    by_the_session,
]


@pytest.mark.parametrize("goes_on", [False, True], ids=["and ends", "and goes on"])
async def test_a_function_that_ends_the_transaction_is_told_so_and_its_step_is_not_recorded_as_done(
    shop: StateStore, goes_on: bool
) -> None:
    refused = (ConfigurationError, InvalidRequestError) if goes_on else ConfigurationError
    for way, end in itertools.product(WAYS, ["COMMIT", "ROLLBACK"]):
        with case(name := f"{end} {way.__name__}"):
            counted = Counted(partial(_ends, way, end, goes_on=goes_on))
            with pytest.raises(refused, match="transaction"):
                await transact(shop, name, counted)
            assert (counted.calls, (await row_of(shop, name)).status) == (1, WorkflowStatus.FAILED)
            assert (await steps_of(shop, name))["order"].status == "failed"
            async with shop.begin() as uow:
                await uow.session.execute(delete(orders))


async def _ends(
    way: Callable[[AsyncSession, str], Awaitable[None]], end: str, session: AsyncSession, *, goes_on: bool
) -> None:
    await place(session)
    await way(session, end)
    if goes_on:
        await place(session, 2)


@pytest.mark.parametrize("backend", ["postgres"])
async def test_nor_does_it_help_to_chain_a_transaction_to_the_one_that_it_ends(shop: StateStore) -> None:
    async def chains(session: AsyncSession) -> None:
        await place(session)
        await session.execute(text("COMMIT AND CHAIN"))

    with pytest.raises(ConfigurationError, match="transaction"):
        await transact(shop, "w", chains)
    assert (await steps_of(shop, "w"))["order"].status == "failed"


@pytest.mark.parametrize("backend", ["sqlite"])
async def test_a_script_of_sqlites_commits_before_it_begins(shop: StateStore) -> None:
    """So does `executescript`, without a word."""

    async def runs_a_script(session: AsyncSession) -> None:
        await place(session)
        await (await raw(session)).executescript("BEGIN; INSERT INTO orders VALUES (2, 'pen');")

    with pytest.raises(ConfigurationError, match="transaction"):
        await transact(shop, "w", runs_a_script)
    assert (await steps_of(shop, "w"))["order"].status == "failed"


async def test_ddl_and_savepoints_belong_to_the_transaction(shop: StateStore) -> None:
    async def alters(session: AsyncSession) -> None:
        await session.execute(text("CREATE TABLE dishes (name INTEGER)"))
        await session.execute(text("SAVEPOINT mine"))
        await place(session, 1)
        await session.execute(text("ROLLBACK TO SAVEPOINT mine"))
        await session.execute(text("RELEASE SAVEPOINT mine"))
        async with session.begin_nested():
            await place(session, 2)
        await session.execute(text("ALTER TABLE dishes ADD COLUMN price INTEGER"))

    assert await transact(shop, "w", Counted(alters)) == "placed"
    assert await count_rows(shop, "orders") == 1


@pytest.mark.parametrize("how", ["by the session", "by text"])
async def test_a_savepoint_that_is_left_open_ends_with_the_transaction(shop: StateStore, how: str) -> None:
    async def leaves_it_open(session: AsyncSession) -> None:
        if how == "by text":
            await session.execute(text("SAVEPOINT mine"))
        else:
            await session.begin_nested()
        await place(session)

    assert await transact(shop, "w", Counted(leaves_it_open)) == "placed"
    assert await count_rows(shop, "orders") == 1
