"""The command as a process: a pipe that closes, a full disk, Ctrl-C, and no terminal."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator_state import StateStore
from tests.support.command_line import environment

pytestmark = pytest.mark.process
COMMAND = [sys.executable, "-m", "orchestrator_state"]


async def _fill(path: Path) -> None:
    async with StateStore.open(path) as store:
        for number in range(3):
            await store.start("n", workflow_id=f"w-{number}")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "w.db"
    asyncio.run(_fill(path))
    return path


@pytest.fixture
def started(database: Path) -> Iterator[Any]:
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        process = subprocess.Popen(
            [*COMMAND, *arguments], env=environment(DATABASE_URL=str(database)), text=True, **pipes
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        with process:
            process.kill()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A process inherits that Ctrl-C is to be ignored, as tests that run in the background have to."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_what_would_go_on_for_ever(started: Any, interruptible: None) -> None:
    process = started("runs", "watch", "--interval", "60")
    lines = [process.stdout.readline() for _ in range(3)]
    assert all("runnable" in line for line in lines)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "")


def test_a_reader_that_goes_away_ends_it_quietly(started: Any) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = started("runs", "list", stdout=writing)
    os.close(writing)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 141


def test_without_an_output_it_ends_as_with_one(database: Path) -> None:
    shell = ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, "runs", "list"]
    done = subprocess.run(
        shell, env=environment(DATABASE_URL=str(database)), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_an_error(started: Any) -> None:
    with Path("/dev/full").open("w") as full:
        for arguments in (["runs", "list", "--json"], ["--help"]):
            process = started(*arguments, stdout=full)
            assert (
                process.communicate(timeout=60)[1] == "error: the output cannot be written: No space left on device\n"
            )
            assert process.returncode == 7


def test_without_a_terminal_nothing_is_asked_and_nothing_deleted(started: Any) -> None:
    process = started("runs", "delete", "w-1")
    _, err = process.communicate(timeout=60)
    assert (process.returncode, "--yes" in err) == (2, True)
    assert started("runs", "show", "w-1", stdout=subprocess.DEVNULL).wait(60) == 0


def test_it_has_a_version(started: Any) -> None:
    out, err = started("--version").communicate(timeout=60)
    assert (out.count("."), err) == (2, "")
