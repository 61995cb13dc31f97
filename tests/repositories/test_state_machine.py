"""Any sequence of calls, with crashes, lost answers and refusals among them, does what a simple model says."""

import pytest

from tests.chaos.experiments import any_sequence_of_calls_control, found_sooner_or_later
from tests.chaos.state_machine import compare_with_model
from tests.support.chance import tries
from tests.support.postgres_server import Postgres

pytestmark = pytest.mark.process


@pytest.mark.timeout(600)
def test_any_sequence_of_calls_does_what_the_model_says(database_url: str, seed: int) -> None:
    rounds = 0
    for another in tries(seed):
        report = compare_with_model(database_url, examples=12, seed=another)
        assert not report.faults, report
        rounds = report.rounds
        if rounds:  # else none of its sequences has a crash, a refusal or a lost answer in it
            break
    assert rounds


@pytest.mark.timeout(600)
async def test_the_model_finds_a_store_that_drops_cancels(backend: str, postgres: Postgres, seed: int) -> None:
    report = await found_sooner_or_later(any_sequence_of_calls_control, backend, postgres, seed)
    assert report.faults, report
