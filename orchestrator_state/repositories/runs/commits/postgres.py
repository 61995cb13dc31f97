"""The commits of runs on Postgres: any number of them in one statement, and so in one round trip and one commit.

A measured path past the ORM, in the database's own words. The changes arrive as arrays, one for each column. A run
whose row somebody else has locked is passed over, not waited for: its neighbours would wait with it, and two commits
that lock many rows in different orders would wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    CTE,
    ColumnElement,
    Executable,
    FromClause,
    String,
    Text,
    bindparam,
    case,
    column,
    delete,
    false,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
    union_all,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine

from orchestrator_state.database import database_now, is_marked, one_more, setting_idle_limit
from orchestrator_state.models import checkpoints, signals, step_states, workflow_states
from orchestrator_state.records import FINAL, Ack, RunChange
from orchestrator_state.repositories.checkpointed import superseded
from orchestrator_state.repositories.expressions import LAST_NUMBERED_FIRST
from orchestrator_state.repositories.runs.commits.parameters import CHECKPOINT, FOLD, STEP, TYPES, values_of
from orchestrator_state.repositories.runs.commits.usage import OF_RUN, inserted_with, used_text
from orchestrator_state.repositories.runs.fence import FIRST_CONTEXT_KEPT, NOT_LET_GO, STILL_DIGESTED_AT
from orchestrator_state.repositories.steps import recorded_once

_w = workflow_states.c
_checkpoint = checkpoints.c


def _transferred(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """The type of a parameter. A cast to VARCHAR(255) would cut a longer text without a word."""
    return Text() if isinstance(kind, String) else kind


_TYPES: Final = {name: _transferred(kind) for name, kind in TYPES.items()}
_TYPES_WITH_USAGE: Final = _TYPES | {"used": Text()}


def commit(
    changes: Sequence[RunChange], *, only_marked: bool = False, idle_limit: timedelta | None = None
) -> tuple[Executable, dict[str, Any]]:
    """A statement, and its parameters, that writes `changes`, each under its own lease; at most one of a run.

    It returns a row (id, False, request) for each run that matched and one (id, True, None) for each step written:
    none for a step that is recorded as completed. Passed over are runs whose lease is another's, that have moved on,
    whose row is locked, and that make a checkpoint beside unnumbered ones. And so is one change if it is `only_marked`,
    in a transaction that is not, see `open_transactions`. An `idle_limit` is set for the transaction.
    """
    has_usage = any(change.usage for change in changes)  # of few, for whom there is a longer statement
    if len(changes) == 1:
        values: dict[str, Any] = dict(zip(_TYPES, values_of(changes[0]), strict=True))
        if has_usage:
            values["used"] = used_text(changes[0].usage)
        return _of_one(only_marked=only_marked, idle_limit=idle_limit, has_usage=has_usage), values
    by_column = zip(*map(values_of, changes), strict=True)
    values = dict(zip(_TYPES, map(list, by_column), strict=True))
    if has_usage:
        values["used"] = [used_text(change.usage) for change in changes]
    return _of_many(idle_limit=idle_limit, has_usage=has_usage), values


@cache
def _of_many(*, idle_limit: timedelta | None, has_usage: bool) -> Executable:
    types = _TYPES_WITH_USAGE if has_usage else _TYPES
    arrays = (bindparam(name, type_=ARRAY(kind)) for name, kind in types.items())
    columns = (column(name, kind) for name, kind in types.items())
    given = func.unnest(*arrays).table_valued(*columns, name="given").render_derived()
    return _commit(given, idle_limit, has_usage=has_usage)


@cache
def _of_one(*, only_marked: bool, idle_limit: timedelta | None, has_usage: bool) -> Executable:
    """Plain values: Postgres plans it once and for all. Arrays, whose length it looks at, it plans each time anew."""
    types = _TYPES_WITH_USAGE if has_usage else _TYPES
    values = (bindparam(name, type_=kind).label(name) for name, kind in types.items())
    given = select(*values).where(is_marked()) if only_marked else select(*values)
    return _commit(given.subquery("given"), idle_limit, has_usage=has_usage)


def _commit(given: FromClause, idle_limit: timedelta | None, *, has_usage: bool) -> Executable:
    """No part joins two others: the planner, which does not see how long arrays are, would compare each with each."""
    updated = _updated(_matched(given), has_usage=has_usage)
    recorded = _recorded(updated)
    matched = select(updated.c.fence_id, false().label("is_step"), updated.c.request)
    if idle_limit is not None:
        matched = matched.where(setting_idle_limit(idle_limit).is_not(None))
    return union_all(
        matched,
        select(recorded.c.workflow_state_id, true(), null()),
    ).add_cte(_consumed(updated), _saved(updated), _pruned(updated), *([inserted_with(updated)] if has_usage else []))


def _matched(given: FromClause) -> CTE:
    # LIMIT, and no EXISTS: that one the planner may turn into one look at all checkpoints there are.
    unnumbered = (
        select(_checkpoint.id)
        .where(_checkpoint.workflow_state_id == given.c.fence_id, _checkpoint.seq.is_(None))
        .limit(1)
        .scalar_subquery()
    )
    return (
        select(*given.c)
        .join_from(given, workflow_states, _w.id == given.c.fence_id)
        .where(
            _w.lease_owner == given.c.fence_owner,
            _w.lease_token == given.c.fence_token,
            _w.version == given.c.fence_version,
            NOT_LET_GO,
            or_(given.c.checkpoint_id.is_(None), unnumbered.is_(None)),
        )
        .with_for_update(of=workflow_states, skip_locked=True, key_share=True)
        .cte("matched")
    )


def _updated(matched: CTE, *, has_usage: bool) -> CTE:
    folds = matched.c.new_context.is_not(None)
    values: dict[str, Any] = {
        "version": one_more(_w.version),
        "updated_at": database_now(),
        "digested_at": STILL_DIGESTED_AT,
        "checkpoint_seq": case(
            (matched.c.checkpoint_id.is_(None), _w.checkpoint_seq), else_=one_more(_w.checkpoint_seq)
        ),
    }
    step_is_over = _is_over(matched.c[STEP["status"]])
    values["has_progressed"] = case((step_is_over, literal_column("1")), else_=_w.has_progressed)
    for name in FOLD:
        values[name] = case((folds, matched.c[f"new_{name}"]), else_=_w[name])
    for name, kept in FIRST_CONTEXT_KEPT.items():
        values[name] = case((folds, kept), else_=_w[name])
    return (
        update(workflow_states)
        .where(_w.id == matched.c.fence_id)
        .values(values)
        .returning(*matched.c, _w.request, _w.checkpoint_seq, *(OF_RUN if has_usage else ()))
        .cte("updated")
    )


def _is_over(status: ColumnElement[str]) -> ColumnElement[bool]:
    return or_(*(status == literal_column(f"'{final}'") for final in sorted(FINAL)))


def _recorded(updated: CTE) -> CTE:
    source = select(updated.c.fence_id, *(updated.c[parameter] for parameter in STEP.values()))
    insert = postgresql.insert(step_states).from_select(["workflow_state_id", *STEP], source)
    return recorded_once(insert, STEP).returning(step_states.c.workflow_state_id).cte("recorded")


def _saved(updated: CTE) -> CTE:
    """The checkpoints, also of steps that are recorded already: by this change, whose checkpoint then is, too."""
    source = select(
        updated.c.fence_id, updated.c.checkpoint_seq, *(updated.c[parameter] for parameter in CHECKPOINT.values())
    ).where(updated.c.checkpoint_id.is_not(None))
    return (
        postgresql.insert(checkpoints)
        .from_select(["workflow_state_id", "seq", *CHECKPOINT], source)
        .on_conflict_do_nothing(index_elements=["id"])
        .cte("saved")
    )


def _pruned(updated: CTE) -> CTE:
    """One less than `keep` is left beside the checkpoint that is made, which the statement does not see."""
    older = (
        superseded(updated.c.fence_id, updated.c.keep - 1, [LAST_NUMBERED_FIRST])
        .where(_checkpoint.id != updated.c.checkpoint_id)
        .correlate(updated)
        .lateral("superseded")
    )
    ids = select(older.c.id).select_from(updated.join(older, true()))
    return delete(checkpoints).where(_checkpoint.id.in_(ids)).cte("pruned")


def _consumed(updated: CTE) -> CTE:
    return delete(signals).where(signals.c.id == updated.c.consumed_signal).cte("consumed")


def acks(changes: Iterable[RunChange], rows: Iterable[Any]) -> list[Ack | None]:
    requests: dict[UUID, str | None] = {}
    written: set[UUID] = set()
    for run_id, is_step, request in rows:
        if is_step:
            written.add(run_id)
        else:
            requests[run_id] = request
    ids = (change.lease.workflow_state_id for change in changes)
    return [
        Ack(request=requests[run_id], already_recorded=run_id not in written) if run_id in requests else None
        for run_id in ids
    ]
