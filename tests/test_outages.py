"""Faults of a moment under an open store: what was paid for is kept, nothing is called twice, and no run fails."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from orchestrator_state import Run, StateStore, StoreUnavailable, WorkflowStatus
from tests.cutting_proxy import CuttingProxy
from tests.held import checked_out
from tests.postgres_server import Postgres, PrivatePostgres
from tests.running import Effect, row_of, seconds

AWAY = 1.2  # seconds


@pytest.fixture
async def proxy(postgres_url: str, tmp_path: Path) -> AsyncIterator[CuttingProxy]:
    async with CuttingProxy(postgres_url, tmp_path).running() as proxy:
        yield proxy


@pytest.fixture
async def distant(proxy: CuttingProxy) -> AsyncIterator[StateStore]:
    """A store whose way to Postgres leads through the proxy."""
    async with StateStore.open(proxy.url, pool_min=3) as store:
        yield store


def go_away(proxy: CuttingProxy, for_seconds: float = AWAY) -> None:
    """Cut all connections and refuse new ones for a while, as a restart does."""
    proxy.refusing = True
    proxy.cut_off()
    asyncio.get_running_loop().call_later(for_seconds, setattr, proxy, "refusing", False)


async def ran(store: StateStore, paid: Callable[[], Awaitable[Any]]) -> Any:
    async def handler(run: Run) -> Any:
        return await run.step("paid", paid)

    return await store.run("w", handler, workflow_id="w")


# --- a server that cannot be reached --------------------------------------------------------------------------------


async def test_a_step_that_was_paid_for_outlasts_a_server_that_cannot_be_reached(
    proxy: CuttingProxy, distant: StateStore
) -> None:
    calls = 0

    async def paid() -> str:
        nonlocal calls
        calls += 1
        go_away(proxy)
        return "answer"

    assert (await ran(distant, paid), calls) == ("answer", 1)
    assert checked_out(distant) == 0


async def test_every_call_outlasts_a_server_that_cannot_be_reached(proxy: CuttingProxy, distant: StateStore) -> None:
    state = await distant.start("w", workflow_id="w")
    for call in (
        lambda: distant.load_workflow_state(state.id),
        lambda: distant.signal(state.id, "s"),
        distant.list_active_workflows,
        lambda: distant.start("w", workflow_id="another"),
        lambda: distant.pause(state.id),
    ):
        go_away(proxy, 0.5)
        await call()


async def test_a_server_that_stays_away_is_an_error_after_the_patience_and_the_run_is_left(
    proxy: CuttingProxy, postgres_url: str
) -> None:
    async def paid() -> str:
        proxy.refusing = True
        proxy.cut_off()
        return "answer"

    async with StateStore.open(proxy.url, pool_min=1, retry_timeout=seconds(0.3)) as store:
        with pytest.raises(StoreUnavailable):
            await ran(store, paid)
        proxy.refusing = False
        assert (await row_of(store, "w")).status == WorkflowStatus.RUNNING


@pytest.mark.parametrize("farewell", [0.0, 1.0])
async def test_connections_that_the_server_terminated_are_replaced_however_late_they_end(
    postgres: Postgres, postgres_url: str, proxy: CuttingProxy, distant: StateStore, farewell: float
) -> None:
    """In between the driver has heard that it is over, and loses its way at the next statement."""
    calls = Effect()

    async def paid() -> Any:
        proxy.farewell = farewell
        postgres.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'orchestrator_state' AND datname = current_database()",
            database=urlsplit(postgres_url).path[1:],
        )
        await asyncio.sleep(0.1)
        return await calls("answer")

    assert await ran(distant, paid) == "answer"
    assert calls.calls == ["answer"]
    await distant.signal((await distant.start("w", workflow_id="another")).id, "s")


# --- a server that refuses ------------------------------------------------------------------------------------------

REFUSALS = {
    "a privilege is revoked": (
        "REVOKE ALL ON step_states FROM app",
        "GRANT ALL ON step_states TO app",
    ),
    "a table is renamed": (
        "ALTER TABLE step_states RENAME TO elsewhere",
        "ALTER TABLE elsewhere RENAME TO step_states",
    ),
    "nobody may log in": (
        "ALTER ROLE app NOLOGIN",
        "ALTER ROLE app LOGIN",
    ),
    "it takes no writes": (
        "ALTER ROLE app SET default_transaction_read_only = on",
        "ALTER ROLE app RESET default_transaction_read_only",
    ),
}


@pytest.fixture
def own_server(private_postgres: Callable[..., PrivatePostgres]) -> PrivatePostgres:
    return private_postgres()


@pytest.fixture
async def app_url(own_server: PrivatePostgres) -> str:
    """As a user of the application's, whom an administrator can refuse things."""
    async with StateStore.open(own_server.url(), migrate=True):
        pass
    own_server.execute("CREATE ROLE app LOGIN")
    own_server.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO app")
    return own_server.url().replace("postgres@", "app@")


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_what_a_server_refuses_for_a_moment_fails_no_run_and_calls_nothing_twice(
    own_server: PrivatePostgres, app_url: str, refusal: str
) -> None:
    refuse, allow = REFUSALS[refusal]
    calls = Effect()

    async def paid() -> Any:
        own_server.execute(refuse)
        # New connections, which find it so: a restart, or a failover to a node that is not promoted yet.
        own_server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'")
        asyncio.get_running_loop().call_later(AWAY, own_server.execute, allow)
        return await calls("answer")

    async with StateStore.open(app_url, pool_min=2) as store:
        assert await ran(store, paid) == "answer"
        assert calls.calls == ["answer"]
        row = await row_of(store, "w")
        assert (row.status, row.attempts) == (WorkflowStatus.COMPLETED, 0)
