"""The statements that write steps' commits: one for many runs on Postgres, a few for each run on SQLite.

Their columns are the fields of the records, by name: a column that a record gains is written without a word here.

Postgres
    One statement, and so one round trip and one commit. The changes arrive as arrays, one for each column. A run whose
    row somebody else has locked is passed over, not waited for: its neighbours would wait with it, and two commits
    that lock many rows in different orders would wait for each other.
SQLite
    There is no round trip to save; the caller saves the switches to the connection's thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from functools import cache
from operator import attrgetter
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    ColumnElement,
    Executable,
    FromClause,
    Integer,
    String,
    Table,
    Text,
    bindparam,
    case,
    column,
    delete,
    exists,
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
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import TypeEngine

from orchestrator_state.database import database_now, is_marked, one_more, setting_idle_limit
from orchestrator_state.models import checkpoints, signals, step_states, workflow_states
from orchestrator_state.records import FINAL, CheckpointRecord, FoldedContext, Lease, RunChange, SealedStep
from orchestrator_state.repositories.runs.fence import (
    FIRST_CONTEXT_KEPT,
    IN_ITS_PLACE,
    NOT_LET_GO,
    STILL_DIGESTED_AT,
    fenced_update,
)
from orchestrator_state.repositories.steps import recorded_once

_w = workflow_states.c
_checkpoint = checkpoints.c

_STEP: Final = tuple(name for name in SealedStep._fields if name != "workflow_state_id")
_CHECKPOINT: Final = tuple(name for name in CheckpointRecord.__slots__ if name != "keep")
_FOLD: Final = {("context_position" if name == "position" else name): name for name in FoldedContext.__slots__}

_step_values: Final = attrgetter(*_STEP)
_checkpoint_values: Final = attrgetter(*_CHECKPOINT, "keep")
_fold_values: Final = attrgetter(*_FOLD.values())
_NO_CHECKPOINT: Final = (None,) * (len(_CHECKPOINT) + 1)
_NO_FOLD: Final = (None,) * len(_FOLD)
_NEW_FOLD: Final = tuple(f"new_{name}" for name in _FOLD)


# --- Postgres ----------------------------------------------------------------------------------------------------


def _transferred(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """The type of a parameter. A cast to VARCHAR(255) would cut a longer text without a word."""
    return Text() if isinstance(kind, String) else kind


def _of(table: Table, names: Iterable[str]) -> dict[str, TypeEngine[Any]]:
    return {f"{table.name}_{name}": _transferred(table.c[name].type) for name in names}


_PARAMETERS: Final[dict[str, TypeEngine[Any]]] = (
    {"id": _w.id.type, "owner": _w.lease_owner.type, "token": Integer(), "version": Integer()}
    | {"consumed_signal": signals.c.id.type}
    | _of(step_states, _STEP)
    | _of(workflow_states, _FOLD)
    | _of(checkpoints, _CHECKPOINT)
    | {"keep": BigInteger()}
)


# Named unlike any column: in an UPDATE a parameter with a column's name is a new value.
_ARRAYS: Final = {f"each_{name}": ARRAY(kind) for name, kind in _PARAMETERS.items()}


def postgres_commit(
    changes: Sequence[RunChange], *, only_marked: bool = False, idle_limit: timedelta | None = None
) -> tuple[Executable, dict[str, Any]]:
    """A statement, and its parameters, that writes `changes`, each under its own lease; at most one of a run.

    It returns a row (id, False, request) for each run that matched and one (id, True, None) for each step written:
    none for a step that is recorded as completed. Passed over are runs whose lease is another's, that have moved on,
    whose row is locked, and that make a checkpoint beside unnumbered ones. And so is one change if it is `only_marked`,
    in a transaction that is not, see `open_transactions`. An `idle_limit` is set for the transaction.
    """
    if len(changes) == 1:
        return _of_one(only_marked=only_marked, idle_limit=idle_limit), dict(
            zip(_ARRAYS, _flat(changes[0]), strict=True)
        )
    by_column = zip(*map(_flat, changes), strict=True)
    return _of_many(idle_limit=idle_limit), dict(zip(_ARRAYS, map(list, by_column), strict=True))


def _flat(change: RunChange) -> tuple[Any, ...]:
    lease = change.lease
    return (
        lease.workflow_state_id,
        lease.owner,
        lease.token,
        lease.version,
        change.consumed_signal,
        *_step_values(change.step),
        *(_NO_FOLD if change.context is None else _fold_values(change.context)),
        *(_NO_CHECKPOINT if change.checkpoint is None else _checkpoint_values(change.checkpoint)),
    )


@cache
def _of_many(*, idle_limit: timedelta | None) -> Executable:
    arrays = (bindparam(name, type_=kind) for name, kind in _ARRAYS.items())
    columns = (column(name, kind) for name, kind in _PARAMETERS.items())
    return _commit(func.unnest(*arrays).table_valued(*columns, name="given").render_derived(), idle_limit)


@cache
def _of_one(*, only_marked: bool, idle_limit: timedelta | None) -> Executable:
    """Plain values: Postgres plans it once and for all. Arrays, whose length it looks at, it plans each time anew."""
    values = (
        bindparam(parameter, type_=kind).label(name)
        for parameter, (name, kind) in zip(_ARRAYS, _PARAMETERS.items(), strict=True)
    )
    given = select(*values).where(is_marked()) if only_marked else select(*values)
    return _commit(given.subquery("given"), idle_limit)


def _commit(given: FromClause, idle_limit: timedelta | None) -> Executable:
    """No part joins two others: the planner, which does not see how long arrays are, would compare each with each."""
    updated = _updated(_matched(given))
    recorded = _recorded(updated)
    matched = select(updated.c.id, false().label("is_step"), updated.c.request)
    if idle_limit is not None:
        matched = matched.where(setting_idle_limit(idle_limit).is_not(None))
    return union_all(
        matched,
        select(recorded.c.workflow_state_id, true(), null()),
    ).add_cte(_consumed(updated), _saved(updated), _pruned(updated))


def _matched(given: FromClause) -> CTE:
    # LIMIT, and no EXISTS: that one the planner may turn into one look at all checkpoints there are.
    unnumbered = (
        select(_checkpoint.id)
        .where(_checkpoint.workflow_state_id == given.c.id, _checkpoint.seq.is_(None))
        .limit(1)
        .scalar_subquery()
    )
    return (
        select(*given.c)
        .join_from(given, workflow_states, _w.id == given.c.id)
        .where(
            _w.lease_owner == given.c.owner,
            _w.lease_token == given.c.token,
            _w.version == given.c.version,
            NOT_LET_GO,
            or_(given.c.checkpoints_id.is_(None), unnumbered.is_(None)),
        )
        .with_for_update(of=workflow_states, skip_locked=True, key_share=True)
        .cte("matched")
    )


def _updated(matched: CTE) -> CTE:
    folds = matched.c.workflow_states_context.is_not(None)
    values: dict[str, Any] = {
        "version": one_more(_w.version),
        "updated_at": database_now(),
        "digested_at": STILL_DIGESTED_AT,
        "checkpoint_seq": case(
            (matched.c.checkpoints_id.is_(None), _w.checkpoint_seq), else_=one_more(_w.checkpoint_seq)
        ),
    }
    step_is_over = _is_over(matched.c[f"{step_states.name}_status"])
    values["has_progressed"] = case((step_is_over, literal_column("1")), else_=_w.has_progressed)
    for name in _FOLD:
        values[name] = case((folds, matched.c[f"{workflow_states.name}_{name}"]), else_=_w[name])
    for name, kept in FIRST_CONTEXT_KEPT.items():
        values[name] = case((folds, kept), else_=_w[name])
    return (
        update(workflow_states)
        .where(_w.id == matched.c.id)
        .values(values)
        .returning(*matched.c, _w.request, _w.checkpoint_seq)
        .cte("updated")
    )


def _is_over(status: ColumnElement[str]) -> ColumnElement[bool]:
    return or_(*(status == literal_column(f"'{final}'") for final in sorted(FINAL)))


def _recorded(updated: CTE) -> CTE:
    source = select(updated.c.id, *(updated.c[f"{step_states.name}_{name}"] for name in _STEP))
    insert = postgresql.insert(step_states).from_select(["workflow_state_id", *_STEP], source)
    return recorded_once(insert, _STEP).returning(step_states.c.workflow_state_id).cte("recorded")


def _saved(updated: CTE) -> CTE:
    """The checkpoints, also of steps that are recorded already: by this change, whose checkpoint then is, too."""
    source = select(
        updated.c.id, updated.c.checkpoint_seq, *(updated.c[f"{checkpoints.name}_{name}"] for name in _CHECKPOINT)
    ).where(updated.c.checkpoints_id.is_not(None))
    return (
        postgresql.insert(checkpoints)
        .from_select(["workflow_state_id", "seq", *_CHECKPOINT], source)
        .on_conflict_do_nothing(index_elements=["id"])
        .cte("saved")
    )


def _pruned(updated: CTE) -> CTE:
    """One less than `keep` is left beside the checkpoint that is made, which the statement does not see."""
    superseded = (
        select(_checkpoint.id)
        .where(_checkpoint.workflow_state_id == updated.c.id, _checkpoint.id != updated.c.checkpoints_id)
        .order_by(_checkpoint.seq.desc().nulls_first())
        .offset(updated.c.keep - 1)
        .correlate(updated)
        .lateral("superseded")
    )
    ids = select(superseded.c.id).select_from(updated.join(superseded, true()))
    return delete(checkpoints).where(_checkpoint.id.in_(ids)).cte("pruned")


def _consumed(updated: CTE) -> CTE:
    return delete(signals).where(signals.c.id == updated.c.consumed_signal).cte("consumed")


# --- SQLite ------------------------------------------------------------------------------------------------------

_HAS_UNNUMBERED: Final = exists().where(
    _checkpoint.workflow_state_id == bindparam("fence_id"), _checkpoint.seq.is_(None)
)
_OWN_SEQ: Final = select(_w.checkpoint_seq).where(_w.id == bindparam("workflow_state_id")).scalar_subquery()


@cache
def commit_update(*, folds_context: bool, makes_checkpoint: bool, finishes_step: bool) -> Executable:
    """UPDATE the run's row under its lease, in its place; returns its request.

    A run that makes a checkpoint beside unnumbered ones is passed over.
    """
    statement = fenced_update(frozenset(_FOLD if folds_context else ())).where(IN_ITS_PLACE)
    if finishes_step:
        statement = statement.values(has_progressed=literal_column("1"))
    if makes_checkpoint:
        statement = statement.values(checkpoint_seq=one_more(_w.checkpoint_seq)).where(~_HAS_UNNUMBERED)
    return statement.returning(_w.request)


UPSERT_STEP: Final = recorded_once(sqlite.insert(step_states), _STEP).values(
    {name: bindparam(name) for name in ("workflow_state_id", *_STEP)}
)
INSERT_CHECKPOINT: Final = (
    sqlite.insert(checkpoints)
    .values({name: bindparam(name) for name in ("workflow_state_id", *_CHECKPOINT)} | {"seq": _OWN_SEQ})
    .on_conflict_do_nothing(index_elements=["id"])
)
DELETE_SIGNAL: Final = delete(signals).where(signals.c.id == bindparam("consumed_signal"))
PRUNE_CHECKPOINTS: Final = delete(checkpoints).where(
    _checkpoint.id.in_(
        select(_checkpoint.id)
        .where(_checkpoint.workflow_state_id == bindparam("workflow_state_id"))
        .order_by(_checkpoint.seq.desc().nulls_first())
        .offset(bindparam("keep"))
    )
)


def update_parameters(change: RunChange) -> dict[str, Any]:
    """The parameters of `commit_update`."""
    lease = change.lease
    values: dict[str, Any] = {
        "fence_id": lease.workflow_state_id,
        "fence_owner": lease.owner,
        "fence_token": lease.token,
        "fence_version": lease.version,
    }
    if change.context is not None:
        values.update(zip(_NEW_FOLD, _fold_values(change.context), strict=True))
    return values


def step_parameters(change: RunChange) -> dict[str, Any]:
    """The parameters of `UPSERT_STEP`."""
    return dict(zip(SealedStep._fields, change.step, strict=True))


def checkpoint_parameters(lease: Lease, checkpoint: CheckpointRecord) -> dict[str, Any]:
    """The parameters of `INSERT_CHECKPOINT`."""
    values = zip(_CHECKPOINT, _checkpoint_values(checkpoint), strict=False)  # all but the last, which is `keep`
    return dict(values, workflow_state_id=lease.workflow_state_id)
