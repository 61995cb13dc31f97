"""The load: workflows and their steps as the rows of one statement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from sqlalchemy import (
    Column,
    ColumnElement,
    CompoundSelect,
    Executable,
    Select,
    bindparam,
    func,
    literal_column,
    null,
    or_,
    select,
    type_coerce,
    union_all,
)

from orchestrator_state.database import is_moment
from orchestrator_state.domain import ACTIVE, WorkflowState
from orchestrator_state.errors import PayloadError
from orchestrator_state.models import step_states, workflow_states
from orchestrator_state.records.states import StateRow, payloads_in, states_from_rows, upcast_state
from orchestrator_state.repositories.base import Repository

OnDamaged = Callable[[PayloadError], object]

# Tables, and no mapped attributes: this goes to the driver past SQLAlchemy where that is possible.
_workflow = workflow_states.c
_step = step_states.c


_OF_WORKFLOW: Final[Mapping[str, ColumnElement[Any]]] = {
    "state_id": _workflow.id,
    "status": _workflow.status,
    "started_at": _workflow.started_at,
    "completed_at": _workflow.completed_at,
    "payload": _workflow.context,
    "payload_digest": _workflow.context_digest,
    "error": _workflow.error,
    "error_digest": _workflow.error_digest,
    "retry_count": literal_column("0"),
    "position": literal_column("0"),
    "workflow_id": _workflow.workflow_id,
    "workflow_name": _workflow.workflow_name,
    "user_id": _workflow.user_id,
    "updated_at": _workflow.updated_at,
    "version": _workflow.version,
    "context_position": _workflow.context_position,
    "digested_at": _workflow.digested_at,
    "schema_version": _workflow.schema_version,
    # A run makes deltas, and the last owner's id stays. Never NULL, which it is for a step.
    "may_have_deltas": _workflow.lease_owner.is_not(None) & (func.coalesce(_workflow.checkpoint_seq, 1) > 0),
    # Absent, and of a type all the same: a union takes its types from its first part.
    **{name: type_coerce(null(), _step[name].type) for name in ("step_id", "context_patch", "context_patch_digest")},
}
_OF_STEP: Final[Mapping[str, ColumnElement[Any]]] = {
    "state_id": _step.workflow_state_id,
    "step_id": _step.step_id,
    "status": _step.status,
    "started_at": _step.started_at,
    "completed_at": _step.completed_at,
    "payload": _step.outputs,
    "payload_digest": _step.outputs_digest,
    "error": _step.error,
    "error_digest": _step.error_digest,
    "retry_count": _step.retry_count,
    "position": _step.position,
    "context_patch": _step.context_patch,
    "context_patch_digest": _step.context_patch_digest,
    "schema_version": _step.schema_version,
}


def _state_rows(columns: Mapping[str, ColumnElement[Any]]) -> Select[Any]:
    """SELECT the fields of a `StateRow`, in their order; what is not among `columns` is NULL."""
    return select(*(_named(columns.get(name, null()), name) for name in StateRow._fields))


def _named(column: ColumnElement[Any], name: str) -> ColumnElement[Any]:
    """A label would hide a column from its type, which reads a damaged time without an error (see `column_types`)."""
    return column if isinstance(column, Column) and column.name == name else column.label(name)


def _states(target: Select[Any]) -> CompoundSelect[Any]:
    """Workflows and their steps as the rows of one statement, so that they are one snapshot on any isolation level.

    A join would repeat the context in each step's row.
    """
    wanted = target.cte("wanted")
    return union_all(
        _state_rows(_OF_WORKFLOW).where(_workflow.id.in_(select(wanted.c.id))),
        _state_rows(_OF_STEP).where(_step.workflow_state_id.in_(select(wanted.c.id))),
    )


_IDS: Final = select(_workflow.id).where(_workflow.namespace == bindparam("namespace"))
_NEWEST: Final = (
    _IDS.where(_workflow.workflow_id == bindparam("workflow_id"))
    .order_by(_workflow.updated_at.desc(), _workflow.started_at.desc(), _workflow.id)
    .limit(1)
)

STATE_BY_ID: Final = _states(_IDS.where(_workflow.id == bindparam("id")))
STATE_BY_WORKFLOW_ID: Final = _states(_NEWEST.where(is_moment(_workflow.updated_at)))
DAMAGED_BY_WORKFLOW_ID: Final = _states(_NEWEST)
"""Where that finds none: one of which the time is damaged, that would sort before all others, may be left."""
# Not IN: its list is put together anew for each execution, which only SQLAlchemy's own way can do.
ACTIVE_STATES: Final = _states(_IDS.where(or_(*(_workflow.status == status.value for status in sorted(ACTIVE)))))


class StateReader(Repository):
    """Reads states."""

    async def _stored_states(
        self, statement: Executable, on_damaged: OnDamaged | None = None, **parameters: Any
    ) -> list[WorkflowState]:
        """The states that one of the statements above selects, at the versions that they were stored at."""
        parameters["namespace"] = self._namespace
        rows = await self._rows_with_blobs(statement, parameters, bare=True, for_many=on_damaged is not None)
        building = partial(states_from_rows, rows, self._payloads, on_damaged)
        return await self._payloads.aside.call(building, self._payloads.length(payloads_in(rows)))

    async def _stored_state(self, statement: Executable, **parameters: Any) -> WorkflowState | None:
        return next(iter(await self._stored_states(statement, **parameters)), None)

    async def _state(self, statement: Executable, **parameters: Any) -> WorkflowState | None:
        state = await self._stored_state(statement, **parameters)
        return None if state is None else upcast_state(state, self._schemas)
