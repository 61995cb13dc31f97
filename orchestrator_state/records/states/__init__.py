"""States and checkpoints as the domain has them: built from rows, and as the columns that a save writes."""

from orchestrator_state.records.states.changed import ChangedRows
from orchestrator_state.records.states.checkpoints import (
    check_checkpoint,
    checkpoint_columns,
    checkpoint_from_row,
    open_snapshot,
)
from orchestrator_state.records.states.columns import check_fields, payload_bytes, state_columns, step_columns
from orchestrator_state.records.states.loaded import StateRow, payloads_in, states_from_rows, step_from_row
from orchestrator_state.records.states.saved import SavedRows, loaded_from, rebase, same_rows, snapshot_of
from orchestrator_state.records.states.upcasting import (
    Stamps,
    as_stored,
    check_state,
    show_in_place_of,
    upcast_state,
    upcast_step,
)

__all__ = [
    "ChangedRows",
    "SavedRows",
    "Stamps",
    "StateRow",
    "as_stored",
    "check_checkpoint",
    "check_fields",
    "check_state",
    "checkpoint_columns",
    "checkpoint_from_row",
    "loaded_from",
    "open_snapshot",
    "payload_bytes",
    "payloads_in",
    "rebase",
    "same_rows",
    "show_in_place_of",
    "snapshot_of",
    "state_columns",
    "states_from_rows",
    "step_columns",
    "step_from_row",
    "upcast_state",
    "upcast_step",
]
