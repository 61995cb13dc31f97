"""What the fixtures of the package's users are made of, on both databases."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from orchestrator_state.testing.bench import Bench
from orchestrator_state.testing.bench import bench as make_bench
from orchestrator_state.testing.databases import Databases, databases
from tests.support.postgres_server import Postgres


@pytest.fixture(scope="session")
def server_url(postgres: Postgres) -> Iterator[str]:
    """The URL of a Postgres database, as a developer would give it."""
    with postgres.database() as name:
        yield postgres.url(name)


@pytest.fixture(scope="session")
def postgres_for_tests(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    made = databases(server_url, tmp_path_factory.mktemp("none"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def sqlite_for_tests(tmp_path_factory: pytest.TempPathFactory) -> Databases:
    return databases(None, tmp_path_factory.mktemp("sqlite"))


@pytest.fixture
def databases_for_tests(request: pytest.FixtureRequest, backend: str) -> Databases:
    made: Databases = request.getfixturevalue(f"{backend}_for_tests")
    return made


@pytest.fixture
async def bench(databases_for_tests: Databases, tmp_path: Path) -> AsyncIterator[Bench]:
    async with make_bench(databases_for_tests, tmp_path, {}) as made:
        yield made
