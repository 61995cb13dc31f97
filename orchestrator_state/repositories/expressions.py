"""The statements, built once. Building one costs more than sending it."""

from __future__ import annotations

from functools import cache
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    CompoundSelect,
    FromClause,
    Insert,
    Table,
    bindparam,
    case,
    delete,
    exists,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    type_coerce,
    union_all,
    update,
)
from sqlalchemy.sql import Select

from orchestrator_state.database import conflict_aware_insert, database_now, is_moment, one_more
from orchestrator_state.domain import ACTIVE
from orchestrator_state.models import checkpoints, signals, step_states, workflow_states
from orchestrator_state.payloads import ENVELOPE_MARKER, REFERENCE_MARKER
from orchestrator_state.records import StoredStep
from orchestrator_state.repositories.claimable import LEASE_IS_FREE
from orchestrator_state.repositories.counts import next_count

_workflow = workflow_states.c
_step = step_states.c
_checkpoint = checkpoints.c

HANGING: Final = (step_states, checkpoints, signals)
"""The tables whose rows hang on a workflow's."""

_IN_NAMESPACE: Final = _workflow.namespace == bindparam("namespace")
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


_IDS: Final = select(_workflow.id).where(_IN_NAMESPACE)

STATE_BY_ID: Final = _states(_IDS.where(_workflow.id == bindparam("id")))
_NEWEST: Final = _IDS.where(_workflow.workflow_id == bindparam("workflow_id")).order_by(*_NEWEST_FIRST).limit(1)
STATE_BY_WORKFLOW_ID: Final = _states(_NEWEST.where(is_moment(_workflow.updated_at)))
DAMAGED_BY_WORKFLOW_ID: Final = _states(_NEWEST)
"""Where that finds none: one of which the time is damaged, that would sort before all others, may be left."""
# Not IN: its list is put together anew for each execution, which only SQLAlchemy's own way can do.
ACTIVE_STATES: Final = _states(_IDS.where(or_(*(_workflow.status == status.value for status in sorted(ACTIVE)))))

CURRENT_VERSION: Final = select(
    _workflow.version, _workflow.lease_owner, _workflow.lease_process, _workflow.lease_expires_at
).where(_IN_NAMESPACE, _workflow.id == bindparam("id"))

LEASES_OF: Final = (
    select(
        _workflow.id,
        _workflow.lease_owner,
        _workflow.lease_process,
        _workflow.lease_expires_at,
        LEASE_IS_FREE.label("lease_is_free"),
    )
    .where(_workflow.id.in_(bindparam("ids", expanding=True)), _IN_NAMESPACE)
    .order_by(_workflow.id)
    .with_for_update()
)
"""Locks the rows of `ids` that are in the namespace."""

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
CHECKPOINT_OWNER: Final = CHECKPOINT_BY_ID.with_only_columns(_checkpoint.workflow_state_id)
CHECKPOINTS_OF: Final = _CHECKPOINTS.where(_checkpoint.workflow_state_id == bindparam("workflow_state_id")).order_by(
    *NEWEST_CHECKPOINT_FIRST
)
CHECKPOINT_IDS_OF: Final = CHECKPOINTS_OF.with_only_columns(_checkpoint.id)
WHOLE_CHECKPOINT_IDS_OF: Final = CHECKPOINTS_OF.with_only_columns(_checkpoint.id).where(_checkpoint.position.is_(None))
LATEST_CHECKPOINT_OF: Final = CHECKPOINTS_OF.limit(1)

# Whether software that knows no digests has written to the workflow since they were made.
OUTDATED: Final = _workflow.digested_at.is_distinct_from(_workflow.updated_at).label("outdated")

_STEPS: Final = (
    select(step_states, _workflow.workflow_name, OUTDATED)
    .join(workflow_states, _workflow.id == _step.workflow_state_id)
    .where(_IN_NAMESPACE)
)
STEPS_OF: Final = _STEPS.where(_step.workflow_state_id == bindparam("workflow_state_id")).order_by(
    _step.position, _step.step_id
)
STEP_BY_ID: Final = STEPS_OF.where(_step.step_id == bindparam("step_id"))

