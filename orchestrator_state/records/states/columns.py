"""A state, as a save writes it: domain object -> column values. Payloads are encoded and checked here."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from orchestrator_state.domain import Checkpoint, StepState, StepStatus, WorkflowState, WorkflowStatus
from orchestrator_state.errors import InvalidPayload
from orchestrator_state.payloads import Payloads, encode
from orchestrator_state.records.identities import Columns


def workflow_columns(state: WorkflowState, payloads: Payloads) -> Columns:
    """The columns of `state` that a save may write; `id`, `namespace` and `version` are the statement's."""
    return {
        "workflow_id": state.workflow_id,
        "workflow_name": state.workflow_name,
        "status": _plain(state.status),
        "user_id": state.user_id,
        "started_at": state.started_at,
        "updated_at": state.updated_at,
        "completed_at": state.completed_at,
        "context": payloads.encode(state.context, "context"),
        "error": state.error,
    }


def step_columns(step: StepState, path: str, payloads: Payloads) -> Columns:
    status = step.status
    return {
        # `value` is a property, and this is for each step of a state.
        "status": status._value_ if type(status) is StepStatus else _plain(status),
        "started_at": step.started_at,
        "completed_at": step.completed_at,
        "outputs": encode(step.outputs, f"{path}.outputs", payloads.limits),
        "error": step.error,
        "retry_count": step.retry_count,
    }


def check_fields(model: WorkflowState | StepState | Checkpoint) -> None:
    """Raise `InvalidPayload` unless the fields, payloads aside, are what the constructor would accept.

    Assignment is validated; `model_copy(update=…)` and changes of `__dict__` are not.
    """
    fields = {name: value for name, value in model.__dict__.items() if name != "steps"}
    accepted = type(model)(**fields).__dict__
    for name, value in fields.items():
        kind = type(accepted[name])
        # The constructor makes a time of a number, and an id of a text; here they would be stored as they are.
        if issubclass(kind, datetime | UUID) and not isinstance(value, kind):
            raise InvalidPayload(f"{type(model).__name__}: {name}: Input should be a {kind.__name__}", path=name)


def _plain(status: object) -> object:
    """The text of a status; anything else is left for `check_fields` to refuse."""
    return status.value if isinstance(status, WorkflowStatus | StepStatus) else status


def all_step_columns(state: WorkflowState, payloads: Payloads) -> dict[str, Columns]:
    """The columns of every step by step id. Raises `InvalidPayload` for a key that is not its step's id."""
    columns: dict[str, Columns] = {}
    if not isinstance(state.steps, dict):
        raise InvalidPayload(f"steps is a {type(state.steps).__name__}, not a dict", path="steps")
    for key, step in state.steps.items():
        if not isinstance(key, str):
            raise InvalidPayload(f"a key of steps is of type {type(key).__name__}; use str", path="steps")
        path = f"steps[{str.__str__(key)!r}]"
        if not isinstance(step, StepState):
            raise InvalidPayload(f"{path} is a {type(step).__name__}, not a StepState", path=path)
        if not isinstance(step.step_id, str):
            raise InvalidPayload(
                f"{path}.step_id must be a str, not {type(step.step_id).__name__}", path=f"{path}.step_id"
            )
        if key != step.step_id:
            raise InvalidPayload(f"{path} holds the step {step.step_id!r}; key and step_id must agree", path=path)
        columns[key] = step_columns(step, path, payloads)
    return columns


def state_columns(state: WorkflowState, payloads: Payloads) -> tuple[Columns, dict[str, Columns]]:
    """The columns of a state and of its steps."""
    return workflow_columns(state, payloads), all_step_columns(state, payloads)


def payload_bytes(columns: Mapping[str, Any], steps: Mapping[str, Mapping[str, Any]]) -> int:
    """How much JSON a workflow holds."""
    return len(columns["context"]) + sum([len(step["outputs"]) for step in steps.values()])
