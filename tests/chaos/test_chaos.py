"""The promise under faults, in short; `make chaos` is the long form.

Each proof has a negative control beside it: the same harness on a worker with a flaw, which it has to find.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from orchestrator_state import StateStore, WorkflowState
from orchestrator_state.hooks import StepCommitting
from tests.chaos import experiments
from tests.chaos.boundaries import kill_at_boundaries, kill_between_lines
from tests.chaos.cancellations import cancel_at_random
from tests.chaos.claims import force_nested_loops, race_for_runs
from tests.chaos.experiments import found_sooner_or_later
from tests.chaos.freezes import freeze_past_the_lease
from tests.chaos.kills import Flaw, kill_at_random
from tests.chaos.report import Report
from tests.chaos.restarts import restart_after_kill
from tests.support.held import comes_true
from tests.support.postgres_server import Postgres

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]  # seconds: a control may be tried ten times

_PATIENCE = 60.0  # seconds; that everything ends within the promised time is for the long form, on a quiet machine


# --- SIGKILL -----------------------------------------------------------------------------------------------------


async def test_a_killed_worker_loses_no_acknowledged_step_and_no_finished_one_runs_again(
    database_url: str, tmp_path: Path, seed: int
) -> None:
    report = await kill_at_random(database_url, tmp_path, rounds=5, seed=seed)
    assert not report.faults, report
    assert report.rounds == 5


@pytest.mark.parametrize("flaw", ["acknowledges before the commit", "forgets what finished"])
async def test_kills_at_random_find_a_worker_that(backend: str, postgres: Postgres, seed: int, flaw: Flaw) -> None:
    def control(at: experiments.Place) -> Awaitable[Report]:
        return kill_at_random(at.url, at.directory, rounds=60, seed=at.seed, flaw=flaw)

    report = await found_sooner_or_later(control, backend, postgres, seed)
    assert report.faults, report


async def test_a_business_row_exists_once_after_a_kill_at_any_boundary_of_a_commit(database_url: str) -> None:
    report = await kill_at_boundaries(database_url)
    assert not report.faults, report
    assert report.rounds == 9


async def test_a_kill_before_the_commit_doubles_a_business_row_that_is_apart_from_its_step(database_url: str) -> None:
    report = await kill_at_boundaries(database_url, [(StepCommitting, "charge")], is_flawed=True)
    assert report.faults, report


async def test_a_business_row_exists_once_after_a_kill_between_any_two_lines(database_url: str, seed: int) -> None:
    report = await kill_between_lines(database_url, rounds=5, seed=seed)
    assert not report.faults, report
    assert report.rounds == 5


async def test_a_new_process_finishes_the_run_of_one_that_was_killed(database_url: str) -> None:
    report = await restart_after_kill(database_url)
    assert not report.faults, report


async def test_a_new_process_that_cannot_tell_that_the_owner_is_dead_waits_for_its_lease(database_url: str) -> None:
    report = await restart_after_kill(database_url, is_flawed=True)
    assert report.faults, report


# --- SIGSTOP -----------------------------------------------------------------------------------------------------


async def test_a_worker_that_was_frozen_past_its_lease_writes_nothing_late(database_url: str, seed: int) -> None:
    report = await freeze_past_the_lease(database_url, rounds=3, seed=seed)
    assert not report.faults, report
    assert report.rounds == 3


async def test_a_worker_that_was_frozen_writes_late_if_no_token_is_in_the_where_clause(
    backend: str, postgres: Postgres, seed: int
) -> None:
    def control(at: experiments.Place) -> Awaitable[Report]:
        return freeze_past_the_lease(at.url, rounds=20, seed=at.seed, is_fenced=False)

    report = await found_sooner_or_later(control, backend, postgres, seed)
    assert report.faults, report


# --- storms ------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(database_url: str, tmp_path: Path, seed: int) -> experiments.Place:
    """Where a storm takes place, in a form that takes a few seconds."""
    url = database_url.removeprefix("sqlite:///")
    return experiments.Place(url=url, directory=tmp_path, seed=seed, scale=0.05, patience=_PATIENCE)


@pytest.fixture
def postgres_place(postgres_url: str, tmp_path: Path, seed: int) -> experiments.Place:
    return experiments.Place(url=postgres_url, directory=tmp_path, seed=seed, scale=0.1, patience=_PATIENCE, away=0.5)


async def test_work_goes_on_while_workers_are_killed(place: experiments.Place) -> None:
    report = await experiments.killed_workers(place)
    assert not report.faults, report
    assert report.acknowledged
    assert report.rounds == 1


async def test_a_worker_that_forgets_what_finished_is_found_among_killed_workers(postgres: Postgres, seed: int) -> None:
    control = experiments.killed_workers_control
    report = await found_sooner_or_later(control, "postgres", postgres, seed, kind="doubled")
    assert report.counts()["doubled"], report


async def test_work_goes_on_while_workers_are_frozen_past_their_leases(postgres_place: experiments.Place) -> None:
    report = await experiments.frozen_workers(postgres_place)
    assert not report.faults, report


async def test_work_goes_on_while_customers_give_up_calls_that_are_under_way(place: experiments.Place) -> None:
    report = await experiments.impatient_customers(replace(place, scale=0.1))
    assert not report.faults, report
    assert report.rounds


async def test_what_a_call_did_that_was_given_up_is_found_if_the_customer_takes_it_for_nothing(
    postgres: Postgres, seed: int
) -> None:
    report = await found_sooner_or_later(experiments.impatient_customers_control, "postgres", postgres, seed)
    assert report.faults, report


async def test_work_goes_on_while_sessions_are_ended(postgres_place: experiments.Place) -> None:
    report = await experiments.ended_sessions(postgres_place)
    assert not report.faults, report
    assert report.acknowledged


async def test_work_goes_on_when_the_server_crashes(postgres_place: experiments.Place) -> None:
    report = await experiments.crashed_server(postgres_place)
    assert not report.faults, report
    assert report.acknowledged


async def test_work_goes_on_after_a_failover(postgres_place: experiments.Place) -> None:
    report = await experiments.failed_over(postgres_place)
    assert not report.faults, report
    assert report.acknowledged


async def test_commits_that_a_late_standby_has_not_received_are_missed(postgres: Postgres, seed: int) -> None:
    control = partial(experiments.failed_over, is_flawed=True)
    report = await found_sooner_or_later(control, "postgres", postgres, seed, kind="lost")
    assert report.counts()["lost"], report


async def test_work_goes_on_over_a_network_that_cuts_stalls_and_delivers_late(
    postgres_place: experiments.Place,
) -> None:
    report = await experiments.bad_network(replace(postgres_place, scale=0.06))
    assert not report.faults, report
    assert report.acknowledged
    assert report.rounds


# --- many workers ------------------------------------------------------------------------------------------------


async def test_of_eight_workers_one_owns_a_run_and_executes_it_once(database_url: str, tmp_path: Path) -> None:
    report = await race_for_runs(database_url, tmp_path, runs=60)
    assert not report.faults, report


async def test_workers_that_look_and_claim_in_two_transactions_own_runs_together(
    backend: str, postgres: Postgres, seed: int
) -> None:
    def control(at: experiments.Place) -> Awaitable[Report]:
        return race_for_runs(at.url, at.directory, runs=30, flaw="looks and claims in two transactions")

    report = await found_sooner_or_later(control, backend, postgres, seed)
    assert report.faults, report


async def test_a_claim_keeps_to_its_limit_when_the_planner_has_nothing_but_nested_loops(
    postgres_url: str, tmp_path: Path
) -> None:
    await force_nested_loops(postgres_url)
    report = await race_for_runs(postgres_url, tmp_path, runs=40)
    assert not report.faults, report


async def test_a_claim_by_a_plain_subquery_does_not_keep_to_its_limit_in_nested_loops(
    postgres: Postgres, seed: int
) -> None:
    report = await found_sooner_or_later(experiments.nested_loops_control, "postgres", postgres, seed)
    assert report.faults, report


# --- cancellation ------------------------------------------------------------------------------------------------


async def test_a_call_cancelled_at_any_await_leaves_nothing_behind_and_can_be_recovered(
    database_url: str, seed: int
) -> None:
    report = await cancel_at_random(database_url, rounds=20, seed=seed)
    assert not report.faults, report
    assert report.figures["cancelled twice"]


async def test_what_a_handler_leaves_behind_when_it_is_cancelled_is_noticed(
    backend: str, postgres: Postgres, seed: int
) -> None:
    def control(at: experiments.Place) -> Awaitable[Report]:
        return cancel_at_random(at.url, rounds=20, seed=at.seed, is_flawed=True)

    report = await found_sooner_or_later(control, backend, postgres, seed)
    assert report.faults, report


async def test_a_sqlite_call_cancelled_twice_while_it_waits_for_the_file_leaves_neither_task_nor_lock(
    sqlite_url: str,
) -> None:
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        async with StateStore.open(sqlite_url) as store:
            before = asyncio.all_tasks()
            other.execute("BEGIN IMMEDIATE")
            save = asyncio.create_task(store.save_workflow_state(WorkflowState(workflow_id="w", workflow_name="w")))
            await asyncio.sleep(0.2)  # it waits for the lock by now
            for _ in range(2):
                save.cancel()
                await asyncio.sleep(0)
            await asyncio.wait({save})
            other.execute("ROLLBACK")
            assert await comes_true(lambda: asyncio.all_tasks() == before)
            other.execute("BEGIN IMMEDIATE")
