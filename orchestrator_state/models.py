"""The tables as declarative models, for an application that reads them beside its own.

```python
select(Order, WorkflowRow.status).join(WorkflowRow, WorkflowRow.id == Order.workflow_state_id)
```

They are for reading: a row that a session changes, adds or deletes goes past the lease of a run, past the version that
guards a save, past digests and codecs. So the relationships are `viewonly`: what is appended to `WorkflowRow.steps` is
not written. And they load nothing by themselves (`lazy="raise"`): ask for them with `selectinload`, or join them.

Payload columns (`context`, `outputs`, `error`, `result`, `snapshot`, `payload`) hold text as it is stored: JSON, or an
envelope of a codec. The store reads it back.

`metadata` may be taken into an application's own Alembic environment:
`target_metadata = [orchestrator_state.metadata, Base.metadata]`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, cast
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ColumnElement,
    ForeignKey,
    Index,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    and_,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, foreign, mapped_column, relationship, remote

from orchestrator_state.column_types import Attributes, Identifier, UtcTimestamp
from orchestrator_state.domain import QuestionStatus, StepStatus, WorkflowStatus

__all__ = [
    "CheckpointRow",
    "CurrentStepRow",
    "QuestionRow",
    "SignalRow",
    "StepRow",
    "UsageRow",
    "WorkflowRow",
    "metadata",
]

# PostgreSQL's own defaults, so that tables made by the original design carry the same names.
NAMING_CONVENTION: Final = {
    "pk": "%(table_name)s_pkey",
    "fk": "%(table_name)s_%(column_0_name)s_fkey",
    "uq": "%(table_name)s_%(column_0_N_name)s_key",
    "ck": "%(table_name)s_%(constraint_name)s_check",
}

VERSION_TABLE: Final = "orchestrator_state_version"
Digest: Final = String(64)


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING_CONVENTION)


def _one_of(column: str, statuses: type[WorkflowStatus | StepStatus | QuestionStatus]) -> CheckConstraint:
    """A constraint whose text is built from our own enums only."""
    values = ", ".join(f"'{status}'" for status in statuses)
    return CheckConstraint(text(f"{column} IN ({values})"), name=column)


def _at_most_255(*columns: str) -> list[CheckConstraint]:
    """SQLite does not enforce VARCHAR(255)."""
    return [CheckConstraint(text(f"length({column}) <= 255"), name=f"{column}_length") for column in columns]


def _partial_index(name: str, condition: str, *columns: str, **options: Any) -> Index:
    where = text(condition)
    return Index(name, *(columns or ("namespace",)), postgresql_where=where, sqlite_where=where, **options)


_OF_ATTRIBUTES: Final = {"postgresql_using": "gin", "postgresql_ops": {"attributes": "jsonb_path_ops"}}


_FOR_READING: Final[dict[str, Any]] = {"viewonly": True, "lazy": "raise"}


class WorkflowRow(Base):
    """A workflow. `version` is in the WHERE clause of every update of it."""

    __tablename__ = "workflow_states"
    __table_args__ = (
        _one_of("status", WorkflowStatus),
        *_at_most_255("workflow_id", "workflow_name", "user_id", "namespace"),
        Index("idx_workflow_id_status", "workflow_id", "status"),
        # Both begin with the one column that the original software's users look for.
        Index("idx_status", "status", "namespace", "started_at", "id"),
        Index("idx_user_id", "user_id", "namespace", "started_at", "id"),
        Index("idx_workflow_states_namespace_started_at", "namespace", "started_at", "id"),
        Index("idx_workflow_states_namespace_name", "namespace", "workflow_name", "status", "started_at", "id"),
        Index("idx_workflow_states_namespace_status", "namespace", "status", "updated_at"),
        Index("idx_workflow_states_namespace_workflow_id", "namespace", "workflow_id", "updated_at"),
        Index("idx_workflow_states_namespace_idempotency_key", "namespace", "idempotency_key", unique=True),
        # Of those rows alone that have one: each index of all rows is written with each commit of a step on Postgres.
        _partial_index("idx_workflow_states_parent_id", "parent_id IS NOT NULL", "parent_id"),
        _partial_index("idx_workflow_states_completed_at", "completed_at IS NOT NULL", "namespace", "completed_at"),
        _partial_index("idx_workflow_states_attributes", "attributes IS NOT NULL", "attributes", **_OF_ATTRIBUTES),
        # Of few rows, for what is looked for at each claim.
        _partial_index("idx_workflow_states_request", "request IS NOT NULL"),
        _partial_index("idx_workflow_states_suspects", "attempts > 1 AND status IN ('pending', 'running')"),
    )

    id: Mapped[UUID] = mapped_column(Identifier, primary_key=True)
    """That of `WorkflowState` and `Run`, for foreign keys to point at."""
    workflow_id: Mapped[str] = mapped_column(String(255))
    """The application's own name for it. Several may have the same."""
    workflow_name: Mapped[str] = mapped_column(String(255))
    status: Mapped[str] = mapped_column(String(50))
    """One of `WorkflowStatus`."""
    user_id: Mapped[str | None] = mapped_column(String(255))
    started_at: Mapped[datetime] = mapped_column(UtcTimestamp)
    updated_at: Mapped[datetime] = mapped_column(UtcTimestamp)
    completed_at: Mapped[datetime | None] = mapped_column(UtcTimestamp)
    """When it ended, however it did."""
    context: Mapped[str] = mapped_column(Text)
    """Of a run, without what the steps after `context_position` changed."""
    error: Mapped[str | None] = mapped_column(Text)
    namespace: Mapped[str] = mapped_column(String(255), server_default="default")
    """A store sees the rows of its own only; a query of yours has to say which it means."""
    version: Mapped[int] = mapped_column(server_default="1")
    """How often it was written."""
    checkpoint_seq: Mapped[int] = mapped_column(server_default="0")
    """The last number given to a checkpoint. It only grows, also when checkpoints are deleted."""

    lease_owner: Mapped[UUID | None] = mapped_column(Identifier)
    """The last owner of the run. It owns it as long as `lease_expires_at` is to come."""
    lease_process: Mapped[str | None] = mapped_column(String(255))
    """Which process owns the lease, so that a neighbour on the same machine can see that it is dead."""
    lease_token: Mapped[int] = mapped_column(server_default="0")
    """Grows with each change of owner. Every write of a run carries it in its WHERE clause."""
    lease_expires_at: Mapped[datetime | None] = mapped_column(UtcTimestamp)
    """By the database's clock. NULL: the run was let go of."""
    attempts: Mapped[int] = mapped_column(server_default="0")
    """How often in a row a run was taken over from an owner that vanished, before it had finished a step."""
    wake_at: Mapped[datetime | None] = mapped_column(UtcTimestamp)
    """A run that waits, for a signal or a timer, is nobody's before this time."""
    request: Mapped[str | None] = mapped_column(String(50))
    """What somebody asked of the live owner: pause or cancel."""
    result: Mapped[str | None] = mapped_column(Text)
    """What the handler of a completed run returned."""
    initial_context: Mapped[str | None] = mapped_column(Text)
    """The context a run started with, once a step has changed it."""
    context_position: Mapped[int] = mapped_column(server_default="-1")
    """`context` holds the patches of the steps up to this position; later ones are still to be applied."""
    signal_seq: Mapped[int] = mapped_column(server_default="0")
    """The last number given to a signal."""
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    """Which start it is, where the caller said so. Unique in its namespace."""
    parent_id: Mapped[UUID | None] = mapped_column(Identifier)
    """Of a child run: the run that called it. No foreign key: a parent may be deleted before its child."""
    forked_from_id: Mapped[UUID | None] = mapped_column(Identifier)
    """Of a fork: the workflow whose checkpoint it started from."""
    forked_from_seq: Mapped[int | None]
    """Of a fork: the `seq` of that checkpoint."""
    context_digest: Mapped[str | None] = mapped_column(Digest)
    initial_context_digest: Mapped[str | None] = mapped_column(Digest)
    result_digest: Mapped[str | None] = mapped_column(Digest)
    error_digest: Mapped[str | None] = mapped_column(Digest)
    schema_version: Mapped[int | None]
    """Of the user's state in `context`; NULL is 1."""
    digested_at: Mapped[datetime | None] = mapped_column(UtcTimestamp)
    """Equals `updated_at` unless software that knows no digests has written the row, or a step of it, since."""
    faults: Mapped[int] = mapped_column(server_default="0")
    """How often in a row the run was let go because of a fault that was not its own: the pause after it grows."""
    has_progressed: Mapped[int] = mapped_column(server_default="0")
    """1 if the last owner has finished a step: then those that vanished before it do not count any more."""
    error_type: Mapped[str | None] = mapped_column(String(255))
    """Of a failed run: the class of the exception, which says nothing of what it was about."""
    attributes: Mapped[dict[str, Any] | None] = mapped_column(Attributes)
    """What the run is to be found by, as `run.set_attributes` gave it. Not encrypted."""
    budget_cost: Mapped[int | None] = mapped_column(BigInteger)
    """What it may spend on models before it asks, in billionths of a US dollar."""
    budget_tokens: Mapped[int | None] = mapped_column(BigInteger)

    steps: Mapped[list[StepRow]] = relationship(order_by="StepRow.position, StepRow.step_id", **_FOR_READING)
    """In the order in which they were first saved."""
    checkpoints: Mapped[list[CheckpointRow]] = relationship(order_by="CheckpointRow.seq", **_FOR_READING)
    """Oldest first."""
    signals: Mapped[list[SignalRow]] = relationship(order_by="SignalRow.seq", **_FOR_READING)
    """In the order in which they were sent."""
    parent: Mapped[WorkflowRow | None] = relationship(primaryjoin=lambda: _IS_PARENT, **_FOR_READING)
    """The run that called this one, if it is there."""
    children: Mapped[list[WorkflowRow]] = relationship(
        primaryjoin=lambda: _IS_CHILD, order_by=lambda: WorkflowRow.started_at, **_FOR_READING
    )
    """The child runs that this one called."""


