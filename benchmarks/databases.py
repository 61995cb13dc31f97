"""A new, empty database for each question, on a real disk and as durable as in production."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.support.postgres_server import PrivatePostgres

NewDatabase = Callable[[], AbstractContextManager[str]]
"""Each call yields the URL of another database, which is gone at the end of the block."""


@contextmanager
def sqlite() -> Iterator[NewDatabase]:
    @contextmanager
    def new_database() -> Iterator[str]:
        with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
            yield f"sqlite:///{Path(directory) / 'workflows.db'}"

    yield new_database


@contextmanager
def postgres() -> Iterator[NewDatabase]:
    # The tests' server but for two settings: theirs may lose a commit with the power, and has little memory.
    with PrivatePostgres(fsync="on", shared_buffers="128MB") as server:

        @contextmanager
        def new_database() -> Iterator[str]:
            with server.database() as name:
                yield server.url(name)

        yield new_database


DATABASES: dict[str, Callable[[], AbstractContextManager[NewDatabase]]] = {"sqlite": sqlite, "postgres": postgres}
