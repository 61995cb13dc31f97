"""How soon is the command line there, and how soon does it list 50 of many unfinished runs of 50 KB each?"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

from benchmarks.measure import Bar, Bench, Figure, Question
from benchmarks.raw import connect
from orchestrator_state import StateStore

_LIBRARIES: Final = ("-c", "import sqlalchemy, typer, rich")
_HELP: Final = ("-m", "orchestrator_state", "runs", "--help")
_LIST: Final = ("-m", "orchestrator_state", "runs", "list", "--limit", "50", "--json")
_COLUMNS: Final = "id, workflow_id, workflow_name, status, started_at, updated_at, context"
_INSERT: Final = {
    "postgres": f"""INSERT INTO workflow_states ({_COLUMNS})
        SELECT lpad(to_hex(n), 32, '0')::uuid, 'w' || n, 'n', 'running', now(), now(),
          '{{{{"text": "' || repeat(md5(n::text), 1600) || '"}}}}'
        FROM generate_series(1, {{size}}) AS n""",
    "sqlite": f"""WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {{size}})
        INSERT INTO workflow_states ({_COLUMNS})
        SELECT printf('%08x-0000-4000-8000-000000000000', n), 'w' || n, 'n', 'running',
          strftime('%Y-%m-%dT%H:%M:%f', 'now') || '000+00:00', strftime('%Y-%m-%dT%H:%M:%f', 'now') || '000+00:00',
          '{{{{"text": "' || hex(randomblob(25000)) || '"}}}}'
        FROM numbers""",
}


async def _measure(bench: Bench) -> list[Figure]:
    with bench.new_database() as url:
        async with StateStore.open(url, migrate=True), connect(url) as raw:
            await raw.execute(_INSERT["postgres" if bench.database == "postgres" else "sqlite"].format(size=bench.size))
            await raw.fetch("ANALYZE")
        rounds = [await asyncio.to_thread(_round, url) for _ in range(bench.rounds)]
    libraries, there, listed, megabytes = zip(*rounds, strict=True)
    ratios = [own / of_others for own, of_others in zip(there, libraries, strict=True)]
    what = f"list 50 of {bench.size:,} unfinished runs of 50 KB each"
    return [
        Figure(what="the help, beside importing sqlalchemy, typer and rich", unit="x", rounds=ratios, bar=Bar(1.5)),
        Figure(what=f"{what}, as a process", unit="s", rounds=listed, bar=Bar(1.0)),
        Figure(what=f"{what}, its memory", unit="MB", rounds=megabytes, bar=Bar(150)),
    ]


def _round(url: str) -> tuple[float, float, float, float]:
    libraries, _ = _seconds(_LIBRARIES, url)
    there, _ = _seconds(_HELP, url)
    listed, megabytes = _seconds(_LIST, url)
    return libraries, there, listed, megabytes


def _seconds(arguments: Sequence[str], url: str) -> tuple[float, float]:
    """What a process takes, and the megabytes that it has at most."""
    start = time.perf_counter()
    environment: dict[str, Any] = {**os.environ, "DATABASE_URL": url}
    with subprocess.Popen([sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    kilobytes = used.ru_maxrss if sys.platform != "darwin" else used.ru_maxrss / 1024
    return time.perf_counter() - start, kilobytes / 1024


COMMAND_LINE: Final = Question(name="cli", measure=_measure, size=10_000, quick_size=200, rounds=5)
