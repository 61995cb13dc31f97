"""The statements of a step's commit, each built once. Building one costs more than sending it."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Any, Final

from sqlalchemy import ColumnElement, Executable, bindparam, case, delete, func, or_, select, update
from sqlalchemy.sql import Update

from orchestrator_state.database_time import database_now
from orchestrator_state.engine import conflict_aware_insert
from orchestrator_state.models import checkpoints, step_states, workflow_states
from orchestrator_state.statements import LEASE_IS_FREE, NEWEST_CHECKPOINT_FIRST, has_unnumbered_checkpoints

_w = workflow_states.c

# The fence: a write of a run matches its row only while the run's lease is the row's.
FENCE: Final = (
    _w.id == bindparam("fence_id"),
    _w.lease_owner == bindparam("fence_owner"),
    _w.lease_token == bindparam("fence_token"),
)


FIRST_CONTEXT_KEPT: Final[dict[str, Any]] = {
    "initial_context": func.coalesce(_w.initial_context, _w.context),
    "initial_context_digest": case((_w.initial_context.is_(None), _w.context_digest), else_=_w.initial_context_digest),
}


def digested_at(updated_at: ColumnElement[datetime]) -> ColumnElement[datetime | None]:
    """What `digested_at` becomes with `updated_at`, where not all payloads of the workflow are written anew."""
    return case((_w.digested_at == _w.updated_at, updated_at), else_=_w.digested_at)


@cache
def fenced_update(columns: frozenset[str]) -> Update:
    """UPDATE the run's row under its lease; each of `columns` is a parameter of its name with `new_` before it.

    The first context that is written over another is kept: a resumed handler starts with it.
    """
    values: dict[str, Any] = {name: bindparam(f"new_{name}", type_=_w[name].type) for name in columns}
    if "context" in columns and "initial_context" not in columns:
        values |= FIRST_CONTEXT_KEPT
    if "digested_at" not in columns:
        values["digested_at"] = digested_at(bindparam("new_updated_at", type_=_w.updated_at.type))
    return update(workflow_states).where(*FENCE).values(values | {"version": _w.version + 1})


@cache
def commit_update(*, folds_context: bool, makes_checkpoint: bool) -> Executable:
    """UPDATE the run's row for a step's commit; returns (request, checkpoint_seq)."""
    columns = {"updated_at"}
    if folds_context:
        columns |= {"context", "context_digest", "context_position"}
    values: dict[str, Any] = {}
    if makes_checkpoint:
        values["checkpoint_seq"] = _w.checkpoint_seq + 1
    statement = fenced_update(frozenset(columns)).values(values).returning(_w.request, _w.checkpoint_seq)
    if makes_checkpoint:
        statement = statement.returning(has_unnumbered_checkpoints(bindparam("fence_id", type_=_w.id.type)))
    return statement


@cache
def step_upsert(dialect: str) -> Executable:
    """Insert a step or replace it, unless it is recorded as completed: such a step is never written again."""
    statement = conflict_aware_insert(dialect, step_states)
    keys = ["workflow_state_id", "step_id"]
    return statement.on_conflict_do_update(
        index_elements=keys,
        set_={column.name: statement.excluded[column.name] for column in step_states.c if column.name not in keys},
        where=step_states.c.status != "completed",
    )


CONVERT_STEP: Final = update(step_states).where(
    step_states.c.workflow_state_id == bindparam("of_workflow"), step_states.c.step_id == bindparam("of_step")
)
"""Sets the columns that it is given values for."""

PRUNE: Final = delete(checkpoints).where(
    checkpoints.c.id.in_(
        select(checkpoints.c.id)
        .where(checkpoints.c.workflow_state_id == bindparam("workflow_state_id"))
        .order_by(*NEWEST_CHECKPOINT_FIRST)
        .offset(bindparam("keep"))
    )
)

FIND_RUN: Final = (
    select(workflow_states, database_now().label("now"), LEASE_IS_FREE.label("lease_is_free"))
    .where(
        _w.namespace == bindparam("namespace"),
        or_(
            _w.id == bindparam("id"),
            _w.idempotency_key == bindparam("idempotency_key"),
            _w.workflow_id == bindparam("workflow_id"),
        ),
    )
    .order_by(
        case((_w.idempotency_key == bindparam("idempotency_key"), 0), (_w.id == bindparam("id"), 1), else_=2),
        _w.updated_at.desc(),
        _w.id,
    )
    .limit(1)
)
