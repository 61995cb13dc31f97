"""Faults of a moment under an open store: what was paid for is kept, nothing is called twice, and no run fails."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from orchestrator_state import AesGcm, KeyRing, Payloads, Run, StateStore, StoreUnavailable, Worker, WorkflowStatus
from tests.support.cases import case, gathered
from tests.support.cutting_proxy import CuttingProxy
from tests.support.held import checked_out, comes_true
from tests.support.postgres_proxy import Link, PostgresProxy
from tests.support.postgres_server import Postgres, PrivatePostgres
from tests.support.running import Effect, becomes, change_row, row_of, seconds, steps_of

pytestmark = pytest.mark.process

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
        go_away(proxy, 0.25)
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
    async with StateStore.open(postgres_url) as near:
        assert (await row_of(near, "w")).status == WorkflowStatus.RUNNING


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


async def test_a_step_that_was_paid_for_outlasts_a_restart(own_server: PrivatePostgres) -> None:
    calls = Effect()

    async def back_again() -> None:
        await asyncio.sleep(AWAY)
        await asyncio.to_thread(own_server.start)

    async def paid() -> Any:
        await asyncio.to_thread(own_server.stop, "fast")
        restarts.append(asyncio.create_task(back_again()))
        return await calls("answer")

    restarts: list[asyncio.Task[None]] = []
    async with StateStore.open(own_server.url(), migrate=True) as store:
        assert await ran(store, paid) == "answer"
        await restarts[0]
    assert calls.calls == ["answer"]


class _Refusing(PostgresProxy):
    """Answers the next message that holds `refused` with an error of the server's, and keeps the connection."""

    refused: bytes | None = None
    times = 0

    async def pass_on(self, link: Link) -> None:
        while data := await link.message():
            if self.refused is not None and self.refused in data:
                self.refused, self.times = None, self.times + 1
                link.to_client.write(_OUT_OF_MEMORY + _IDLE)
            else:
                link.to_server.write(data)


_FIELDS = b"SERROR\0VERROR\0C53200\0Mout of memory\0\0"
_OUT_OF_MEMORY = b"E" + (len(_FIELDS) + 4).to_bytes(4, "big") + _FIELDS
_IDLE = b"Z\0\0\0\x05I"  # ready for a query, outside a transaction


async def test_a_begin_that_was_refused_spoils_no_connection(postgres_url: str, tmp_path: Path) -> None:
    """The driver takes the next one for a savepoint, for ever."""
    calls = Effect()
    async with (
        _Refusing(postgres_url, tmp_path).running() as proxy,
        StateStore.open(proxy.url, pool_min=1, pool_max=1) as store,
    ):

        async def paid() -> Any:
            proxy.refused = b"BEGIN"
            return await calls("answer")

        assert await ran(store, paid) == "answer"
        await store.signal((await store.start("w", workflow_id="another")).id, "s")
    assert (proxy.times, calls.calls) == (1, ["answer"])


async def test_a_connection_is_used_although_the_server_has_no_other_in_place_of_a_lost_one(
    postgres: Postgres, postgres_url: str
) -> None:
    database = urlsplit(postgres_url).path[1:]
    postgres.execute(f'CREATE ROLE "{database}" LOGIN CONNECTION LIMIT 2', database=database)
    postgres.execute(f'GRANT ALL ON ALL TABLES IN SCHEMA public TO "{database}"', database=database)
    url = postgres_url.replace("//postgres@", f"//{database}@")
    try:
        async with StateStore.open(url, pool_min=2, pool_max=2) as store:
            run = await store.start("w")
            postgres.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = current_database() "
                "ORDER BY state_change DESC LIMIT 1",
                database=database,
            )
            another = await asyncpg.connect(url)
            try:
                await store.signal(run.id, "s")
            finally:
                await another.close()
    finally:
        postgres.execute(f'DROP OWNED BY "{database}"', database=database)
        postgres.execute(f'DROP ROLE "{database}"', database=database)


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


# --- what the handler does not see ----------------------------------------------------------------------------------


class Compensating:
    """A handler that undoes what it has done, whatever it meets; `waits` is its call of the run."""

    def __init__(self, waits: Callable[[Run], Awaitable[Any]]) -> None:
        self._waits = waits
        self.saw: list[BaseException] = []

    async def __call__(self, run: Run) -> str:
        try:
            await self._waits(run)
        except Exception as error:  # noqa: BLE001 - as a handler that compensates does
            self.saw.append(error)
            await run.step("undo", Effect())
            return "compensated"
        return "done"


async def in_a_group(run: Run) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(run.wait_for("go"))
        group.create_task(run.wait_for("go as well", timeout=60))


async def in_a_gather(run: Run) -> None:
    await asyncio.gather(run.wait_for("go"), run.wait_for("go as well"), return_exceptions=True)
    await run.step("after", Effect())


WAITS: dict[str, Callable[[Run], Awaitable[Any]]] = {
    "a signal": lambda run: run.wait_for("go"),
    "a signal with a timeout": lambda run: run.wait_for("go", timeout=60),
    "a child": lambda run: run.child("kid", lambda kid: kid.wait_for("go")),
    "a group": in_a_group,
    "a gather": in_a_gather,
}


def waiting(store: StateStore) -> int:
    """How many branches of its runs wait for a signal."""
    return sum(bool(watch.signals) for watch in store._executor.lookout._watches)


