"""Databases that are not there, or let nobody in: a typed error soon, nothing changed, and no secret told."""

import asyncio
import logging
import pickle
import pwd
import random
import socket
import tempfile
import traceback
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import pytest

from orchestrator_state import AccessLost, ConfigurationError, OrchestratorStateError, StateStore, StoreUnavailable
from orchestrator_state.database.urls import locate
from orchestrator_state.settings import Settings
from tests.support.command_line import environment
from tests.support.forked_programs import ForkedPrograms
from tests.support.tcp_postgres import PASSWORD, TcpPostgres, free_port
from tests.support.workflows import saved

pytestmark = pytest.mark.process


SECRETS = ["canary", quote("canary"), PASSWORD, quote(PASSWORD, safe="")]


def assert_tells_no_secret(text: str) -> None:
    assert not [secret for secret in SECRETS if secret in text]


async def refused(url: str, kind: type[OrchestratorStateError], **options: object) -> OrchestratorStateError:
    """The error that opening `url` ends in, which tells no secret however it is looked at."""
    # Not a measurement: without it, a call that hangs would stop the whole run.
    async with asyncio.timeout(30):
        with pytest.raises(kind) as caught:
            async with StateStore.open(url, **options):  # type: ignore[arg-type]
                pass
    error = caught.value
    assert type(error) is kind
    for text in (
        str(error),
        repr(error),
        repr(error.about),
        repr(pickle.loads(pickle.dumps(error))),
        "".join(traceback.format_exception(error)),
    ):
        assert_tells_no_secret(text)
    return error


@pytest.fixture
def black_hole() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


# --- URLs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "mysql://user:canary@localhost/db",
        "http://user:canary@localhost",
        "postgresql+psycopg://user:canary@localhost/db",
        "user:canary@localhost://db",
        "canary://localhost",
        "://canary",
    ],
)
async def test_an_unknown_scheme_is_refused(url: str) -> None:
    """The scheme is quoted, unless it may be something else: a word that is no secret for the fourth, say."""
    with pytest.raises(ConfigurationError, match=r"scheme .*is not supported; give a path") as caught:
        await StateStore.open(url)
    assert "canary" not in str(caught.value).replace("'canary' is not supported", "")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:canary@localhost:port/db",
        "postgresql://user:canary@localhost:99999/db",
        "postgresql://user:a:canary/b@localhost/db",
        "postgresql://user:can[ary@localhost/db",
        "postgresql://user:canary@[::1/db",
        "postgresql://user:canary@localhost/db?=canary",
        "postgresql://user:canary@localhost/db?sslmode=canary",
        "postgresql://user:canary@localhost/db?target_session_attrs=canary",
        "postgresql://user:canary@localhost,127.0.0.1:65536/db",
        "postgresql://user:canary@localhost:0/db",
        "postgresql://user:canary@[::1]:70000/db",
        "postgresql://user:canary@/db?host=a,b&port=1,65536",
        "postgresql://user:canary@/db?host=a,b&port=1,2,3",
        f"postgresql://user:canary@localhost:{'9' * 5000}/db",
    ],
)
async def test_a_url_that_cannot_be_read_is_refused_without_being_quoted(url: str) -> None:
    await refused(url, ConfigurationError)


def test_a_location_and_settings_have_no_password_in_their_repr() -> None:
    url = f"postgresql://user:{quote(PASSWORD, safe='')}@localhost/db"
    assert_tells_no_secret(repr(locate(url)))
    assert_tells_no_secret(repr(Settings.load(database_url=url)) + str(Settings.load(database_url=url)))


# --- Postgres ---------------------------------------------------------------------------------------------------


async def test_a_port_where_nothing_listens(tcp_postgres: TcpPostgres) -> None:
    error = await refused(tcp_postgres.url("postgres", port=free_port()), StoreUnavailable)
    assert "cannot be reached" in str(error)


