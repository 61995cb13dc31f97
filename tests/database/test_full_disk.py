"""A disk that is full, or fails, in the middle of a unit: the unit fails whole."""

import resource
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator_state import (
    OrchestratorStateError,
    StateStore,
    StoreUnavailable,
    WorkflowState,
)
from tests.support.children import child
from tests.support.engines import own_engine
from tests.support.held import checked_out
from tests.support.states import a_state


def limit_pages(engine: AsyncEngine, spare: int) -> None:
    """Let the file of every new connection grow by no more than `spare` pages."""

    def limit(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA page_count")
        cursor.execute(f"PRAGMA max_page_count = {cursor.fetchone()[0] + spare}")
        cursor.close()

    event.listen(engine.sync_engine, "connect", limit)


@pytest.fixture(params=["our engine", "the application's engine"])
async def full_store(request: pytest.FixtureRequest, sqlite_url: str) -> AsyncIterator[StateStore]:
    """A store on a SQLite file that can grow by some fifty kilobytes only."""
    if request.param == "our engine":
        async with StateStore.open(sqlite_url, retry_timeout=timedelta(seconds=0.2)) as store:
            limit_pages(store._transactions.database._pool, 12)
            await store._transactions.database._pool.dispose()
            yield store
    else:
        engine = own_engine(sqlite_url)
        limit_pages(engine, 12)
        try:
            async with StateStore.open(engine=engine, retry_timeout=timedelta(seconds=0.2)) as store:
                yield store
        finally:
            await engine.dispose()


def too_big(name: str) -> WorkflowState:
    state = a_state(name)
    state.context = "x" * 500_000
    return state


async def test_a_unit_that_meets_a_full_disk_fails_whole(full_store: StateStore) -> None:
    early, big = a_state("early"), too_big("big")

    async def unit() -> None:
        async with full_store.begin() as uow:
            await uow.workflows.save(early)
            await uow.workflows.save(big)

    with pytest.raises(StoreUnavailable):
        await unit()
    assert [state.version for state in (early, big)] == [0, 0]
    assert await full_store.list_active_workflows() == []
    await full_store.save_workflow_state(early)
    with pytest.raises(StoreUnavailable):
        await full_store.save_workflow_state(big)
    assert [state.workflow_id for state in await full_store.list_active_workflows()] == ["early"]
    assert checked_out(full_store) == 0


async def test_a_unit_that_goes_on_after_a_full_disk_keeps_nothing_half(full_store: StateStore) -> None:
    early, big, late = a_state("early"), too_big("big"), a_state("late")
    with suppress(OrchestratorStateError):
        async with full_store.begin() as uow:
            await uow.workflows.save(early)
            with pytest.raises(StoreUnavailable):
                await uow.workflows.save(big)
            with suppress(StoreUnavailable):
                await uow.workflows.save(late)
    kept = {state.workflow_id for state in await full_store.list_active_workflows()}
    assert kept in (set(), {"early", "late"})
    assert {state.workflow_id for state in (early, big, late) if state.version} == kept


async def save_until_the_file_may_not_grow(pipe: Connection, url: str) -> None:
    """The limit makes the write of a page fail as a broken disk does, in the middle of a transaction."""
    path = Path(url.removeprefix("sqlite:///"))
    async with StateStore.open(url) as store:
        await store.save_workflow_state(a_state("before"))
        limit = path.with_name(path.name + "-wal").stat().st_size + 10_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        states = [a_state("early"), too_big("big")]
        try:
            async with store.begin() as uow:
                for state in states:
                    await uow.workflows.save(state)
            pipe.send("committed")
        except StoreUnavailable:
            pipe.send([state.version for state in states])
        pipe.send([state.workflow_id for state in await store.list_active_workflows()])
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await store.save_workflow_state(a_state("after"))
        pipe.send([state.workflow_id for state in await store.list_active_workflows()])


def test_a_write_that_fails_in_the_middle_of_a_unit_leaves_the_file_as_it_was(sqlite_url: str) -> None:
    with child(save_until_the_file_may_not_grow, sqlite_url) as process:
        assert [process.hear() for _ in range(3)] == [[0, 0], ["before"], ["after", "before"]]
        process.finish()
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def open_files_that_may_not_grow(pipe: Connection, directory: Path) -> None:
    for limit in (0, 1000, 4096, 33_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            await StateStore.open(directory / f"{limit}.db")
        except OrchestratorStateError as error:
            pipe.send((limit, type(error)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        async with StateStore.open(directory / f"{limit}.db") as store:
            await store.save_workflow_state(a_state("after"))


def test_a_new_file_that_cannot_be_written_is_the_disks_fault_and_opens_once_it_can(tmp_path: Path) -> None:
    with child(open_files_that_may_not_grow, tmp_path) as process:
        assert process.hear_all() == [(limit, StoreUnavailable) for limit in (0, 1000, 4096, 33_000)]
        process.finish()


@pytest.mark.parametrize("spare", [1, 8, 12, 16, 20, 24])
async def test_a_migration_says_that_the_disk_is_full_and_leaves_nothing(
    empty_sqlite_url: str, request: pytest.FixtureRequest, spare: int
) -> None:
    def limit(connection: Any, _: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {spare}")

    event.listen(Engine, "connect", limit)
    request.addfinalizer(lambda: event.remove(Engine, "connect", limit))
    with pytest.raises(StoreUnavailable, match="full"):
        await StateStore.open(empty_sqlite_url)
    with closing(sqlite3.connect(empty_sqlite_url.removeprefix("sqlite:///"))) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
