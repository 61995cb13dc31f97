"""Python programs in processes of their own, without the second that each would take to load the package.

An interpreter is started under `-W error`, loads what programs of ours load, and runs none itself. A program runs in a
fork of it, as `__main__`, and ends as every process of Python's does. So it inherits nothing from another program: no
module that it did not ask for but those below, no thread, no event loop, no connection.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NamedTuple

LOADED: Final = (
    *("aiosqlite", "alembic.command", "asyncpg", "orchestrator_state", "orchestrator_state.cli"),
    *("sqlalchemy.dialects.postgresql.asyncpg", "sqlalchemy.dialects.sqlite.aiosqlite"),
)
_ROOT: Final = Path(__file__).parents[2]
_START: Final = "import sys; from tests.support.forked_programs import serve; serve(int(sys.argv[1]))"
_PATIENCE: Final = 60.0  # seconds until a program counts as hanging


class Ended(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


class ForkedPrograms:
    """The interpreter, at the other end of a pipe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def run(self, program: Path | str, *arguments: str, cwd: Path, env: Mapping[str, str]) -> Ended:
        """Run a file, or the text of a program, to its end."""
        with tempfile.TemporaryDirectory() as directory:
            outputs = [Path(directory, name) for name in ("stdout", "stderr")]
            job = {
                "argv": [str(program) if isinstance(program, Path) else "-c", *arguments],
                "code": None if isinstance(program, Path) else program,
                "cwd": str(cwd),
                "env": dict(env),
                "outputs": [str(output) for output in outputs],
            }
            self._pipe.send(job)
            return Ended(self._end_of(self._hear()), *(output.read_text() for output in outputs))

    def _end_of(self, pid: int) -> int:
        try:
            return self._hear()
        except TimeoutError:
            os.killpg(pid, signal.SIGKILL)
            self._hear()
            raise

    def _hear(self) -> int:
        if not self._pipe.poll(_PATIENCE):
            raise TimeoutError("the program hangs")
        return int(self._pipe.recv())


@contextmanager
def interpreter() -> Iterator[ForkedPrograms]:
    ours, theirs = Pipe()
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", _START, str(theirs.fileno())],
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        try:
            yield ForkedPrograms(ours)
        finally:
            process.kill()
            process.wait()


def serve(number: int) -> None:
    """In the interpreter: one program after the other, until nobody holds the other end of the pipe.

    In a fork: run the program, and return. Who has called this has nothing left to do, so that the process ends.
    """
    for name in LOADED:
        import_module(name)
    pipe: Connection[Any, Any] = Connection(number)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        if not (pid := os.fork()):
            pipe.close()
            _become(job)
            return
        pipe.send(pid)
        pipe.send(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _become(job: dict[str, Any]) -> None:
    """Be what `python FILE ARGUMENTS…`, or `python -c CODE ARGUMENTS…`, is in a new process."""
    os.setsid()
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    for target, output in enumerate(job["outputs"], start=1):
        opened = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(opened, target)
        os.close(opened)
    sys.argv = job["argv"]
    program = Path(sys.argv[0])
    is_file = job["code"] is None
    sys.path[0] = str(program.parent) if is_file else ""
    names = sys.modules["__main__"].__dict__
    for name in [*names]:
        if not name.startswith("__"):
            del names[name]
    if is_file:
        names["__file__"] = str(program)
    source = program.read_bytes() if is_file else job["code"]
    exec(compile(source, str(program) if is_file else "<string>", "exec"), names)
