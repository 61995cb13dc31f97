"""Domain object <-> column values. Pure: payloads are encoded and checked here, and no SQL is sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple, TypeVar
from uuid import UUID

from pydantic import BaseModel

from orchestrator_state.codecs import MAX_SNAPSHOT_BYTES, MAX_SNAPSHOT_DEPTH, decode, encode
from orchestrator_state.domain import Checkpoint, SavedRows, StepState, StepStatus, WorkflowState, WorkflowStatus
from orchestrator_state.errors import CorruptPayload, InvalidPayload
from orchestrator_state.run_context import Patch, apply_all, join, split

Columns = dict[str, Any]
_PlacedStep = tuple[
    int, str, Columns, StepState, str | None, int | None
]  # position and id first: it sorts in the order of first saving
_Model = TypeVar("_Model", bound=BaseModel)

_WORKFLOW_STATUSES: Final = {status.value: status for status in WorkflowStatus}
_STEP_STATUSES: Final = {status.value: status for status in StepStatus}
_ALL_FIELDS: Final[Mapping[type[BaseModel], set[str]]] = {
    model: set(model.model_fields) for model in (WorkflowState, StepState, Checkpoint)
}
_set: Final = object.__setattr__  # the models' own validates


class StateRow(NamedTuple):
    """A row of the statements that select states: a workflow (`step_id` is None) or one of its steps."""

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
    schema_version: int | None


def workflow_columns(state: WorkflowState) -> Columns:
    """The columns of `state` that a save may write; `id`, `namespace` and `version` are the statement's."""
    return {
        "workflow_id": state.workflow_id,
        "workflow_name": state.workflow_name,
        "status": _plain(state.status),
        "user_id": state.user_id,
        "started_at": state.started_at,
        "updated_at": state.updated_at,
        "completed_at": state.completed_at,
        "context": encode(state.context, "context"),
        "error": state.error,
    }


def step_columns(step: StepState, path: str) -> Columns:
    return {
        "status": _plain(step.status),
        "started_at": step.started_at,
        "completed_at": step.completed_at,
        "outputs": encode(step.outputs, f"{path}.outputs"),
        "error": step.error,
        "retry_count": step.retry_count,
    }


def check_fields(model: WorkflowState | StepState | Checkpoint) -> None:
    """Raise `InvalidPayload` unless the fields, payloads aside, are what the constructor would accept.

    Assignment is validated; `model_copy(update=…)` and changes of `__dict__` are not.
    """
    fields = {name: value for name, value in model.__dict__.items() if name != "steps"}
    type(model)(**fields)


def _plain(status: object) -> object:
    """The text of a status; anything else is left for `check_fields` to refuse."""
    return status.value if isinstance(status, WorkflowStatus | StepStatus) else status


def all_step_columns(state: WorkflowState) -> dict[str, Columns]:
    """The columns of every step by step id. Raises `InvalidPayload` for a key that is not its step's id."""
    columns: dict[str, Columns] = {}
    if not isinstance(state.steps, dict):
        raise InvalidPayload(f"steps is a {type(state.steps).__name__}, not a dict", path="steps")
    for key, step in state.steps.items():
        path = f"steps[{key!r}]"
        if not isinstance(step, StepState):
            raise InvalidPayload(f"{path} is a {type(step).__name__}, not a StepState", path=path)
        if key != step.step_id:
            raise InvalidPayload(f"{path} holds the step {step.step_id!r}; key and step_id must agree", path=path)
        columns[key] = step_columns(step, path)
    return columns


def states_from_rows(rows: Iterable[Iterable[Any]]) -> list[WorkflowState]:
    """Build the states, most recently updated first, steps in the order in which they were first saved."""
    workflows: list[StateRow] = []
    steps: dict[UUID, list[_PlacedStep]] = {}
    # One name looked up in SQLAlchemy's row costs as much as copying the row into a tuple with names.
    for row in map(StateRow._make, rows):
        if row.step_id is None:
            workflows.append(row)
        else:
            columns = _saved_step(row)
            step = _step(row.step_id, columns)
            placed = (row.position, row.step_id, columns, step, row.context_patch, row.schema_version)
            steps.setdefault(row.state_id, []).append(placed)
    workflows.sort(key=lambda row: (row.updated_at, row.started_at), reverse=True)
    return [_state(row, steps.get(row.state_id, [])) for row in workflows]


def loaded_from(state: WorkflowState) -> SavedRows:
    """What a state that was loaded from the database was built from."""
    if state._saved is None:
        raise ValueError("this state was not loaded from the database")
    return state._saved


def rebase(state: WorkflowState, live: WorkflowState) -> None:
    """Make `state` the successor of `live`: saving it replaces what `live` was loaded from, and nothing newer."""
    base = loaded_from(live)
    state.version = live.version
    if equals_stored(state, live):
        state.updated_at = live.updated_at  # saving it writes nothing
    # As if `updated_at` were unmoved: saving an older state is an update of today.
    state._saved = replace(base, workflow={**base.workflow, "updated_at": state.updated_at})


def equals_stored(state: WorkflowState, live: WorkflowState) -> bool:
    """Whether what a save of `state` would write is what `live` was loaded from, `updated_at` aside."""
    stored = loaded_from(live)
    mine = workflow_columns(state) | {"updated_at": live.updated_at}
    steps = all_step_columns(state)
    for key, shown in stored.shown.items():
        if key is None:
            mine["context"] = shown.stored if mine["context"] == shown.text else mine["context"]
        elif key in steps and steps[key]["outputs"] == shown.text:
            steps[key]["outputs"] = shown.stored
    return mine == stored.workflow and steps == stored.steps