@pytest.mark.parametrize("migrate", [None, True])
async def test_a_server_that_never_answers(tcp_postgres: TcpPostgres, black_hole: int, *, migrate: bool | None) -> None:
    url = tcp_postgres.url("postgres", port=black_hole)
    await refused(url, StoreUnavailable, connect_timeout=timedelta(seconds=0.3), migrate=migrate)


@pytest.mark.parametrize("user", ["app", "nobody's"])
async def test_a_wrong_password_or_user(tcp_postgres: TcpPostgres, user: str) -> None:
    error = await refused(tcp_postgres.url("postgres", "canary", user=quote(user)), ConfigurationError)
    assert "user or the password" in str(error)


async def test_a_database_that_does_not_exist(tcp_postgres: TcpPostgres) -> None:
    error = await refused(tcp_postgres.url("missing"), ConfigurationError)
    assert "no such database" in str(error)


async def test_a_server_without_the_tls_that_is_asked_for(tcp_postgres: TcpPostgres) -> None:
    error = await refused(f"{tcp_postgres.url('postgres')}?sslmode=require", AccessLost)
    assert "did not take up TLS" in str(error)


@pytest.mark.parametrize("migrate", [None, True])
async def test_no_host_that_is_what_is_asked_for(tcp_postgres: TcpPostgres, *, migrate: bool | None) -> None:
    url = f"{tcp_postgres.url('postgres')}?target_session_attrs=standby"
    error = await refused(url, StoreUnavailable, migrate=migrate)
    assert "target_session_attrs=standby" in str(error)


async def test_a_user_who_may_have_no_more_connections(tcp_postgres: TcpPostgres) -> None:
    tcp_postgres.admin.execute("CREATE USER crowded CONNECTION LIMIT 0 PASSWORD 'pw'")
    error = await refused(tcp_postgres.url("postgres", "pw", user="crowded"), StoreUnavailable)
    assert "no connection free" in str(error)


async def test_a_database_that_may_only_be_read_says_so_when_it_is_written_to(postgres_url: str) -> None:
    separator = "&" if "?" in postgres_url else "?"
    url = f"{postgres_url}{separator}default_transaction_read_only=on"
    async with StateStore.open(url, retry_timeout=timedelta(seconds=0.1)) as store:
        assert await store.list_active_workflows() == []
        with pytest.raises(StoreUnavailable, match="may only be read"):
            await store.start("n")


async def test_an_option_that_the_server_does_not_know(tcp_postgres: TcpPostgres) -> None:
    await refused(f"{tcp_postgres.url('postgres')}?no_such_option=canary", ConfigurationError)


async def test_a_socket_directory_that_does_not_exist() -> None:
    await refused("postgresql://user:canary@/db?host=/no/such/directory", StoreUnavailable)


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Every logger at DEBUG, SQLAlchemy's echo included."""
    for name in ("", "sqlalchemy", "sqlalchemy.engine", "sqlalchemy.pool", "alembic", "asyncpg", "asyncio"):
        caplog.set_level(logging.DEBUG, logger=name)
    return caplog


async def test_no_log_line_holds_the_password(
    tcp_postgres: TcpPostgres, tcp_database: str, everything_logged: pytest.LogCaptureFixture
) -> None:
    """Neither while it works nor while it fails."""
    async with StateStore.open(tcp_postgres.url(tcp_database), migrate=True) as store:
        await saved(store)
        assert_tells_no_secret(repr(store) + repr(vars(store)) + repr(vars(store._transactions.database)))
    await refused(tcp_postgres.url(tcp_database, "canary"), ConfigurationError)
    await refused(tcp_postgres.url(tcp_database, port=free_port()), StoreUnavailable)
    assert "INSERT INTO" in everything_logged.text, "the echo is on"
    assert_tells_no_secret(everything_logged.text)


