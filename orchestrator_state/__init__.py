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
    LeaseHeld,
    LeaseLost,
    MissingExtra,
    NotFound,
    OrchestratorStateError,
    OutcomeUnknown,
    PayloadError,
    PayloadTooLarge,
    RunCancelled,
    RunPaused,
    RunSuspended,
    SchemaOutOfDate,
    StaleVersion,
    StepNotFound,
    StoreUnavailable,
    UnknownCodec,
    UnusedSteps,
    WorkflowNotFound,
)
from orchestrator_state.hooks import Event, Hook
from orchestrator_state.models import metadata
from orchestrator_state.recovery import RecoveredRun, RecoveryReport
from orchestrator_state.runs import Happened, Run
from orchestrator_state.step_call import Retry
from orchestrator_state.store import StateStore
from orchestrator_state.unit_of_work import UnitOfWork
from orchestrator_state.worker import Worker

__all__ = [
    "AlreadyExists",
    "Checkpoint",
    "CheckpointNotFound",
    "ConfigurationError",
    "Conflict",
    "CorruptPayload",
    "DecryptionFailed",
    "Event",
    "Happened",
    "Hook",
    "InvalidPayload",
    "InvalidTransition",
    "LeaseHeld",
    "LeaseLost",
    "MissingExtra",
    "NotFound",
    "OrchestratorStateError",
    "OutcomeUnknown",
    "PayloadError",
    "PayloadTooLarge",
    "RecoveredRun",
    "RecoveryReport",
    "Retry",
    "Run",
    "RunCancelled",
    "RunPaused",
    "RunSuspended",
    "SchemaOutOfDate",
    "StaleVersion",
    "StateStore",
    "StepNotFound",
    "StepState",
    "StepStatus",
    "StoreUnavailable",
    "UnitOfWork",
    "UnknownCodec",
    "UnusedSteps",
    "Worker",
    "WorkflowNotFound",
    "WorkflowState",
    "WorkflowStatus",
    "metadata",
]
