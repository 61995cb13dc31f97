"""What the caller's code sets on a connection for its session is not there for whoever has that connection next."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state import Run, StateStore
from tests.support.cutting_proxy import CuttingProxy, Fault
from tests.support.engines import own_engine
from tests.support.held import checked_out, comes_true
from tests.support.running import seconds, steps_of
from tests.support.states import a_state

ON_POSTGRES = (
    "SET search_path = nowhere",
    "SET ROLE pg_monitor",
    "SET SESSION AUTHORIZATION pg_monitor",
    "SET client_encoding = latin1",
    "SELECT set_config('default_transaction_read_only', 'on', false)",
    "CREATE TEMP TABLE step_states AS SELECT * FROM step_states",
    "DEALLOCATE ALL",
)
ON_SQLITE = (
    "PRAGMA query_only = ON",
    "CREATE TEMP TABLE step_states AS SELECT * FROM step_states",
)


async def handler(run: Run) -> str:
    return await run.step("s", lambda: "\N{RIGHTWARDS ARROW}")


async def _require_unharmed(database_url: str, change: str) -> None:
    async with (
        StateStore.open(database_url, pool_min=1, pool_max=1, retry_timeout=seconds(1)) as store,
        StateStore.open(database_url) as other,
    ):
        await store.run("n", handler)  # the driver has prepared its statements by now
        async with store.begin() as uow:
            await uow.session.execute(text(change))
        assert await store.run("n", handler, workflow_id="w", context={}) == "\N{RIGHTWARDS ARROW}"
        assert list(await steps_of(other, "w")) == ["s"]


@pytest.mark.parametrize("change", ON_POSTGRES)
async def test_what_a_block_sets_on_postgres_is_not_set_for_the_next(postgres_url: str, change: str) -> None:
    await _require_unharmed(postgres_url, change)


@pytest.mark.parametrize("change", ON_SQLITE)
async def test_what_a_block_sets_on_sqlite_is_not_set_for_the_next(sqlite_url: str, change: str) -> None:
    await _require_unharmed(sqlite_url, change)


async def test_a_transact_may_take_from_the_driver_what_it_prepared(postgres_url: str) -> None:
    """Even from under its own step."""
    calls: list[str] = []

    async def deallocate(session: AsyncSession, what: str) -> int:
        calls.append(what)
        await session.execute(text("DEALLOCATE ALL"))
        return len(calls)

    async def twice(run: Run) -> list[int]:
        return [await run.transact("t", deallocate, f"{number}") for number in range(2)]

    async with StateStore.open(postgres_url, pool_min=1, pool_max=1, retry_timeout=seconds(5)) as store:
        assert await store.run("n", handler) == "\N{RIGHTWARDS ARROW}"
        await store.run("n", twice, workflow_id="w")
        assert await store.run("n", handler) == "\N{RIGHTWARDS ARROW}"
        assert list(await steps_of(store, "w")) == ["t", "t#2"]


async def test_a_statement_that_was_never_prepared_fails_the_step_and_costs_one_connection(postgres_url: str) -> None:
    calls = 0

    async def execute(session: AsyncSession) -> None:
        nonlocal calls
        calls += 1
        await session.execute(text("EXECUTE never_prepared"))

    async def once(run: Run) -> None:
        await run.transact("t", execute)

    async with StateStore.open(postgres_url, pool_min=1, pool_max=1, retry_timeout=seconds(5)) as store:
        with pytest.raises(DBAPIError):
            await store.run("n", once)
        assert calls == 1
        assert await store.run("n", handler) == "\N{RIGHTWARDS ARROW}"


@pytest.mark.parametrize(
    "change",
    [
        "SET LOCAL search_path = pg_catalog",
        "SET LOCAL ROLE pg_monitor",
        *(change for change in ON_POSTGRES if "TEMP" not in change and "latin1" not in change),
    ],
)
async def test_a_transact_may_set_on_postgres_what_hides_the_steps(postgres_url: str, change: str) -> None:
    await _require_transact(postgres_url, change)


async def test_a_transact_on_an_applications_engine_may_hide_the_steps(postgres_url: str) -> None:
    engine = own_engine(postgres_url)
    try:
        await _require_transact(postgres_url, "SET LOCAL search_path = pg_catalog", engine=engine)
    finally:
        await engine.dispose()


async def test_a_connection_that_is_lost_before_a_repetition_begins_fails_no_run(
    postgres_url: str, tmp_path: Path
) -> None:
    calls = 0

    async def order(session: AsyncSession) -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            proxy.fail_next_commit(Fault.CUT_BEFORE, again)
        return "ordered"

    async def once(run: Run) -> str:
        return await run.transact("t", order)

    async def again() -> None:
        proxy.fail_next_commit(Fault.CUT_BEFORE, marker=b"session_authorization")

    async with CuttingProxy(postgres_url, tmp_path).running() as proxy, StateStore.open(proxy.url) as store:
        assert await store.run("n", once, workflow_id="w") == "ordered"
        assert (calls, proxy.faults) == (2, 2)


async def test_a_transact_may_set_on_sqlite_what_forbids_to_write(sqlite_url: str) -> None:
    await _require_transact(sqlite_url, "PRAGMA query_only = ON")


async def _require_transact(database_url: str, change: str, **opening: Any) -> None:
    async def set_it(session: AsyncSession) -> str:
        await session.execute(text(change))
        return "set"

    async def once(run: Run) -> str:
        return await run.transact("t", set_it)

    url, opening = (None, opening) if opening else (database_url, {"pool_min": 1, "pool_max": 1})
    async with (
        StateStore.open(url, **opening, retry_timeout=seconds(5)) as store,
        StateStore.open(database_url) as other,
    ):
        assert await store.run("n", once, workflow_id="w") == "set"
        assert list(await steps_of(other, "w")) == ["t"]


async def test_a_transact_makes_nobody_elses_commits_less_durable(postgres_url: str) -> None:
    async def hastily(session: AsyncSession) -> None:
        await session.execute(text("SET synchronous_commit = off"))

    async def in_haste(run: Run) -> None:
        await run.transact("t", hastily)

    async with StateStore.open(postgres_url, pool_min=1, pool_max=1) as store:
        await store.run("n", in_haste, workflow_id="w")
        async with store.begin() as uow:
            assert await uow.session.scalar(text("SHOW synchronous_commit")) == "on"


async def test_what_the_url_sets_stays_set(postgres_url: str) -> None:
    url = f"{postgres_url}{'&' if '?' in postgres_url else '?'}work_mem=7MB"
    async with StateStore.open(url, pool_min=1, pool_max=1) as store:
        for _ in range(2):
            async with store.begin() as uow:
                assert await uow.session.scalar(text("SHOW work_mem")) == "7MB"
                await uow.session.execute(text("SET work_mem = '9MB'"))


async def test_a_connection_that_cannot_be_put_in_order_is_replaced(postgres_url: str) -> None:
    async with StateStore.open(postgres_url, pool_min=1, pool_max=1) as store:
        pids = []
        for _ in range(2):
            async with store.begin() as uow:
                pids.append(await uow.session.scalar(text("SELECT pg_backend_pid()")))
                await uow.session.execute(text("CREATE TEMP TABLE IF NOT EXISTS mine (n INTEGER)"))
        assert pids[0] == pids[1]
        async with StateStore.open(postgres_url) as other, other.begin() as uow:
            await uow.session.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pids[0]})
        async with store.begin() as uow:
            assert await uow.session.scalar(text("SELECT pg_backend_pid()")) != pids[0]


LONG = {
    "postgres": "SELECT pg_sleep(2)",
    "sqlite": "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000) SELECT max(i) FROM n",
}


@pytest.mark.parametrize("is_long", [False, True])
async def test_a_task_that_is_left_behind_with_the_session_fails_no_block_that_has_committed(
    store: StateStore, backend: str, is_long: bool
) -> None:
    async def go_on(session: AsyncSession) -> None:
        with suppress(Exception):
            await session.execute(text(LONG[backend] if is_long else "SELECT 1"))

    def leave_behind(_: object) -> None:
        left.append(asyncio.get_running_loop().create_task(go_on(uow.session)))

    left: list[asyncio.Task[None]] = []
    async with store.begin() as uow:
        await uow.session.execute(text("SELECT 1"))
        event.listen(uow.session.sync_session, "after_commit", leave_behind)
    await asyncio.wait(left)
    assert await comes_true(lambda: checked_out(store) == 0)
    await store.save_workflow_state(a_state())


async def test_a_statement_that_is_under_way_when_its_block_fails_keeps_no_connection(
    store: StateStore, backend: str
) -> None:
    async def go_on(session: AsyncSession) -> None:
        with suppress(Exception):
            await session.execute(text(LONG[backend]))

    async def block() -> None:
        async with store.begin() as uow:
            await uow.session.execute(text("SELECT 1"))
            left.append(asyncio.create_task(go_on(uow.session)))
            await asyncio.sleep(0.1)
            raise ZeroDivisionError

    left: list[asyncio.Task[None]] = []
    with pytest.raises(ZeroDivisionError):
        await block()
    await asyncio.wait(left)
    assert await comes_true(lambda: checked_out(store) == 0)
    await store.save_workflow_state(a_state())