WORKFLOW_ROW: Final = select(workflow_states).where(_workflow.id == bindparam("workflow_state_id"))
DELTAS_OF: Final = select(checkpoints).where(
    _checkpoint.workflow_state_id == bindparam("workflow_state_id"), _checkpoint.position.is_not(None)
)
STEP_ROWS_OF: Final = (
    select(step_states)
    .where(_step.workflow_state_id == bindparam("workflow_state_id"))
    .order_by(_step.position, _step.step_id)
)


# In no order: the database would sort whole rows, payloads included.
STORED_STEPS_OF: Final = select(*(_step[name] for name in StoredStep._fields)).where(
    _step.workflow_state_id.in_(bindparam("workflow_state_ids", expanding=True))
)


class Children(NamedTuple):
    """How many rows hang on a workflow."""

    steps: int
    checkpoints: int
    signals: int


def _count_of(table: Table, kind: str) -> Select[Any]:
    owner = table.c.workflow_state_id
    counted = select(owner, literal_column(f"'{kind}'").label("kind"), func.count().label("number"))
    return counted.where(owner.in_(bindparam("ids", expanding=True))).group_by(owner)


CHILDREN_OF: Final = union_all(
    _count_of(step_states, "steps"), _count_of(signals, "signals"), _count_of(checkpoints, "checkpoints")
)


def surplus_checkpoints(namespace: str, keep: int) -> Select[Any]:
    """Workflows that have more than `keep` checkpoints, and their `number`."""
    owner = _checkpoint.workflow_state_id
    return (
        select(owner, func.count().label("number"))
        .join(workflow_states, _workflow.id == owner)
        .where(_workflow.namespace == namespace)
        .group_by(owner)
        .having(func.count() > literal(keep, BigInteger))
    )


# In an UPDATE a parameter with a column's name is a new value, so what is compared has other names.
_OF_WORKFLOW: Final = (_workflow.id == bindparam("of_id"), _workflow.namespace == bindparam("of_namespace"))

GUARDED_UPDATE: Final = (
    update(workflow_states)
    .where(*_OF_WORKFLOW, _workflow.version == bindparam("of_version"), LEASE_IS_FREE)
    # A worker whose lease ended, but which does not know yet, must not write over this save.
    .values(lease_token=one_more(_workflow.lease_token))
    .returning(_workflow.parent_id)
)
"""Sets the columns that it is given values for."""

_NOW: Final = dict.fromkeys(("updated_at", "digested_at"), database_now())
STAMPED_UPDATE: Final = GUARDED_UPDATE.values(_NOW).returning(_workflow.updated_at)
"""Like `GUARDED_UPDATE`, with the time of the statement; returns it."""

NOW_IF_ASLEEP: Final = case((_workflow.wake_at.is_not(None), database_now()), else_=null())
WAKE: Final = update(workflow_states).where(*_OF_WORKFLOW).values(wake_at=NOW_IF_ASLEEP)
"""Let a sleeping run be claimed now. Locks its row in any case: it may be about to fall asleep."""

# The row lock makes concurrent writers of one workflow take their numbers in turn.
NEXT_CHECKPOINT_SEQ: Final = (
    update(workflow_states)
    .where(*_OF_WORKFLOW)
    .values(checkpoint_seq=next_count(_workflow.checkpoint_seq, checkpoints))
    .returning(
        _workflow.checkpoint_seq,
        _workflow.workflow_name,
        _workflow.schema_version,
        has_unnumbered_checkpoints(bindparam("of_id", type_=_workflow.id.type)),
    )
)


def _payload_columns(table: FromClause) -> list[ColumnElement[Any]]:
    return [column for column in table.c if f"{column.name}_digest" in table.c]


def _is_reference(column: ColumnElement[Any]) -> ColumnElement[bool]:
    return func.substr(column, 1, len(REFERENCE_MARKER)) == REFERENCE_MARKER


