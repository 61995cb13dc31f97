"""What a fork, a rewind and the mending of a run need: states and checkpoints at the schema version of their time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final
from uuid import UUID

from orchestrator_state.arguments import as_uuid
from orchestrator_state.concurrency import LONG
from orchestrator_state.domain import Checkpoint, WorkflowState
from orchestrator_state.models import CheckpointRow
from orchestrator_state.records.states import state_columns
from orchestrator_state.repositories.checkpoints import CHECKPOINT_BY_ID, CHECKPOINTS_OF, CheckpointReader
from orchestrator_state.repositories.states.loading import STATE_BY_ID
from orchestrator_state.repositories.states.saving import StateWriter

_CHECKPOINT_OWNER: Final = CHECKPOINT_BY_ID.with_only_columns(CheckpointRow.workflow_state_id)
_CHECKPOINT_IDS_OF: Final = CHECKPOINTS_OF.with_only_columns(CheckpointRow.id)
_WHOLE_CHECKPOINT_IDS_OF: Final = _CHECKPOINT_IDS_OF.where(CheckpointRow.position.is_(None))


class PastRepository(CheckpointReader, StateWriter):
    """States and checkpoints as of a schema version of the past."""

    async def save_state(self, state: WorkflowState, version: int | None) -> None:
        """Like `WorkflowRepository.save`, for a state of that version that is nobody else's: a load upcasts it."""
        columns = await self._payloads.aside.call(partial(state_columns, state, self._payloads), LONG)
        await self._save(state, version, *columns)

    async def get_state(self, workflow_state_id: UUID) -> WorkflowState:
        """A state at the version that it was stored at. Raises `WorkflowNotFound`."""
        state = await self._stored_state(STATE_BY_ID, id=workflow_state_id)
        if state is None:
            raise self._workflow_not_found(workflow_state_id)
        return state

    async def get_checkpoint(self, checkpoint_id: UUID | str, version: int) -> Checkpoint:
        """A checkpoint, its snapshot at that version: the one of the row beside which it is needed.

        Raises `CheckpointNotFound`.
        """
        found = await self._checkpoints(CHECKPOINT_BY_ID, {"id": as_uuid(checkpoint_id, "checkpoint_id")}, version)
        if not found:
            raise self._not_found(checkpoint_id)
        return found[0]

    async def get_owner(self, checkpoint_id: UUID | str) -> UUID:
        """The id of the workflow that a checkpoint is of. Raises `CheckpointNotFound`."""
        parameters = {"id": as_uuid(checkpoint_id, "checkpoint_id"), "namespace": self._namespace}
        row = await self._row(_CHECKPOINT_OWNER, parameters)
        if row is None:
            raise self._not_found(checkpoint_id)
        owner: UUID = row.workflow_state_id
        return owner

    async def list_checkpoint_ids(self, workflow_state_id: UUID, *, whole: bool = False) -> Sequence[UUID]:
        """Newest first; `whole`: of those that hold copies of steps. A damaged one must not hide the others."""
        statement = _WHOLE_CHECKPOINT_IDS_OF if whole else _CHECKPOINT_IDS_OF
        parameters = {"workflow_state_id": workflow_state_id, "namespace": self._namespace}
        return [row.id for row in await self._rows(statement, parameters)]
