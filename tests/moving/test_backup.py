"""A backup of a SQLite file, made while others write to it."""

import asyncio
import os
from pathlib import Path

import pytest

from orchestrator_state import AlreadyExists, ConfigurationError, Run, StateStore


async def test_a_copy_made_while_others_write_is_whole(sqlite_url: str, tmp_path: Path) -> None:
    async def handler(run: Run) -> int:
        for number in range(20):
            await run.step("s", str, number)
        return 1

    copy = tmp_path / "copy.db"
    async with StateStore.open(sqlite_url) as store, asyncio.TaskGroup() as group:
        await store.run("h", handler, workflow_id="before")
        runs = [group.create_task(store.run("h", handler, workflow_id=f"w{number}")) for number in range(10)]
        await asyncio.sleep(0)
        assert await store.backup(copy) == copy.stat().st_size
        with pytest.raises(AlreadyExists):
            await store.backup(copy)
        await asyncio.gather(*runs)
        async with StateStore.open(copy) as restored:
            assert (await restored.verify()).is_sound
            assert await restored.run("h", handler, workflow_id="before") == 1
        await store.backup(copy, overwrite=True)
        async with StateStore.open(copy) as restored:
            assert len(await restored.list_runs()) == 11
    assert copy.stat().st_mode & 0o777 == 0o600


async def test_what_cannot_be_a_backup_is_refused(store: StateStore, backend: str, tmp_path: Path) -> None:
    if backend == "postgres":
        with pytest.raises(ConfigurationError, match="pg_dump"):
            await store.backup(tmp_path / "copy.db")
    for path in (tmp_path, tmp_path / "none" / "copy.db"):
        with pytest.raises(ConfigurationError):
            await store.backup(path)
    assert not [name for name in os.listdir(tmp_path) if "copy" in name]  # noqa: PTH208
