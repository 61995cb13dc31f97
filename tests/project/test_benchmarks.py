"""The benchmarks run: each question is asked once, of a handful of workflows, and gives figures that make sense."""

import io
import itertools
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import appending, steps
from benchmarks.databases import DATABASES, NewDatabase
from benchmarks.measure import Bar, Bench, Figure, Question
from benchmarks.questions import QUESTIONS
from benchmarks.report import Answer, print_table
from tests.support.postgres_server import Postgres
from tests.support.reused_database import ReusedDatabase

pytestmark = pytest.mark.process

ASKED = {
    (question.measure, database): (question, database) for question in QUESTIONS for database in question.databases
}.values()  # some questions differ in nothing but their size
# They look at a certain step, so there must be more.
SMALLEST = {"growth": 30, "save": 10}


@pytest.fixture(scope="module")
def idle_databases() -> Iterator[list[ReusedDatabase]]:
    """Of Postgres: what a question is done with, the next one gets."""
    idle: list[ReusedDatabase] = []
    yield idle
    for each in idle:
        each.close()


@pytest.fixture
def new_database(
    request: pytest.FixtureRequest, tmp_path: Path, database: str, idle_databases: list[ReusedDatabase]
) -> NewDatabase:
    """Copies of a database that is up to date: a migration takes longer than a question."""
    numbers = itertools.count()

    @contextmanager
    def new_file() -> Iterator[str]:
        template: Path = request.getfixturevalue("sqlite_template")
        yield f"sqlite:///{shutil.copyfile(template, tmp_path / f'{next(numbers)}.db')}"

    @contextmanager
    def new_postgres() -> Iterator[str]:
        server: Postgres = request.getfixturevalue("postgres")
        template: str = request.getfixturevalue("postgres_template")
        reused = idle_databases.pop() if idle_databases else ReusedDatabase(server, template)
        try:
            with reused.lent() as name:
                yield server.url(name)
        finally:
            idle_databases.append(reused)

    return new_file if database == "sqlite" else new_postgres


@pytest.fixture(autouse=True)
def _no_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """They need databases without tables of our names."""
    monkeypatch.setattr(steps, "installed_peers", dict)
    monkeypatch.setattr(appending, "has_langgraph", lambda: False)


@pytest.mark.parametrize(
    ("question", "database"), ASKED, ids=[f"{question.name}-{database}" for question, database in ASKED]
)
async def test_a_question_is_answered(question: Question, database: str, new_database: NewDatabase) -> None:
    size = SMALLEST.get(question.name, 3)
    bench = Bench(database=database, new_database=new_database, size=size, rounds=1, effort=0.02)
    figures = await question.measure(bench)
    assert figures
    for figure in figures:
        assert math.isfinite(figure.value)
        # What something adds is a difference of two times, of which a busy machine makes anything.
        assert figure.value >= 0 or "added" in figure.what
        assert all(math.isfinite(value) for value in figure.beside.values())


def test_a_question_is_asked_of_known_databases() -> None:
    assert {database for _, database in ASKED} == set(DATABASES)


@pytest.mark.parametrize(("value", "reached"), [(9.9, False), (10.0, True), (10.1, True)])
def test_a_bar_from_below_is_reached_from_its_limit_on(value: float, reached: bool) -> None:
    assert Bar(10, at_least=True).is_reached_by(value) is reached


@pytest.mark.parametrize(("value", "reached"), [(9.9, True), (10.0, True), (10.1, False)])
def test_a_bar_from_above_is_reached_up_to_its_limit(value: float, reached: bool) -> None:
    assert Bar(10).is_reached_by(value) is reached


def test_the_table_tells_the_figure_its_bar_and_the_spread_of_its_rounds() -> None:
    figure = Figure(
        what="a step", unit="x raw", rounds=[3.0, 1.0, 2.0], bar=Bar(2.5), beside={"raw ms": 0.5, "ours ms": 1.0}
    )
    answer = Answer(question="q", database="sqlite", durability={"synchronous": "2"}, size=1, figures=[figure])
    printed = io.StringIO()
    print_table([answer], Console(width=200, file=printed))
    for cell in ("a step", "2.00 x raw", "1.00-3.00", "≤ 2.5", "raw ms 0.50, ours ms 1.00", "synchronous=2"):
        assert cell in printed.getvalue()
