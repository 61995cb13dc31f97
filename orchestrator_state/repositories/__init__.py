"""All SQL. A repository adds and flushes, and never commits."""

from orchestrator_state.repositories.base import chunks
from orchestrator_state.repositories.calls import MOST_AT_ONCE, RETENTION_SUCCESS, RETENTION_TURN, CallRepository
from orchestrator_state.repositories.checkpoints import CheckpointRepository
from orchestrator_state.repositories.states.loading import OnDamaged
from orchestrator_state.repositories.states.past import PastRepository
from orchestrator_state.repositories.states.saving import lease_held
from orchestrator_state.repositories.steps import StepRepository
from orchestrator_state.repositories.undeclared import UndeclaredPayloads
from orchestrator_state.repositories.unit import Unit
from orchestrator_state.repositories.workflows import WorkflowRepository

__all__ = [
    "MOST_AT_ONCE",
    "RETENTION_SUCCESS",
    "RETENTION_TURN",
    "CallRepository",
    "CheckpointRepository",
    "OnDamaged",
    "PastRepository",
    "StepRepository",
    "UndeclaredPayloads",
    "Unit",
    "WorkflowRepository",
    "chunks",
    "lease_held",
]
