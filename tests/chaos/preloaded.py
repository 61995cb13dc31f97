"""What every child needs; the fork server imports it once."""

import alembic.command

import orchestrator_state
from tests.chaos import boundaries, cancellations, claims, freezes, kills, restarts, workers, workload

__all__ = [
    "alembic",
    "boundaries",
    "cancellations",
    "claims",
    "freezes",
    "kills",
    "orchestrator_state",
    "restarts",
    "workers",
    "workload",
]
