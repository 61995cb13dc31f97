"""What ends a run from outside: a lost lease, a fault of the database, or somebody who asked for it.

None of that is the run's failure: it is left for whoever comes next, after a fault for a while.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, NoReturn, cast
from uuid import UUID

from orchestrator_state.domain import WorkflowStatus
from orchestrator_state.errors import (
    ConfigurationError,
    ExecutorUnavailable,
    LeaseLost,
    OrchestratorStateError,
    PauseTakenBack,
    RunCancelled,
    RunPaused,
    SchemaMismatch,
    StoreUnavailable,
)
from orchestrator_state.failures import is_a, leaves, message_of
from orchestrator_state.records import UNOPENED_HERE
from orchestrator_state.repositories.runs import CANCEL, PAUSE

_NOT_HERE: Final = (ExecutorUnavailable, SchemaMismatch, *UNOPENED_HERE)
"""Other code, or a store with other keys, or a process with another executor, may well be able to go on with it."""

NOT_THE_RUNS: Final = (StoreUnavailable, *_NOT_HERE)
"""What the handler never sees, if it happens to a call of its run."""

_FIRST_PAUSE: Final = 1.0  # seconds; they double
_FIRST_ELSEWHERE: Final = 2.0
_LONGEST_ELSEWHERE: Final = timedelta(minutes=5)


def stopped_as(status: str, workflow_state_id: UUID) -> OrchestratorStateError:
    """What a caller is told about a run that was let go and has this status now."""
    about = {"workflow_state_id": workflow_state_id}
    if status == WorkflowStatus.CANCELLED:
        return RunCancelled(f"run {workflow_state_id} was cancelled", **about)
    if status == WorkflowStatus.PAUSED:
        return RunPaused(f"run {workflow_state_id} was paused; `store.resume` continues it", **about)
    return PauseTakenBack(f"run {workflow_state_id} was paused and resumed; a worker continues it", **about)


class StopSwitch:
    """Stops the handler by cancelling its task; `reason` says why, and what the caller of the run is told."""

    def __init__(self, workflow_state_id: UUID) -> None:
        self._workflow_state_id = workflow_state_id
        self._handler: asyncio.Task[Any] | None = None
        self._request: str | None = None
        self._ended = False
        self._is_left = False
        self.reason: OrchestratorStateError | None = None
        self.is_quiet = True
        """Whether there is nothing to `check` or to `obey`; asked first, in each step."""

    def watch(self, handler: asyncio.Task[Any]) -> None:
        self._handler = handler

    def stop(self, reason: OrchestratorStateError) -> NoReturn:
        """End the run from inside one of its calls."""
        self.trip(reason)
        raise asyncio.CancelledError(message_of(reason))

    @contextmanager
    def on_fault(self) -> Iterator[None]:
        """Let what is not the handler's business end the run, instead of being raised in the handler.

        For calls of the run's own, and never for a function that the handler gave it to call.
        """
        try:
            yield
        except (LeaseLost, *NOT_THE_RUNS) as error:
            self.stop(error)

    def trip(self, reason: OrchestratorStateError) -> None:
        """End the run from anywhere. The first reason stands."""
        if self.reason is not None:
            return
        self.reason = reason
        self.is_quiet = False
        # A call that runs in the handler's own task raises by itself: a second cancellation would hit its clean-up.
        if self._handler is not None and self._handler is not asyncio.current_task():
            self._handler.cancel(message_of(reason))

    def end(self, *, is_left: bool) -> None:
        """The handler is done, or the run `is_left` in the middle: durable calls of its other tasks are refused."""
        self._ended, self._is_left = True, is_left
        self.is_quiet = False

    @property
    def has_ended(self) -> bool:
        return self._ended

    def notice(self, request: str | None) -> None:
        """Remember a request; the next step acts on it. A cancel is not forgotten for an older answer without it."""
        if self._request != CANCEL:
            self._request = request
            self.is_quiet = request is None and self.reason is None and not self._ended

    def check(self) -> None:
        """Let a call of the run pass, or stop it.

        A branch may outlive the handler that awaits it: what cancels `asyncio.wait` does not cancel its tasks. So where
        the run was stopped, or left, the branch is, too. Only a handler that came to its end has forgotten to await it.
        """
        if self.reason is not None:
            raise asyncio.CancelledError(message_of(self.reason))
        if self._is_left:
            raise asyncio.CancelledError(f"run {self._workflow_state_id} is left to whoever comes next")
        if self._ended:
            raise ConfigurationError(f"run {self._workflow_state_id} has ended; its handler must await all its steps")

    def require_ground(self) -> None:
        """Let a step that waited in line be committed, unless the lease or the database was lost by the one before."""
        if isinstance(self.reason, (LeaseLost, *NOT_THE_RUNS)):
            raise asyncio.CancelledError(message_of(self.reason))

    def obey(self) -> None:
        """Act on a request, between steps."""
        self.check()
        if self._request == CANCEL:
            self.stop(stopped_as(WorkflowStatus.CANCELLED, self._workflow_state_id))
        if self._request == PAUSE:
            self.stop(stopped_as(WorkflowStatus.PAUSED, self._workflow_state_id))


def fault_behind(error: BaseException) -> OrchestratorStateError | None:
    """The fault in what a handler raised, also inside an exception group; None if it is all the handler's own failure.

    It comes of calls that the handler has made to the store: what the calls of its run meet never reaches it.
    """
    found = (leaf for leaf in leaves(error) if is_a(leaf, NOT_THE_RUNS))
    return cast("OrchestratorStateError | None", next(found, None))


def pause_after(error: BaseException, faults: int, lease_term: timedelta) -> timedelta:
    """How long a run is left alone after so many faults in a row: else it would meet the same one again at once.

    After a fault of the database no longer than a lease is good for, as if the worker had vanished.
    """
    elsewhere = is_a(error, _NOT_HERE)
    first, longest = (_FIRST_ELSEWHERE, _LONGEST_ELSEWHERE) if elsewhere else (_FIRST_PAUSE, lease_term)
    seconds = min(first * 2.0 ** min(faults - 1, 30), longest.total_seconds())
    return timedelta(seconds=seconds * random.uniform(0.75, 1))  # noqa: S311 - spreads load, guards nothing
