"""The tables of the original software, a Rust crate: read as they stand, counted, and rewritten in our forms."""

from orchestrator_state.repositories.original.adopting import Survey, adopt, survey
from orchestrator_state.repositories.original.reading import (
    CHECKPOINTS,
    STEPS,
    WORKFLOWS,
    Page,
    count_runs,
    read_page,
    read_strays,
)

__all__ = [
    "CHECKPOINTS",
    "STEPS",
    "WORKFLOWS",
    "Page",
    "Survey",
    "adopt",
    "count_runs",
    "read_page",
    "read_strays",
    "survey",
]
