"""The worker process by itself."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.process


def test_a_worker_does_not_outlive_the_demo_that_started_it(postgres_url: str) -> None:
    command = [sys.executable, "-m", "orchestrator_state.demo.worker"]
    environment = os.environ | {"DATABASE_URL": postgres_url}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout
        assert worker.stdin
        assert worker.stdout.readline() == b"ready\n"
        worker.stdin.close()
        assert worker.wait(timeout=60) == 0
