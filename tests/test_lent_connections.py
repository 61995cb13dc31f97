"""What the caller's code sets on a connection for its session is not there for whoever has that connection next."""

import asyncio
from contextlib import suppress

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state import Run, StateStore
from tests.held import checked_out, comes_true
from tests.running import seconds, steps_of

ON_POSTGRES = (
    "SET search_path = nowhere",
    "SET ROLE pg_monitor",
    "SET SESSION AUTHORIZATION pg_monitor",
    "SET client_encoding = latin1",
    "SELECT set_config('default_transaction_read_only', 'on', false)",
    "CREATE TEMP TABLE step_states AS SELECT * FROM step_states",
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


async def test_a_task_that_is_left_behind_with_the_session_fails_no_block_that_has_committed(store: StateStore) -> None:
    async def go_on(session: AsyncSession) -> None:
        with suppress(Exception):
            await session.execute(text("SELECT 1"))

    def leave_behind(_: object) -> None:
        left.append(asyncio.get_running_loop().create_task(go_on(uow.session)))

    left: list[asyncio.Task[None]] = []
    async with store.begin() as uow:
        await uow.session.execute(text("SELECT 1"))
        event.listen(uow.session.sync_session, "after_commit", leave_behind)
    await asyncio.wait(left)
    assert await comes_true(lambda: checked_out(store) == 0)
