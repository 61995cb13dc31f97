"""`orchestrator-state db …`: what each command does, prints and returns."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pytest

from orchestrator_state import schema
from orchestrator_state.cli import main
from tests.support import command_line
from tests.support.forked_programs import ForkedPrograms
from tests.support.old_databases import FIRST
from tests.support.raw_sql import contents, execute, fetch, tables
from tests.support.tcp_postgres import PASSWORD, TcpPostgres, free_port

pytestmark = pytest.mark.process

HEAD = schema.head_revision()


class Done(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command as the installed script does, in this process."""

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["orchestrator-state", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return Done(int(end.value.code or 0), *capsys.readouterr())

    return run


def db(*arguments: str, url: str) -> tuple[str, ...]:
    return ("db", *arguments, "--url", url)


def test_a_schema_goes_up_and_down(run: Run, empty_database_url: str) -> None:
    url = empty_database_url
    assert run(*db("current", url=url)) == (0, f"database: base\npackage:  {HEAD}\n", "")
    assert run(*db("upgrade", FIRST, url=url)) == (0, f"the schema is at {FIRST}\n", "")
    assert run(*db("current", url=url)) == (0, f"database: {FIRST}\npackage:  {HEAD}\n", "")
    assert run(*db("upgrade", url=url)) == (0, f"the schema is at {HEAD}\n", "")
    assert run(*db("upgrade", url=url)) == (0, f"the schema is at {HEAD}\n", "")
    assert run(*db("check", url=url)) == (0, "the schema is up to date\n", "")
    assert run(*db("downgrade", FIRST, "--yes", url=url)) == (0, f"the schema is at {FIRST}\n", "")
    assert run(*db("downgrade", "base", "--yes", url=url)) == (0, "the schema is at base\n", "")
    assert tables(url) == ["orchestrator_state_version"]


@pytest.mark.parametrize("revision", ["base", FIRST])
def test_check_fails_on_a_schema_that_is_behind_and_changes_nothing(
    run: Run, empty_database_url: str, revision: str
) -> None:
    if revision != "base":
        run(*db("upgrade", revision, url=empty_database_url))
    before = contents(empty_database_url)
    done = run(*db("check", url=empty_database_url))
    assert (done.code, done.out) == (1, "")
    assert re.fullmatch(r"error: the database is .* run `orchestrator-state db upgrade`, .*\n", done.err)
    assert contents(empty_database_url) == before


def test_a_database_newer_than_the_package_is_refused_by_every_command(run: Run, database_url: str) -> None:
    execute(database_url, "UPDATE orchestrator_state_version SET version_num = '20991231_future'")
    before = contents(database_url)
    for arguments in (["check"], ["upgrade"], ["downgrade", FIRST, "--yes"]):
        done = run(*db(*arguments, url=database_url))
        assert (done.code, done.out) == (1, "")
        assert "20991231_future" in done.err
        assert "upgrade the package" in done.err
    assert run(*db("current", url=database_url)) == (0, f"database: 20991231_future\npackage:  {HEAD}\n", "")
    assert contents(database_url) == before


@pytest.mark.parametrize("direction", [["upgrade"], ["downgrade", "--yes"]], ids=lambda d: d[0])
def test_an_unknown_revision_is_an_error(run: Run, database_url: str, direction: list[str]) -> None:
    done = run(*db(*direction, "nonsense", url=database_url))
    assert (done.code, done.out) == (1, "")
    assert "'nonsense'" in done.err


def test_a_downgrade_that_nobody_can_be_asked_about_changes_nothing(run: Run, database_url: str) -> None:
    before = contents(database_url)
    done = run(*db("downgrade", "base", url=database_url))
    assert (done.code, done.out) == (2, "")
    assert "--yes" in done.err
    assert contents(database_url) == before


def test_a_postgres_schema_can_be_named(run: Run, empty_postgres_url: str) -> None:
    assert run(*db("upgrade", "--schema", "mine", url=empty_postgres_url)).code == 0
    assert run(*db("check", "--schema", "mine", url=empty_postgres_url)).code == 0
    assert run(*db("current", "--schema", "mine", url=empty_postgres_url)).out.startswith(f"database: {HEAD}")
    assert run(*db("check", url=empty_postgres_url)).code == 1
    assert tables(empty_postgres_url) == []
    assert run(*db("downgrade", "base", "--yes", "--schema", "mine", url=empty_postgres_url)).code == 0
    assert fetch(empty_postgres_url, "SELECT tablename FROM pg_tables WHERE schemaname = 'mine'") == [
        ("orchestrator_state_version",)
    ]


def test_without_an_option_the_environment_names_the_database(
    run: Run, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    assert run("db", "upgrade").code == 0
    assert run("db", "check").code == 0
    assert "checkpoints" in tables(empty_database_url)


def test_without_anything_it_is_the_file_that_the_store_uses(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("db", "upgrade").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["workflows.db"]


@pytest.mark.parametrize(
    "command", [["upgrade"], ["downgrade", "base", "--yes"], ["current"], ["check"]], ids=lambda c: c[0]
)
def test_an_error_is_one_line_without_the_password(run: Run, tcp_postgres: TcpPostgres, command: list[str]) -> None:
    password = quote(PASSWORD, safe="")
    for url, code, said in (
        (tcp_postgres.url("postgres", port=free_port()), 5, "cannot be reached"),
        (tcp_postgres.url("postgres", "canary"), 1, "password"),
        (tcp_postgres.url("missing"), 1, "no such database"),
        (f"{tcp_postgres.url('postgres')}?sslmode=canary", 1, "the option sslmode"),
        (f"mysql://app:{password}@localhost/db", 1, "scheme 'mysql' is not supported"),
        (f"postgresql://app:{password}@localhost:port/db", 1, "cannot be read"),
    ):
        done = run(*db(*command, url=url))
        assert (done.code, done.out) == (code, "")
        assert re.fullmatch(r"error: .*\n", done.err)
        assert said in done.err
        assert not [secret for secret in (PASSWORD, password, "canary") if secret in done.err]


def test_success_does_not_print_the_password_either(run: Run, tcp_postgres: TcpPostgres) -> None:
    with tcp_postgres.admin.database() as name:
        for command in (["upgrade"], ["current"], ["check"], ["downgrade", "base", "--yes"]):
            done = run(*db(*command, url=tcp_postgres.url(name)))
            assert (done.code, done.err) == (0, "")
            assert "canary" not in done.out


def test_an_option_out_of_bounds_is_an_error(run: Run, sqlite_url: str) -> None:
    assert run(*db("check", "--schema", "a b", url=sqlite_url)).err.startswith("error: db_schema: ")
    assert run(*db("check", "--schema", "mine", url=sqlite_url)).err.startswith("error: db_schema is for Postgres")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["-h"], ["db", "-h"], ["db", "upgrade", "--help"], ["demo", "--help"]]
)
def test_every_command_explains_itself(run: Run, arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.code, done.err) == (0, "")
    assert "Usage: orchestrator-state" in done.out


def test_what_is_no_command_is_refused_with_the_usage(run: Run) -> None:
    for arguments in (["nonsense"], ["db", "nonsense"], ["db", "downgrade"], ["db", "check", "--nonsense"]):
        done = run(*arguments)
        assert (done.code, done.out) == (2, "")
        assert "Usage: orchestrator-state" in done.err


def test_the_command_is_a_process_that_ends_by_itself_and_needs_no_working_directory(
    empty_database_url: str, tmp_path: Path, forked_programs: ForkedPrograms
) -> None:
    done = command_line.run(forked_programs, "db", "upgrade", cwd=tmp_path, DATABASE_URL=empty_database_url)
    assert done == (0, f"the schema is at {HEAD}\n", "")
    done = command_line.run(forked_programs, "db", "check", "--url", "mysql://localhost/db", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"error: .*\n", done.stderr)


def test_the_command_loads_all_that_it_needs(empty_sqlite_url: str, tmp_path: Path) -> None:
    done = command_line.run_anew("db", "upgrade", cwd=tmp_path, DATABASE_URL=empty_sqlite_url)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"the schema is at {HEAD}\n", "")
