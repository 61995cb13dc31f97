"""`python -m benchmarks`: ask the questions, print the table, write the JSON."""

from __future__ import annotations

import argparse
import asyncio
from typing import Final

from rich.console import Console

from benchmarks.databases import DATABASES, NewDatabase
from benchmarks.durability import require_durable
from benchmarks.measure import Bench, Question
from benchmarks.peers import missing_peers
from benchmarks.questions import QUESTIONS
from benchmarks.raw import connect
from benchmarks.report import Answer, print_table, write_json
from orchestrator_state import StateStore

_NAMES: Final = tuple(dict.fromkeys(question.name for question in QUESTIONS))
_QUICK_EFFORT: Final = 0.25


def main() -> None:
    arguments = _arguments()
    console = Console(width=200)  # a row of the table is one line, however narrow the terminal
    answers = []
    for database in arguments.database or DATABASES:
        with DATABASES[database]() as new_database:
            durability = asyncio.run(_durability(database, new_database))
            for question in QUESTIONS:
                if database not in question.databases or question.name not in (arguments.only or _NAMES):
                    continue
                bench = _bench(question, database, new_database, arguments)
                with console.status(f"{question.name} on {database}"):
                    figures = asyncio.run(question.measure(bench))
                answers.append(
                    Answer(
                        question=question.name,
                        database=database,
                        durability=durability,
                        size=bench.size,
                        figures=figures,
                    )
                )
    print_table(answers, console)
    if missing := missing_peers():
        console.print(f"not installed, and so not measured: {', '.join(missing)} (`make bench-peers` measures them)")
    console.print(f"written to {write_json(answers)}", soft_wrap=True)


def _bench(question: Question, database: str, new_database: NewDatabase, arguments: argparse.Namespace) -> Bench:
    return Bench(
        database=database,
        new_database=new_database,
        size=question.quick_size if arguments.quick else question.size,
        rounds=arguments.rounds or (min(3, question.rounds) if arguments.quick else question.rounds),
        effort=_QUICK_EFFORT if arguments.quick else 1.0,
    )


async def _durability(database: str, new_database: NewDatabase) -> dict[str, str]:
    with new_database() as url:
        async with StateStore.open(url, migrate=True) as store, connect(url) as raw:
            return await require_durable(database, store, raw)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="The store's speed beside the driver's.")
    parser.add_argument(
        "--only", choices=_NAMES, nargs="+", action="extend", metavar="NAME", help=f"of {', '.join(_NAMES)}"
    )
    parser.add_argument("--database", choices=DATABASES, action="append", help="on this database (may be repeated)")
    parser.add_argument("--rounds", type=int, help="rounds per question; each has its own default")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, calls and seconds, and smaller sizes")
    arguments = parser.parse_args()
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    return arguments


if __name__ == "__main__":
    main()
