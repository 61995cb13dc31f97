"""Both databases, the same for every test: a database each that is up to date and has no rows."""

import gc
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest

from orchestrator_state import StateStore
from tests.support.chance import a_seed
from tests.support.forked_programs import ForkedPrograms, interpreter
from tests.support.pgbouncer import pgbouncer, through
from tests.support.places import roomy_memory
from tests.support.postgres_server import Postgres, PrivatePostgres, run_in_own_loop
from tests.support.reused_database import ReusedDatabase
from tests.support.running import let_workers_vanish
from tests.support.tcp_postgres import TcpPostgres, postgres_on_tcp

BACKENDS: Final = ("sqlite", "postgres")


def pytest_configure(config: pytest.Config) -> None:
    """Give each test a directory in memory, where there is room for it: a commit need not wait for a disk."""
    if memory := roomy_memory():
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(memory))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fast",
        action="store_true",
        help="no test marked `process` or `slow`; of the others one row each, on SQLite and on Postgres by turns",
    )


@pytest.hookimpl(wrapper=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> Generator[None, None, None]:
    """With `--fast`, leave one row of each test, before an item is made of each."""
    yield
    if metafunc.config.getoption("--fast") and metafunc._calls:
        metafunc._calls[:] = [_row_of(metafunc.definition.nodeid, metafunc._calls)]


def _row_of(test: str, rows: Sequence[Any]) -> Any:
    """The first one on the database whose turn it is: the same in each run, since it is decided by the test's name."""
    turn = BACKENDS[zlib.crc32(test.encode()) % len(BACKENDS)]
    return next((row for row in rows if row.params.get("backend") == turn), rows[0])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with what is marked `process` or `slow`; with `--fast`, leave it out.

    Much of its time it waits, and it is shared out among the workers from the start: what they end with is short.
    """
    marked = [item for item in items if {"process", "slow"} & {mark.name for mark in item.iter_markers()}]
    chosen = set(marked)
    others = [item for item in items if item not in chosen]
    if config.getoption("--fast"):
        config.hook.pytest_deselected(items=marked)
        marked = []
    items[:] = marked + others


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was collected stays until the end: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Nor while it is being collected, which would take a sixth of that time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


async def _upgrade(url: str) -> None:
    async with StateStore.open(url, migrate=True):
        pass


@pytest.fixture(autouse=True)
def _no_database_of_the_developers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds its database, or its Postgres password, in the environment of whoever runs it.

    One setting is in there: most of what a short test would cost are connections that it never uses.
    """
    for name in os.environ:
        if name == "DATABASE_URL" or name.startswith("ORCHESTRATOR_STATE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ORCHESTRATOR_STATE_POOL_MIN", "1")


@pytest.fixture(autouse=True)
def _workers_can_vanish(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `tests.support.running.vanish`."""
    let_workers_vanish(monkeypatch)


@pytest.fixture(autouse=True)
def _log_of_this_test() -> None:
    """What an example did to our logger, which it runs in this process, is none of the next test's business."""
    logging.getLogger("orchestrator_state").setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The Postgres of this run: a private one, or the server that TEST_DATABASE_URL names.

    For a test that stops or kills its server there is `private_postgres`.
    """
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield Postgres(url)
        return
    with PrivatePostgres() as server:
        yield server


@pytest.fixture
def soon_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that does not answer is closed after a moment, for which SQLAlchemy waits two seconds."""
    close = asyncpg.Connection.close

    async def close_soon(connection: asyncpg.Connection, **waits: float) -> None:
        await close(connection, **{name: min(limit, 0.2) for name, limit in waits.items()})

    monkeypatch.setattr(asyncpg.Connection, "close", close_soon)


@pytest.fixture
def private_postgres() -> Iterator[Callable[..., PrivatePostgres]]:
    """Starts a server for this test alone, as often as called; arguments are lines of postgresql.conf."""
    with ExitStack() as servers:
        yield lambda **settings: servers.enter_context(PrivatePostgres(**settings))


@pytest.fixture(scope="module")
def tcp_postgres() -> Iterator[TcpPostgres]:
    """A server that listens on a port, asks for passwords, and is shared by the tests of one file."""
    with postgres_on_tcp() as server:
        yield server


@pytest.fixture
def tcp_database(tcp_postgres: TcpPostgres) -> Iterator[str]:
    """The name of a Postgres database there, with nothing in it."""
    with tcp_postgres.admin.database() as name:
        yield name


@pytest.fixture(scope="session")
def postgres_template(postgres: Postgres) -> Iterator[str]:
    """The name of a Postgres database with today's schema and no rows, to be copied, never connected to."""
    with postgres.database() as name:
        run_in_own_loop(partial(_upgrade, postgres.url(name)))
        yield name


@pytest.fixture(scope="session")
def reused_database(postgres: Postgres, postgres_template: str) -> Iterator[ReusedDatabase]:
    """The database that the tests of this process have one after the other."""
    database = ReusedDatabase(postgres, postgres_template)
    yield database
    database.close()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with today's schema and no rows, to be copied and never opened."""
    path = tmp_path_factory.mktemp("template") / "template.db"
    run_in_own_loop(partial(_upgrade, str(path)))
    if left := sorted(file.name for file in path.parent.iterdir() if file != path):
        raise RuntimeError(f"the template was not closed cleanly; beside it lie {left}")
    return path


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Which database: a test that takes this, or what is built on it, runs once on each."""
    return str(request.param)


@pytest.fixture
def sqlite_url(tmp_path: Path, sqlite_template: Path) -> str:
    """The URL of a fresh SQLite file with today's schema."""
    path = shutil.copyfile(sqlite_template, tmp_path / "workflows.db")
    return f"sqlite:///{path}"


@pytest.fixture(scope="session")
def bouncer(postgres: Postgres) -> Iterator[Path | None]:
    """With TEST_PGBOUNCER set, the tests reach their databases through PgBouncer in transaction mode.

    With TEST_PGBOUNCER=untold the stores do not know.
    """
    if "TEST_PGBOUNCER" not in os.environ:
        yield None
        return
    assert isinstance(postgres, PrivatePostgres)
    with pgbouncer(postgres, is_lenient=os.environ["TEST_PGBOUNCER"] == "untold") as directory:
        yield directory


@pytest.fixture
def postgres_url(
    postgres: Postgres, reused_database: ReusedDatabase, bouncer: Path | None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The URL of a Postgres database with today's schema and no rows, as if it were fresh."""
    with reused_database.lent() as name:
        if bouncer is None:
            yield postgres.url(name)
        else:
            is_told = os.environ["TEST_PGBOUNCER"] != "untold"
            monkeypatch.setenv("ORCHESTRATOR_STATE_PGBOUNCER", str(is_told).lower())
            yield through(bouncer, postgres.url(name))


@pytest.fixture
def database_url(request: pytest.FixtureRequest, backend: str) -> str:
    """The URL of a fresh database with today's schema, on the backend of this run of the test."""
    return str(request.getfixturevalue(f"{backend}_url"))


@pytest.fixture
def fresh_database_urls(
    backend: str, postgres: Postgres, postgres_template: str, sqlite_template: Path, tmp_path: Path
) -> Iterator[Callable[[], str]]:
    """Makes another fresh database with today's schema with each call: see `tests.support.chance.tries`."""
    with ExitStack() as databases:

        def fresh() -> str:
            if backend == "postgres":
                return postgres.url(databases.enter_context(postgres.database(postgres_template)))
            directory = Path(tempfile.mkdtemp(dir=tmp_path))
            return f"sqlite:///{shutil.copyfile(sqlite_template, directory / 'workflows.db')}"

        yield fresh


@pytest.fixture
def seed() -> int:
    """Another one each time; a report of faults names it."""
    return a_seed()


@pytest.fixture
def empty_sqlite_url(tmp_path: Path) -> str:
    """The URL of a SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'empty.db'}"


@pytest.fixture
def empty_postgres_url(postgres: Postgres) -> Iterator[str]:
    """The URL of a Postgres database with nothing in it."""
    with postgres.database() as name:
        yield postgres.url(name)


@pytest.fixture
def empty_database_url(request: pytest.FixtureRequest, backend: str) -> str:
    """The URL of a database without any schema, on the backend of this run of the test."""
    return str(request.getfixturevalue(f"empty_{backend}_url"))


@pytest.fixture(scope="session")
def forked_programs() -> Iterator[ForkedPrograms]:
    """Runs programs under `-W error`, each in a process of its own that has the package loaded."""
    with interpreter() as programs:
        yield programs


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[StateStore]:
    """An open store on a fresh database."""
    async with StateStore.open(database_url) as store:
        yield store
