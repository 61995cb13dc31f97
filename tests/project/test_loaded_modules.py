"""What a process loads before it needs it: each call of the command line, and each cold start, would wait for it."""

import ast
import asyncio
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import orchestrator_state
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


def test_the_command_line_is_there_before_what_its_commands_need() -> None:
    slow = {*SLOW, "sqlalchemy", "pydantic", "aiosqlite", "asyncpg"} - {"typer"}
    program = "import sys, orchestrator_state.cli; print({*sys.modules} & {*sys.argv[1:]})"
    child = subprocess.run(
        [sys.executable, "-c", program, *slow],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    assert child.stdout == "set()\n"


def test_a_name_is_loaded_from_where_a_type_checker_finds_it() -> None:
    source = ast.parse(Path(orchestrator_state.__file__).read_text())
    imports = [node for node in ast.walk(source) if isinstance(node, ast.ImportFrom)]
    found = {
        name.name: getattr(import_module(node.module), name.name)
        for node in imports
        if node.module is not None and node.module.startswith("orchestrator_state.")
        for name in node.names
    }
    assert found.keys() == {*orchestrator_state.__all__}
    for name, value in found.items():
        assert getattr(orchestrator_state, name) is value, name
    assert {*orchestrator_state.__all__} <= {*dir(orchestrator_state)}
    with pytest.raises(AttributeError, match="nothing_like_it"):
        getattr(orchestrator_state, "nothing_like_it")  # noqa: B009 - a type checker knows that there is none