def digest_of_envelope(table: FromClause, name: str) -> ColumnElement[Any]:
    """The digest of a payload column where it holds an envelope, else NULL."""
    is_envelope = func.substr(table.c[name], 1, len(ENVELOPE_MARKER)) == ENVELOPE_MARKER
    return case((is_envelope, table.c[f"{name}_digest"]), else_=None)


def reference_columns(table: FromClause) -> list[ColumnElement[Any]]:
    """The payload columns of `table`, NULL where they hold no reference to a blob."""
    return [case((_is_reference(column), column), else_=None) for column in _payload_columns(table)]


_OWNERS: Final = (
    (workflow_states, _workflow.id),
    (step_states, _step.workflow_state_id),
    (checkpoints, _checkpoint.workflow_state_id),
    (signals, signals.c.workflow_state_id),
)
_AMONG: Final = bindparam("among", type_=_workflow.id.type, expanding=True)
REFERENCES_OF: Final = union_all(
    *(
        select(column).where(owner.in_(_AMONG), _is_reference(column))
        for table, owner in _OWNERS
        for column in _payload_columns(table)
    )
)
"""All references to blobs of the workflows, as of one moment."""

DELETE_OLDEST_SIGNALS: Final = delete(signals).where(
    signals.c.id.in_(
        select(signals.c.id)
        .join(workflow_states, _workflow.id == signals.c.workflow_state_id)
        .where(_IN_NAMESPACE, signals.c.workflow_state_id == bindparam("workflow_state_id"))
        .order_by(signals.c.seq)
        .limit(bindparam("number", type_=BigInteger))
    )
)

HELD_WORKFLOW: Final = (
    select(_workflow.id)
    .where(_workflow.id == bindparam("workflow_state_id"), _IN_NAMESPACE)
    .with_for_update(read=True, key_share=True)
)
"""Keeps out who locks the row for more than an update, as all do that ask something of a run. No step's commit does."""

DELETE_SUPERSEDED: Final = delete(checkpoints).where(
    _checkpoint.id.in_(
        _CHECKPOINTS.with_only_columns(_checkpoint.id)
        .where(_checkpoint.workflow_state_id == bindparam("workflow_state_id"))
        .order_by(*NEWEST_CHECKPOINT_FIRST)
        .offset(bindparam("keep", type_=BigInteger))
    )
)


def has_leftovers(workflow_state_id: ColumnElement[UUID]) -> ColumnElement[bool]:
    """Whether rows hang on an id that a workflow is just given: a column named `has_leftovers`.

    They are of another workflow, whose own row alone somebody has deleted. SQLite leaves such rows if foreign keys are
    off, as they are in its shell.
    """
    owners = (table.c.workflow_state_id for table in HANGING)
    return or_(*(exists().where(owner == workflow_state_id) for owner in owners)).label("has_leftovers")


@cache
def insert_workflow(dialect: str) -> Insert:
    """Returns `updated_at` and `has_leftovers` of `of_id`, which is the id; nothing if that is taken."""
    of_id = bindparam("of_id", type_=_workflow.id.type)
    insert = conflict_aware_insert(dialect, workflow_states).on_conflict_do_nothing()
    return insert.returning(_workflow.updated_at, has_leftovers(of_id))


@cache
def insert_workflow_now(dialect: str) -> Insert:
    """Like `insert_workflow`, updated at the time of the statement."""
    return insert_workflow(dialect).values(_NOW)


@cache
def upsert_step(dialect: str) -> Insert:
    insert = conflict_aware_insert(dialect, step_states)
    key = ["workflow_state_id", "step_id"]
    # What a run's step did to the context stays with the step, whatever else is saved of it.
    kept = (*key, "context_patch", "context_patch_digest")
    replaced = {column.name: column for column in insert.excluded if column.name not in kept}
    return insert.on_conflict_do_update(index_elements=key, set_=replaced)


@cache
def insert_checkpoint(dialect: str) -> Insert:
    return conflict_aware_insert(dialect, checkpoints).on_conflict_do_nothing(index_elements=["id"])
