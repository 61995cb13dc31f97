"""Rows of the original software as domain objects, or what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from orchestrator_state.domain import Checkpoint, StepState, StepStatus, WorkflowState, WorkflowStatus
from orchestrator_state.errors import InvalidPayload, PayloadError
from orchestrator_state.payloads import decode
from orchestrator_state.records.original.forms import Unreadable, as_id, as_status, as_time

RawRow = Mapping[str, Any]
"""Cells by the name of their column, as the driver gave them."""
_Result = TypeVar("_Result")
_LAST: Final = datetime.max.replace(tzinfo=UTC)
_LONGEST_SHOWN: Final = 80


@dataclass(frozen=True, slots=True)
class OriginalFlaw:
    """A row that is not taken over."""

    table: str
    """`workflow_states`, `step_states` or `checkpoints`."""
    id: str
    """Of the row: as it stands there, with what is not printable escaped. A step's is its run's and its own."""
    reason: str
    """Why. It quotes nothing of the row."""


@dataclass(frozen=True, slots=True, repr=False)
class RawRun:
    """A run as it stands in the three tables."""

    workflow: RawRow
    steps: Sequence[RawRow]
    checkpoints: Sequence[RawRow]


@dataclass(frozen=True, slots=True, repr=False)
class ReadRun:
    """A run that was understood."""

    state: WorkflowState
    checkpoints: list[Checkpoint]
    """Oldest first."""
    flaws: list[OriginalFlaw] = field(default_factory=list)
    """Of checkpoints that were not."""


def named(*ids: Any) -> str:
    """Ids as they stand in a row, to be shown to people: nothing in them moves a cursor, and none is endless."""
    return " ".join(_shown(each) for each in ids)


def _shown(value: Any) -> str:
    text = value.hex() if isinstance(value, bytes) else str(value)
    escaped = text.encode("unicode_escape", "backslashreplace").decode("ascii")
    return escaped if len(escaped) <= _LONGEST_SHOWN else f"{escaped[:_LONGEST_SHOWN]}…"


def read_run(raw: RawRun) -> ReadRun | OriginalFlaw:
    """A run with its checkpoints in the order of their times.

    It is taken as a whole or not at all: without one of its steps, that step would be done once more. A checkpoint that
    cannot be read is left out.
    """
    state = flaw_of_row("workflow_states", raw.workflow, _workflow)
    if isinstance(state, OriginalFlaw):
        return state
    steps: list[StepState] = []
    for row in raw.steps:
        step = flaw_of_row("step_states", row, _step)
        if isinstance(step, OriginalFlaw):
            return step
        steps.append(step)
    steps.sort(key=lambda step: (step.started_at or _LAST, step.step_id))
    state.steps = {step.step_id: step for step in steps}
    if len(state.steps) < len(steps):
        return OriginalFlaw("workflow_states", named(raw.workflow["id"]), "two of its steps have one id")
    run = ReadRun(state, [])
    for row in raw.checkpoints:
        checkpoint = flaw_of_row("checkpoints", row, _checkpoint)
        if isinstance(checkpoint, OriginalFlaw):
            run.flaws.append(checkpoint)
        else:
            run.checkpoints.append(checkpoint)
    run.checkpoints.sort(key=lambda checkpoint: (checkpoint.timestamp, checkpoint.id))
    return run


def flaw_of_row(table: str, row: RawRow, read: Callable[[RawRow], _Result]) -> _Result | OriginalFlaw:
    """What `read` makes of the row, or why it cannot."""
    try:
        return read(row)
    except (Unreadable, PayloadError) as error:
        ids = (row["workflow_state_id"], row["step_id"]) if table == "step_states" else (row["id"],)
        return OriginalFlaw(table, named(*ids), str(error))


def _workflow(row: RawRow) -> WorkflowState:
    return WorkflowState(
        id=_cell(row, "id", as_id),
        workflow_id=row["workflow_id"],
        workflow_name=row["workflow_name"],
        status=_cell(row, "status", lambda value: as_status(value, WorkflowStatus)),
        user_id=row["user_id"],
        started_at=_cell(row, "started_at", as_time),
        updated_at=_cell(row, "updated_at", as_time),
        completed_at=_unless_null(row, "completed_at", as_time),
        context=_json(row, "context"),
        error=row["error"],
    )


def _step(row: RawRow) -> StepState:
    _cell(row, "workflow_state_id", as_id)
    return StepState(
        step_id=row["step_id"],
        status=_cell(row, "status", lambda value: as_status(value, StepStatus)),
        started_at=_unless_null(row, "started_at", as_time),
        completed_at=_unless_null(row, "completed_at", as_time),
        outputs=None if row["outputs"] is None else _json(row, "outputs"),
        error=row["error"],
        retry_count=0 if row["retry_count"] is None else row["retry_count"],
    )


def _checkpoint(row: RawRow) -> Checkpoint:
    return Checkpoint(
        id=_cell(row, "id", as_id),
        workflow_state_id=_cell(row, "workflow_state_id", as_id),
        step_id=row["step_id"],
        timestamp=_cell(row, "timestamp", as_time),
        snapshot=_json(row, "snapshot"),
    )


def _cell(row: RawRow, column: str, read: Callable[[Any], _Result]) -> _Result:
    try:
        return read(row[column])
    except Unreadable as error:
        raise Unreadable(f"{column}: {error}") from None


def _unless_null(row: RawRow, column: str, read: Callable[[Any], _Result]) -> _Result | None:
    return None if row[column] is None else _cell(row, column, read)


def _json(row: RawRow, column: str) -> Any:
    text = row[column]
    if not isinstance(text, str):
        raise InvalidPayload(f"the stored {column} is no text", path=column)
    return decode(text, column)
