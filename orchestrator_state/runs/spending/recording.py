"""What the functions of a run's steps record of what they use, until it is committed with the step.

A record is in memory until a commit that holds it is durable. That of a call which gave the step's result counts; what
was recorded by one that did not, because it failed or was cancelled, was paid for all the same, and goes with the next
commit as failed. Ids are made here: a record that may be on its way already can be sent again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from typing import Final
from uuid import UUID, uuid4

from orchestrator_state import hooks
from orchestrator_state.domain import StepStatus
from orchestrator_state.errors import ConfigurationError
from orchestrator_state.records import OpenStep, UsageRecord


class FunctionCall:
    """A call of a step's function."""

    __slots__ = ("is_closed", "spending", "step_id")

    def __init__(self, spending: Spending, step_id: str) -> None:
        self.spending = spending
        self.step_id = step_id
        self.is_closed = False


CALL: Final[ContextVar[FunctionCall | None]] = ContextVar("orchestrator_state_function_call", default=None)
"""The call of a step's function that is under way here."""


class Spending:
    """What one attempt at a run has used, and no commit holds yet. Functions of steps record it, in any thread."""

    def __init__(self, run_id: UUID) -> None:
        self._run_id = run_id
        self._lock = threading.Lock()
        self._calls: dict[str, list[FunctionCall]] = {}
        """Of the steps under way, in the order in which their functions were called."""
        self.cost = self.tokens = 0
        """What the run has spent in all, for its budget: in billionths of a dollar, and in tokens."""
        self._uncommitted: dict[UUID, tuple[FunctionCall, UsageRecord]] = {}

    def begin(self, step_id: str) -> FunctionCall:
        """The function of a step is about to be called, perhaps again."""
        call = FunctionCall(self, step_id)
        self._calls.setdefault(step_id, []).append(call)
        return call

    def record(
        self, *, model: str, provider: str | None, input_tokens: int, output_tokens: int, cost: int | None
    ) -> None:
        """Raises `ConfigurationError` unless the function of one of the run's steps calls."""
        call = CALL.get()
        if call is None or call.spending is not self:
            raise ConfigurationError(
                "run.record_usage is for the function of a step, with which it commits: call the model in a run.step, "
                "and record there what it has used"
            )
        record = UsageRecord(uuid4(), call.step_id, model, provider, input_tokens, output_tokens, cost, failed=False)
        with self._lock:
            if not call.is_closed:
                self._uncommitted[record.id] = call, record
                self.cost += cost or 0
                self.tokens += input_tokens + output_tokens
                return
        message = f"usage of {input_tokens} and {output_tokens} tokens came after the end of step {call.step_id!r}"
        hooks.logger.warning("run %s: %s, and is not recorded", self._run_id, message)
        raise ConfigurationError(f"{message}: a step is to wait for all that its function has begun")

    def with_commit_of(self, step: OpenStep) -> Sequence[UsageRecord]:
        """What the commit of `step` is to hold. If that says what came of the step, no more is recorded of it."""
        if step.status == StepStatus.RUNNING:
            return ()
        with self._lock:
            calls = self._calls.get(step.step_id, ())
            for call in calls:
                call.is_closed = True
            if not self._uncommitted:
                return ()
            last = calls[-1] if calls and step.status != StepStatus.FAILED else None
            return [
                record._replace(failed=call is not last)
                for call, record in self._uncommitted.values()
                if call.is_closed
            ]

    def committed(self, records: Iterable[UsageRecord]) -> None:
        """They are durable."""
        with self._lock:
            for record in records:
                self._uncommitted.pop(record.id, None)

    def end(self, step_id: str) -> None:
        """No function of the step is called any more. What no commit holds is owed to the next one."""
        with self._lock:
            for call in self._calls.pop(step_id, ()):
                call.is_closed = True

    def owed(self) -> Sequence[UsageRecord]:
        """At the end of the attempt: what no commit is known to hold."""
        with self._lock:
            for calls in self._calls.values():
                for call in calls:
                    call.is_closed = True
            return [record._replace(failed=True) for _, record in self._uncommitted.values()]
