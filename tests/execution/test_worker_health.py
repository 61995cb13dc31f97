"""A worker ends only when it is told to: it rests, looks again, and can be asked how it is."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from orchestrator_state import ConfigurationError, Run, StateStore, Worker, WorkflowStatus
from tests.support.postgres_server import PrivatePostgres
from tests.support.running import Effect, Gate, becomes, seconds

LONG = 60  # seconds; far below the hour for which the stores in here would try


async def handler(run: Run) -> object:
    return await run.step("s", Effect(), "done")


def is_completed(row: object) -> bool:
    return bool(getattr(row, "status") == WorkflowStatus.COMPLETED)  # noqa: B009


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG):
        while not condition():  # noqa: ASYNC110 - what changes it is the worker
            await asyncio.sleep(0.05)


async def rename(store: StateStore, table: str, to: str) -> None:
    async with store.begin() as uow:
        await uow.session.execute(text(f"ALTER TABLE {table} RENAME TO {to}"))


async def test_a_worker_tells_what_it_does(store: StateStore) -> None:
    worker = Worker(store, {"w": handler}, poll=0.05, handle_signals=False)
    assert (worker.health().state, worker.health().is_well) == ("new", False)
    async with worker:
        await until(lambda: worker.health().looked_at is not None)
        health = worker.health()
        assert health.is_well
        assert (health.state, health.runs_under_way, health.faults, health.failing_since) == ("working", 0, 0, None)
        assert health.looked_at is not None
        assert health.looked_at <= datetime.now(UTC)
        worker.stop()
        assert worker.health().state == "stopping"
    assert worker.health().state == "stopped"


async def test_a_worker_that_has_no_place_for_more_does_not_say_that_it_looked(store: StateStore) -> None:
    gate = Gate()
    worker = Worker(store, {"w": lambda run: run.step("s", gate)}, concurrency=1, poll=0.01, handle_signals=False)
    await store.start("w")
    async with worker:
        await gate.reached.wait()
        await until(lambda: worker.health().looked_at is not None)  # the look that found the run is over
        looked_at = worker.health().looked_at
        await asyncio.sleep(0.1)
        assert worker.health().looked_at == looked_at
        gate.opened.set()
        await until(lambda: worker.health().looked_at != looked_at)


async def test_a_table_that_is_gone_for_a_while_ends_no_worker_and_fails_no_run(database_url: str) -> None:
    async with (
        StateStore.open(database_url, retry_timeout=seconds(0.3)) as store,
        StateStore.open(database_url) as other,
    ):
        worker = Worker(store, {"w": handler}, poll=0.05, handle_signals=False)
        async with worker:
            await until(lambda: worker.health().is_well)
            await other.start("w", workflow_id="w")
            await rename(other, "workflow_states", "elsewhere")
            await until(lambda: worker.health().faults > 1)
            health = worker.health()
            assert not health.is_well
            assert health.failing_since is not None
            assert health.last_error == "SchemaChanged"
            await rename(other, "elsewhere", "workflow_states")
            await becomes(is_completed, other, "w")
            await until(lambda: worker.health().is_well)
            assert worker.health().last_error == "SchemaChanged"


@pytest.mark.process
async def test_a_login_that_is_refused_for_a_while_ends_no_worker(
    private_postgres: Callable[..., PrivatePostgres],
) -> None:
    server = private_postgres()
    async with StateStore.open(server.url(), migrate=True) as near:
        server.execute("CREATE ROLE app LOGIN")
        server.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO app")
        url = server.url().replace("postgres@", "app@")
        async with StateStore.open(url, pool_min=1) as store:
            worker = Worker(store, {"w": handler}, poll=0.05, handle_signals=False)
            async with worker:
                server.execute("ALTER ROLE app NOLOGIN")
                server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'")
                await until(lambda: worker.health().faults > 0)
                assert worker.health().last_error == "AccessLost"
                await near.start("w", workflow_id="w")
                server.execute("ALTER ROLE app LOGIN")
                await becomes(is_completed, near, "w")


async def test_whatever_goes_wrong_with_a_look_ends_no_worker(
    store: StateStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(store, {"w": handler}, poll=0.05, handle_signals=False)
    claim, left = worker._claim, [LookupError("a secret"), ValueError("a secret")]

    async def broken() -> None:
        if left:
            raise left.pop()
        await claim()

    monkeypatch.setattr(worker, "_claim", broken)
    await store.start("w", workflow_id="w")
    async with worker:
        await becomes(is_completed, store, "w")
    assert worker.health().last_error == "LookupError"
    assert "LookupError" in caplog.text
    assert "a secret" not in caplog.text


@pytest.mark.process
async def test_a_worker_that_cannot_reach_its_database_stops_when_it_is_told_to(
    private_postgres: Callable[..., PrivatePostgres],
) -> None:
    server = private_postgres()
    async with StateStore.open(server.url(), migrate=True, retry_timeout=seconds(3600)) as store:
        worker = Worker(store, {"w": handler}, poll=0.05, handle_signals=False)
        async with worker:
            await until(lambda: worker.health().is_well)
            await asyncio.to_thread(server.stop, "immediate")
            await until(lambda: worker.health().faults > 0)
            worker.stop()
            await until(lambda: worker.health().state == "stopped")


async def test_a_store_that_was_closed_ends_its_worker_aloud(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def close_under(worker: Worker, store: StateStore) -> None:
        async with worker:
            await store.close()
            await until(lambda: worker.health().state == "stopped")
            assert "the worker ended (ConfigurationError)" in caplog.text

    async with StateStore.open(database_url) as store:
        worker = Worker(store, {"w": handler}, poll=0.05, handle_signals=False)
        with pytest.raises(ConfigurationError, match="closed"):
            await close_under(worker, store)
