"""The load: workflows and their steps as the rows of one statement."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from sqlalchemy import (
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
from orchestrator_state.records import payloads_in, states_from_rows, upcast_state
from orchestrator_state.repositories.base import Repository

OnDamaged = Callable[[PayloadError], object]

# Tables, and no mapped attributes: this goes to the driver past SQLAlchemy where that is possible.
_workflow = workflow_states.c
_step = step_states.c


def _absent(column: ColumnElement[Any]) -> ColumnElement[Any]:
    return type_coerce(null(), column.type).label(column.name)


def _states(target: Select[Any]) -> CompoundSelect[Any]:
    """Workflows and their steps as the rows of one statement, so that they are one snapshot on any isolation level.

    A join would repeat the context in each step's row.
    """
    wanted = target.cte("wanted")
    workflows = select(
        _workflow.id.label("state_id"),
        _absent(_step.step_id),
        _workflow.status,
        _workflow.started_at,
        _workflow.completed_at,
        _workflow.context.label("payload"),
        _workflow.error,
        literal_column("0").label("retry_count"),
        literal_column("0").label("position"),
        _workflow.workflow_id,
        _workflow.workflow_name,
        _workflow.user_id,
        _workflow.updated_at,
        _workflow.version,
        _absent(_step.context_patch),
        _workflow.context_position,
        _workflow.context_digest,
        _workflow.error_digest,
        _absent(_step.context_patch_digest),
        _workflow.digested_at,
        _workflow.schema_version,
        # A run makes deltas, and the last owner's id stays. Never NULL, which it is for a step.
        (_workflow.lease_owner.is_not(None) & (func.coalesce(_workflow.checkpoint_seq, 1) > 0)).label(
            "may_have_deltas"
        ),
    ).where(_workflow.id.in_(select(wanted.c.id)))
    steps = select(
        _step.workflow_state_id,
        _step.step_id,
        _step.status,
        _step.started_at,
        _step.completed_at,
        _step.outputs,
        _step.error,
        _step.retry_count,
        _step.position,
        *(null() for _ in range(5)),
        _step.context_patch,
        null(),
        _step.outputs_digest,
        _step.error_digest,
        _step.context_patch_digest,
        null(),
        _step.schema_version,
        null(),
    ).where(_step.workflow_state_id.in_(select(wanted.c.id)))
    return union_all(workflows, steps)


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
