"""What an operator sees of runs, and asks for: without a payload."""

from orchestrator_state.records.overview.conditions import STATUSES, RunCondition
from orchestrator_state.records.overview.queries import (
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
from orchestrator_state.records.overview.surroundings import (
    MOST_BESIDE,
    NOTHING_BESIDE,
    CurrentStep,
    SurroundingRows,
    Surroundings,
)

__all__ = [
    "MOST_BESIDE",
    "NOTHING_BESIDE",
    "STATUSES",
    "CurrentStep",
    "RunCondition",
    "RunFilters",
    "RunOwner",
    "RunPage",
    "RunQuery",
    "RunSummary",
    "SurroundingRows",
    "Surroundings",
    "as_limit",
    "cursor_after",
    "place_after",
    "summary_of",
]
