"""The demo's two worker processes."""

import asyncio
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self

WORKERS = 2
STOP_SECONDS = 30.0


class DemoError(RuntimeError):
    """A process of the demo ended, or hung, when it should not have."""


class Crew:
    """Workers from the beginning of a `with` block to its end, which none of them outlives."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self._environment = environment
        self._log = log
        self._workers: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "orchestrator_state.demo.worker"]
        pipe = subprocess.PIPE
        with self._log.open("ab") as log:
            for _ in range(WORKERS):
                worker = subprocess.Popen(  # noqa: S603 - our own module, by a list and without a shell
                    command, env=self._environment, stdin=pipe, stdout=pipe, stderr=log
                )
                self._workers[worker.pid] = worker
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            with worker:
                worker.kill()

    async def ready(self) -> None:
        """Return when every worker looks for work."""
        for worker in self._workers.values():
            if worker.stdout is None or not await asyncio.to_thread(worker.stdout.readline):
                worker.wait()
                self.require_well()

    def kill(self, pid: int) -> None:
        """SIGKILL a worker, and wait until it is gone."""
        with self._workers.pop(pid) as worker:
            worker.kill()

    def require_well(self) -> None:
        """Raise `DemoError` if a worker ended."""
        for pid, worker in self._workers.items():
            if worker.poll() is not None:
                lines = self._log.read_text(errors="replace").strip().splitlines()
                raise DemoError(lines[-1] if lines else f"worker {pid} ended with status {worker.returncode}")

    async def stop(self) -> None:
        """End the workers as a deployment does, with SIGTERM. Raises `DemoError` if one does not end well."""
        for pid, worker in self._workers.items():
            worker.terminate()
            try:
                status = await asyncio.to_thread(worker.wait, STOP_SECONDS)
            except subprocess.TimeoutExpired:
                raise DemoError(f"worker {pid} did not stop within {STOP_SECONDS:.0f} seconds") from None
            if status:
                raise DemoError(f"worker {pid} was asked to stop and ended with status {status}")
