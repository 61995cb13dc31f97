"""What a process loads before it needs it: each call of the command line, and each cold start, would wait for it."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator_state import StateStore
from tests.support.command_line import environment

pytestmark = pytest.mark.process

# In the order in which a process comes to them. What each has loaded is printed after it.
PROGRAM = """
import asyncio, json, sys

def loaded():
    return sorted({name.partition(".")[0] for name in sys.modules} & set(json.loads(sys.argv[2])))

import orchestrator_state
after_import = loaded()

async def main():
    async with orchestrator_state.StateStore.open(sys.argv[1], migrate=True) as store:
        await store.run("anything", handler)

async def handler(run):
    await run.step("a", lambda: 1)

asyncio.run(main())
after_run = loaded()

import orchestrator_state.cli
print(json.dumps([after_import, after_run, loaded()]))
"""
SLOW = (
    "alembic",
    "mako",
    "typer",
    "rich",
    "pygments",
    "cryptography",
    "fsspec",
    "httpx",
    "opentelemetry",
    "prometheus_client",
)


async def make(database: Path) -> None:
    async with StateStore.open(database):
        pass


def test_what_is_rarely_wanted_is_not_loaded_before_it_is(tmp_path: Path) -> None:
    database = tmp_path / "of_today.db"
    asyncio.run(make(database))

    child = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(database), json.dumps(SLOW)],
        env=environment(),
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )

    after_import, after_run, after_command_line = json.loads(child.stdout)
    assert after_import == []
    assert after_run == []
    assert after_command_line == ["typer"]
