"""States that were stored at an older version: upcast when they are loaded, stored anew where they change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from orchestrator_state.codecs import encode
from orchestrator_state.domain import SavedRows, StepState, StepStatus, WorkflowState
from orchestrator_state.errors import InvalidPayload, SchemaMismatch, StateMismatch
from orchestrator_state.mapping import loaded_from
from orchestrator_state.payloads import Payloads
from orchestrator_state.state_schema import Schemas, StateSchema

Stamps = dict[str | None, int | None]
"""Versions by step id, and by None for the context."""


def upcast_state(state: WorkflowState, schemas: Schemas) -> WorkflowState:
    """Bring a state that was just loaded to today's version, and check it against the types. Raises `SchemaMismatch`.

    What was stored is remembered, so that a save writes only what the caller changed. A run's context in particular
    belongs to the patches of its steps, which are upcast together when it is resumed.
    """
    schema = schemas.find(state.workflow_name)
    if schema is None:
        return state
    saved = loaded_from(state)
    shown: dict[str | None, str] = {}
    try:
        found = schema.require_readable(saved.stamps.get(None), "context")
        text = saved.workflow["context"]
        if found < schema.version:
            state.context = schema.upcast_context(state.context, found, schema.version)
            text = shown[None] = encode(state.context, "context")
        schema.check_context(text, found)
        for step_id, step in _completed(state):
            version = schema.require_readable(saved.stamps.get(step_id), f"steps[{step_id!r}].outputs")
            text = saved.steps[step_id]["outputs"]
            if version < schema.version:
                upcast_step(schema, step, version)
                text = shown[step_id] = encode(step.outputs, f"steps[{step_id!r}].outputs")
            schema.check_outputs(step_id, text, version)
    except SchemaMismatch as error:
        raise error.concerning(workflow_state_id=state.id) from None
    if shown:
        state._saved = replace(saved, shown=shown)
    return state


def upcast_step(schema: StateSchema, step: StepState, found: int | None) -> None:
    """Bring the outputs of a completed step to today's version. Raises `SchemaMismatch`."""
    version = schema.require_readable(found, f"steps[{step.step_id!r}].outputs")
    if step.status is StepStatus.COMPLETED:
        step.outputs = schema.upcast_step(step.step_id, step.outputs, version, schema.version)


def check_state(state: WorkflowState, schemas: Schemas, payloads: Payloads) -> None:
    """Refuse to store what a load would not accept. Raises `InvalidPayload`."""
    schema = schemas.find(state.workflow_name)
    if schema is None:
        return
    try:
        if schema.state is not None:
            schema.check_context(payloads.encode(state.context, "context"), schema.version)
        for step_id, step in _completed(state):
            if schema.type_of(step_id) is not None:
                path = f"steps[{step_id!r}].outputs"
                schema.check_outputs(step_id, payloads.encode(step.outputs, path), schema.version)
    except StateMismatch as error:
        raise InvalidPayload(str(error), path=error.path) from None


def as_stored(
    columns: dict[str, Any], steps: Mapping[str, dict[str, Any]], saved: SavedRows | None, version: int | None
) -> tuple[Stamps, dict[str | None, str]]:
    """Put back, into the columns of a save, what is as it was shown; the rest is of `version`.

    Returns the stamps, and what goes on being shown in place of something older.
    """
    stamps: Stamps = {}
    shown: dict[str | None, str] = {}
    payloads: list[tuple[str | None, dict[str, Any], str]] = [(None, columns, "context")]
    payloads += [(step_id, row, "outputs") for step_id, row in steps.items()]
    for key, row, name in payloads:
        stored = None if saved is None else saved.workflow if key is None else saved.steps.get(key)
        if saved is None or stored is None:
            stamps[key] = version
        elif key in saved.shown:
            if row[name] == saved.shown[key]:
                shown[key], row[name], stamps[key] = row[name], stored[name], saved.stamps[key]
            else:
                stamps[key] = version
        elif row[name] == stored[name] or version is None:
            stamps[key] = saved.stamps.get(key)
        else:
            stamps[key] = version
    if version is None and saved is not None:
        # Without a schema what is new belongs to what is there.
        stamps |= {key: saved.stamps.get(None) for key in stamps if key is not None and key not in saved.steps}
    return stamps, shown


def _completed(state: WorkflowState) -> list[tuple[str, StepState]]:
    return [(key, step) for key, step in state.steps.items() if step.status == StepStatus.COMPLETED]
