"""Four processes migrate one database at the same moment: one does it, the others wait and find it done."""

from collections.abc import Iterator

import pytest

from orchestrator_state import schema
from tests.support.command_line import Crew, crew
from tests.support.old_databases import make_first_revision, old_rows, structure
from tests.support.raw_sql import fetch

pytestmark = pytest.mark.process

DONE_BY_ALL = [(0, f"the schema is at {schema.head_revision()}\n")] * 4

# Each repetition is a race of its own.
several_times = pytest.mark.parametrize("repetition", range(2))


@pytest.fixture(scope="module")
def four_processes() -> Iterator[Crew]:
    with crew(4) as processes:
        yield processes


@several_times
async def test_an_empty_database_is_upgraded_once(
    four_processes: Crew, empty_database_url: str, request: pytest.FixtureRequest, backend: str, repetition: int
) -> None:
    assert four_processes.run_at_once("db", "upgrade", "--url", empty_database_url) == DONE_BY_ALL
    assert fetch(empty_database_url, "SELECT count(*) FROM orchestrator_state_version") == [(1,)]
    upgraded_alone = str(request.getfixturevalue(f"{backend}_url"))
    assert await structure(empty_database_url) == await structure(upgraded_alone)


@several_times
async def test_a_database_with_rows_is_upgraded_once(
    four_processes: Crew, empty_database_url: str, repetition: int
) -> None:
    await make_first_revision(empty_database_url)
    before = old_rows(empty_database_url)
    assert four_processes.run_at_once("db", "upgrade", "--url", empty_database_url) == DONE_BY_ALL
    assert old_rows(empty_database_url) == before


@several_times
async def test_a_database_is_downgraded_once(four_processes: Crew, database_url: str, repetition: int) -> None:
    done = four_processes.run_at_once("db", "downgrade", "base", "--yes", "--url", database_url)
    assert done == [(0, "the schema is at base\n")] * 4
