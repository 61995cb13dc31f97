"""Durable state for LLM workflows, in the application's own SQLite or Postgres tables."""

from orchestrator_state.domain import Checkpoint, StepState, StepStatus, WorkflowState, WorkflowStatus
from orchestrator_state.errors import (
    AlreadyExists,
    CheckpointNotFound,
    ConfigurationError,
    Conflict,
    CorruptPayload,
    DecryptionFailed,
    InvalidPayload,
    InvalidTransition,
    LeaseLost,
    MissingExtra,
    NotFound,
    OrchestratorStateError,
    PayloadError,
    PayloadTooLarge,
    SchemaOutOfDate,
    StaleVersion,
    StepNotFound,
    StoreUnavailable,
    UnknownCodec,
    WorkflowNotFound,
)
from orchestrator_state.models import metadata
from orchestrator_state.store import StateStore
from orchestrator_state.unit_of_work import UnitOfWork

__all__ = [
    "AlreadyExists",
    "Checkpoint",
    "CheckpointNotFound",
    "ConfigurationError",
    "Conflict",
    "CorruptPayload",
    "DecryptionFailed",
    "InvalidPayload",
    "InvalidTransition",
    "LeaseLost",
    "MissingExtra",
    "NotFound",
    "OrchestratorStateError",
    "PayloadError",
    "PayloadTooLarge",
    "SchemaOutOfDate",
    "StaleVersion",
    "StateStore",
    "StepNotFound",
    "StepState",
    "StepStatus",
    "StoreUnavailable",
    "UnitOfWork",
    "UnknownCodec",
    "WorkflowNotFound",
    "WorkflowState",
    "WorkflowStatus",
    "metadata",
]
