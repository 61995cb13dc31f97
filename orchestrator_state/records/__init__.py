"""What a row says, without a database."""

from orchestrator_state.records.cells import CELLS, GROWING_COUNTS, corrupt_cells, is_count, is_id, is_time
from orchestrator_state.records.changes import Ack, CheckpointRecord, FoldedContext, RunChange
from orchestrator_state.records.deltas import Delta, DeltaBase, HashChain, RunHeader
from orchestrator_state.records.identities import (
    FREE_TEXTS,
    NO_ERROR,
    PAYLOAD_COLUMNS,
    Columns,
    checkpoint_identity,
    step_identity,
    workflow_identity,
)
from orchestrator_state.records.leases import Lease, Owner, Renewal
from orchestrator_state.records.opening import UNOPENED_HERE, Opener
from orchestrator_state.records.recorded import DAMAGE, Recorded, open_rows, patches_of
from orchestrator_state.records.runs import ClaimedRun, FoundRun, RunNames, StoredRun, UnclaimableRun
from orchestrator_state.records.sealing import prepared_workflow, seal_step, seal_workflow
from orchestrator_state.records.signals import Signal, SignalPlace
from orchestrator_state.records.steps import (
    CHECKPOINT,
    CHILD,
    FINAL,
    LOOKS_NUMBERED,
    SIGNAL,
    SLEEP,
    TRANSACT,
    WAITS,
    OpenStep,
    SealedStep,
    is_call_of,
)

__all__ = [
    "CELLS",
    "CHECKPOINT",
    "CHILD",
    "DAMAGE",
    "FINAL",
    "FREE_TEXTS",
    "GROWING_COUNTS",
    "LOOKS_NUMBERED",
    "NO_ERROR",
    "PAYLOAD_COLUMNS",
    "SIGNAL",
    "SLEEP",
    "TRANSACT",
    "UNOPENED_HERE",
    "WAITS",
    "Ack",
    "CheckpointRecord",
    "ClaimedRun",
    "Columns",
    "Delta",
    "DeltaBase",
    "FoldedContext",
    "FoundRun",
    "HashChain",
    "Lease",
    "OpenStep",
    "Opener",
    "Owner",
    "Recorded",
    "Renewal",
    "RunChange",
    "RunHeader",
    "RunNames",
    "SealedStep",
    "Signal",
    "SignalPlace",
    "StoredRun",
    "UnclaimableRun",
    "checkpoint_identity",
    "corrupt_cells",
    "is_call_of",
    "is_count",
    "is_id",
    "is_time",
    "open_rows",
    "patches_of",
    "prepared_workflow",
    "seal_step",
    "seal_workflow",
    "step_identity",
    "workflow_identity",
]
