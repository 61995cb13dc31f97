"""The switch that ends a run from outside: the lease is lost, or somebody asked for a pause or a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from uuid import UUID

from orchestrator_state.domain import WorkflowStatus
from orchestrator_state.errors import (
    ConfigurationError,
    LeaseLost,
    OrchestratorStateError,
    PauseTakenBack,
    RunCancelled,
    RunPaused,
)
from orchestrator_state.failures import message_of
from orchestrator_state.repositories.runs import CANCEL, PAUSE
from orchestrator_state.runs.faults import NOT_THE_RUNS


def stopped_as(status: str, workflow_state_id: UUID) -> OrchestratorStateError:
    """What the caller of a run is told that was let go, and has this status now."""
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

    def watch(self, handler: asyncio.Task[Any]) -> None:
        self._handler = handler

    def stop(self, reason: OrchestratorStateError) -> NoReturn:
        """End the run from inside one of its calls."""
        self.trip(reason)
        raise asyncio.CancelledError(message_of(reason))

    @contextmanager
    def on_fault(self) -> Iterator[None]:
        """End the run by what is none of the handler's business, which must not see it as an exception.

        Around calls of the run's own, and never around what the handler gave it to call.
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
        # A call that runs in the handler's own task raises by itself: a second cancellation would hit its clean-up.
        if self._handler is not None and self._handler is not asyncio.current_task():
            self._handler.cancel(message_of(reason))

    def end(self, *, is_left: bool) -> None:
        """The handler is done, or the run `is_left` in the middle: calls of tasks that outlive it are not let pass."""
        self._ended, self._is_left = True, is_left

    def notice(self, request: str | None) -> None:
        """Remember a request; the next step acts on it. A cancel is not forgotten for an older answer without it."""
        if self._request != CANCEL:
            self._request = request

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
        """Let a step in line be committed, unless the run has lost its lease, or its database, to the one before it."""
        if isinstance(self.reason, (LeaseLost, *NOT_THE_RUNS)):
            raise asyncio.CancelledError(message_of(self.reason))

    def obey(self) -> None:
        """Act on a request, between steps."""
        self.check()
        if self._request == CANCEL:
            self.stop(stopped_as(WorkflowStatus.CANCELLED, self._workflow_state_id))
        if self._request == PAUSE:
            self.stop(stopped_as(WorkflowStatus.PAUSED, self._workflow_state_id))