class StepRow(Base):
    """A step of a workflow."""

    __tablename__ = "step_states"
    __table_args__ = (
        _one_of("status", StepStatus),
        *_at_most_255("step_id"),
        Index("idx_step_workflow_state", "workflow_state_id", "position"),
        # What a run waits for, or was in the middle of. A step that is written when it has ended is not in it.
        _partial_index("idx_step_states_running", "status = 'running'", "workflow_state_id"),
    )

    workflow_state_id: Mapped[UUID] = mapped_column(
        Identifier, ForeignKey("workflow_states.id", ondelete="CASCADE"), primary_key=True
    )
    step_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    status: Mapped[str] = mapped_column(String(50))
    """One of `StepStatus`."""
    started_at: Mapped[datetime | None] = mapped_column(UtcTimestamp)
    completed_at: Mapped[datetime | None] = mapped_column(UtcTimestamp)
    outputs: Mapped[str | None] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)
    retry_count: Mapped[int | None] = mapped_column(server_default="0")
    """Nullable as in the original schema, whose rows may hold NULL: it reads as 0."""
    position: Mapped[int] = mapped_column(server_default="0")
    """Its place in the order in which the steps of the workflow were first saved."""
    context_patch: Mapped[str | None] = mapped_column(Text)
    """What a run's context gained or lost with this step's commit."""
    outputs_digest: Mapped[str | None] = mapped_column(Digest)
    error_digest: Mapped[str | None] = mapped_column(Digest)
    context_patch_digest: Mapped[str | None] = mapped_column(Digest)
    schema_version: Mapped[int | None]
    """Of the user's types in `outputs`; NULL is 1."""
    kind: Mapped[str | None] = mapped_column(String(50))
    """What was called, where it was not a function: `signal`, `sleep`, `child`."""
    waits_until: Mapped[datetime | None] = mapped_column(UtcTimestamp)
    """Of a wait that has a timeout: when it ends."""

    workflow: Mapped[WorkflowRow] = relationship(**_FOR_READING)


