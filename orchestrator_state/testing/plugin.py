"""The fixtures, for pytest.

PYTEST_DONT_REWRITE: it asserts nothing.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import pytest

from orchestrator_state.errors import ConfigurationError
from orchestrator_state.store import StateStore
from orchestrator_state.testing.bench import Bench, bench
from orchestrator_state.testing.clock import Clock
from orchestrator_state.testing.databases import Databases, databases
from orchestrator_state.testing.faults import Faults
from orchestrator_state.testing.workers import Workers

_OPTION: Final = "orchestrator_state_url"
_VARIABLE: Final = "ORCHESTRATOR_STATE_TEST_URL"
_LOOPS: Final = ("function", "class", "module", "package", "session")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--orchestrator-state-url`, and its line of the configuration file."""
    says = f"a Postgres URL: tests have a schema of their own there, instead of SQLite files (or {_VARIABLE})"
    parser.getgroup("orchestrator-state").addoption("--orchestrator-state-url", metavar="URL", help=says)
    parser.addini(_OPTION, says)


def _url(config: pytest.Config) -> str | None:
    """Not `DATABASE_URL`: that is of a database which somebody works with."""
    given = config.getoption(_OPTION, None) or os.environ.get(_VARIABLE)
    try:
        return given or config.getini(_OPTION) or None
    except ValueError:  # the plugin is named in a module of tests, which was read after the options
        return given or None


@pytest.fixture(scope="session")
def _state_databases(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    try:
        made = databases(_url(request.config), tmp_path_factory.mktemp("orchestrator_state"))
    except ConfigurationError as error:
        raise pytest.UsageError(str(error)) from None
    yield made
    made.close()


@pytest.fixture
def store_options() -> dict[str, Any]:
    """What the `store` is opened with, besides its database: override it to give `payloads`, `schemas` or a `hook`."""
    return {}


def _bench_fixture(decorate: Callable[[Any], Any]) -> Any:
    async def make(
        request: pytest.FixtureRequest, _state_databases: Databases, store_options: dict[str, Any]
    ) -> AsyncIterator[Bench]:
        directory = request.getfixturevalue("tmp_path")
        async with bench(_state_databases, directory, store_options) as made:
            yield made

    return decorate(make)


# One for each way of running async tests, since a store belongs to the event loop of its test.
_bench_on_anyio = _bench_fixture(pytest.fixture)
try:
    import pytest_asyncio
except ImportError:
    _HAS_ASYNCIO = False
else:
    _HAS_ASYNCIO = True
    for _loop in _LOOPS:
        globals()[f"_bench_on_{_loop}"] = _bench_fixture(pytest_asyncio.fixture(loop_scope=_loop))


@pytest.fixture
def _state_bench(request: pytest.FixtureRequest) -> Bench:
    made: Bench = request.getfixturevalue(f"_bench_on_{_loop_of(request)}")
    return made


def _loop_of(request: pytest.FixtureRequest) -> str:
    if "anyio_backend" in request.fixturenames:
        return "anyio"
    marker = request.node.get_closest_marker("asyncio")
    if marker is None or not _HAS_ASYNCIO:
        raise pytest.UsageError(
            "the fixtures of orchestrator_state are for async tests: install pytest-asyncio and mark the test "
            "`@pytest.mark.asyncio` (or set asyncio_mode = auto), or mark it `@pytest.mark.anyio`"
        )
    default = request.config.getini("asyncio_default_test_loop_scope")
    return str(marker.kwargs.get("loop_scope") or default or "function")


@pytest.fixture
def store(_state_bench: Bench) -> StateStore:
    """An open store on an empty database."""
    return _state_bench.store


def _of_this(store: StateStore, made: Bench) -> Bench:
    if store is not made.store:
        raise pytest.UsageError(
            "the `store` of this test is a fixture of your own: let it return the one that it overrides, and override "
            "`store_options` to open that as you need it"
        )
    return made


@pytest.fixture
def worker(store: StateStore, _state_bench: Bench) -> Workers:
    """Starts workers in the background: `worker({"order": order})`, then `await worker.until_idle()`."""
    return _of_this(store, _state_bench).worker


@pytest.fixture
def clock(store: StateStore, _state_bench: Bench) -> Clock:
    """The clock of the database: `await clock.advance(days=14)`."""
    return _of_this(store, _state_bench).clock


@pytest.fixture
def faults(store: StateStore, _state_bench: Bench) -> Faults:
    """Lets runs crash and steps fail: `with faults.crash_after("charge"): ...`."""
    return _of_this(store, _state_bench).faults
