"""How long is the road of one call: how many functions of ours, files and rooms it passes through.

    python scripts/measure_road.py [--postgres URL] [--json FILE] [--against FILE]

Counted by `sys.setprofile`, in the thread of the event loop and in the threads of SQLite's connections:

- ours: calls of functions defined in the package. Of these "resumed" are coroutines that went on after a wait: each
  `await` between the loop and the wait costs one; and "in threads" are those outside the loop's thread.
- files, rooms: how many modules those functions stand in, and how many rooms: a folder of the package, or a module
  that stands beside the folders. What is visited less than once in 200 times is left out here.
- all: the same calls and those of SQLAlchemy, asyncio, the drivers and the standard library.

Functions in C are not counted, nor what is called here: handlers, and the functions of steps. Statements are those that
the database executes, without BEGIN and COMMIT; commits those of transactions that wrote. CPU is that of the process,
measured without the counting, and means something only beside another figure of the same machine.

Everything is done before it is counted, so that nothing is made, compiled or prepared for the first time. The garbage
collector is off meanwhile and leases are renewed seldom, so that the same tree gives the same figures. Only the public
API is used: `PYTHONPATH=/another/tree` measures that one. With another Python the figures are others.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import platform
import sys
import tempfile
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal

import orchestrator_state
from orchestrator_state import StateStore

sys.path.append(str(Path(__file__).parents[1]))  # which runs as a script, and may measure another tree

from scripts.road import meter as counting
from scripts.road import operations
from scripts.road.meter import Meter
from scripts.road.operations import OPERATIONS, Operation

_OUR_OWN: Final = (__name__, counting.__name__, operations.__name__)
_RARELY: Final = 200

Road = dict[str, Any]
"""The figures of one operation, and under `functions` those that were called for it, ours first."""
Roads = Mapping[str, Mapping[str, Road]]
"""By database and operation."""
FIGURES: Final = ("ours", "resumed", "in threads", "files", "rooms", "all", "statements", "commits", "cpu us")


async def measure(url: str, size: int, *, cpu_rounds: int = 5) -> dict[str, Road]:
    """Each operation, on an empty database or one that has these tables."""
    meter = Meter(cpu_rounds)
    # A unit of work on SQLite that is held up, as by a slow disk, does more than one that is not.
    quick_disk: Literal["NORMAL"] | None = "NORMAL" if url.startswith("sqlite") else None
    opening = StateStore.open(url, migrate=True, lease_term=timedelta(hours=1), synchronous=quick_disk)
    with meter.watching():
        async with opening as store:
            return {name: await _measured(store, meter, operation, size) for name, operation in OPERATIONS.items()}


async def _measured(store: StateStore, meter: Meter, operation: Operation, size: int) -> Road:
    meter.start_anew()
    await operation(store, meter, size)
    rounds = []
    for _ in range(meter.cpu_rounds):
        meter.start_anew()
        await operation(store, meter, size)
        rounds.append(meter.seconds / meter.operations)
    meter.start_anew(counts_calls=True)
    await operation(store, meter, size)
    return _road(meter) | {"cpu us": round(min(rounds) * 1e6, 1)}


def _road(meter: Meter) -> Road:
    called = [function for function in meter.functions.values() if function.module not in _OUR_OWN]
    called.sort(key=lambda function: (not function.is_ours, -function.calls, function.module, function.name))
    ours = [function for function in called if function.is_ours]
    visited = [function for function in ours if function.calls * _RARELY >= meter.operations]
    return {
        "ours": meter.each(sum(function.calls for function in ours)),
        "resumed": meter.each(sum(function.resumed for function in ours)),
        "in threads": meter.each(sum(function.in_threads for function in ours)),
        "files": len({function.module for function in visited}),
        "rooms": len({function.room for function in visited}),
        "all": meter.each(sum(function.calls for function in called)),
        "statements": meter.each(meter.statements),
        "commits": meter.each(meter.commits),
        "functions": [
            {
                "function": f"{function.module}:{function.code.co_firstlineno} {function.name}",
                "calls": meter.each(function.calls),
                "resumed": meter.each(function.resumed),
                "in threads": meter.each(function.in_threads),
            }
            for function in called
        ],
    }


# --- telling ------------------------------------------------------------------------------------------------------


def print_table(roads: Roads, before: Roads | None = None) -> None:
    """A line for each operation; and, with what was measured `before`, each figure as `before -> now (ratio)`."""
    for database, measured in roads.items():
        rows = [[database, *FIGURES]]
        for operation, road in measured.items():
            old = {} if before is None else before.get(database, {}).get(operation, {})
            rows.append([operation, *(_cell(road[figure], old.get(figure)) for figure in FIGURES)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for first, *others in rows:
            print("  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]))
        print()


def _cell(now: float, before: float | None) -> str:
    was = "" if before is None else f"{before:g} -> "
    return f"{was}{now:g}" + (f" ({now / before:.2f})" if before else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--postgres", metavar="URL", help="measure in this database too, which is migrated")
    parser.add_argument("--size", type=int, default=100, help="how many runs at once, or saves, are averaged")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, and the functions, to it")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with what --json wrote")
    given = parser.parse_args()
    logging.disable()  # of runs that were left without asking for their steps
    with tempfile.TemporaryDirectory(prefix="road-") as directory:
        urls = {"sqlite": f"sqlite:///{Path(directory) / 'road.db'}"}
        if given.postgres:
            urls["postgres"] = given.postgres
        roads = {database: asyncio.run(measure(url, given.size)) for database, url in urls.items()}
    print(f"Python {platform.python_version()}, {Path(orchestrator_state.__file__).parent}\n")
    print_table(roads, json.loads(given.against.read_text()) if given.against else None)
    if given.json:
        given.json.write_text(json.dumps(roads, indent=1))


if __name__ == "__main__":
    main()
