"""The SELECTs, built once. Building one costs more than sending it."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    CTE,
    ColumnElement,
    CompoundSelect,
    bindparam,
    exists,
    literal_column,
    null,
    or_,
    select,
    type_coerce,
    union_all,
)
from sqlalchemy.sql import Select

from orchestrator_state.database_time import database_now
from orchestrator_state.domain import ACTIVE
from orchestrator_state.models import checkpoints, step_states, workflow_states

_workflow = workflow_states.c
_step = step_states.c
_checkpoint = checkpoints.c

_IN_NAMESPACE: Final = _workflow.namespace == bindparam("namespace")
LEASE_IS_FREE: Final = or_(_workflow.lease_expires_at.is_(None), _workflow.lease_expires_at <= database_now())
_NEWEST_FIRST: Final = (_workflow.updated_at.desc(), _workflow.started_at.desc(), _workflow.id)


def _absent(column: ColumnElement[Any]) -> ColumnElement[Any]:
    return type_coerce(null(), column.type).label(column.name)


def _states(target: Select[Any]) -> CompoundSelect[Any]:
    """Workflows and their steps as the rows of one statement, so that they are one snapshot on any isolation level.

    A join would repeat the context in each step's row.
    """
    wanted: CTE = target.cte("wanted")
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
    ).where(_step.workflow_state_id.in_(select(wanted.c.id)))
    return union_all(workflows, steps)


_IDS: Final = select(_workflow.id).where(_IN_NAMESPACE)

STATE_BY_ID: Final = _states(_IDS.where(_workflow.id == bindparam("id")))
STATE_BY_WORKFLOW_ID: Final = _states(
    _IDS.where(_workflow.workflow_id == bindparam("workflow_id")).order_by(*_NEWEST_FIRST).limit(1)
)
ACTIVE_STATES: Final = _states(_IDS.where(_workflow.status.in_(sorted(ACTIVE))))

CURRENT_VERSION: Final = select(
    _workflow.version, _workflow.lease_owner, _workflow.lease_process, _workflow.lease_expires_at
).where(_IN_NAMESPACE, _workflow.id == bindparam("id"))

_CHECKPOINTS: Final = (
    select(checkpoints).join(workflow_states, _workflow.id == _checkpoint.workflow_state_id).where(_IN_NAMESPACE)
)
# Rows without a number come from software older than the numbering, which goes on writing after an upgrade.
NEWEST_CHECKPOINT_FIRST: Final = (_checkpoint.seq.desc().nulls_first(), _checkpoint.timestamp.desc(), _checkpoint.id)


def has_unnumbered_checkpoints(workflow_state_id: ColumnElement[UUID]) -> ColumnElement[bool]:
    """Whether older software inserted checkpoints since the last numbering; a column named `has_unnumbered`."""
    return (
        exists()
        .where(_checkpoint.workflow_state_id == workflow_state_id, _checkpoint.seq.is_(None))
        .label("has_unnumbered")
    )


UNNUMBERED_CHECKPOINTS_OF: Final = (
    select(_checkpoint.id)
    .where(_checkpoint.workflow_state_id == bindparam("workflow_state_id"), _checkpoint.seq.is_(None))
    .order_by(_checkpoint.timestamp, _checkpoint.id)
)

CHECKPOINT_BY_ID: Final = _CHECKPOINTS.where(_checkpoint.id == bindparam("id"))
CHECKPOINTS_OF: Final = _CHECKPOINTS.where(_checkpoint.workflow_state_id == bindparam("workflow_state_id")).order_by(
    *NEWEST_CHECKPOINT_FIRST
)
CHECKPOINT_IDS_OF: Final = CHECKPOINTS_OF.with_only_columns(_checkpoint.id)
LATEST_CHECKPOINT_OF: Final = CHECKPOINTS_OF.limit(1)

_STEPS: Final = select(step_states).join(workflow_states, _workflow.id == _step.workflow_state_id).where(_IN_NAMESPACE)
STEPS_OF: Final = _STEPS.where(_step.workflow_state_id == bindparam("workflow_state_id")).order_by(
    _step.position, _step.step_id
)
STEP_BY_ID: Final = STEPS_OF.where(_step.step_id == bindparam("step_id"))

STEP_ROWS_OF: Final = (
    select(step_states).where(_step.workflow_state_id == bindparam("workflow_state_id")).order_by(_step.position)
)
