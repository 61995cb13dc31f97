"""Find the cells of a row that hold no value of their column's type.

SQLite keeps anything in any column, and Postgres has moments that Python has not. Such a cell is damage to the one row
that it is in: it is read without an error (see `column_types`), and found here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Final
from uuid import UUID

from orchestrator_state.damaged import DAMAGED_ID, DAMAGED_TIME, FURTHEST_COUNT
from orchestrator_state.domain import QuestionStatus, StepStatus, WorkflowStatus
from orchestrator_state.errors import CorruptPayload
from orchestrator_state.payloads import LONGEST_NAME, is_unicode
from orchestrator_state.records.opening import DigestedRow

Cells = Mapping[str, Callable[[object], bool]]
"""By column: whether a value is one of its type."""

GROWING_COUNTS: Final = ("version", "lease_token", "attempts", "checkpoint_seq")
"""Counts that grow by one in statements for many runs, which leave out rows in which one of them cannot grow."""

_WORKFLOW_STATUSES: Final = frozenset(WorkflowStatus)
_QUESTION_STATUSES: Final = frozenset(QuestionStatus)
_STEP_STATUSES: Final = frozenset(StepStatus)


def is_time(value: object) -> bool:
    return isinstance(value, datetime) and value != DAMAGED_TIME


def is_id(value: object) -> bool:
    return isinstance(value, UUID) and value != DAMAGED_ID


def is_integer(value: object) -> bool:
    return type(value) is int


def is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < FURTHEST_COUNT


def is_text(value: object) -> bool:
    return isinstance(value, str) and is_unicode(value)


def is_step_id(value: object) -> bool:
    if type(value) is str and value.isascii():  # as nearly always: this is for each step that is loaded
        return len(value) <= LONGEST_NAME
    return is_text(value) and len(str(value)) <= LONGEST_NAME


def is_name(value: object) -> bool:
    return is_text(value) and value != ""


def is_object(value: object) -> bool:
    return isinstance(value, dict)


def _or_null(is_sound: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or is_sound(value)


# All columns but payloads and digests.
CELLS: Final[Mapping[str, Cells]] = {
    "workflow_states": {
        "id": is_id,
        "workflow_id": is_text,
        "workflow_name": is_text,
        "status": _WORKFLOW_STATUSES.__contains__,
        "user_id": _or_null(is_text),
        "started_at": is_time,
        "updated_at": is_time,
        "completed_at": _or_null(is_time),
        "namespace": is_name,
        "version": is_count,
        "checkpoint_seq": is_count,
        "lease_owner": _or_null(is_id),
        "lease_process": _or_null(is_text),
        "lease_token": is_count,
        "lease_expires_at": _or_null(is_time),
        "attempts": is_count,
        "wake_at": _or_null(is_time),
        "request": _or_null(is_text),
        "context_position": is_integer,
        "signal_seq": is_count,
        "idempotency_key": _or_null(is_text),
        "parent_id": _or_null(is_id),
        "forked_from_id": _or_null(is_id),
        "forked_from_seq": _or_null(is_integer),
        "schema_version": _or_null(is_integer),
        "digested_at": _or_null(is_time),
        "faults": is_count,
        "has_progressed": is_integer,
        "error_type": _or_null(is_text),
        "attributes": _or_null(is_object),
        "budget_cost": _or_null(is_integer),
        "budget_tokens": _or_null(is_integer),
    },
    "step_states": {
        "workflow_state_id": is_id,
        "step_id": is_text,
        "status": _STEP_STATUSES.__contains__,
        "started_at": _or_null(is_time),
        "completed_at": _or_null(is_time),
        "retry_count": _or_null(is_integer),
        "position": is_count,
        "schema_version": _or_null(is_integer),
        "kind": _or_null(is_text),
        "waits_until": _or_null(is_time),
    },
    "checkpoints": {
        "id": is_id,
        "workflow_state_id": is_id,
        "step_id": is_text,
        "timestamp": is_time,
        "seq": _or_null(is_count),
        "schema_version": _or_null(is_integer),
        "position": _or_null(is_count),
    },
    "signals": {
        "id": is_id,
        "workflow_state_id": is_id,
        "name": is_text,
        "sent_at": is_time,
        "seq": is_count,
    },
    "current_steps": {
        "workflow_state_id": is_id,
        "step_id": is_text,
        "lease_token": is_count,
        "started_at": is_time,
    },
    "questions": {
        "id": is_id,
        "workflow_state_id": is_id,
        "namespace": is_name,
        "step_id": is_text,
        "name": is_text,
        "status": _QUESTION_STATUSES.__contains__,
        "asked_at": is_time,
        "expires_at": _or_null(is_time),
        "closed_at": _or_null(is_time),
        "answered_by": _or_null(is_text),
        "refused": _or_null(is_text),
    },
    "requests": {
        "id": is_id,
        "namespace": is_name,
        "kind": is_text,
        "made_at": is_time,
    },
}
"""By table."""


def damaged_columns(row: object, cells: Cells) -> list[str]:
    """The columns of a row, payloads and digests aside, that hold no value of their type."""
    return [name for name, is_sound in cells.items() if not is_sound(getattr(row, name))]


def damaged_in(groups: Iterable[str], row: object, cells: Cells) -> list[str]:
    """Which of the columns of `groups`, a few names each, hold no value of their type."""
    names = {name for group in groups for name in group.split(", ")}
    return [name for name, is_sound in cells.items() if name in names and not is_sound(getattr(row, name))]


def unwritable_columns(row: DigestedRow) -> list[str]:
    """What keeps a row of workflows from being written to: a damaged id, or counts that cannot grow."""
    if not is_id(row.id):
        return ["id"]
    return [name for name in GROWING_COUNTS if not is_count(getattr(row, name))]


def corrupt_cells(columns: Iterable[str], workflow_state_id: UUID, **about: object) -> CorruptPayload:
    named = list(columns)
    return CorruptPayload(
        f"the stored {', '.join(named)} cannot be read: mend it in the database, then `store.resume`",
        path=named[0],
        workflow_state_id=workflow_state_id,
        **about,
    )
