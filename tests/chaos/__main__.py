"""The long form: `python -m tests.chaos`.

The exit status: 0 if every proof held and every control was found, 1 if not, 2 if some could not be run here.
"""

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tests.chaos.catalogue import EXPERIMENTS, Experiment
from tests.chaos.rows import Row, exit_status, play, table_of
from tests.support.postgres_server import PrivatePostgres


async def main() -> int:
    """Run every experiment on each of its databases; returns the exit status."""
    options = _options()
    chosen = _chosen(options.databases, options.only)
    if not chosen:
        raise SystemExit(f"no experiment on {' or '.join(options.databases)} has {options.only!r} in its name")
    console = Console(width=None if sys.stdout.isatty() else 180, highlight=False)
    console.print(f"seed {options.seed}")
    rows: list[Row] = []
    try:
        with PrivatePostgres() as server:
            for experiment, database in chosen:
                rows.append(await play(experiment, database, server, options.seed, options.scale))
                console.print(str(rows[-1]), style="red" if rows[-1].verdict == "FAILED" else None, markup=False)
    finally:  # also of what somebody interrupts
        console.print(table_of(rows))
        if options.json is not None:
            report = {"seed": options.seed, "scale": options.scale, "rows": [row.as_json() for row in rows]}
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    return exit_status(rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--scale", type=float, default=1.0, help="of the long form's rounds")
    parser.add_argument("--json", type=Path, help="write the report to this file, too")
    parser.add_argument("--databases", nargs="*", default=["sqlite", "postgres"])
    parser.add_argument("--only", default="", help="only experiments with this in their name")
    return parser.parse_args()


def _chosen(databases: Sequence[str], only: str) -> list[tuple[Experiment, str]]:
    return [
        (experiment, database)
        for experiment in EXPERIMENTS
        for database in experiment.databases
        if database in databases and only in experiment.name
    ]


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
