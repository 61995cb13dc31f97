"""Child processes for the tests, each with a pipe to its parent.

They are forked from a process that has loaded the package and done nothing else: a new one costs milliseconds
instead of a second, and inherits no thread, no event loop and no connection.
"""

import asyncio
import multiprocessing
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
# There is one fork server for a process, and one list: whoever sets another one replaces this.
FORKS.set_forkserver_preload(
    [
        *("pytest", "aiosqlite", "alembic.command", "alembic.config", "asyncpg", "orchestrator_state", "psutil"),
        "tests.chaos.preloaded",
    ]
)
_PATIENCE = 60.0  # seconds until a child that says nothing counts as hanging

Main = Callable[..., Coroutine[Any, Any, object]]


@dataclass(frozen=True)
class Child:
    """A process that runs `main(pipe, *arguments)`; `pipe` here is the parent's end."""

    process: BaseProcess
    pipe: Connection

    def hear(self) -> Any:
        """The next thing that the child sends. Raises `EOFError` once it is dead and all is read."""
        if not self.pipe.poll(_PATIENCE):
            raise TimeoutError("the child hangs")
        return self.pipe.recv()

    def hear_all(self) -> list[Any]:
        """All that the child still sends until it ends."""
        said = []
        while True:
            try:
                said.append(self.hear())
            except (EOFError, ConnectionResetError):
                return said

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        self.process.kill()
        self.process.join()

    def finish(self) -> None:
        """Wait for an end without an error."""
        self.process.join(_PATIENCE)
        assert self.process.exitcode == 0, f"the child ended with {self.process.exitcode}"


@contextmanager
def child(main: Main, *arguments: object) -> Iterator[Child]:
    """Start `main(pipe, *arguments)` in a process of its own, which does not outlive the block."""
    ours, theirs = FORKS.Pipe()
    process = FORKS.Process(target=_run, args=(main, theirs, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Child(process, ours)
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()


def together(count: int, main: Main, *arguments: object) -> list[Any]:
    """Run `main(pipe, number, *arguments)` in `count` processes that start together; return what each of them sends.

    `main` sends something when it is ready, and waits to hear back before it begins.
    """
    with ExitStack() as stack:
        children = [stack.enter_context(child(main, number, *arguments)) for number in range(count)]
        for each in children:
            each.hear()
        for each in children:
            each.pipe.send("go")
        said = [each.hear() for each in children]
        for each in children:
            each.finish()
        return said


def ready(pipe: Connection) -> None:
    """In a child of `together`: wait until all are ready."""
    pipe.send("ready")
    pipe.recv()


def _run(main: Main, pipe: Connection, arguments: tuple[object, ...]) -> None:
    asyncio.run(main(pipe, *arguments))
