"""Statuses, transitions and the three domain objects. Pure: no database, no clock but the system's.

A domain object is a pydantic model that a caller may change freely; nothing is stored until it is saved.
Assigning a field validates it. Payloads (`context`, `outputs`, `snapshot`) are ordinary mutable JSON
values and are checked when they are saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from typing import Annotated, Any, Final, Self
from uuid import UUID, uuid4

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationError,
)

from orchestrator_state.errors import InvalidPayload, InvalidTransition
from orchestrator_state.payloads import LONGEST_NAME, copied, flaw_of, text_of

__all__ = [
    "ACTIVE",
    "FINISHED",
    "STEP_TRANSITIONS",
    "WORKFLOW_TRANSITIONS",
    "Checkpoint",
    "QuestionStatus",
    "StepState",
    "StepStatus",
    "WorkflowState",
    "WorkflowStatus",
]


class _Status(StrEnum):
    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        """The snapshots of the original software spell a status with a capital letter: `Running`."""
        return cls.__members__.get(value.upper()) if isinstance(value, str) and value.istitle() else None


class WorkflowStatus(_Status):
    """Where a workflow stands, as text: what `status` holds in its row."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class QuestionStatus(StrEnum):
    """What became of a question of a run to people."""

    OPEN = "open"
    ANSWERED = "answered"
    EXPIRED = "expired"


class StepStatus(_Status):
    """Where a step stands, as text: what `status` holds in its row."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"


ACTIVE: Final = frozenset({WorkflowStatus.PENDING, WorkflowStatus.RUNNING, WorkflowStatus.PAUSED})
"""The statuses of workflows that have work left."""
FINISHED: Final = frozenset(WorkflowStatus) - ACTIVE
"""The statuses of workflows that have ended, one way or another."""

WORKFLOW_TRANSITIONS: Final[Mapping[WorkflowStatus, frozenset[WorkflowStatus]]] = {
    WorkflowStatus.PENDING: frozenset(WorkflowStatus),
    WorkflowStatus.RUNNING: frozenset(WorkflowStatus) - {WorkflowStatus.PENDING},
    WorkflowStatus.PAUSED: frozenset(WorkflowStatus) - {WorkflowStatus.PENDING},
    WorkflowStatus.FAILED: frozenset({WorkflowStatus.RUNNING}),
    WorkflowStatus.COMPLETED: frozenset(),
    WorkflowStatus.CANCELLED: frozenset(),
}
"""Where each status of a workflow may go. Pending goes anywhere; a failed workflow may be run again on purpose."""
STEP_TRANSITIONS: Final[Mapping[StepStatus, frozenset[StepStatus]]] = {
    StepStatus.PENDING: frozenset(StepStatus),
    StepStatus.RUNNING: frozenset(StepStatus) - {StepStatus.PENDING},
    StepStatus.FAILED: frozenset({StepStatus.RUNNING, StepStatus.SKIPPED}),
    StepStatus.COMPLETED: frozenset(),
    StepStatus.SKIPPED: frozenset(),
}
"""Where each status of a step may go."""


_INFINITIES: Final = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))


utc_now: Final = partial(datetime.now, UTC)


def _storable_text(value: str) -> str:
    if (flaw := flaw_of(value)) is not None:
        raise ValueError(f"must not contain {flaw}")
    return value


def _in_utc(value: datetime) -> datetime:
    try:
        utc = value.astimezone(UTC)
    except OverflowError:
        raise ValueError("is outside the years 1 to 9999 in UTC") from None
    except Exception as error:  # noqa: BLE001 - a time zone may be anybody's
        raise ValueError(f"cannot be converted to UTC ({type(error).__qualname__})") from None
    if utc in _INFINITIES:
        raise ValueError("is the first or the last moment that datetime knows, which Postgres takes for infinity")
    return utc


def _as_text(value: object) -> object:
    """Python's own error about what is no status would show it, whatever its `__repr__` does."""
    if isinstance(value, _Status):
        return value
    if (text := text_of(value)) is None:
        raise ValueError("is a text")
    return text