async def test_the_echo_of_the_engine_holds_no_payload(
    database_url: str, everything_logged: pytest.LogCaptureFixture
) -> None:
    """At DEBUG SQLAlchemy shows result rows, whatever `hide_parameters` says of parameters."""
    async with StateStore.open(database_url) as store:
        state = await saved(store, context={"canary": 1})
        assert (await store.load_workflow_state(state.id)).context == {"canary": 1}
    assert "INSERT INTO" in everything_logged.text, "the echo is on"
    assert_tells_no_secret(everything_logged.text)


# --- SQLite -----------------------------------------------------------------------------------------------------


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def test_a_directory(tmp_path: Path) -> None:
    error = await refused(str(tmp_path), ConfigurationError)
    assert "is a directory" in str(error)
    await refused(f"sqlite:///{tmp_path}/", ConfigurationError)


@pytest.mark.parametrize(
    "garbage",
    [
        b"x",
        b"not a database, but somebody's notes\n" * 400,
        random.Random(2).randbytes(100_000),
        b"SQLite format 3\0" + random.Random(3).randbytes(100_000),
        b"SQLite format 3\0" + b"\0" * 8176,
    ],
    ids=["one byte", "text", "random", "random after the magic word", "zeros after the magic word"],
)
@pytest.mark.parametrize("migrate", [None, True, False])
async def test_a_file_that_is_no_database_is_left_as_it_is(
    tmp_path: Path, garbage: bytes, *, migrate: bool | None
) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(garbage)
    await refused(str(path), ConfigurationError, migrate=migrate)
    assert path.read_bytes() == garbage
    assert names_in(tmp_path) == ["notes.txt"]


async def test_a_file_of_no_bytes_is_an_empty_database(tmp_path: Path) -> None:
    path = tmp_path / "empty.db"
    path.touch()
    async with StateStore.open(path) as store:
        await saved(store)


async def test_a_directory_that_does_not_exist_is_not_made(tmp_path: Path) -> None:
    error = await refused(str(tmp_path / "missing" / "flows.db"), ConfigurationError)
    assert "directory" in str(error)
    assert names_in(tmp_path) == []


async def test_a_path_that_is_too_long() -> None:
    await refused("x" * 5000, ConfigurationError)


async def test_a_file_in_place_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    await refused(str(tmp_path / "file" / "flows.db"), ConfigurationError)


# Root may write anywhere, so the child becomes somebody else, after it has loaded all that it needs.
OPEN_AND_SAVE = """
import asyncio, datetime, os, sys
from orchestrator_state import ConfigurationError, StateStore, WorkflowState

async def use(path):
    async with StateStore.open(path, retry_timeout=datetime.timedelta(seconds=0.2)) as store:
        await store.save_workflow_state(WorkflowState(workflow_id="w", workflow_name="n"))
        await store.list_active_workflows()

asyncio.run(use(":memory:"))
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(int(sys.argv[3]))
    os.setuid(int(sys.argv[2]))
try:
    asyncio.run(use(sys.argv[1]))
except ConfigurationError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("file_mode", "directory_mode", "said"),
    [(0o444, 0o777, "read-only"), (0o444, 0o555, "SQLite file"), (0o000, 0o777, "SQLite file"), (0o666, 0o777, "")],
    ids=["read-only file", "read-only directory", "unreadable file", "nothing wrong"],
)
def test_a_file_that_may_not_be_written(
    sqlite_template: Path,
    file_mode: int,
    directory_mode: int,
    said: str,
    tmp_path: Path,
    forked_programs: ForkedPrograms,
) -> None:
    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "flows.db"
        path.write_bytes(sqlite_template.read_bytes())
        path.chmod(file_mode)
        Path(name).chmod(directory_mode)
        done = forked_programs.run(
            OPEN_AND_SAVE, str(path), str(nobody.pw_uid), str(nobody.pw_gid), cwd=tmp_path, env=environment()
        )
        Path(name).chmod(0o755)
        path.chmod(0o644)
        assert (done.returncode, done.stderr) == (0, "")
        assert said in done.stdout
        assert bool(done.stdout) is bool(said)
        assert (path.read_bytes() == sqlite_template.read_bytes()) is bool(said)
