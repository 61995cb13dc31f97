"""Steps by themselves, and the two rules by which one is written."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, Final
from uuid import UUID

from sqlalchemy import bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite

from orchestrator_state.arguments import as_name, as_uuid
from orchestrator_state.database import conflict_aware_insert
from orchestrator_state.domain import StepState, StepStatus
from orchestrator_state.errors import SchemaMismatch, StepNotFound
from orchestrator_state.models import StepRow, WorkflowRow, step_states
from orchestrator_state.records import SealedStep
from orchestrator_state.records.states import step_from_row, upcast_step
from orchestrator_state.repositories.base import Repository
from orchestrator_state.repositories.expressions import IN_NAMESPACE, OUTDATED

Insert = postgresql.Insert | sqlite.Insert

_KEY: Final = ("workflow_state_id", "step_id")

_STEPS_OF: Final = (
    select(StepRow, WorkflowRow.workflow_name, OUTDATED)
    .join(WorkflowRow, WorkflowRow.id == StepRow.workflow_state_id)
    .where(IN_NAMESPACE, StepRow.workflow_state_id == bindparam("workflow_state_id"))
    .order_by(StepRow.position, StepRow.step_id)
)
_STEP_BY_ID: Final = _STEPS_OF.where(StepRow.step_id == bindparam("step_id"))
SET_STEP: Final = update(StepRow).where(
    StepRow.workflow_state_id == bindparam("of_workflow"), StepRow.step_id == bindparam("of_step")
)
"""Sets the columns that it is given values for."""


@cache
def save_step(dialect: str) -> Insert:
    """Insert a step of a state that is saved, or replace it. What no state says of a run's step stays with it."""
    insert = conflict_aware_insert(dialect, step_states)
    kept = (*_KEY, "context_patch", "context_patch_digest", "kind", "waits_until")
    replaced = {column.name: column for column in insert.excluded if column.name not in kept}
    return insert.on_conflict_do_update(index_elements=_KEY, set_=replaced)


@cache
def record_step_once(dialect: str) -> Insert:
    """Insert a step of a run, or replace it unless it is recorded as completed: such a step is never written again."""
    return recorded_once(conflict_aware_insert(dialect, step_states), step_states.columns.keys())


def recorded_once(insert: Insert, names: Iterable[str]) -> Insert:
    """The rule of `record_step_once`, for an `insert` of the columns `names`."""
    return insert.on_conflict_do_update(
        index_elements=_KEY,
        set_={name: insert.excluded[name] for name in names if name not in _KEY},
        where=step_states.c.status != StepStatus.COMPLETED.value,
    )


class StepRepository(Repository):
    """Steps of saved workflows, for reading. They are written with their workflow, whose version guards them."""

    async def list(self, workflow_state_id: UUID | str) -> list[StepState]:
        """In the order in which they were first saved; empty if there is no such workflow."""
        parameters = {
            "workflow_state_id": as_uuid(workflow_state_id, "workflow_state_id"),
            "namespace": self._namespace,
        }
        return [self._step(row) for row in await self._rows_with_blobs(_STEPS_OF, parameters)]

    async def find(self, workflow_state_id: UUID | str, step_id: str) -> StepState | None:
        """A step of a workflow, or None."""
        parameters = {
            "workflow_state_id": as_uuid(workflow_state_id, "workflow_state_id"),
            "step_id": as_name(step_id, "step_id"),
            "namespace": self._namespace,
        }
        rows = await self._rows_with_blobs(_STEP_BY_ID, parameters)
        return self._step(rows[0]) if rows else None

    async def get(self, workflow_state_id: UUID | str, step_id: str) -> StepState:
        """Raises `StepNotFound`."""
        of_id, name = as_uuid(workflow_state_id, "workflow_state_id"), as_name(step_id, "step_id")
        step = await self.find(of_id, name)
        if step is None:
            raise StepNotFound(f"workflow {of_id} has no step {name!r}", workflow_state_id=of_id, step_id=name)
        return step

    def _step(self, row: Any) -> StepState:
        step = step_from_row(SealedStep.of(row), self._payloads, outdated=row.outdated)
        schema = self._schemas.find(row.workflow_name)
        if schema is not None:
            try:
                upcast_step(schema, step, row.schema_version)
            except SchemaMismatch as error:
                raise error.concerning(workflow_state_id=row.workflow_state_id) from None
        return step