class CheckpointRow(Base):
    """A checkpoint of a workflow."""

    __tablename__ = "checkpoints"
    __table_args__ = (
        *_at_most_255("step_id"),
        UniqueConstraint("workflow_state_id", "seq"),
    )

    id: Mapped[UUID] = mapped_column(Identifier, primary_key=True)
    workflow_state_id: Mapped[UUID] = mapped_column(Identifier, ForeignKey("workflow_states.id", ondelete="CASCADE"))
    step_id: Mapped[str] = mapped_column(String(255))
    """The step after which it was made, or the name that it was given."""
    timestamp: Mapped[datetime] = mapped_column(UtcTimestamp)
    snapshot: Mapped[str] = mapped_column(Text)
    """The state as of then: whole, or of a run, where `position` is not NULL, as what refers to its steps."""
    seq: Mapped[int | None]
    """The order of the checkpoints of a workflow. NULL only in rows that the original software inserts."""
    snapshot_digest: Mapped[str | None] = mapped_column(Digest)
    schema_version: Mapped[int | None]
    position: Mapped[int | None]
    """Of a delta: it refers to the steps up to this position. NULL: `snapshot` is whole."""

    workflow: Mapped[WorkflowRow] = relationship(**_FOR_READING)


class SignalRow(Base):
    """A signal that no run has consumed yet."""

    __tablename__ = "signals"
    __table_args__ = (*_at_most_255("name"), UniqueConstraint("workflow_state_id", "seq"))

    id: Mapped[UUID] = mapped_column(Identifier, primary_key=True)
    workflow_state_id: Mapped[UUID] = mapped_column(Identifier, ForeignKey("workflow_states.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(255))
    payload: Mapped[str] = mapped_column(Text)
    sent_at: Mapped[datetime] = mapped_column(UtcTimestamp)
    seq: Mapped[int]
    """The order of the signals of a run."""
    payload_digest: Mapped[str | None] = mapped_column(Digest)

    workflow: Mapped[WorkflowRow] = relationship(**_FOR_READING)


class CurrentStepRow(Base):
    """A step that has been running for a while. Nothing depends on it: it is for who looks on.

    It says the truth as long as its token is that of the run's lease, and the step has not ended.
    """

    __tablename__ = "current_steps"
    __table_args__ = (*_at_most_255("step_id"),)

    workflow_state_id: Mapped[UUID] = mapped_column(
        Identifier, ForeignKey("workflow_states.id", ondelete="CASCADE"), primary_key=True
    )
    step_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    lease_token: Mapped[int]
    started_at: Mapped[datetime] = mapped_column(UtcTimestamp)

    workflow: Mapped[WorkflowRow] = relationship(**_FOR_READING)


class QuestionRow(Base):
    """A question of a run to people. Its answer comes to the run as a signal, and ends up in the step that asked."""

    __tablename__ = "questions"
    __table_args__ = (
        _one_of("status", QuestionStatus),
        *_at_most_255("namespace", "step_id", "name", "answered_by", "refused"),
        Index("idx_questions_workflow_state", "workflow_state_id"),
        Index("idx_questions_namespace_status", "namespace", "status", "asked_at", "id"),
    )

    id: Mapped[UUID] = mapped_column(Identifier, primary_key=True)
    workflow_state_id: Mapped[UUID] = mapped_column(Identifier, ForeignKey("workflow_states.id", ondelete="CASCADE"))
    namespace: Mapped[str] = mapped_column(String(255))
    """Its run's."""
    step_id: Mapped[str] = mapped_column(String(255))
    name: Mapped[str] = mapped_column(String(255))
    question: Mapped[str] = mapped_column(Text)
    """What is asked, the JSON schema of the answer, and the choices."""
    question_digest: Mapped[str | None] = mapped_column(Digest)
    status: Mapped[str] = mapped_column(String(50))
    """`open`, `answered` or `expired`. One of a run that is over may still be called open."""
    asked_at: Mapped[datetime] = mapped_column(UtcTimestamp)
    expires_at: Mapped[datetime | None] = mapped_column(UtcTimestamp)
    closed_at: Mapped[datetime | None] = mapped_column(UtcTimestamp)
    """When it was answered, or found to have expired."""
    answered_by: Mapped[str | None] = mapped_column(String(255))
    """As whoever answered was named."""
    refused: Mapped[str | None] = mapped_column(String(255))
    """Of a question that is open again: why the run did not accept an answer that its schema had let pass."""

    workflow: Mapped[WorkflowRow] = relationship(**_FOR_READING)


class RequestRow(Base):
    """A call that changed something. It commits with its effect, so that its repetition finds it."""

    __tablename__ = "requests"
    __table_args__ = (*_at_most_255("namespace"), Index("idx_requests_made_at", "made_at"))

    id: Mapped[UUID] = mapped_column(Identifier, primary_key=True)
    namespace: Mapped[str] = mapped_column(String(255))
    kind: Mapped[str] = mapped_column(String(50))
    made_at: Mapped[datetime] = mapped_column(UtcTimestamp)


class UsageRow(Base):
    """What a call of a model has used. It outlives its run, which therefore is named here, and no foreign key."""

    __tablename__ = "run_usage"
    __table_args__ = (
        *_at_most_255("namespace", "workflow_id", "workflow_name", "user_id", "step_id", "model", "provider"),
        Index("idx_run_usage_namespace_recorded_at", "namespace", "recorded_at"),
        Index("idx_run_usage_workflow_state", "workflow_state_id"),
        _partial_index("idx_run_usage_user_id", "user_id IS NOT NULL", "namespace", "user_id", "recorded_at"),
    )

    id: Mapped[UUID] = mapped_column(Identifier, primary_key=True)
    """Made when it is recorded, so that a commit that is repeated inserts it once."""
    namespace: Mapped[str] = mapped_column(String(255))
    workflow_state_id: Mapped[UUID] = mapped_column(Identifier)
    """The run. It may be deleted by now."""
    workflow_id: Mapped[str] = mapped_column(String(255))
    workflow_name: Mapped[str] = mapped_column(String(255))
    user_id: Mapped[str | None] = mapped_column(String(255))
    step_id: Mapped[str] = mapped_column(String(255))
    model: Mapped[str] = mapped_column(String(255))
    provider: Mapped[str | None] = mapped_column(String(255))
    input_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)
    cost: Mapped[int | None] = mapped_column(BigInteger)
    """In billionths of a US dollar. NULL: nobody knows the price."""
    failed: Mapped[bool]
    """Whether it was used by a call of the step's function that did not give the step's result."""
    recorded_at: Mapped[datetime] = mapped_column(UtcTimestamp)


class SchemaVersionRow(Base):
    """Alembic's bookkeeping for this package. It is not `alembic_version`: that one is the application's."""

    __tablename__ = VERSION_TABLE

    version_num: Mapped[str] = mapped_column(String(32), primary_key=True)


# A row of another namespace that says it is a child is nobody's.
_IS_PARENT: Final[ColumnElement[bool]] = and_(
    remote(WorkflowRow.id) == foreign(WorkflowRow.parent_id), remote(WorkflowRow.namespace) == WorkflowRow.namespace
)
_IS_CHILD: Final[ColumnElement[bool]] = and_(
    remote(foreign(WorkflowRow.parent_id)) == WorkflowRow.id, remote(WorkflowRow.namespace) == WorkflowRow.namespace
)

Index("idx_updated_at", WorkflowRow.updated_at.desc())
Index("idx_checkpoint_workflow_timestamp", CheckpointRow.workflow_state_id, CheckpointRow.timestamp.desc())

metadata: Final = Base.metadata
"""All our tables, for an application's own Alembic environment."""
workflow_states: Final = cast(Table, WorkflowRow.__table__)
step_states: Final = cast(Table, StepRow.__table__)
checkpoints: Final = cast(Table, CheckpointRow.__table__)
signals: Final = cast(Table, SignalRow.__table__)
questions: Final = cast(Table, QuestionRow.__table__)
current_steps: Final = cast(Table, CurrentStepRow.__table__)
requests: Final = cast(Table, RequestRow.__table__)
run_usage: Final = cast(Table, UsageRow.__table__)
schema_version: Final = cast(Table, SchemaVersionRow.__table__)
