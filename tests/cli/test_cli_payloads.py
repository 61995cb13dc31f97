"""`orchestrator-state verify` and `rekey`: what an operator runs before a deploy, and to change keys."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator_state import StateStore
from orchestrator_state.cli import main
from tests.support.cases import case
from tests.support.payload_samples import CANARY, encrypted, fill, stored
from tests.support.postgres_server import run_in_own_loop
from tests.support.raw_sql import contents, execute

Command = Callable[..., tuple[int, str, str]]

APPLICATION = """
from orchestrator_state import BlobStore, Payloads
from tests.support.payload_samples import encrypted

plain = {}
options = {"payloads": encrypted("k1")}

blobs = {"payloads": Payloads(blobs=BlobStore("file://blobs", above=1))}

def rotated():
    return {"payloads": encrypted("k1", "k2")}

class Settings:
    only_new = {"payloads": encrypted("k2", strict=True)}

elsewhere = {"namespace": "elsewhere"}
number = 1
"""


@pytest.fixture
def shell(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Runs a command beside `an_application.py`; returns its exit status, standard output and standard error."""
    (tmp_path / "an_application.py").write_text(APPLICATION)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "an_application", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["orchestrator-state", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return run


async def _waiting(url: str, workflow_id: str) -> None:
    async with StateStore.open(url, payloads=encrypted("k1")) as store:
        await store.start("w", workflow_id=workflow_id, context={"secret": CANARY})


def test_runs_of_an_encrypted_store_are_looked_at_and_controlled_as_the_application_opens_it(
    shell: Command, database_url: str
) -> None:
    run_in_own_loop(lambda: _waiting(database_url, "w-1"))
    for command in (["list"], ["list", "--json"], ["show", "w-1"], ["steps", "w-1"], ["pause", "w-1"]):
        status, out, err = shell("runs", *command)
        assert (status, CANARY in out + err) == (0, False), command
    status, out, err = shell("runs", "signal", "w-1", "go", f'"{CANARY}"')
    assert (status, out) == (6, ""), "nothing in plain text beside what is encrypted"
    assert "--app" in err
    for command in (["list"], ["show", "w-1"], ["pause", "w-1"], ["resume", "w-1"], ["signal", "w-1", "go", '"now"']):
        status, out, err = shell("runs", *command, "--app", "an_application:options")
        assert (status, CANARY in out + err) == (0, False), command
    status, out, _ = shell("runs", "cancel", "w-1", "--app", "an_application:options")
    assert (status, "cancelled" in out) == (0, True)
    assert CANARY not in "".join(map(str, contents(database_url)))
    assert shell("prune", "--older-than", "0m", "--app", "an_application:options")[0] == 0


@pytest.fixture
def filled(database_url: str) -> str:
    """The URL of a database with payloads encrypted under the key k1."""

    async def work() -> None:
        async with StateStore.open(database_url, payloads=encrypted("k1")) as store:
            await fill(store)

    run_in_own_loop(work)
    return database_url


def counts(out: str) -> list[int]:
    """The figures in the first row of the first table."""
    return [int(number) for number in re.findall(r"\d+", out.splitlines()[1])]


def test_a_sound_database_verifies_without_keys(filled: str, shell: Command) -> None:
    payloads = sum(map(len, stored(filled).values()))
    status, out, err = shell("verify")
    assert (status, err) == (0, "")
    assert counts(out) == [payloads, payloads, 0, 0, 0]
    assert "live workflows" not in out


def test_damage_is_listed_and_is_an_exit_status_of_1(filled: str, shell: Command) -> None:
    execute(filled, "UPDATE step_states SET outputs = 'canary-7f3a' WHERE step_id = 'two'")
    status, out, err = shell("verify")
    assert (status, err) == (1, "")
    assert counts(out)[-1] == 1
    assert re.search(r"^step_states +[0-9a-f-]{36} +two +outputs +.*does not match its digest", out, re.MULTILINE)
    assert CANARY not in out


def test_live_workflows_are_loaded_as_the_application_would(filled: str, shell: Command) -> None:
    assert shell("verify", "--app", "an_application:options")[0] == 0
    status, out, err = shell("verify", "--app", "an_application:plain")
    assert (status, err) == (1, "")
    assert re.search(r"live workflows: 0 load, [1-9] do not", out)
    assert re.search(r"waiting +workflow +UnknownCodec +.*aes-gcm=k1", out)


def test_keys_are_changed_and_the_old_one_is_needed_no_more(filled: str, shell: Command) -> None:
    payloads = sum(map(len, stored(filled).values()))
    before = contents(filled)
    assert counts(shell("rekey", "--app", "an_application:rotated", "--dry-run")[1]) == [0, payloads, 0, 0]
    assert contents(filled) == before
    status, out, err = shell("rekey", "--app", "an_application:rotated")
    assert (status, err) == (0, "")
    assert counts(out) == [0, payloads, 0, 0]
    assert CANARY not in out
    assert shell("verify", "--app", "an_application:Settings.only_new")[0] == 0


def test_what_cannot_be_written_anew_is_listed_and_is_an_exit_status_of_1(filled: str, shell: Command) -> None:
    status, out, _ = shell("rekey", "--app", "an_application:Settings.only_new")
    assert status == 1
    assert re.search(r"^signals/\S+/payload +DecryptionFailed ", out, re.MULTILINE)


def test_options_of_the_command_line_come_before_the_applications(filled: str, shell: Command) -> None:
    assert counts(shell("verify", "--app", "an_application:elsewhere")[1])[0] == 0
    assert counts(shell("verify", "--app", "an_application:elsewhere", "--namespace", "default")[1])[0] > 0


NOT_THERE: list[tuple[list[str], str]] = [
    (["rekey"], "--app"),
    (["rekey", "--app", "an_application"], "module:attribute"),
    (["verify", "--app", ":options"], "module:attribute"),
    (["verify", "--app", "no_such_module:options"], "no_such_module"),
    (["verify", "--app", "an_application:absent"], "absent"),
    (["verify", "--app", "an_application:number"], "no mapping"),
]


def test_an_application_that_is_not_there_is_an_exit_status_of_2(filled: str, shell: Command) -> None:
    before = contents(filled)
    for arguments, complaint in NOT_THERE:
        status, out, err = shell(*arguments)
        with case(arguments):
            assert (status, out) == (2, "")
            assert complaint in err
            assert contents(filled) == before


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path, shell: Command) -> None:
    missing = tmp_path / "missing.db"
    status, _, err = shell("verify", "--url", str(missing))
    assert (status, err) == (1, f"error: there is no SQLite file {missing}\n")
    assert not missing.exists()


def test_garbage_is_collected_from_a_shell(shell: Command, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    assert shell("collect-garbage", "--app", "an_application:blobs")[:2] == (0, "0 blobs removed\n")
    old = tmp_path / "blobs" / "default" / "9f1c6a1e-5f0e-4f52-8a43-0d5d1c0f7a11" / f"{0:012x}{0:020x}"
    old.parent.mkdir(parents=True)
    old.write_text("left by a crash")
    assert shell("collect-garbage", "--app", "an_application:blobs")[:2] == (0, "1 blobs removed\n")
    assert not old.exists()
