"""Rows -> domain objects: what the statements that select states found, as workflows with their steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from orchestrator_state.collector import collector_paused
from orchestrator_state.damaged import DAMAGED_TIME
from orchestrator_state.domain import StepState, StepStatus, WorkflowState, WorkflowStatus
from orchestrator_state.errors import CorruptPayload, PayloadError
from orchestrator_state.payloads import Payloads, decode_long
from orchestrator_state.records.cells import (
    CELLS,
    corrupt_cells,
    damaged_in,
    is_id,
    is_integer,
    is_text,
    is_time,
)
from orchestrator_state.records.context.changes.encoded import join, split
from orchestrator_state.records.context.patches import Patch, apply_all
from orchestrator_state.records.identities import Columns
from orchestrator_state.records.opening import Opener, or_null
from orchestrator_state.records.states.saved import SavedRows
from orchestrator_state.records.states.trusted import trusted
from orchestrator_state.records.steps import SealedStep

_WORKFLOW_STATUSES: Final = {status.value: status for status in WorkflowStatus}
_STEP_STATUSES: Final = {status.value: status for status in StepStatus}
_MANY_ROWS: Final = 1000
_OnDamaged = Callable[[PayloadError], object]


class StateRow(NamedTuple):
    """A row of the statements that select states: a workflow or, without `may_have_deltas`, one of its steps.

    The statements are made of these names, in this order.
    """

    state_id: UUID
    step_id: str | None
    status: str
    started_at: Any
    completed_at: Any
    payload: str | None
    error: str | None
    retry_count: int | None
    position: int
    workflow_id: str
    workflow_name: str
    user_id: str | None
    updated_at: Any
    version: int
    context_patch: str | None
    context_position: int
    payload_digest: str | None
    error_digest: str | None
    context_patch_digest: str | None
    digested_at: Any
    schema_version: int | None
    may_have_deltas: bool | None

    @property
    def id(self) -> UUID:
        return self.state_id

    @property
    def is_step(self) -> bool:
        return self.may_have_deltas is None


_PAYLOAD: Final = StateRow._fields.index("payload")


def payloads_in(rows: Sequence[Any]) -> Iterable[object]:
    """The texts that make `states_from_rows` take long."""
    return (row[_PAYLOAD] for row in rows)


def states_from_rows(
    rows: Sequence[Iterable[Any]], payloads: Payloads, on_damaged: _OnDamaged | None = None
) -> list[WorkflowState]:
    """Build the states, most recently updated first, steps in the order in which they were first saved.

    Raises `PayloadError` for one that cannot be read, or leaves it out and tells `on_damaged`.
    """
    if len(rows) < _MANY_ROWS:
        return _states(rows, payloads, on_damaged)
    with collector_paused():
        return _states(rows, payloads, on_damaged)


def _states(rows: Sequence[Iterable[Any]], payloads: Payloads, on_damaged: _OnDamaged | None) -> list[WorkflowState]:
    workflows: list[StateRow] = []
    steps: dict[UUID, list[StateRow]] = {}
    # One name looked up in SQLAlchemy's row costs as much as copying the row into a tuple with names.
    for row in map(StateRow._make, rows):
        if row.may_have_deltas is None:
            steps.setdefault(row.state_id, []).append(row)
        else:
            workflows.append(row)
    workflows.sort(key=lambda row: (row.updated_at or DAMAGED_TIME, row.started_at or DAMAGED_TIME), reverse=True)
    states = []
    for row in workflows:
        try:
            states.append(_state(row, steps.get(row.state_id, []), payloads))
        except PayloadError as error:
            if on_damaged is None:
                raise
            on_damaged(error)
    return states


def _damaged_cells(row: StateRow) -> list[str]:
    """The damaged columns of a workflow's row, or of a step's. No loop: this is done for each row that is loaded."""
    damaged = [] if row.completed_at is None or is_time(row.completed_at) else ["completed_at"]
    if not (is_integer(row.position) and (row.schema_version is None or is_integer(row.schema_version))):
        damaged.append("position, schema_version")
    if row.is_step:
        if not (is_text(row.step_id) and (row.retry_count is None or is_integer(row.retry_count))):
            damaged.append("step_id, retry_count")
        if not (row.started_at is None or is_time(row.started_at)):
            damaged.append("started_at")
        return damaged
    if not (is_id(row.state_id) and is_time(row.started_at) and is_time(row.updated_at)):
        damaged.append("id, started_at, updated_at")
    if not (is_integer(row.version) and is_integer(row.context_position)):
        damaged.append("version, context_position")
    if not (is_text(row.workflow_id) and is_text(row.workflow_name) and (row.user_id is None or is_text(row.user_id))):
        damaged.append("workflow_id, workflow_name, user_id")
    return damaged


def _require_sound(row: StateRow, step_rows: list[StateRow]) -> None:
    for each in (row, *step_rows):
        if damaged := _damaged_cells(each):
            named = damaged_in(damaged, each, CELLS["step_states" if each.is_step else "workflow_states"])
            raise corrupt_cells(named, row.state_id, workflow_id=row.workflow_id)


def _state(row: StateRow, step_rows: list[StateRow], payloads: Payloads) -> WorkflowState:
    _require_sound(row, step_rows)
    step_rows.sort(key=_place)
    opener = Opener.of(payloads, row)
    try:
        steps = {
            step.step_id: _saved_step(step, step.step_id, step.payload, step.payload_digest, opener)
            for step in step_rows
            if step.step_id is not None
        }
        columns = {
            "workflow_id": row.workflow_id,
            "workflow_name": row.workflow_name,
            "status": row.status,
            "user_id": row.user_id,
            "started_at": row.started_at,
            "updated_at": row.updated_at,
            "completed_at": row.completed_at,
            "context": _context(row, step_rows, opener),
            "error": opener.workflow("error", row.error, row.error_digest),
        }
        fields = columns | {
            "id": row.state_id,
            "version": row.version,
            "status": _status(_WORKFLOW_STATUSES, row.status, "status"),
            "context": decode_long(columns["context"], "context"),
            "steps": {step_id: _step(step_id, step) for step_id, step in steps.items()},
        }
    except PayloadError as error:
        raise error.concerning(workflow_state_id=row.state_id) from None
    saved = SavedRows(
        workflow=columns,
        steps=steps,
        positions={step.step_id: step.position for step in step_rows if step.step_id is not None},
        # Most applications have no versions.
        stamps={each.step_id: each.schema_version for each in (row, *step_rows) if each.schema_version is not None},
        outdated=opener.outdated,
        may_have_deltas=bool(row.may_have_deltas),
        has_patches=any(step.context_patch is not None and step.position > row.context_position for step in step_rows),
    )
    return trusted(WorkflowState, fields, {"_saved": saved, "_touched_at": None})


def _place(row: StateRow) -> tuple[int, str]:
    return row.position, row.step_id or ""


def _context(row: StateRow, steps: list[StateRow], opener: Opener) -> str:
    """The stored context, with what the steps of a run appended to it since it was stored whole."""
    context = opener.context(row.payload, row.payload_digest)
    patches = [
        patch
        for step in steps
        if step.step_id is not None
        and step.position > row.context_position
        and (patch := opener.step(step.step_id, "context_patch", step.context_patch, step.context_patch_digest))
    ]
    if not patches:
        return context
    return join(apply_all(split(context, "context"), map(Patch.from_json, patches)))


def step_from_row(row: SealedStep, payloads: Payloads, *, outdated: bool) -> StepState:
    """Build a step from its row; for `outdated` see `Opener`. Raises `PayloadError`."""
    opener = Opener(payloads, row.workflow_state_id, outdated=outdated)
    try:
        return _step(row.step_id, _saved_step(row, row.step_id, row.outputs, row.outputs_digest, opener))
    except PayloadError as error:
        raise error.concerning(workflow_state_id=row.workflow_state_id, step_id=row.step_id) from None


def _saved_step(
    row: StateRow | SealedStep, step_id: str, outputs: str | None, digest: str | None, opener: Opener
) -> Columns:
    """The columns of a step that a save compares with, payloads as they were before they were sealed."""
    return {
        "status": row.status,
        "started_at": row.started_at,
        "completed_at": row.completed_at,
        # The original software leaves these two NULL, which reads as None and 0.
        "outputs": or_null(opener.step(step_id, "outputs", outputs, digest)),
        "error": opener.step(step_id, "error", row.error, row.error_digest),
        "retry_count": row.retry_count or 0,
    }


def _step(step_id: str, columns: Mapping[str, Any]) -> StepState:
    return trusted(
        StepState,
        {
            "step_id": step_id,
            **columns,
            "status": _status(_STEP_STATUSES, columns["status"], f"steps[{step_id!r}].status"),
            "outputs": decode_long(columns["outputs"], f"steps[{step_id!r}].outputs"),
        },
    )


def _status(known: Mapping[str, Any], value: str, path: str) -> Any:
    try:
        return known[value]
    except KeyError:
        raise CorruptPayload(f"the stored {path} is none that this version of the package knows", path=path) from None
