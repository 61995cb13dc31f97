"""`orchestrator-state` in processes of its own, without the environment of whoever runs the tests."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from tests.support.forked_programs import Ended, ForkedPrograms

Command = Callable[..., tuple[int, str, str]]
"""Arguments in; exit status, standard output and standard error out."""

ENTER = "from orchestrator_state.cli import main; main()"
# One command a line, each as a JSON list. Everything is imported before the first, so that they run at once; and before
# the processes part, since that takes most of their time.
ENTER_AGAIN_AND_AGAIN = """
import io, json, os, socket, sys
from contextlib import redirect_stderr, redirect_stdout
import alembic.command
from orchestrator_state.cli import main

def serve(pipe):
    for line in pipe:
        sys.argv[1:] = json.loads(line)
        output, code = io.StringIO(), 0
        with redirect_stdout(output), redirect_stderr(output):
            try:
                main()
            except SystemExit as exit:
                code = exit.code
        print(json.dumps([code, output.getvalue()]), file=pipe, flush=True)

numbers = [int(number) for number in sys.argv[1:]]
for place, number in enumerate(numbers):
    if not os.fork():
        for other in numbers[place + 1:]:
            os.close(other)
        serve(socket.socket(fileno=number).makefile("rw"))
        os._exit(0)
    os.close(number)
for _ in numbers:
    os.wait()
"""


def environment(**extra: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name != "DATABASE_URL" and not name.startswith(("ORCHESTRATOR_STATE_", "PG"))
    }
    return kept | {"PYTHONWARNINGS": "error", "COLUMNS": "200"} | extra


def run(programs: ForkedPrograms, *arguments: str, cwd: Path, **extra_environment: str) -> Ended:
    """Run the command to its end, in a process that has the package loaded."""
    return programs.run(ENTER, *arguments, cwd=cwd, env=environment(**extra_environment))


def run_anew(*arguments: str, cwd: Path, **extra_environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, in a process that has everything to load yet."""
    return subprocess.run(
        [sys.executable, "-c", ENTER, *arguments],
        cwd=cwd,
        env=environment(**extra_environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Crew:
    """Processes that run the same command at the same moment, as often as asked."""

    def __init__(self, pipes: list[TextIO]) -> None:
        self._pipes = pipes

    def run_at_once(self, *arguments: str) -> list[tuple[int, str]]:
        """Run the command in every process. Returns exit codes and output."""
        for pipe in self._pipes:
            pipe.write(f"{json.dumps(arguments)}\n")
            pipe.flush()
        return [tuple(json.loads(pipe.readline())) for pipe in self._pipes]


@contextmanager
def crew(size: int) -> Iterator[Crew]:
    with ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(size)]
        ours = [stack.enter_context(each) for each, _ in pairs]
        theirs = [stack.enter_context(each) for _, each in pairs]
        numbers = [each.fileno() for each in theirs]
        parent = subprocess.Popen(
            [sys.executable, "-c", ENTER_AGAIN_AND_AGAIN, *map(str, numbers)],
            env=environment(),
            pass_fds=numbers,
            start_new_session=True,
        )
        for each in theirs:
            each.close()
        try:
            yield Crew([stack.enter_context(each.makefile("rw")) for each in ours])
        finally:
            os.killpg(parent.pid, signal.SIGKILL)
            parent.wait()
