"""A process is taken for dead only where that is certain: who takes over from a live one repeats what it does."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator_state.concurrency import ProcessIdentity


@pytest.fixture
def neighbour() -> Iterator[tuple[subprocess.Popen[bytes], ProcessIdentity]]:
    """A live process, and its identity as it would write it into its lease."""
    program = "import sys\nfrom orchestrator_state.concurrency import ProcessIdentity\nprint(ProcessIdentity.mine())"
    command = [sys.executable, "-c", f"{program}\nsys.stdout.flush()\nsys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        identity = ProcessIdentity.parse(process.stdout.readline().decode().strip())
        assert identity is not None
        yield process, identity


@pytest.mark.process
def test_a_neighbour_is_dead_when_it_has_ended_and_not_before(
    neighbour: tuple[subprocess.Popen[bytes], ProcessIdentity],
) -> None:
    process, identity = neighbour
    assert not identity.is_dead()
    process.kill()
    while not identity.is_dead():  # as a zombie, at the latest
        pass
    process.wait()
    assert identity.is_dead()


@pytest.mark.process
def test_one_that_is_hidden_is_not_dead(
    neighbour: tuple[subprocess.Popen[bytes], ProcessIdentity], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another user's process is, where /proc is mounted with hidepid."""
    process, identity = neighbour
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    with pytest.raises(psutil.NoSuchProcess):
        psutil.Process(process.pid)
    assert not identity.is_dead()
    process.kill()
    process.wait()
    assert identity.is_dead()


def test_a_process_with_the_pid_of_a_dead_one_is_another() -> None:
    mine = ProcessIdentity.mine()
    assert not mine.is_dead()
    assert ProcessIdentity(mine.machine, mine.pid, "1").is_dead()
    assert not ProcessIdentity("elsewhere", mine.pid, "1").is_dead(), "of which nothing is known here"


@pytest.mark.parametrize("pid", ["-5", "0", "", "x", "1.5", "9" * 5000])
def test_what_a_damaged_lease_says_is_nobody(pid: str) -> None:
    assert ProcessIdentity.parse(f"{ProcessIdentity.mine().machine}|{pid}|1") is None


def test_a_pid_that_no_system_has_is_nobodys() -> None:
    identity = ProcessIdentity.parse(f"{ProcessIdentity.mine().machine}|{2**70}|1")
    assert identity is not None
    assert identity.is_dead()


def test_the_host_is_named_for_people_and_read_also_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "rack|3\n" + "x" * 300)
    mine = ProcessIdentity.mine()
    stored = str(mine)
    assert len(stored) == 255
    parsed = ProcessIdentity.parse(stored)
    assert parsed == mine
    assert parsed is not None
    assert parsed.host.startswith("rack|3?xxx")
    older = ProcessIdentity.parse("|".join(stored.split("|")[:3]))
    assert older == mine
    assert older is not None
    assert older.host == ""
