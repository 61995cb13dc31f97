"""`orchestrator-state` in processes of its own, without the environment of whoever runs the tests."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Command = Callable[..., tuple[int, str, str]]
"""Arguments in; exit status, standard output and standard error out."""

ENTER = "from orchestrator_state.cli import main; main()"
# One command a line, each as a JSON list; everything is imported before the first, so that they run at once.
ENTER_AGAIN_AND_AGAIN = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
import alembic.command
from orchestrator_state.cli import main

for line in sys.stdin:
    sys.argv[1:] = json.loads(line)
    output, code = io.StringIO(), 0
    with redirect_stdout(output), redirect_stderr(output):
        try:
            main()
        except SystemExit as exit:
            code = exit.code
    print(json.dumps([code, output.getvalue()]), flush=True)
"""


def environment(**extra: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name != "DATABASE_URL" and not name.startswith(("ORCHESTRATOR_STATE_", "PG"))
    }
    return kept | {"PYTHONWARNINGS": "error", "COLUMNS": "200"} | extra


def run(*arguments: str, cwd: Path | None = None, **extra_environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
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

    def __init__(self, processes: list[subprocess.Popen[str]]) -> None:
        self._processes = processes

    def run_at_once(self, *arguments: str) -> list[tuple[int, str]]:
        """Run the command in every process. Returns exit codes and output."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{json.dumps(arguments)}\n")
            process.stdin.flush()
        return [tuple(json.loads(process.stdout.readline())) for process in self._processes if process.stdout]


@contextmanager
def crew(size: int) -> Iterator[Crew]:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ENTER_AGAIN_AND_AGAIN],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(size)
    ]
    try:
        yield Crew(processes)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
