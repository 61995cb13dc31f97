"""`orchestrator-state export`, `import` and `backup`, on paths and through pipes."""

import asyncio
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from orchestrator_state import StateStore
from tests.support.command_line import ENTER, Command, environment
from tests.support.workflows import checkpointed, saved


async def _fill(database_url: str) -> None:
    async with StateStore.open(database_url) as store:
        await checkpointed(store, await saved(store, "load"))


async def _make(database: Path) -> str:
    async with StateStore.open(database):
        return str(database)


async def _runs_of(database: str | Path) -> list[str]:
    async with StateStore.open(database) as store:
        return [str(run.id) for run in await store.list_runs()]


@pytest.fixture
def filled(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    asyncio.run(_fill(database_url))
    monkeypatch.setenv("DATABASE_URL", database_url)
    return database_url


def test_runs_go_into_a_file_and_into_another_database(filled: str, command: Command, tmp_path: Path) -> None:
    file, target = str(tmp_path / "runs.ndjson.zst"), asyncio.run(_make(tmp_path / "target.db"))
    code, out, err = command("export", file, "--json")
    assert (code, json.loads(out)["rows"]) == (0, {"workflow_states": 1, "step_states": 1, "checkpoints": 1}), err
    code, _, err = command("export", file)
    assert (code, err.startswith("error: there is a file")) == (4, True)
    assert command("export", file, "--overwrite")[0] == 0
    moving = partial(command, "import", file, "--url", target)
    assert [each.split() for each in moving()[1].splitlines()[-1:]] == [["1", "0", "0"]]
    assert json.loads(moving("--json")[1])["present"] == 1
    assert asyncio.run(_runs_of(target)) == asyncio.run(_runs_of(filled))


def test_what_is_no_export_is_said_to_be_none(filled: str, command: Command, tmp_path: Path) -> None:
    for content, expected in ((b"", 2), (b"\x1b[2J", 2), (b"SQLite format 3\x00", 1)):
        file = tmp_path / "other"
        file.write_bytes(content)
        code, out, err = command("import", str(file))
        assert (code, out, err.count("\n")) == (expected, "", 1), err
        assert "\x1b" not in err
    assert command("import", str(tmp_path / "none"))[0] == 2
    assert command("import", str(tmp_path))[0] == 2
    assert command("export", str(tmp_path / "none" / "runs"))[0] == 1


def test_a_cut_export_changes_nothing(filled: str, command: Command, tmp_path: Path) -> None:
    file, target = tmp_path / "runs", asyncio.run(_make(tmp_path / "target.db"))
    assert command("export", str(file))[0] == 0
    file.write_bytes(file.read_bytes()[:-40])
    code, out, err = command("import", str(file), "--url", target)
    assert (code, out) == (6, "")
    assert "cut off" in err or "cannot be read" in err
    assert asyncio.run(_runs_of(target)) == []


def _run(*arguments: str, database: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", ENTER, *arguments],
        env=environment(DATABASE_URL=database),
        input=given,
        capture_output=True,
        check=False,
        timeout=60,
    )


def test_runs_go_through_a_pipe(sqlite_url: str, tmp_path: Path) -> None:
    asyncio.run(_fill(sqlite_url))
    written = _run("export", "-", database=sqlite_url)
    assert (written.returncode, written.stderr) == (0, b"1 runs exported\n")
    target = asyncio.run(_make(tmp_path / "target.db"))
    read = _run("import", "-", database=target, given=written.stdout)
    assert read.returncode == 0, read.stderr
    assert asyncio.run(_runs_of(target)) == asyncio.run(_runs_of(sqlite_url))


def test_a_full_disk_leaves_no_file(filled: str, command: Command) -> None:
    code, out, err = command("export", "/dev/full")
    assert (code, out) == (4, "")  # a device is a file that is there
    assert err


def test_a_backup_is_a_database(filled: str, command: Command, backend: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    code, _, err = command("backup", str(copy))
    if backend == "postgres":
        assert (code, "pg_dump" in err) == (1, True)
        return
    assert code == 0
    assert asyncio.run(_runs_of(copy)) == asyncio.run(_runs_of(filled))
    assert command("backup", str(copy))[0] == 4
    assert command("backup", str(copy), "--overwrite")[0] == 0
