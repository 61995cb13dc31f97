"""The first of the three repositories: workflows with their steps."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import bindparam, select

from orchestrator_state import hooks
from orchestrator_state.arguments import as_instance, as_listener, as_name, as_uuid, as_uuids
from orchestrator_state.domain import WorkflowState
from orchestrator_state.errors import PayloadError, SchemaMismatch, WorkflowNotFound
from orchestrator_state.models import WorkflowRow
from orchestrator_state.records.states import check_state, state_columns, upcast_state
from orchestrator_state.repositories.base import chunks
from orchestrator_state.repositories.claimable import LEASE_IS_FREE
from orchestrator_state.repositories.expressions import IN_NAMESPACE
from orchestrator_state.repositories.states.loading import (
    ACTIVE_STATES,
    DAMAGED_BY_WORKFLOW_ID,
    STATE_BY_ID,
    STATE_BY_WORKFLOW_ID,
    OnDamaged,
)
from orchestrator_state.repositories.states.saving import StateWriter, lease_held
from orchestrator_state.repositories.upkeep.retention import RetentionRepository

_LOCKED_LEASES_OF: Final = (
    select(
        WorkflowRow.id,
        WorkflowRow.parent_id,
        WorkflowRow.lease_owner,
        WorkflowRow.lease_process,
        WorkflowRow.lease_expires_at,
        LEASE_IS_FREE.label("lease_is_free"),
    )
    .where(WorkflowRow.id.in_(bindparam("ids", expanding=True)), IN_NAMESPACE)
    .order_by(WorkflowRow.id)
    .with_for_update()
)
"""Locks the rows of `ids` that are in the namespace."""


class WorkflowRepository(StateWriter):
    """Workflows with their steps."""

    async def save(self, state: WorkflowState) -> None:
        """Insert a new state (`version` 0), or update the rows that changed since it was loaded or saved.

        Afterwards the database equals the state: steps that it no longer has are removed. `state.version` grows by
        one if anything was written, and goes back if the transaction does. `updated_at` becomes now, by the database's
        clock, unless the caller moved it.

        Raises `InvalidPayload` before any SQL; `StaleVersion` if the stored version is not `state.version`;
        `LeaseHeld` if it is a run that a worker owns now;
        `WorkflowNotFound` if the row is gone; `AlreadyExists` if another namespace has that id.
        """
        check_state(as_instance(state, WorkflowState, "state"), self._schemas, self._payloads)
        # In one go: somebody else may have it.
        await self._save(state, self._schemas.version_of(state.workflow_name), *state_columns(state, self._payloads))

    async def find(self, workflow_state_id: UUID | str) -> WorkflowState | None:
        """A workflow with all its steps, as of one moment, or None."""
        return await self._state(STATE_BY_ID, id=as_uuid(workflow_state_id, "workflow_state_id"))

    async def get(self, workflow_state_id: UUID | str) -> WorkflowState:
        """Raises `WorkflowNotFound`."""
        of_id = as_uuid(workflow_state_id, "workflow_state_id")
        state = await self.find(of_id)
        if state is None:
            raise self._workflow_not_found(of_id)
        return state

    async def find_by_workflow_id(self, workflow_id: str) -> WorkflowState | None:
        """The most recently updated state of that `workflow_id`."""
        name = as_name(workflow_id, "workflow_id")
        found = await self._state(STATE_BY_WORKFLOW_ID, workflow_id=name)
        return found or await self._state(DAMAGED_BY_WORKFLOW_ID, workflow_id=name)

    async def get_by_workflow_id(self, workflow_id: str) -> WorkflowState:
        """The most recently updated state of that `workflow_id`. Raises `WorkflowNotFound`."""
        name = as_name(workflow_id, "workflow_id")
        state = await self.find_by_workflow_id(name)
        if state is None:
            raise WorkflowNotFound(f"there is no workflow {name!r} in namespace {self._namespace!r}", workflow_id=name)
        return state

    async def list_active(self, on_damaged: OnDamaged | None = None) -> list[WorkflowState]:
        """Pending, running and paused workflows with their steps, most recently updated first: one statement.

        One that cannot be read does not hide the others: `on_damaged` is called with its error. By default that is
        logged, and the first of them is raised if there is nothing else to return.
        """
        as_listener(on_damaged, "on_damaged")
        damaged: list[PayloadError] = []
        states = []
        for state in await self._stored_states(ACTIVE_STATES, damaged.append):
            try:
                states.append(upcast_state(state, self._schemas))
            except SchemaMismatch as error:
                damaged.append(error)
        if damaged and not states and on_damaged is None:
            raise damaged[0]
        for each in damaged:
            (on_damaged or _log_damage)(each)
        return states

    async def delete(self, ids: Sequence[UUID | str]) -> None:
        """Delete these workflows with their steps, checkpoints and signals. Those of other namespaces are left alone.

        Raises `LeaseHeld` if a worker owns one of them. A run that waits for one of them is woken.
        """
        parents: set[UUID] = set()
        for chunk in chunks(as_uuids(ids, "ids")):
            locked = await self._lock_free(chunk)
            await self._beside(RetentionRepository).delete_locked([row.id for row in locked])
            parents |= {row.parent_id for row in locked if row.parent_id is not None}
        for parent_id in sorted(parents):
            await self._wake(parent_id)

    async def count_finished(self, *, older_than: datetime) -> int:
        """How many finished workflows were last updated before `older_than` and may be deleted."""
        return await self._beside(RetentionRepository).count_finished(older_than=older_than)

    async def delete_finished(self, *, older_than: datetime, limit: int) -> int:
        """Delete up to `limit` finished workflows last updated before `older_than`, and all that hangs on them.

        A child run goes with its parent, beyond `limit`, unless the parent has completed: then it may go before.
        Returns how many workflows were deleted.
        """
        retention = self._beside(RetentionRepository)
        _, families = await retention.lock_finished(older_than=older_than, limit=limit)
        ids = [member for family in families if family.is_over for member in family.ids]
        await retention.delete_locked(ids)
        return len(ids)

    async def _lock_free(self, ids: Sequence[UUID]) -> Sequence[Any]:
        """(id, parent_id) of those that are in this namespace, locked until the transaction ends.

        Raises `LeaseHeld`.
        """
        rows = await self._rows(_LOCKED_LEASES_OF, {"ids": ids, "namespace": self._namespace})
        for row in rows:
            if not row.lease_is_free:
                raise lease_held(row.id, row)
        return rows


def _log_damage(error: PayloadError) -> None:
    hooks.logger.warning("workflow %s cannot be read: %s", error.about.get("workflow_state_id"), error)
