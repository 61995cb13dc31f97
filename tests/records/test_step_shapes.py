"""The shapes of a step: one list of columns, which the table's is."""

from datetime import UTC, datetime
from uuid import uuid4

from orchestrator_state.models import step_states
from orchestrator_state.payloads import PLAIN
from orchestrator_state.records import Opener, OpenStep, SealedStep

STEP = OpenStep(
    step_id="load",
    position=3,
    status="failed",
    started_at=datetime(2026, 1, 1, tzinfo=UTC),
    completed_at=datetime(2026, 1, 2, tzinfo=UTC),
    outputs='{"rows":3}',
    error="it broke",
    retry_count=2,
    context_patch='{"set":{},"append":{},"drop":[]}',
    schema_version=4,
)


def test_a_sealed_step_has_the_columns_of_its_table() -> None:
    assert SealedStep._fields == tuple(step_states.columns.keys())


def test_an_open_step_has_all_of_them_but_whose_it_is_and_the_digests() -> None:
    digests = {name for name in SealedStep._fields if name.endswith("_digest")}
    assert {*OpenStep._fields} == {*SealedStep._fields} - digests - {"workflow_state_id"}


def test_what_was_sealed_opens_as_it_was() -> None:
    run = uuid4()
    sealed = STEP.sealed(PLAIN, run, str(run))
    assert OpenStep.of(sealed, Opener(PLAIN, run, outdated=False)) == STEP


def test_what_older_software_left_null_is_filled_in() -> None:
    run = uuid4()
    sealed = STEP.sealed(PLAIN, run, str(run))._replace(outputs=None, outputs_digest=None, retry_count=None)
    opened = OpenStep.of(sealed, Opener(PLAIN, run, outdated=False))
    assert (opened.outputs, opened.retry_count) == ("null", 0)
