"""What a hook is told of one attempt at a run. Where nobody listens there is none of this."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from orchestrator_state import hooks
from orchestrator_state.domain import StepStatus
from orchestrator_state.failures import type_of
from orchestrator_state.records import ClaimedRun, OpenStep, UsageRecord, dollars_of

_T = TypeVar("_T")
_Args = ParamSpec("_Args")


@dataclass(slots=True)
class _Call:
    """Of a step's function, until its commit."""

    attempt: int
    began_at: float | None = field(default_factory=time.monotonic)
    error_type: str | None = None

    @property
    def duration(self) -> float | None:
        return None if self.began_at is None else time.monotonic() - self.began_at


class Telling:
    """Tells it, and remembers when each step's function was called."""

    def __init__(self, hook: hooks.Hook, run: ClaimedRun) -> None:
        self._hook = hook
        self._about: dict[str, Any] = {"workflow_state_id": run.id, "name": run.name, "token": run.lease.token}
        self._of_run = {"workflow_id": run.workflow_id, "started_at": run.started_at, "parent_id": run.parent_id}
        self._attempts = run.attempts
        self._began_at = time.monotonic()
        self._calls: dict[str, _Call] = {}

    @classmethod
    def of(cls, hook: hooks.Hook | None, run: ClaimedRun) -> Telling | None:
        return None if hook is None else cls(hook, run)

    def _tell(self, kind: Callable[..., hooks.Event], **fields: Any) -> None:
        hooks.tell(self._hook, kind, **self._about, **fields)

    # --- the run -------------------------------------------------------------------------------------------------

    async def run_started(self, call: Callable[_Args, Awaitable[_T]], *args: _Args.args, **options: _Args.kwargs) -> _T:
        """Tell that the handler is about to be called, and await what calls it."""
        about = self._about | self._of_run | {"attempts": self._attempts}
        hooks.tell(self._hook, hooks.RunStarted, **about)
        with hooks.around(self._hook, hooks.RunStarted(**about)):
            return await call(*args, **options)

    def run_ended(self, outcome: str, error_type: str | None) -> None:
        duration = time.monotonic() - self._began_at
        self._tell(hooks.RunEnded, outcome=outcome, error_type=error_type, duration=duration, **self._of_run)

    def steps_unused(self, step_ids: tuple[str, ...]) -> None:
        self._tell(hooks.StepsUnused, step_ids=step_ids)

    # --- its steps -----------------------------------------------------------------------------------------------

    async def step_started(
        self,
        step_id: str,
        attempt: int,
        call: Callable[_Args, Awaitable[_T]],
        *args: _Args.args,
        **options: _Args.kwargs,
    ) -> _T:
        """Tell that the step's function is about to be called, and await what calls it."""
        self._calls[step_id] = _Call(attempt)
        about = self._about | {"step_id": step_id, "attempt": attempt}
        hooks.tell(self._hook, hooks.StepStarted, **about)
        with hooks.around(self._hook, hooks.StepStarted(**about)):
            return await call(*args, **options)

    def step_failed(self, step_id: str, error: BaseException, *, will_retry: bool) -> None:
        call = self._calls.setdefault(step_id, _Call(1, began_at=None))
        call.error_type = name = type_of(error)
        about = {"step_id": step_id, "error_type": name, "attempt": call.attempt, "duration": call.duration}
        self._tell(hooks.StepFailed, will_retry=will_retry, **about)

    def committing(self, step: OpenStep) -> None:
        self._tell(hooks.StepCommitting, step_id=step.step_id)

    def committed(self, step: OpenStep) -> None:
        is_intent = step.status == StepStatus.RUNNING
        call = None if is_intent else self._calls.pop(step.step_id, None)
        call = call or _Call(1, began_at=None)
        error_type = call.error_type if step.status == StepStatus.FAILED else None
        about = {"step_id": step.step_id, "outcome": step.status, "error_type": error_type}
        self._tell(hooks.StepCommitted, attempt=call.attempt, duration=call.duration, **about)

    def used(self, usage: Iterable[UsageRecord]) -> None:
        for each in usage:
            about = {name: value for name, value in each._asdict().items() if name != "id"}
            self._tell(hooks.UsageRecorded, **about | {"cost": dollars_of(each.cost)})

    def reused(self, step_id: str) -> None:
        self._tell(hooks.StepReused, step_id=step_id)
