"""The commits of runs on SQLite: a few statements for each, one after the other in one transaction.

A measured path past the ORM, in the database's own words. There is no round trip to save; the caller saves the switches
to the connection's thread. All statements of a commit take their parameters from one mapping.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from sqlalchemy import Executable, bindparam, delete, exists, literal_column, select
from sqlalchemy.dialects import sqlite

from orchestrator_state.database import Execute, ExecuteEach, one_more
from orchestrator_state.models import checkpoints, signals, step_states, workflow_states
from orchestrator_state.records import FINAL, Ack, RunChange
from orchestrator_state.repositories.checkpointed import superseded
from orchestrator_state.repositories.expressions import LAST_NUMBERED_FIRST
from orchestrator_state.repositories.runs.commits.parameters import CHECKPOINT, FOLD, STEP, TYPES, values_of
from orchestrator_state.repositories.runs.commits.usage import inserting, values_of_usage
from orchestrator_state.repositories.runs.fence import IN_ITS_PLACE, fenced_update
from orchestrator_state.repositories.steps import recorded_once

_w = workflow_states.c
_checkpoint = checkpoints.c
_HAS_UNNUMBERED: Final = exists().where(
    _checkpoint.workflow_state_id == bindparam("fence_id"), _checkpoint.seq.is_(None)
)
_OWN_SEQ: Final = select(_w.checkpoint_seq).where(_w.id == bindparam("fence_id")).scalar_subquery()


@cache
def _update(*, folds_context: bool, makes_checkpoint: bool, finishes_step: bool) -> Executable:
    """UPDATE the run's row under its lease, in its place; returns its request.

    A run that makes a checkpoint beside unnumbered ones is passed over.
    """
    statement = fenced_update(frozenset(FOLD if folds_context else ())).where(IN_ITS_PLACE)
    if finishes_step:
        statement = statement.values(has_progressed=literal_column("1"))
    if makes_checkpoint:
        statement = statement.values(checkpoint_seq=one_more(_w.checkpoint_seq)).where(~_HAS_UNNUMBERED)
    return statement.returning(_w.request)


_RUN: Final = bindparam("fence_id", type_=_w.id.type)
_UPSERT_STEP: Final = recorded_once(sqlite.insert(step_states), STEP).values(
    {"workflow_state_id": _RUN} | {name: bindparam(parameter) for name, parameter in STEP.items()}
)
_INSERT_CHECKPOINT: Final = (
    sqlite.insert(checkpoints)
    .values(
        {"workflow_state_id": _RUN, "seq": _OWN_SEQ}
        | {name: bindparam(parameter) for name, parameter in CHECKPOINT.items()}
    )
    .on_conflict_do_nothing(index_elements=["id"])
)
_DELETE_SIGNAL: Final = delete(signals).where(signals.c.id == bindparam("consumed_signal"))
_PRUNE_CHECKPOINTS: Final = delete(checkpoints).where(
    _checkpoint.id.in_(superseded(_RUN, bindparam("keep"), [LAST_NUMBERED_FIRST]))
)


def write(execute: Execute, execute_each: ExecuteEach, changes: Sequence[RunChange]) -> list[Ack | None]:
    """Write those of `changes` that nothing stands in the way of; None for one that was passed over."""
    acks: list[Ack | None] = []
    made: list[dict[str, Any]] = []
    used: list[dict[str, Any]] = []
    for change in changes:
        parameters = dict(zip(TYPES, values_of(change), strict=True))
        update = _update(
            folds_context=change.context is not None,
            makes_checkpoint=change.checkpoint is not None,
            finishes_step=change.step.status in FINAL,
        )
        found, _ = execute(update, parameters)
        if found is None:
            acks.append(None)
            continue
        [request] = found
        _, steps = execute(_UPSERT_STEP, parameters)
        if change.consumed_signal is not None:
            execute(_DELETE_SIGNAL, parameters)
        if change.checkpoint is not None:
            made.append(parameters)
        if change.usage:
            used += values_of_usage(change.lease.workflow_state_id, change.usage)
        acks.append(Ack(request=request, already_recorded=steps == 0))
    if made:  # a statement for all of them is a third quicker than one for each
        execute_each(_INSERT_CHECKPOINT, made)
        execute_each(_PRUNE_CHECKPOINTS, made)
    if used:
        execute_each(inserting("sqlite"), used)
    return acks
