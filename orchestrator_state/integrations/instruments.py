"""What is measured, by whatever system: the instruments, and what each event says to them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal
from uuid import UUID

from orchestrator_state.hooks import (
    BatchCommitted,
    Event,
    LoginRefused,
    RunEnded,
    RunStarted,
    StepCommitted,
    StepFailed,
    StepReused,
    StoreEvent,
    TransactionRepeated,
    UsageRecorded,
)

WORKFLOW: Final = "workflow"
OUTCOME: Final = "outcome"
ERROR_TYPE: Final = "error_type"
STEP: Final = "step"
MODEL: Final = "model"
TOKEN_TYPE: Final = "token_type"  # noqa: S105 - a kind of token of a model

OTHERS: Final = "(other)"
"""Stands for the names beyond the first `_MOST_NAMES`: else a name made of an id would cost a series for each run."""
_MOST_NAMES: Final = 200
_COUNTED: Final = re.compile(r"#\d+$")  # the second call of "fetch" is "fetch#2"
_MOST_STARTED: Final = 100_000

_SHORT: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instrument:
    """One thing that is measured. `name` has dots, `unit` is as OpenTelemetry writes it."""

    name: str
    kind: Literal["counter", "up_down", "gauge", "histogram"]
    unit: str
    description: str
    labels: Sequence[str] = ()
    buckets: Sequence[float] = ()


RUNS: Final = Instrument(
    name="runs.active", kind="up_down", unit="{run}", description="Runs under way in this process.", labels=(WORKFLOW,)
)
RUN_DURATION: Final = Instrument(
    name="run.duration",
    kind="histogram",
    unit="s",
    description="From the moment that a worker begins to load a run until it is done with it.",
    labels=(WORKFLOW, OUTCOME, ERROR_TYPE),
    buckets=_LONG,
)
TAKEOVERS: Final = Instrument(
    name="run.takeovers",
    kind="counter",
    unit="{run}",
    description="Runs that went on here after workers had vanished over them.",
    labels=(WORKFLOW,),
)
LEASE_LOSSES: Final = Instrument(
    name="lease.losses",
    kind="counter",
    unit="{lease}",
    description="Leases that another worker took from this process.",
    labels=(WORKFLOW,),
)
STEP_DURATION: Final = Instrument(
    name="step.duration",
    kind="histogram",
    unit="s",
    description="From the call of a step's function until its result is committed, or until it failed.",
    labels=(WORKFLOW, OUTCOME, ERROR_TYPE, STEP),
    buckets=_LONG,
)
STEP_COMMITS: Final = Instrument(
    name="step.commits",
    kind="counter",
    unit="{commit}",
    description="Steps that were committed, by what was committed; waits and child runs are steps, too.",
    labels=(WORKFLOW, OUTCOME, STEP),
)
STEPS_REUSED: Final = Instrument(
    name="step.reuses",
    kind="counter",
    unit="{step}",
    description="Steps that were on record when a handler was resumed.",
    labels=(WORKFLOW,),
)
BATCH_SIZE: Final = Instrument(
    name="batch.size",
    kind="histogram",
    unit="{commit}",
    description="Step commits that went to the database together.",
    buckets=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0),
)
BATCH_DURATION: Final = Instrument(
    name="batch.duration",
    kind="histogram",
    unit="s",
    description="How long a batch of step commits took.",
    buckets=_SHORT,
)
BYTES: Final = Instrument(
    name="commit.bytes",
    kind="counter",
    unit="By",
    description="Payloads that step commits wrote, as they are stored in the rows.",
)
QUEUE: Final = Instrument(
    name="commit.queue", kind="gauge", unit="{commit}", description="Step commits that wait for the next batch."
)
REPEATS: Final = Instrument(
    name="transaction.repeats",
    kind="counter",
    unit="{transaction}",
    description="Transactions that the database gave up on and that were sent again.",
    labels=(ERROR_TYPE,),
)
REFUSED_LOGINS: Final = Instrument(
    name="login.refusals",
    kind="counter",
    unit="{login}",
    description="Connections for which Postgres refused the user or the password.",
)
TOKENS: Final = Instrument(
    name="usage.tokens",
    kind="counter",
    unit="{token}",
    description="Tokens that calls of models have used; outcome failed: by calls of steps that gave no result.",
    labels=(WORKFLOW, OUTCOME, MODEL, TOKEN_TYPE),
)
COST: Final = Instrument(
    name="usage.cost",
    kind="counter",
    unit="USD",
    description="US dollars that calls of models have cost, where the price is known.",
    labels=(WORKFLOW, OUTCOME, MODEL),
)

INSTRUMENTS: Final = (
    *(RUNS, RUN_DURATION, TAKEOVERS, LEASE_LOSSES),
    *(STEP_DURATION, STEP_COMMITS, STEPS_REUSED, TOKENS, COST),
    *(BATCH_SIZE, BATCH_DURATION, BYTES, QUEUE, REPEATS, REFUSED_LOGINS),
)

Record = Callable[[Instrument, float, Mapping[str, str]], None]


class Measures:
    """A hook that hands each measurement to `record`, with a value for each label of its instrument.

    The number of series is bounded: workflows, steps and classes of errors have labels of their own until there are too
    many of them. Steps have the label "" unless `by_step`; ids of runs are never labels.
    """

    def __init__(self, record: Record, *, by_step: bool) -> None:
        self._record = record
        self._by_step = by_step
        self._names: dict[str, set[str]] = {WORKFLOW: set(), ERROR_TYPE: set(), STEP: set(), MODEL: set()}
        self._started: set[tuple[UUID, int]] = set()

    def on_event(self, event: Event) -> None:
        """Measure what happened to a run."""
        workflow = self._bounded(WORKFLOW, event.name)
        match event:
            case StepCommitted():
                self._step_committed(event, workflow)
            case StepFailed():
                outcome = "retried" if event.will_retry else "failed"
                self._step_called(event, workflow, outcome)
            case UsageRecorded():
                self._used(event, workflow)
            case StepReused():
                self._record(STEPS_REUSED, 1, {WORKFLOW: workflow})
            case RunStarted():
                self._run_started(event, workflow)
            case RunEnded():
                self._run_ended(event, workflow)
            case _:
                pass

    def on_store_event(self, event: StoreEvent) -> None:
        """Measure what happened to the store."""
        match event:
            case BatchCommitted():
                self._record(BATCH_SIZE, event.commits, {})
                self._record(BATCH_DURATION, event.duration, {})
                self._record(BYTES, event.size, {})
                self._record(QUEUE, event.queued, {})
            case TransactionRepeated():
                self._record(REPEATS, 1, {ERROR_TYPE: self._bounded(ERROR_TYPE, event.error_type)})
            case LoginRefused():
                self._record(REFUSED_LOGINS, 1, {})
            case _:
                pass

    def _run_started(self, event: RunStarted, workflow: str) -> None:
        if len(self._started) < _MOST_STARTED:
            self._started.add((event.workflow_state_id, event.token))
            self._record(RUNS, 1, {WORKFLOW: workflow})
        if event.attempts:
            self._record(TAKEOVERS, 1, {WORKFLOW: workflow})

    def _run_ended(self, event: RunEnded, workflow: str) -> None:
        attempt = event.workflow_state_id, event.token
        if attempt in self._started:
            self._started.remove(attempt)
            self._record(RUNS, -1, {WORKFLOW: workflow})
        error_type = self._bounded(ERROR_TYPE, event.error_type or "")
        labels = {WORKFLOW: workflow, OUTCOME: event.outcome, ERROR_TYPE: error_type}
        self._record(RUN_DURATION, event.duration, labels)
        if event.outcome == "lost":
            self._record(LEASE_LOSSES, 1, {WORKFLOW: workflow})

    def _step_committed(self, event: StepCommitted, workflow: str) -> None:
        labels = {WORKFLOW: workflow, OUTCOME: event.outcome, STEP: self._step(event.step_id)}
        self._record(STEP_COMMITS, 1, labels)
        if event.outcome != "failed":  # of which `StepFailed` has told
            self._step_called(event, workflow, event.outcome)

    def _used(self, event: UsageRecorded, workflow: str) -> None:
        outcome = "failed" if event.failed else "completed"
        labels = {WORKFLOW: workflow, OUTCOME: outcome, MODEL: self._bounded(MODEL, event.model)}
        self._record(TOKENS, event.input_tokens, labels | {TOKEN_TYPE: "input"})
        self._record(TOKENS, event.output_tokens, labels | {TOKEN_TYPE: "output"})
        if event.cost is not None:
            self._record(COST, float(event.cost), labels)

    def _step_called(self, event: StepCommitted | StepFailed, workflow: str, outcome: str) -> None:
        if event.duration is not None:
            error_type = self._bounded(ERROR_TYPE, event.error_type or "")
            labels = {WORKFLOW: workflow, OUTCOME: outcome, ERROR_TYPE: error_type, STEP: self._step(event.step_id)}
            self._record(STEP_DURATION, event.duration, labels)

    def _step(self, step_id: str) -> str:
        return self._bounded(STEP, _COUNTED.sub("", step_id)) if self._by_step else ""

    def _bounded(self, label: str, value: str) -> str:
        known = self._names[label]
        if value in known:
            return value
        if len(known) >= _MOST_NAMES:
            return OTHERS
        known.add(value)
        return value
