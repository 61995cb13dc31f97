"""SQL expressions that several repositories use. A statement stands beside its only user."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, FromClause, bindparam, case, exists, func, null, or_

from orchestrator_state.database import database_now
from orchestrator_state.models import (
    CheckpointRow,
    CurrentStepRow,
    QuestionRow,
    SignalRow,
    StepRow,
    WorkflowRow,
    checkpoints,
)
from orchestrator_state.payloads import REFERENCE_MARKER

HANGING: Final = (StepRow, CheckpointRow, SignalRow, QuestionRow, CurrentStepRow)
"""The rows that hang on a workflow's."""

IN_NAMESPACE: Final = WorkflowRow.namespace == bindparam("namespace")

# In an UPDATE a parameter with a column's name is a new value, so what is compared has other names.
OF_WORKFLOW: Final = (WorkflowRow.id == bindparam("of_id"), WorkflowRow.namespace == bindparam("of_namespace"))

NOW_IF_ASLEEP: Final = case((WorkflowRow.wake_at.is_not(None), database_now()), else_=null())

OUTDATED: Final = WorkflowRow.digested_at.is_distinct_from(WorkflowRow.updated_at).label("outdated")
"""Whether software that knows no digests has written to the workflow since they were made."""

# Of the table, and not mapped: the commit of a step goes to the driver past SQLAlchemy.
LAST_NUMBERED_FIRST: Final = checkpoints.c.seq.desc().nulls_first()
# Rows without a number come from software older than the numbering, which goes on writing after an upgrade.
NEWEST_CHECKPOINT_FIRST: Final = (LAST_NUMBERED_FIRST, checkpoints.c.timestamp.desc(), checkpoints.c.id)


def has_leftovers(workflow_state_id: ColumnElement[UUID]) -> ColumnElement[bool]:
    """Whether rows hang on an id that a workflow is just given: a column named `has_leftovers`.

    They are of another workflow, whose own row alone somebody has deleted. SQLite leaves such rows if foreign keys are
    off, as they are in its shell.
    """
    owners = (hanging.workflow_state_id for hanging in HANGING)
    return or_(*(exists().where(owner == workflow_state_id) for owner in owners)).label("has_leftovers")


def payload_columns(table: FromClause) -> list[ColumnElement[Any]]:
    return [column for column in table.c if f"{column.name}_digest" in table.c]


def is_reference(column: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether a payload column holds a reference to a blob."""
    return func.substr(column, 1, len(REFERENCE_MARKER)) == REFERENCE_MARKER


def reference_columns(table: FromClause) -> list[ColumnElement[Any]]:
    """The payload columns of `table`, NULL where they hold no reference to a blob."""
    return [case((is_reference(column), column), else_=None) for column in payload_columns(table)]
