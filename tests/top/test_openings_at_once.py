"""Stores that are opened at the same moment, or while another one migrates: none fails by what is not its own fault."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator_state import StateStore, StoreUnavailable, schema
from orchestrator_state.database.sqlite.database import SqliteDatabase
from tests.support.engines import opened_engine
from tests.support.old_databases import FIRST, opened, upgrade
from tests.support.raw_sql import SQLITE, fetch


async def open_and_close(database: str | Path | None, **options: Any) -> None:
    async with StateStore.open(database, migrate=True, **options):
        pass


async def open_on_an_engine_and_close(url: str, *, lock_timeout: float) -> None:
    on_sqlite = url.startswith(SQLITE)
    options = {"connect_args": {"timeout": lock_timeout}} if on_sqlite else {}
    limit = "" if on_sqlite else f"&lock_timeout={round(lock_timeout * 1000)}"
    async with opened_engine(url + limit, **options) as engine:
        await open_and_close(None, engine=engine)


@asynccontextmanager
async def being_migrated(url: str) -> AsyncIterator[None]:
    """A database of the first revision, while another process migrates it."""
    await upgrade(url, FIRST)
    async with opened(url) as database, database.migrating() as connection:
        await connection.exec_driver_sql("ALTER TABLE step_states ADD COLUMN extra INTEGER")
        yield


async def test_several_databases_are_migrated_at_once_by_one_process(empty_database_url: str, tmp_path: Path) -> None:
    """Alembic's global variables were those of whichever came last: it left the others, or wrote into the wrong one."""
    in_loop, in_thread = tmp_path / "loop.db", tmp_path / "thread.db"
    thread = asyncio.to_thread(asyncio.run, open_and_close(in_thread))
    await asyncio.gather(thread, open_and_close(in_loop), open_and_close(empty_database_url))
    for url in (empty_database_url, f"sqlite:///{in_loop}", f"sqlite:///{in_thread}"):
        assert fetch(url, "SELECT version_num FROM orchestrator_state_version") == [(schema.head_revision(),)]


@pytest.mark.parametrize("open_and_close", [open_and_close, open_on_an_engine_and_close])
async def test_who_opens_waits_longer_than_lock_timeout_for_the_migration_of_another(
    empty_database_url: str, open_and_close: Any
) -> None:
    async with being_migrated(empty_database_url):
        opening = asyncio.create_task(open_and_close(empty_database_url, lock_timeout=0.05))
        await asyncio.wait([opening], timeout=0.7)
        assert not opening.done(), "it found no lock, or did not wait for it"
    await opening


async def test_a_sqlite_file_that_is_locked_for_ever_is_an_error_in_the_end(
    empty_sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator_state.database.sqlite.database._LONGEST_MIGRATION", 0.2)
    async with being_migrated(empty_sqlite_url):
        with pytest.raises(StoreUnavailable, match="another process holds the SQLite file"):
            await open_and_close(empty_sqlite_url, lock_timeout=0.05)


async def test_a_sqlite_store_can_be_opened_while_another_thread_opens_one(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_at_it = SqliteDatabase.leave_the_parent_alone
    looked_at = list[SqliteDatabase]()

    def while_another_is_opened(database: SqliteDatabase) -> None:
        look_at_it(database)
        if not looked_at and database is there.database:
            looked_at.append(database)
            thread = threading.Thread(target=asyncio.run, args=[open_and_close(tmp_path / "other.db")])
            thread.start()
            thread.join()

    async with StateStore.open(sqlite_url) as store:
        there = store._transactions
        monkeypatch.setattr(SqliteDatabase, "leave_the_parent_alone", while_another_is_opened)
        await open_and_close(sqlite_url)
    assert looked_at
