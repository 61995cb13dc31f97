"""The store's own tests once more, with PgBouncer in between."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tests.chaos.experiments import Place
from tests.chaos.report import Report
from tests.chaos.tools import find

_ROOT: Final = Path(__file__).parents[2]


async def store_tests(place: Place, *, is_told: bool = True) -> Report:
    """The store's own tests, on databases that are reached through PgBouncer.

    A store that is not told of it does well as long as it is alone. So some tests fail then, for want of statements
    that another connection has prepared.
    """
    name = f"the store's tests behind PgBouncer{'' if is_told else ', of which it is not told'}"
    report = Report(name=name, seed=place.seed)
    find("pgbouncer")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-k", _COUNTLESS, "-p", "no:cacheprovider"]
    files = test_files(BEHIND_PGBOUNCER if is_told else SIDE_BY_SIDE)
    environment = {**os.environ, "TEST_PGBOUNCER": "told" if is_told else "untold"}
    if not is_told:
        command.append("--exitfirst")
    process = await asyncio.create_subprocess_exec(
        *command, *files, cwd=_ROOT, env=environment, stdout=asyncio.subprocess.PIPE
    )
    output = (await process.communicate())[0].decode()
    passed = re.search(r"(\d+) passed", output)
    report.rounds = int(passed[1]) if passed else 0
    failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if process.returncode and (is_told or "prepared statement" in output):
        report.find("other", *(failed or [output[-1000:]]))
    return report


def test_files(names: Iterable[str]) -> list[str]:
    """Where the tests of that name are, below the root of the project, whichever room they are in."""
    found = {path.stem: str(path.relative_to(_ROOT)) for path in _ROOT.glob("tests/*/test_*.py")}
    return [found[f"test_{name}"] for name in names]


# Behind PgBouncer each transaction has one statement more, which sets its time limits.
_COUNTLESS: Final = "postgres and not statements"
BEHIND_PGBOUNCER: Final = (
    *("store", "unit_of_work", "checkpoints", "concurrency", "runs", "steps", "signals", "transact", "timers"),
    *("children", "run_control", "run_recovery", "fork_and_rewind", "leases", "workers", "retention"),
)
SIDE_BY_SIDE: Final = ("signals", "children", "workers")
"""Some of them that have several connections at work."""
