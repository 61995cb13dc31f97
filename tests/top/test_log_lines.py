"""Ids are the caller's words: no log line is broken, forged or coloured by them, and no repr shows a payload."""

import logging
from uuid import uuid4

import pytest

from orchestrator_state import Checkpoint, Conflict, Run, StateStore, StepState, WorkflowState, hooks
from orchestrator_state.execution.recovery import RecoveredRun
from orchestrator_state.hooks import Event
from orchestrator_state.payloads import PLAIN
from orchestrator_state.records import OpenStep
from orchestrator_state.settings import Settings

FORGED = "x\r\nERROR forged\x1b[31m\u2028\u202e\x85\x00"
CANARY = "payload-canary-4711"


class _Breaks:
    def on_event(self, event: Event) -> None:
        step_id = getattr(event, "step_id", None)
        if step_id is not None:
            raise LookupError(f"no {step_id}")


async def test_no_id_breaks_or_forges_a_line_of_the_log(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="orchestrator_state")
    name = FORGED.replace("\x00", "")

    async def handler(run: Run) -> None:
        await run.step(name, lambda: 1)

    async with StateStore.open(database_url, hook=_Breaks()) as store:
        await store.run(name, handler, workflow_id=name)
        hooks.logger.warning("run %s of %s", FORGED, name)
        hooks.logger.error(FORGED)
    lines = [logging.Formatter().format(record) for record in caplog.records if record.name == "orchestrator_state"]
    assert len(lines) >= 3
    assert [line for line in lines if not line.isprintable()] == []
    assert lines[-1] == r"x\r\nERROR forged\x1b[31m\u2028\u202e\x85\x00"


async def test_of_a_run_that_failed_no_line_says_that_it_is_left(
    store: StateStore, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(run: Run) -> None:
        raise Conflict("taken")

    with pytest.raises(Conflict):
        await store.run("n", handler)
    assert not [message for message in caplog.messages if "is left to" in message]


def test_what_a_log_says_in_other_languages_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    hooks.logger.warning("Ablauf %s: 100 %% größer, 日本語 🙂", "é")
    assert caplog.messages == ["Ablauf é: 100 % größer, 日本語 🙂"]


def test_no_repr_of_ours_shows_a_payload_or_a_password() -> None:
    state = WorkflowState(workflow_id="w", workflow_name="n", context={"secret": CANARY}, error=CANARY)
    state.steps["load"] = StepState(step_id="load", outputs=[CANARY], error=CANARY)
    checkpoint = Checkpoint(workflow_state_id=state.id, step_id="load", snapshot=state.to_snapshot())
    settings = Settings.load(database_url=f"postgresql://u:{CANARY}@h/db", password=CANARY)
    failed = RecoveredRun(workflow_state_id=uuid4(), workflow_id="w", name="n", outcome="failed", error=OSError(CANARY))
    step = OpenStep("load", 1, "completed", None, None, CANARY, CANARY, 0)
    sealed = step.sealed(PLAIN, uuid4(), "an id")
    for thing in (state, state.steps, checkpoint, settings, failed, step, sealed, [state], {"a": checkpoint}):
        assert CANARY not in f"{thing!r} {thing!s}"
    assert "workflow_id='w'" in repr(state)
    assert "load" in repr(state.steps)
