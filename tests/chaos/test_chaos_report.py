"""The report of `make chaos`: one experiment's trouble is its own row's, and the exit status hides nothing."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from orchestrator_state import StateStore
from tests.chaos import behind_pgbouncer
from tests.chaos.catalogue import EXPERIMENTS, Experiment
from tests.chaos.experiments import Place
from tests.chaos.power_cuts import Call, parsed
from tests.chaos.report import Report
from tests.chaos.rows import Row, exit_status, play, table_of
from tests.chaos.tools import find
from tests.support.postgres_server import Postgres


async def holds(place: Place) -> Report:
    return Report(name="what it did", seed=place.seed, rounds=3)


async def finds_something(place: Place) -> Report:
    report = await holds(place)
    report.find("lost", "an acknowledged step")
    return report


async def needs_a_tool(_place: Place) -> Report:
    find("no-such-program")
    raise AssertionError("not reached")


async def breaks(_place: Place) -> Report:
    raise RuntimeError("the harness [itself]")


@pytest.mark.parametrize("proof", [each for each in EXPERIMENTS if not each.is_control], ids=lambda proof: proof.name)
def test_each_proof_has_a_control_on_each_of_its_databases(proof: Experiment) -> None:
    controls = [each for each in EXPERIMENTS if each.is_control and each.name.startswith(f"{proof.name}, ")]
    assert set(proof.databases) == {database for control in controls for database in control.databases}


@pytest.fixture
def row_of(postgres: Postgres) -> Callable[..., Awaitable[Row]]:
    """The row of an experiment that does this."""

    async def row(run: Callable[[Place], Awaitable[Report]], *, is_control: bool = False) -> Row:
        return await play(Experiment("by name", run, is_control=is_control), "sqlite", postgres, seed=7, scale=1.0)

    return row


@pytest.mark.slow
async def test_a_proof_is_ok_if_nothing_was_found_and_a_control_if_something_was(
    row_of: Callable[..., Awaitable[Row]],
) -> None:
    rows = [await row_of(run, is_control=control) for run in (holds, finds_something) for control in (False, True)]
    assert [row.verdict for row in rows] == ["ok", "FAILED", "FAILED", "ok"]
    assert [exit_status([row]) for row in rows] == [0, 1, 1, 0]


async def test_a_proof_that_made_no_fault_has_failed(row_of: Callable[..., Awaitable[Row]]) -> None:
    async def does_nothing(place: Place) -> Report:
        return Report(name="what it did", seed=place.seed)

    assert (await row_of(does_nothing)).verdict == "FAILED"


@pytest.mark.parametrize("pid", ["31", "10689", "4194304"])
def test_a_trace_is_read_whatever_the_number_of_the_process(tmp_path: Path, pid: str) -> None:
    def coded(text: str) -> str:
        return "".join(f"\\x{byte:02x}" for byte in text.encode())

    begun = f'{pid:<5} pwrite64(7<{coded("/a/workflows.db")}>, "{coded("abc")}", 3, 4096'
    rest = f"{pid:<5} <... pwrite64 resumed>) = 3"
    synced = f"{pid:<5} fdatasync(7<{coded('/a/workflows.db')}>) = 0"
    trace = tmp_path / "trace"
    trace.write_text(f"{begun}) = 3\n{synced}\n{begun} <unfinished ...>\n{rest}\n")
    write, sync = Call("pwrite64", "/a/workflows.db", b"abc", 4096), Call("sync", "/a/workflows.db")
    assert list(parsed(trace, "/a/workflows.db")) == [write, sync, write]


async def test_a_control_is_tried_with_other_seeds_in_fresh_places_until_it_finds_something_and_a_proof_never(
    row_of: Callable[..., Awaitable[Row]],
) -> None:
    seeds: list[int] = []

    async def finds_at_the_third_seed(place: Place) -> Report:
        seeds.append(place.seed)
        async with StateStore.open(place.url) as store:
            await store.start("n", workflow_id=f"in the way of another try than {place.seed}")
            assert len(await store.list_active_workflows()) == 1
        return await (finds_something(place) if place.seed == 9 else holds(place))

    row = await row_of(finds_at_the_third_seed, is_control=True)
    assert (row.verdict, row.report.seed, row.report.figures["seeds tried"]) == ("ok", 9, 3)
    assert seeds == [7, 8, 9]
    assert (await row_of(finds_at_the_third_seed)).verdict == "ok"
    assert seeds == [7, 8, 9, 7]


@pytest.mark.parametrize("is_control", [False, True])
async def test_what_needs_a_missing_program_is_not_run_and_not_ok(
    row_of: Callable[..., Awaitable[Row]], is_control: bool
) -> None:
    row = await row_of(needs_a_tool, is_control=is_control)
    assert (row.verdict, row.why) == ("not run", "no-such-program is missing: apt-get install no-such-program")
    assert exit_status([await row_of(holds), row]) == 2
    assert exit_status([row, await row_of(finds_something)]) == 1


@pytest.mark.parametrize("is_control", [False, True])
async def test_an_experiment_that_breaks_has_failed_and_keeps_no_other_from_being_run(
    row_of: Callable[..., Awaitable[Row]], is_control: bool
) -> None:
    row = await row_of(breaks, is_control=is_control)
    assert row.verdict == "FAILED"
    assert "RuntimeError: the harness [itself]" in row.why
    assert exit_status([row, await row_of(needs_a_tool)]) == 1


async def test_the_report_has_a_row_for_each_with_all_figures(row_of: Callable[..., Awaitable[Row]]) -> None:
    rows = [await row_of(run) for run in (holds, finds_something, needs_a_tool, breaks)]
    assert table_of(rows).row_count == 4
    written = rows[1].as_json()
    wanted = {"verdict": "FAILED", "experiment": "by name", "seed": 7, "rounds": 3, "lost": 1, "recovery_seconds": None}
    assert wanted.items() <= written.items()
    assert {"acknowledged", "doubled", "stale", "dropped", "failed", "unrecovered", "other"} <= written.keys()


def test_the_tests_that_are_run_behind_pgbouncer_are_there() -> None:
    assert len(behind_pgbouncer.test_files(behind_pgbouncer.BEHIND_PGBOUNCER)) == 16
    assert {*behind_pgbouncer.SIDE_BY_SIDE} <= {*behind_pgbouncer.BEHIND_PGBOUNCER}
