"""States that were stored at an older version: upcast when they are loaded, stored anew where they change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from orchestrator_state.arguments import as_stored_name
from orchestrator_state.domain import StepState, StepStatus, WorkflowState
from orchestrator_state.errors import InvalidPayload, SchemaMismatch, StateMismatch
from orchestrator_state.payloads import Payloads
from orchestrator_state.records.identities import Columns
from orchestrator_state.records.states.saved import SavedRows, Shown, loaded_from
from orchestrator_state.state_schema import Schemas, StateSchema, encode_loaded

Stamps = Mapping[str | None, int | None]
"""Versions by step id, and by None for the context."""
_NOTHING_SAVED: Final = SavedRows({}, {}, {})


def upcast_state(state: WorkflowState, schemas: Schemas) -> WorkflowState:
    """Bring a state that was just loaded to today's version, and check it against the types. Raises `SchemaMismatch`.

    What was stored is remembered, so that a save writes only what the caller changed. A run's context in particular
    belongs to the patches of its steps, which are upcast together when it is resumed.
    """
    schema = schemas.find(state.workflow_name)
    if schema is None:
        return state
    saved = loaded_from(state)
    shown: dict[str | None, Shown] = {}
    try:
        found = schema.require_readable(saved.stamps.get(None), "context")
        text = saved.workflow["context"]
        if found < schema.version:
            state.context = schema.upcast_context(state.context, found, schema.version)
            shown[None] = Shown(text=encode_loaded(state.context, "context"), stored=text, stamp=found)
            text = shown[None].text
        schema.check_context(text, found)
        for step_id, step in _completed(state):
            version = schema.require_readable(saved.stamps.get(step_id), f"steps[{step_id!r}].outputs")
            text = saved.steps[step_id]["outputs"]
            if version < schema.version:
                upcast_step(schema, step, version)
                upcast = encode_loaded(step.outputs, f"steps[{step_id!r}].outputs")
                shown[step_id] = Shown(text=upcast, stored=text, stamp=version)
                text = upcast
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
    schema = schemas.find(as_stored_name(state.workflow_name, "workflow_name"))
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
    columns: Columns, steps: Mapping[str, Columns], saved: SavedRows | None, version: int | None
) -> tuple[Stamps, dict[str | None, Shown]]:
    """Where the caller left a payload as it was shown, put back into the columns what was stored.

    What is new is of `version`. Returns the stamps, without those that are None, and what is shown from now on.
    """
    saved = saved or _NOTHING_SAVED
    if version is None and not saved.stamps and not saved.shown:  # most applications have no versions
        return {}, {}
    stamps: dict[str | None, int] = {}
    shown: dict[str | None, Shown] = {}
    payloads: list[tuple[str | None, Columns, str]] = [(None, columns, "context")]
    payloads += [(step_id, row, "outputs") for step_id, row in steps.items()]
    for key, row, name in payloads:
        before = saved.shown.get(key)
        if before is not None and row[name] == before.text:
            shown[key], row[name] = before, before.stored
            stamp: int | None = before.stamp
        else:
            stamp = _stamp(key, row[name], saved, version)
        if stamp is not None:
            stamps[key] = stamp
    return stamps, shown


def _stamp(key: str | None, text: str, saved: SavedRows, version: int | None) -> int | None:
    """The version of a payload that is to be stored as `text`, by a save at `version`."""
    stored = saved.payload(key)
    if stored is None:
        # Without a schema what is new belongs to what is there.
        return saved.stamps.get(None) if version is None else version
    if key in saved.shown:
        return version
    return saved.stamps.get(key) if version is None or text == stored else version


def show_in_place_of(restored: WorkflowState, old: WorkflowState, version: int) -> None:
    """Let a save of a `restored` state, which was rebased, store what it was upcast from: `old`, of `version`.

    It stands beside patches of that version, which a resume upcasts together with it.
    """
    shown: dict[str | None, Shown] = {
        None: Shown(
            text=encode_loaded(restored.context, "context"), stored=encode_loaded(old.context, "context"), stamp=version
        )
    }
    for step_id, step in _completed(restored):
        path = f"steps[{step_id!r}].outputs"
        stored = encode_loaded(old.steps[step_id].outputs, path)
        shown[step_id] = Shown(text=encode_loaded(step.outputs, path), stored=stored, stamp=version)
    restored._saved = replace(loaded_from(restored), shown=shown)


def _completed(state: WorkflowState) -> list[tuple[str, StepState]]:
    return [(key, step) for key, step in state.steps.items() if step.status == StepStatus.COMPLETED]