def snapshot_of(state: WorkflowState) -> WorkflowState:
    """A saved `state` as it was written, to compare with what is there."""
    copied = state.model_copy()
    copied._saved = state._saved
    return copied


def same_rows(live: WorkflowState, written: WorkflowState) -> bool:
    """Whether `live` was loaded from the very rows that the save of `written` wrote, `updated_at` included."""
    there, mine = live._saved, written._saved
    if there is None or mine is None:
        return False
    return live.version == written.version and there.workflow == mine.workflow and there.steps == mine.steps


def checkpoint_columns(checkpoint: Checkpoint) -> Columns:
    check_fields(checkpoint)
    return {
        "id": checkpoint.id,
        "workflow_state_id": checkpoint.workflow_state_id,
        "step_id": checkpoint.step_id,
        "timestamp": checkpoint.timestamp,
        "snapshot": encode(checkpoint.snapshot, "snapshot", max_depth=MAX_SNAPSHOT_DEPTH, max_bytes=MAX_SNAPSHOT_BYTES),
    }


def checkpoint_from_row(row: Any) -> Checkpoint:
    fields = dict(row._mapping)
    del fields["schema_version"]
    fields["snapshot"] = decode(row.snapshot, "snapshot")
    return _trusted(Checkpoint, fields)


def _state(row: StateRow, steps: list[_PlacedStep]) -> WorkflowState:
    steps.sort()  # no two steps of a workflow have the same id, so the rest is never compared
    columns = {
        "workflow_id": row.workflow_id,
        "workflow_name": row.workflow_name,
        "status": row.status,
        "user_id": row.user_id,
        "started_at": row.started_at,
        "updated_at": row.updated_at,
        "completed_at": row.completed_at,
        "context": _context(row, steps),
        "error": row.error,
    }
    saved = SavedRows(
        workflow=columns,
        steps={step_id: columns for _, step_id, columns, *_ in steps},
        positions={step_id: position for position, step_id, *_ in steps},
        stamps=_stamps(row, steps),
    )
    fields = columns | {
        "id": row.state_id,
        "version": row.version,
        "status": _status(_WORKFLOW_STATUSES, row.status, "status"),
        "context": decode(columns["context"], "context"),
        "steps": {step_id: step for _, step_id, _, step, *_ in steps},
    }
    return _trusted(WorkflowState, fields, {"_saved": saved})


def _stamps(row: StateRow, steps: list[_PlacedStep]) -> dict[str | None, int | None]:
    """The versions of the payloads; most applications have none."""
    stamps: dict[str | None, int | None] = {step_id: stamp for _, step_id, *_, stamp in steps if stamp is not None}
    return stamps if row.schema_version is None else stamps | {None: row.schema_version}


def _context(row: StateRow, steps: list[_PlacedStep]) -> str:
    """The stored context, with what the steps of a run appended to it since it was stored whole."""
    context = row.payload or "null"
    patches = [patch for position, *_, patch, _ in steps if patch and position > row.context_position]
    if not patches:
        return context
    return join(apply_all(split(context, "context"), map(Patch.from_json, patches)))


def step_from_row(row: Any) -> StepState:
    """Build a step from a row of `step_states`."""
    columns = dict(row._mapping)
    step_id = columns.pop("step_id")
    del columns["workflow_state_id"], columns["position"], columns["context_patch"]
    del columns["schema_version"], columns["workflow_name"]
    return _step(step_id, columns)


def _saved_step(row: StateRow) -> Columns:
    return {
        "status": row.status,
        "started_at": row.started_at,
        "completed_at": row.completed_at,
        # The original software leaves these two NULL, which reads as None and 0.
        "outputs": "null" if row.payload is None else row.payload,
        "error": row.error,
        "retry_count": row.retry_count or 0,
    }


def _step(step_id: str, columns: Mapping[str, Any]) -> StepState:
    outputs = columns["outputs"]
    return _trusted(
        StepState,
        {
            "step_id": step_id,
            **columns,
            "status": _status(_STEP_STATUSES, columns["status"], f"steps[{step_id!r}].status"),
            "outputs": None if outputs is None else decode(outputs, f"steps[{step_id!r}].outputs"),
            "retry_count": columns["retry_count"] or 0,
        },
    )


def _status(known: Mapping[str, Any], value: str, path: str) -> Any:
    try:
        return known[value]
    except KeyError:
        raise CorruptPayload(f"the stored {path} is none that this version of the package knows", path=path) from None


def _trusted(model: type[_Model], fields: Columns, private: Columns | None = None) -> _Model:
    """Build a model from values that were validated when they were stored, five times faster than by its constructor.

    Sets what pydantic's own `__copy__` sets. `__pydantic_fields_set__` is one for all: it holds every field already,
    so nobody's assignment changes it, and it would be a third of a step's memory.
    """
    instance = model.__new__(model)
    _set(instance, "__dict__", fields)
    _set(instance, "__pydantic_fields_set__", _ALL_FIELDS[model])
    _set(instance, "__pydantic_extra__", None)
    _set(instance, "__pydantic_private__", private)
    return instance