async def test_an_outage_while_it_waits_is_none_of_the_handlers_business(postgres_url: str) -> None:
    await gathered(_outage_while_it_waits(postgres_url, waits) for waits in WAITS)


async def _outage_while_it_waits(url: str, waits: str) -> None:
    """Whether the run outlasts it or is left, its handler sees nothing of it, and it ends as if there had been none."""
    handler = Compensating(WAITS[waits])
    options: Any = {"pool_min": 2, "retry_timeout": seconds(0.3), "lease_term": seconds(6)}
    with case(waits), tempfile.TemporaryDirectory(prefix="outage-") as directory:
        async with (
            CuttingProxy(url, Path(directory)).running() as proxy,
            StateStore.open(url, namespace=waits) as near,
            StateStore.open(proxy.url, namespace=waits, **options) as far,
        ):
            running = asyncio.create_task(far.run("w", handler, workflow_id=waits))
            branches = 2 if waits in ("a group", "a gather") else 1
            assert await comes_true(lambda: waiting(far) == branches)
            go_away(proxy)
            await asyncio.sleep(AWAY + 0.5)
            row = await row_of(near, waits)
            assert (handler.saw, row.status, row.error) == ([], WorkflowStatus.RUNNING, None)
            target = await row_of(near, f"{row.id}/child:kid") if waits == "a child" else row
            for name in ("go", "go as well"):
                await near.signal(target.id, name)
            with suppress(StoreUnavailable):
                await running
            assert await near.run("w", handler, workflow_id=waits, wait=60) == "done"
            assert handler.saw == []
            assert "undo" not in await steps_of(near, waits)


async def test_a_fault_that_the_handler_met_by_a_call_of_its_own_fails_no_run_in_whatever_group(
    store: StateStore,
) -> None:
    away = StoreUnavailable("away")
    left = [ExceptionGroup("", [ExceptionGroup("", [away]), ValueError("cut off")]), away]

    async def handler(_: Run) -> str:
        if left:
            raise left.pop()
        return "done"

    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await store.run("w", handler, workflow_id="w")
        assert (await row_of(store, "w")).status == WorkflowStatus.RUNNING
    assert await store.run("w", handler, workflow_id="w") == "done"


# --- a pause that grows ---------------------------------------------------------------------------------------------


async def test_the_pause_after_faults_in_a_row_grows_until_the_run_makes_progress(store: StateStore) -> None:
    healthy = Effect()

    async def handler(run: Run) -> None:
        if healthy.calls:
            await run.step("s", healthy)
        raise StoreUnavailable("away")

    pauses, faults = [], []
    for turn in range(5):
        if turn == 4:
            await healthy()
        with pytest.raises(StoreUnavailable):
            await store.run("w", handler, workflow_id="w")
        row = await row_of(store, "w")
        pauses.append((row.wake_at - row.updated_at).total_seconds())
        faults.append(row.faults)
    assert faults == [1, 2, 3, 4, 1]
    assert pauses[0] < pauses[1] < pauses[2] < pauses[3] > pauses[4]


@pytest.mark.parametrize("call", ["resume", "signal"])
async def test_a_run_that_is_left_alone_is_due_at_once_when_somebody_resumes_or_signals_it(
    store: StateStore, call: str
) -> None:
    is_away = True

    async def handler(_: Run) -> str:
        if is_away:
            raise StoreUnavailable("away")
        return "done"

    run_id = (await store.start("w", workflow_id="w")).id
    assert {run.outcome for run in (await store.recover({"w": handler})).runs} == {"interrupted"}
    is_away = False
    row = await row_of(store, "w")
    assert row.wake_at > row.updated_at
    await change_row(store, run_id, wake_at=row.wake_at + seconds(3600))  # or a slow machine would outlast the pause
    assert (await store.recover({"w": handler})).runs == []
    await (store.resume(run_id) if call == "resume" else store.signal(run_id, "mended"))
    assert [run.outcome for run in (await store.recover({"w": handler})).runs] == ["completed"]


async def test_runs_that_this_process_cannot_read_are_looked_at_ever_more_seldom(database_url: str) -> None:
    """And delay those that it can read no longer than it takes to find out."""
    theirs, ours = KeyRing({"theirs": b"t" * 32}, "theirs"), KeyRing({"ours": b"o" * 32}, "ours")

    async def handler(run: Run) -> Any:
        return await run.step("s", Effect(), "done")

    async with StateStore.open(database_url, payloads=Payloads([AesGcm(theirs)])) as store:
        for n in range(30):
            await store.start("w", workflow_id=f"unreadable {n}")
    async with StateStore.open(database_url, payloads=Payloads([AesGcm(ours)])) as store:
        async with Worker(store, {"w": handler}, poll=0.1, handle_signals=False):
            for n in range(30):
                await becomes(lambda row: row.lease_token > 1, store, f"unreadable {n}")
            await store.start("w", workflow_id="readable")
            await becomes(lambda row: row.status == WorkflowStatus.COMPLETED, store, "readable")
        for n in range(30):
            row = await row_of(store, f"unreadable {n}")
            assert (row.status, row.error) == (WorkflowStatus.RUNNING, None)
            took = (row.updated_at - row.started_at).total_seconds()  # from the first claim to the last
            assert took >= 1.5 * (2 ** (row.lease_token - 1) - 1), "pauses of 1.5 s, then 3, then 6, or longer"
    async with StateStore.open(database_url, payloads=Payloads([AesGcm(theirs)])) as store:
        assert await store.run("w", handler, workflow_id="unreadable 0") == "done"
