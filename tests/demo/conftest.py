"""The demo's workers as forks of a process that has the package loaded."""

import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any, BinaryIO, Self

import pytest

from tests.support.children import FORKS


class ForkedWorker:
    """Of `subprocess.Popen` what the demo uses."""

    def __init__(self, command: list[str], *, env: Mapping[str, str], stderr: BinaryIO, **_: Any) -> None:
        theirs_in, self._ours_in = FORKS.Pipe(duplex=False)
        ours_out, theirs_out = FORKS.Pipe(duplex=False)
        arguments = (command[2], dict(env), theirs_in, theirs_out, stderr.name)
        self._process = FORKS.Process(target=_run, args=arguments, daemon=True)
        self._process.start()
        theirs_in.close()
        theirs_out.close()
        self.stdout = os.fdopen(os.dup(ours_out.fileno()), "rb")
        ours_out.close()
        self.pid = self._process.pid
        self.kill = self._process.kill
        self.terminate = self._process.terminate

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("worker", timeout or 0)
        return self._process.exitcode

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stdout.close()
        self._ours_in.close()
        self.wait()


def _run(module: str, env: dict[str, str], stdin: Connection, stdout: Connection, log: str) -> None:
    os.environ.clear()
    os.environ.update(env)
    with open(log, "ab") as errors:  # noqa: PTH123 - beside its descriptor
        for target, source in enumerate((stdin.fileno(), stdout.fileno(), errors.fileno())):
            os.dup2(source, target)
    sys.stdin = os.fdopen(0)
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__")


@pytest.fixture(scope="session")
def _fork_server() -> None:
    """Has its socket in a directory that no test has set for itself."""
    forkserver.ensure_running()


@pytest.fixture
def forked_workers(_fork_server: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test of what the demo finds and says: that a worker loads all that it needs is shown without this."""
    ours = SimpleNamespace(Popen=ForkedWorker, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr("orchestrator_state.demo.crew.subprocess", ours)
