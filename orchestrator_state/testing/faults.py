"""What goes wrong in a test, at the step where the test wants it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, NoReturn
from uuid import UUID

from orchestrator_state.arguments import as_configured_name, as_positive
from orchestrator_state.database import DatabaseClock, elapsed
from orchestrator_state.domain import StepStatus
from orchestrator_state.errors import ConfigurationError, LeaseLost
from orchestrator_state.records import Lease, OpenStep

_Moment = Literal["before", "before commit", "after", "answer"]

_answer_is_lost: Final[ContextVar[bool]] = ContextVar("orchestrator_state_answer_is_lost", default=False)


class Crashed(LeaseLost):
    """The run was stopped where a test wanted it, as if its process had been killed there."""


class FaultNotMet(AssertionError):
    """A block ended, and no run came to the step at which it was to go wrong."""


@dataclass(slots=True, eq=False)
class _Plan:
    moment: _Moment
    step_id: str
    times: int
    error: Exception | None = None
    met: int = 0

    def meets(self, moment: _Moment, step_id: str) -> bool:
        if (moment, step_id) != (self.moment, self.step_id) or self.met == self.times:
            return False
        self.met += 1
        return True


@dataclass(slots=True)
class Faults:
    """Lets a run crash, an answer get lost, or a step fail, within a `with` block.

    A crash ends the attempt there, as if its process had been killed: nothing more is written, and the run is taken
    over as a dead worker's is, by the `worker`, by `store.recover` or by another `store.run`, without a wait. Other
    runs go on. `store.run` raises `Crashed`.

    A `step_id` is what the step is recorded by: the second `"charge"` of one run is `"charge#2"`. A block in which the
    fault was not met raises `FaultNotMet`, so that no test passes because of a misspelt step.
    """

    _plans: list[_Plan] = field(default_factory=list)
    _calls: Counter[str] = field(default_factory=Counter)
    _crashed: dict[UUID, Lease] = field(default_factory=dict)

    @contextmanager
    def crash_before(self, step_id: str, *, times: int = 1) -> Iterator[None]:
        """Crash when the step's function is about to be called; it is not called.

        With `on_unknown` the intent to call it is recorded by then.
        """
        with self._planned(_Plan("before", step_id, times)):
            yield

    @contextmanager
    def crash_before_commit(self, step_id: str, *, times: int = 1) -> Iterator[None]:
        """Crash when the step is done, and not recorded yet: its function has returned.

        What it did elsewhere has happened, and will happen again. What a `transact` wrote is rolled back.
        """
        with self._planned(_Plan("before commit", step_id, times)):
            yield

    @contextmanager
    def crash_after(self, step_id: str, *, times: int = 1) -> Iterator[None]:
        """Crash when the step is recorded, before the handler has its result. The step is not called again."""
        with self._planned(_Plan("after", step_id, times)):
            yield

    @contextmanager
    def lose_answer_of(self, step_id: str, *, times: int = 1) -> Iterator[None]:
        """Let the step's commit take effect, and its answer be lost, as when the connection breaks at that moment."""
        with self._planned(_Plan("answer", step_id, times)):
            yield

    @contextmanager
    def fail_step(self, step_id: str, error: Exception, *, times: int = 1) -> Iterator[None]:
        """Let a call of the step raise `error`, instead of calling its function; `times` times, also within a retry."""
        if not isinstance(error, Exception):
            raise ConfigurationError(f"error is a {type(error).__name__}; give an instance of an Exception")
        with self._planned(_Plan("before", step_id, times, error)):
            yield

    def calls(self, step_id: str) -> int:
        """How often the function of the step was called in this test, over all runs and attempts."""
        return self._calls[step_id]

    @contextmanager
    def _planned(self, plan: _Plan) -> Iterator[None]:
        as_configured_name(plan.step_id, "step_id")
        as_positive(plan.times, "times")
        self._plans.append(plan)
        try:
            yield
        finally:
            self._plans.remove(plan)
        if plan.met == 0:
            raise FaultNotMet(f"no run came to step {plan.step_id!r} in this block; {self._seen()}")

    def _seen(self) -> str:
        called = ", ".join(map(repr, sorted(self._calls)))
        return f"the functions of these steps were called: {called}" if called else "the function of no step was called"

    # --- as the runs see it --------------------------------------------------------------------------------------

    def clock(self, database_now: datetime, asked_at: float) -> DatabaseClock:
        """See `orchestrator_state.runs.Faults`."""
        return _PunctualClock(database_now, asked_at)

    def before_call(self, lease: Lease, step_id: str) -> Exception | None:
        """See `orchestrator_state.runs.Faults`."""
        if plan := self._met("before", step_id):
            if plan.error is None:
                self._crash(lease, step_id)
            return plan.error
        self._calls[step_id] += 1
        return None

    def before_commit(self, lease: Lease, step: OpenStep) -> None:
        """See `orchestrator_state.runs.Faults`."""
        if step.status != StepStatus.RUNNING:  # a step that only begins, as a wait does, is not done
            if self._met("before commit", step.step_id):
                self._crash(lease, step.step_id)
            if self._met("answer", step.step_id):
                _answer_is_lost.set(True)

    def after_commit(self, lease: Lease, step: OpenStep) -> None:
        """See `orchestrator_state.runs.Faults`."""
        if step.status != StepStatus.RUNNING and self._met("after", step.step_id):
            self._crash(lease, step.step_id)

    def _met(self, moment: _Moment, step_id: str) -> _Plan | None:
        return next((plan for plan in self._plans if plan.meets(moment, step_id)), None)

    def _crash(self, lease: Lease, step_id: str) -> NoReturn:
        self._crashed[lease.workflow_state_id] = copy.copy(lease)
        raise Crashed(
            f"the test let run {lease.workflow_state_id} crash at step {step_id!r}",
            workflow_state_id=lease.workflow_state_id,
        )

    def take_crashed(self, is_under_way: Callable[[UUID], bool]) -> list[Lease]:
        """The leases of runs that have crashed since the last time; not of one whose handler is still being stopped."""
        leases = [lease for lease in self._crashed.values() if not is_under_way(lease.workflow_state_id)]
        for lease in leases:
            del self._crashed[lease.workflow_state_id]
        return leases


class _PunctualClock(DatabaseClock):
    """Its deadlines come by the clock of the database, not later by as long as an answer of that may have taken.

    Else a run that sleeps for a day would not be due when a test has moved the clock by just that.
    """

    def set(self, database_now: datetime, asked_at: float) -> None:
        super().set(database_now, elapsed())


def is_answer_lost() -> bool:
    """Whether the answer of the commit that this task has just sent is to be lost. Once."""
    is_lost = _answer_is_lost.get()
    _answer_is_lost.set(False)
    return is_lost
