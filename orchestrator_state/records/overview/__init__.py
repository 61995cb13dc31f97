"""What an operator sees of runs, and asks for: without a payload."""

from orchestrator_state.records.overview.attributes import Attribute, as_attributes, merged, require_small
from orchestrator_state.records.overview.checkpoints import (
    CheckpointPage,
    CheckpointSummary,
    checkpoint_summary_of,
    fingerprint_of_checkpoints,
)
from orchestrator_state.records.overview.conditions import STATUSES, RunCondition
from orchestrator_state.records.overview.details import (
    RunDetails,
    StepSummary,
    details_of,
    fingerprint_of_steps,
    step_summary_of,
)
from orchestrator_state.records.overview.queries import (
    STUCK_FOR,
    RunFilters,
    RunQuery,
    as_limit,
    cursor_after,
    place_after,
)
from orchestrator_state.records.overview.runs import (
    RunOwner,
    RunPage,
    RunSummary,
    summary_of,
)
from orchestrator_state.records.overview.statistics import (
    FinishedCount,
    RunStats,
    UnfinishedCount,
    finished_count_of,
    unfinished_count_of,
)
from orchestrator_state.records.overview.surroundings import (
    MOST_BESIDE,
    NOTHING_BESIDE,
    CurrentStep,
    SurroundingRows,
    Surroundings,
)
from orchestrator_state.records.overview.usage import (
    UsageBy,
    UsageFilters,
    UsageQuery,
    UsageTotal,
    usage_total_of,
)

__all__ = [
    "MOST_BESIDE",
    "NOTHING_BESIDE",
    "STATUSES",
    "STUCK_FOR",
    "Attribute",
    "CheckpointPage",
    "CheckpointSummary",
    "CurrentStep",
    "FinishedCount",
    "RunCondition",
    "RunDetails",
    "RunFilters",
    "RunOwner",
    "RunPage",
    "RunQuery",
    "RunStats",
    "RunSummary",
    "StepSummary",
    "SurroundingRows",
    "Surroundings",
    "UnfinishedCount",
    "UsageBy",
    "UsageFilters",
    "UsageQuery",
    "UsageTotal",
    "as_attributes",
    "as_limit",
    "checkpoint_summary_of",
    "cursor_after",
    "details_of",
    "fingerprint_of_checkpoints",
    "fingerprint_of_steps",
    "finished_count_of",
    "merged",
    "place_after",
    "require_small",
    "step_summary_of",
    "summary_of",
    "unfinished_count_of",
    "usage_total_of",
]
