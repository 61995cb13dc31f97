"""A database of the original Rust crate at the command line: `db current`, `db upgrade --in-place`, and `import`."""

import json
from pathlib import Path

import pytest

from tests.support.command_line import Command
from tests.support.old_databases import LONELY, ORIGINAL_TABLES, ROWS_OF_THE_FIRST_REVISION, RUNNING
from tests.support.raw_sql import SQLITE, contents, execute

pytestmark = pytest.mark.process


@pytest.fixture
def crates(empty_database_url: str) -> str:
    execute(empty_database_url, *ORIGINAL_TABLES, *ROWS_OF_THE_FIRST_REVISION)
    return empty_database_url


def test_it_is_told_as_such(command: Command, crates: str, tmp_path: Path) -> None:
    before = contents(crates)
    code, shown, _ = command("db", "current", "--url", crates)
    assert code == 0
    assert "database: one of the original Rust crate\n" in shown
    assert "rows:     3 runs, 4 steps, 4 checkpoints\n" in shown
    assert "ids:      15 hyphenated\n" in shown
    assert "orchestrator-state import" in shown
    document = json.loads(command("db", "current", "--json", "--url", crates)[1])
    assert (document["original"], document["survey"]["runs"], document["survey"]["flawed"]) == (True, 3, 0)
    for words in (("db", "upgrade"), ("db", "check"), ("health",), ("runs", "list")):
        code, out, err = command(*words, "--url", crates)
        assert (code, out) == (1, "")
        assert "original Rust crate" in err
        assert "--in-place" in err
    assert contents(crates) == before


def test_it_is_upgraded_where_it_stands_if_that_is_said(command: Command, crates: str, tmp_path: Path) -> None:
    assert command("db", "upgrade", "--in-place", "--url", crates)[0] == 0
    assert command("db", "check", "--url", crates)[0] == 0
    assert "Größe" in command("runs", "list", "--url", crates)[1]


def test_it_is_imported(command: Command, crates: str, tmp_path: Path) -> None:
    assert command("db", "upgrade", "--url", f"{tmp_path}/ours.db")[0] == 0

    def imported(*options: str) -> tuple[int, dict[str, object]]:
        code, out, _ = command("import", crates, "--url", f"{tmp_path}/ours.db", "--json", *options)
        return code, json.loads(out)

    code, dry = imported("--dry-run")
    assert (code, dry["imported"]) == (0, 3)
    code, report = imported()
    assert (code, report["imported"], report["steps"], report["checkpoints"]) == (0, 3, 4, 4)
    code, again = imported()
    assert (code, again["imported"], again["present"]) == (0, 0, 3)
    execute(crates, f"UPDATE workflow_states SET status = 'dreaming' WHERE id = '{LONELY}'")
    code, report = imported()
    assert (code, report["unreadable"]) == (1, 1)
    execute(crates, f"UPDATE workflow_states SET status = 'paused' WHERE id = '{RUNNING}'")
    code, _, err = command("import", crates, "--url", f"{tmp_path}/ours.db")
    assert code == 4
    assert f"left: workflow_states {RUNNING}: is there already, and differs" in err
    assert f"left: workflow_states {LONELY}: status: is none of" in err


def test_a_mistake_is_one_line(command: Command, tmp_path: Path) -> None:
    assert command("db", "upgrade", "--url", f"{tmp_path}/ours.db")[0] == 0
    for source in (f"{tmp_path}/ours.db", "mysql://u:s3cret@host/db"):
        code, out, err = command("import", source, "--url", f"{tmp_path}/ours.db")
        assert (code, out) == (1, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert "s3cret" not in err


def test_a_dry_run_of_an_export_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "runs.ndjson").write_text("{}")
    assert command("db", "upgrade", "--url", f"{tmp_path}/ours.db")[0] == 0
    code, _, err = command("import", f"{tmp_path}/runs.ndjson", "--dry-run", "--url", f"{tmp_path}/ours.db")
    assert code == 2
    assert "--dry-run" in err


def test_a_name_that_moves_the_cursor_is_escaped(command: Command, tmp_path: Path) -> None:
    url = f"{SQLITE}{tmp_path}/crates.db"
    execute(
        url,
        *ORIGINAL_TABLES,
        "INSERT INTO workflow_states VALUES ('\x1b[2J', 'w', 'w', 'running', NULL, '', '', NULL, '', NULL)",
    )
    assert command("db", "upgrade", "--url", f"{tmp_path}/ours.db")[0] == 0
    for words in (("db", "current", "--url", url), ("import", url, "--url", f"{tmp_path}/ours.db")):
        _, out, err = command(*words)
        assert "\\x1b[2J" in out + err
        assert "\x1b" not in out + err
