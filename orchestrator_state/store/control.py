"""What is asked of runs from outside."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from orchestrator_state.arguments import as_uuid
from orchestrator_state.domain import WorkflowState
from orchestrator_state.store.base import StoreCalls


class ControlCalls(StoreCalls):
    """Signal runs, stop them, let them go on, and take them back."""

    async def signal(
        self, workflow_state_id: UUID | str, name: str, payload: Any = None, *, once: bool = False
    ) -> None:
        """Send a signal to an unfinished run, which consumes it with `run.wait_for`: first in, first out.

        `payload` is any JSON value. With `once` it is accepted only if the run was sent no other of that name, whether
        that is still unread or a finished step has it; else `AlreadyExists` is raised, and nothing changes. Of several
        such calls at the same time one is accepted. A payload that the run's `returns` has refused does not count.

        Raises `WorkflowNotFound`, `InvalidTransition` if the run is finished, or `InvalidPayload` and `PayloadTooLarge`
        for what cannot be stored.
        """
        await self._control.signal(workflow_state_id, name, payload, once=once)
        self._executor.look_now()

    async def pause(self, workflow_state_id: UUID | str) -> None:
        """Pause a run: at once if nobody owns it, else at its owner's next step.

        Raises `WorkflowNotFound`, or `InvalidTransition` if the run is finished.
        """
        await self._control.pause(workflow_state_id)
        self._executor.look_now()

    async def resume(self, workflow_state_id: UUID | str) -> None:
        """Let a paused or failed run go on, with a new budget of attempts; `recover` or a `Worker` picks it up.

        Raises `WorkflowNotFound`, or `InvalidTransition` if the run is completed or cancelled.
        """
        await self._control.resume(workflow_state_id)
        self._executor.look_now()

    async def cancel(self, workflow_state_id: UUID | str, *, force: bool = False) -> None:
        """Cancel a run and its child runs: at once if nobody owns them, else at their owner's next step.

        With `force` also those that somebody owns are cancelled when this returns: their leases are taken away, so that
        a step that hangs has lost its right to write. A handler that runs in this store is cancelled at once, that of
        another process at its next write or heartbeat, a third of `lease_term` from now at the latest. What hangs
        without awaiting anything, a thread say, goes on until it returns, and then nothing of it is recorded.

        Raises `WorkflowNotFound`, or `InvalidTransition` if the run is completed or failed.
        """
        await self._control.cancel(workflow_state_id, force=force)
        self._executor.tell_of_end(as_uuid(workflow_state_id, "workflow_state_id"))

    async def fork(self, checkpoint_id: UUID | str, *, workflow_id: str | None = None) -> WorkflowState:
        """Create a new, pending workflow that starts from that checkpoint, and remembers where it came from.

        With a `workflow_id` it is made once: the same call returns the fork that is there, as it is by now. Raises
        `CheckpointNotFound`, or `InvalidPayload` if the snapshot is not a state of its workflow.
        """
        return await self._control.fork(checkpoint_id, workflow_id)

    async def rewind(self, checkpoint_id: UUID | str) -> WorkflowState:
        """Put a run back to that checkpoint, and return its state: later steps and checkpoints are forgotten.

        So are the questions of those steps, with their answers.

        Raises `CheckpointNotFound`, `LeaseHeld` if a worker has the run, or `InvalidPayload` as in `fork`.
        """
        return await self._control.rewind(checkpoint_id)