Name = Annotated[
    str, StringConstraints(min_length=1, max_length=LONGEST_NAME, strict=True), AfterValidator(_storable_text)
]
Text = Annotated[str, StringConstraints(strict=True), AfterValidator(_storable_text)]
_OfWorkflow = Annotated[WorkflowStatus, BeforeValidator(_as_text)]
_OfStep = Annotated[StepStatus, BeforeValidator(_as_text)]
Timestamp = Annotated[AwareDatetime, AfterValidator(_in_utc)]
LARGEST_COUNT: Final = 2**31 - 1
"""The largest number that a column of Postgres holds. SQLite's hold more, but are given no larger ones."""
Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT, strict=True)]


def _refused(subject: str, error: ValidationError) -> InvalidPayload:
    """Our error for pydantic's: the place and the reason, never the value."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    path = ".".join(str(part) for part in first["loc"]) or subject
    return InvalidPayload(f"{subject}: {path}: {first['msg']}", path=path)


class _DomainModel(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, hide_input_in_errors=True)

    def __init__(self, /, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise _refused(type(self).__name__, error) from None

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            raise _refused(type(self).__name__, error) from None


class StepState(_DomainModel):
    """One step of a workflow. `outputs` is any JSON value.

    The `mark_…` methods move it along the arrows of `STEP_TRANSITIONS`, in memory: saving its workflow stores that.
    They raise `InvalidTransition` where there is no arrow.
    """

    step_id: Name
    status: _OfStep = StepStatus.PENDING
    started_at: Timestamp | None = None
    completed_at: Timestamp | None = None
    outputs: Any = Field(default=None, repr=False)
    error: Text | None = Field(default=None, repr=False)
    retry_count: Count = 0

    def mark_running(self) -> None:
        """Begin, or begin again after a failure; the previous outcome is cleared."""
        self._move(StepStatus.RUNNING)
        self.started_at = utc_now()
        self.completed_at = self.error = None

    def mark_completed(self, outputs: Any = None) -> None:
        """End with `outputs`, any JSON value."""
        self._move(StepStatus.COMPLETED)
        self.completed_at = utc_now()
        self.outputs = outputs
        self.error = None

    def mark_failed(self, error: str) -> None:
        """End with what went wrong, as text."""
        self._move(StepStatus.FAILED, error)
        self.completed_at = utc_now()

    def mark_skipped(self) -> None:
        """End without having been done."""
        self._move(StepStatus.SKIPPED)
        self.completed_at = utc_now()

    def increment_retry(self) -> None:
        """Count one more call that failed."""
        self.retry_count += 1

    def _move(self, target: StepStatus, error: str | None = None) -> None:
        if target not in STEP_TRANSITIONS[self.status]:
            raise _no_such_arrow(f"step {self.step_id!r}", self.status, target, STEP_TRANSITIONS[self.status])
        if error is not None:
            self.error = error
        self.status = target


class WorkflowState(_DomainModel):
    """A workflow and its steps. `context` is any JSON value; `version` counts saves and is the store's.

    The key of `steps` is the step's `step_id`. The `mark_…` methods move it along the arrows of `WORKFLOW_TRANSITIONS`,
    in memory: `store.save_workflow_state` stores that. They raise `InvalidTransition` where there is no arrow.
    """

    id: UUID = Field(default_factory=uuid4)
    workflow_id: Name
    workflow_name: Name
    status: _OfWorkflow = WorkflowStatus.PENDING
    user_id: Name | None = None
    started_at: Timestamp = Field(default_factory=utc_now)
    updated_at: Timestamp = Field(default_factory=utc_now)
    completed_at: Timestamp | None = None
    context: Any = Field(default_factory=dict, repr=False)
    error: Text | None = Field(default=None, repr=False)
    steps: dict[str, StepState] = Field(default_factory=dict)
    version: Count = 0

    _saved: Any = PrivateAttr(default=None)
    """What the database held when the state was last loaded or saved: `SavedRows`, which no caller sees."""
    _touched_at: datetime | None = PrivateAttr(default=None)
    """`updated_at`, if it comes from this machine's clock and not from the caller."""

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        if "updated_at" not in self.model_fields_set:
            self._touched_at = self.updated_at

    def __eq__(self, other: object) -> bool:
        """Two states are equal if their fields are; what each was loaded from is not part of its value."""
        return self.__dict__ == other.__dict__ if isinstance(other, WorkflowState) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    @property
    def is_active(self) -> bool:
        """Whether there is work left: pending, running or paused."""
        return self.status in ACTIVE

    def mark_running(self) -> None:
        """Start, continue, or take a failed workflow up again; the previous outcome is cleared."""
        self._move(WorkflowStatus.RUNNING)
        self.completed_at = self.error = None

    def mark_paused(self) -> None:
        """Stop for a while; `mark_running` continues it."""
        self._move(WorkflowStatus.PAUSED)

    def mark_completed(self) -> None:
        """End well."""
        self._move(WorkflowStatus.COMPLETED)
        self.error = None

    def mark_failed(self, error: str) -> None:
        """End with what went wrong, as text. `mark_running` takes it up again."""
        self._move(WorkflowStatus.FAILED, error)

    def mark_cancelled(self) -> None:
        """End for good, because somebody wanted that."""
        self._move(WorkflowStatus.CANCELLED)

    def to_snapshot(self) -> dict[str, Any]:
        """Return the whole state as an independent JSON value, as a checkpoint holds it.

        Raises `InvalidPayload` if the context or an output is not JSON.
        """
        snapshot = self.model_dump(mode="json", exclude={"context", "steps"})
        snapshot["context"] = copied(self.context, "context")
        snapshot["steps"] = {
            step_id: {
                **step.model_dump(mode="json", exclude={"outputs"}),
                "outputs": copied(step.outputs, f"steps[{step_id!r}].outputs"),
            }
            for step_id, step in self.steps.items()
        }
        return snapshot

    @classmethod
    def from_snapshot(cls, snapshot: Any) -> Self:
        """Rebuild a state from `to_snapshot()`. Raises `InvalidPayload` if it is something else."""
        if not isinstance(snapshot, dict) or not all(isinstance(key, str) for key in snapshot):
            raise InvalidPayload("the snapshot is not a workflow's state", path="snapshot")
        return cls(**snapshot)

    def _move(self, target: WorkflowStatus, error: str | None = None) -> None:
        if target not in WORKFLOW_TRANSITIONS[self.status]:
            subject = f"workflow {self.workflow_id!r}"
            raise _no_such_arrow(subject, self.status, target, WORKFLOW_TRANSITIONS[self.status])
        if error is not None:
            self.error = error
        self.status = target
        self.updated_at = self._touched_at = utc_now()
        if target in FINISHED:
            self.completed_at = self.updated_at


class Checkpoint(_DomainModel):
    """A recovery point. `snapshot` is any JSON value, usually `WorkflowState.to_snapshot()`.

    `seq` is the order within the workflow; the store assigns it, so it is None until then.
    """

    id: UUID = Field(default_factory=uuid4)
    workflow_state_id: UUID
    step_id: Name
    timestamp: Timestamp = Field(default_factory=utc_now)
    snapshot: Any = Field(repr=False)
    seq: Count | None = None


def _no_such_arrow(subject: str, status: StrEnum, target: StrEnum, allowed: frozenset[Any]) -> InvalidTransition:
    expected = tuple(sorted(allowed))
    choices = f"it may become {', '.join(expected)}" if expected else "it is finished"
    return InvalidTransition(
        f"{subject} is {status} and cannot become {target}; {choices}", expected=expected, found=str(status)
    )
