"""`python -m benchmarks`: ask the questions, print the table, write the JSON."""

from __future__ import annotations

import argparse
import asyncio
from typing import Final

from rich.console import Console

from benchmarks.databases import DATABASES
from benchmarks.durability import require_durable
from benchmarks.list_active import LIST_ACTIVE
from benchmarks.load import LOAD
from benchmarks.measure import Question, compare
from benchmarks.payloads import measure_payloads, print_figures
from benchmarks.raw import connect
from benchmarks.report import Answer, print_table, write_json
from benchmarks.save import SAVE
from orchestrator_state import StateStore

QUESTIONS: Final = {question.name: question for question in (LOAD, SAVE, LIST_ACTIVE)}
PAYLOADS: Final = "payloads"


def main() -> None:
    arguments = _arguments()
    console = Console(width=120)  # a row of the table is one line, however narrow the terminal
    asked = arguments.only or [*QUESTIONS, PAYLOADS]
    answers = _answers(arguments, [name for name in asked if name != PAYLOADS], console)
    figures = measure_payloads(batches=100 if arguments.quick else 1000) if PAYLOADS in asked else []
    if answers:
        print_table(answers, console)
    if figures:
        print_figures(figures, console)
    console.print(f"written to {write_json(answers, figures)}", soft_wrap=True)


def _answers(arguments: argparse.Namespace, names: list[str], console: Console) -> list[Answer]:
    answers: list[Answer] = []
    for database in (arguments.database or DATABASES) if names else ():
        with DATABASES[database]() as new_database:
            for name in names:
                with console.status(f"{name} on {database}"), new_database() as url:
                    work = _answer(QUESTIONS[name], database, url, rounds=arguments.rounds, quick=arguments.quick)
                    answers.append(asyncio.run(work))
    return answers


async def _answer(question: Question, database: str, url: str, *, rounds: int | None, quick: bool) -> Answer:
    size = question.quick_size if quick else question.size
    async with StateStore.open(url, migrate=True) as store, connect(url) as raw:
        durability = await require_durable(database, store, raw)
        pair = await question.prepare(store, raw, size)
        measured = await compare(
            pair,
            rounds=rounds or (3 if quick else 7),
            calls=max(1, question.calls // 4) if quick else question.calls,
        )
    return Answer(
        question=question.name,
        asks=question.asks.format(size=size),
        database=database,
        durability=durability,
        bar=question.bars[database],
        rounds=measured,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="The store's speed beside the driver's.")
    parser.add_argument(
        "--only", choices=[*QUESTIONS, PAYLOADS], action="append", help="ask this question (may be repeated)"
    )
    parser.add_argument("--database", choices=DATABASES, action="append", help="on this database (may be repeated)")
    parser.add_argument("--rounds", type=int, help="rounds per question; default 7")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and calls, a tenth of the workflows")
    arguments = parser.parse_args()
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    return arguments


if __name__ == "__main__":
    main()
