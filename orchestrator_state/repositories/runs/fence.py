"""The statements of a step's commit, each built once. Building one costs more than sending it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Executable,
    Float,
    bindparam,
    case,
    func,
    not_,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql import Update

from orchestrator_state.database import conflict_aware_insert, database_now, database_time_in, is_moment, one_more
from orchestrator_state.models import step_states, workflow_states
from orchestrator_state.repositories.claimable import IS_ASLEEP, LEASE_IS_FREE
from orchestrator_state.repositories.expressions import has_leftovers

_w = workflow_states.c

_HAS_BEEN_OURS: Final = (
    _w.id == bindparam("fence_id"),
    _w.lease_owner == bindparam("fence_owner"),
    _w.lease_token == bindparam("fence_token"),
)
# Owner and token stay in the row when a run is let go of, and are good for nothing from then on: a branch that outlives
# its handler has them still.
NOT_LET_GO: Final = _w.lease_expires_at.is_not(None)
LET_GO: Final = select(_w.status, _w.parent_id).where(*_HAS_BEEN_OURS, not_(NOT_LET_GO))
# The fence: a write of a run matches its row only while the run's lease is the row's.
FENCE: Final = (*_HAS_BEEN_OURS, NOT_LET_GO)
# A commit of a step is for one place in the order of the run's commits.
IN_ITS_PLACE: Final = _w.version == bindparam("fence_version")


FIRST_CONTEXT_KEPT: Final[dict[str, Any]] = {
    "initial_context": func.coalesce(_w.initial_context, _w.context),
    "initial_context_digest": case((_w.initial_context.is_(None), _w.context_digest), else_=_w.initial_context_digest),
}


# What `digested_at` becomes with `updated_at`, where not all payloads of the workflow are written anew.
STILL_DIGESTED_AT: Final[ColumnElement[datetime | None]] = case(
    (_w.digested_at == _w.updated_at, database_now()), else_=_w.digested_at
)


@cache
def fenced_update(columns: frozenset[str], stamped: frozenset[str] = frozenset()) -> Update:
    """UPDATE the run's row under its token; each of `columns` is a parameter of its name with `new_` before it.

    `stamped` become the time of the statement, by the database's clock, as `updated_at` always does. The first context
    that is written over another is kept: a resumed handler starts with it.
    """
    values: dict[str, Any] = {name: bindparam(f"new_{name}", type_=_w[name].type) for name in columns}
    values |= dict.fromkeys({"updated_at", *stamped}, database_now())
    if "context" in columns and "initial_context" not in columns:
        values |= FIRST_CONTEXT_KEPT
    if "digested_at" not in stamped:
        values["digested_at"] = STILL_DIGESTED_AT
    return update(workflow_states).where(*FENCE).values(values | {"version": one_more(_w.version)})


@cache
def going_on(columns: frozenset[str], stamped: frozenset[str] = frozenset()) -> Executable:
    """`fenced_update` of a run that goes on. Returns (version,)."""
    return fenced_update(columns, stamped).returning(_w.version)


@cache
def step_upsert(dialect: str) -> Executable:
    """Insert a step or replace it, unless it is recorded as completed: such a step is never written again."""
    return replacing_step(conflict_aware_insert(dialect, step_states), step_states.columns.keys())


def replacing_step(
    insert: postgresql.Insert | sqlite.Insert, names: Iterable[str]
) -> postgresql.Insert | sqlite.Insert:
    """`insert` into the steps, or instead, unless the step is recorded as completed, an update of those columns."""
    keys = ["workflow_state_id", "step_id"]
    return insert.on_conflict_do_update(
        index_elements=keys,
        set_={name: insert.excluded[name] for name in names if name not in keys},
        where=step_states.c.status != "completed",
    )


@cache
def run_insert(dialect: str, columns: frozenset[str], *, leased: bool) -> Executable:
    """INSERT a run, unless its id or key is taken; each of `columns` is a parameter of its name with `new_` before it.

    A `leased` run belongs to `owner` of `process` for `seconds`. Returns the row, with `now` and `has_leftovers`.
    """
    values: dict[str, Any] = {name: bindparam(f"new_{name}", type_=_w[name].type) for name in columns}
    values |= dict.fromkeys(("started_at", "updated_at", "digested_at"), database_now()) | {"version": 1}
    if leased:
        values |= {
            "lease_owner": bindparam("owner", type_=_w.lease_owner.type),
            "lease_process": bindparam("process"),
            "lease_token": 1,
            "lease_expires_at": database_time_in(bindparam("seconds", type_=Float())),
        }
    return (
        conflict_aware_insert(dialect, workflow_states)
        .values(values)
        .on_conflict_do_nothing()
        .returning(workflow_states, database_now().label("now"), has_leftovers(bindparam("new_id", type_=_w.id.type)))
    )


CONVERT_STEP: Final = update(step_states).where(
    step_states.c.workflow_state_id == bindparam("of_workflow"), step_states.c.step_id == bindparam("of_step")
)
"""Sets the columns that it is given values for."""

_HAS_ID: Final = _w.id.in_(bindparam("ids", expanding=True))
FIND_RUN: Final = (
    select(
        workflow_states,
        database_now().label("now"),
        LEASE_IS_FREE.label("lease_is_free"),
        IS_ASLEEP.label("is_asleep"),
    )
    .where(
        _w.namespace == bindparam("namespace"),
        or_(
            _HAS_ID,
            _w.idempotency_key == bindparam("idempotency_key"),
            _w.workflow_id == bindparam("workflow_id"),
        ),
    )
    .order_by(
        case(
            (_w.idempotency_key == bindparam("idempotency_key"), 0),
            (_HAS_ID, 1),
            else_=2,
        ),
        case((is_moment(_w.updated_at), 0), else_=1),
        _w.updated_at.desc(),
        _w.id,
    )
    .limit(1)
)
