"""Stores that are opened at the same moment, or while another one migrates: none fails by what is not its own fault."""

import asyncio
from pathlib import Path

from orchestrator_state import StateStore, schema
from tests.support.raw_sql import fetch


async def open_and_close(database: str | Path) -> None:
    async with StateStore.open(database, migrate=True):
        pass


async def test_several_databases_are_migrated_at_once_by_one_process(empty_database_url: str, tmp_path: Path) -> None:
    """Alembic's global variables were those of whichever came last: it left the others, or wrote into the wrong one."""
    in_loop, in_thread = tmp_path / "loop.db", tmp_path / "thread.db"
    thread = asyncio.to_thread(asyncio.run, open_and_close(in_thread))
    await asyncio.gather(thread, open_and_close(in_loop), open_and_close(empty_database_url))
    for url in (empty_database_url, f"sqlite:///{in_loop}", f"sqlite:///{in_thread}"):
        assert fetch(url, "SELECT version_num FROM orchestrator_state_version") == [(schema.head_revision(),)]
