"""What a row says, without a database."""

from orchestrator_state.records.cells import (
    CELLS,
    GROWING_COUNTS,
    corrupt_cells,
    is_count,
    is_id,
    is_time,
)
from orchestrator_state.records.changes import (
    Ack,
    CheckpointRecord,
    FoldedContext,
    RunChange,
)
from orchestrator_state.records.deltas import (
    Chain,
    Delta,
    DeltaBase,
    RunHeader,
)
from orchestrator_state.records.identities import (
    FREE_TEXTS,
    PAYLOAD_COLUMNS,
    Columns,
    checkpoint_identity,
    step_identity,
    workflow_identity,
)
from orchestrator_state.records.leases import Lease, Owner, Renewal
from orchestrator_state.records.opening import UNOPENED_HERE, Opener
from orchestrator_state.records.recorded import DAMAGE, DISPENSABLE, Recorded, open_rows, patches_of
from orchestrator_state.records.runs import ClaimedRun, FoundRun, RunNames, StoredRun, UnclaimableRun
from orchestrator_state.records.sealing import prepared_workflow, seal_step, seal_workflow
from orchestrator_state.records.signals import Signal, SignalPlace
from orchestrator_state.records.states.checkpoints import (
    check_checkpoint,
    checkpoint_columns,
    checkpoint_from_row,
    open_snapshot,
)
from orchestrator_state.records.states.columns import check_fields, payload_bytes, state_columns, step_columns
from orchestrator_state.records.states.loaded import StateRow, payloads_in, states_from_rows, step_from_row
from orchestrator_state.records.states.saved import SavedRows, Shown, loaded_from, rebase, same_rows, snapshot_of
from orchestrator_state.records.states.upcasting import (
    Stamps,
    as_stored,
    check_state,
    show_in_place_of,
    upcast_state,
    upcast_step,
)
from orchestrator_state.records.steps import FINAL, OpenStep, SealedStep

__all__ = [
    "CELLS",
    "DAMAGE",
    "DISPENSABLE",
    "FINAL",
    "FREE_TEXTS",
    "GROWING_COUNTS",
    "PAYLOAD_COLUMNS",
    "UNOPENED_HERE",
    "Ack",
    "Chain",
    "CheckpointRecord",
    "ClaimedRun",
    "Columns",
    "Delta",
    "DeltaBase",
    "FoldedContext",
    "FoundRun",
    "Lease",
    "OpenStep",
    "Opener",
    "Owner",
    "Recorded",
    "Renewal",
    "RunChange",
    "RunHeader",
    "RunNames",
    "SavedRows",
    "SealedStep",
    "Shown",
    "Signal",
    "SignalPlace",
    "Stamps",
    "StateRow",
    "StoredRun",
    "UnclaimableRun",
    "as_stored",
    "check_checkpoint",
    "check_fields",
    "check_state",
    "checkpoint_columns",
    "checkpoint_from_row",
    "checkpoint_identity",
    "corrupt_cells",
    "is_count",
    "is_id",
    "is_time",
    "loaded_from",
    "open_rows",
    "open_snapshot",
    "patches_of",
    "payload_bytes",
    "payloads_in",
    "prepared_workflow",
    "rebase",
    "same_rows",
    "seal_step",
    "seal_workflow",
    "show_in_place_of",
    "snapshot_of",
    "state_columns",
    "states_from_rows",
    "step_columns",
    "step_from_row",
    "step_identity",
    "upcast_state",
    "upcast_step",
    "workflow_identity",
]
