"""Durable state for LLM workflows, in the application's own SQLite or Postgres tables."""

from orchestrator_state.domain import Checkpoint, StepState, StepStatus, WorkflowState, WorkflowStatus
from orchestrator_state.errors import (
    AbnormalExit,
    AccessLost,
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
    NewerSchemaVersion,
    NotFound,
    OrchestratorStateError,
    OutcomeUnknown,
    PauseTakenBack,
    PayloadError,
    PayloadTooLarge,
    RunCancelled,
    RunFailed,
    RunPaused,
    RunSuspended,
    SchemaChanged,
    SchemaMismatch,
    SchemaOutOfDate,
    StaleVersion,
    StateMismatch,
    StepNotFound,
    StoreUnavailable,
    UnknownCodec,
    UnprotectedPayload,
    UnusedSteps,
    UpcasterFailed,
    UpcasterMissing,
    WorkflowNotFound,
)
from orchestrator_state.execution.health import WorkerHealth
from orchestrator_state.execution.recovery import RecoveredRun, RecoveryReport
from orchestrator_state.hooks import Event, Hook
from orchestrator_state.maintenance.rekeying import RekeyReport
from orchestrator_state.maintenance.retention import DeletionProgress
from orchestrator_state.maintenance.verification import VerifyReport
from orchestrator_state.models import metadata
from orchestrator_state.payloads.blobs import BlobStore
from orchestrator_state.payloads.chain import Codec, Payloads
from orchestrator_state.payloads.compression import Zstd
from orchestrator_state.payloads.encryption import AesGcm, KeyRing
from orchestrator_state.runs.retry import Retry
from orchestrator_state.runs.run import Happened, Run
from orchestrator_state.state_schema import StateSchema
from orchestrator_state.store import StateStore
from orchestrator_state.unit_of_work import UnitOfWork
from orchestrator_state.worker import Worker

__all__ = [
    "AbnormalExit",
    "AccessLost",
    "AesGcm",
    "AlreadyExists",
    "BlobStore",
    "Checkpoint",
    "CheckpointNotFound",
    "Codec",
    "ConfigurationError",
    "Conflict",
    "CorruptPayload",
    "DecryptionFailed",
    "DeletionProgress",
    "Event",
    "Happened",
    "Hook",
    "InvalidPayload",
    "InvalidTransition",
    "KeyRing",
    "LeaseHeld",
    "LeaseLost",
    "MissingExtra",
    "NewerSchemaVersion",
    "NotFound",
    "OrchestratorStateError",
    "OutcomeUnknown",
    "PauseTakenBack",
    "PayloadError",
    "PayloadTooLarge",
    "Payloads",
    "RecoveredRun",
    "RecoveryReport",
    "RekeyReport",
    "Retry",
    "Run",
    "RunCancelled",
    "RunFailed",
    "RunPaused",
    "RunSuspended",
    "SchemaChanged",
    "SchemaMismatch",
    "SchemaOutOfDate",
    "StaleVersion",
    "StateMismatch",
    "StateSchema",
    "StateStore",
    "StepNotFound",
    "StepState",
    "StepStatus",
    "StoreUnavailable",
    "UnitOfWork",
    "UnknownCodec",
    "UnprotectedPayload",
    "UnusedSteps",
    "UpcasterFailed",
    "UpcasterMissing",
    "VerifyReport",
    "Worker",
    "WorkerHealth",
    "WorkflowNotFound",
    "WorkflowState",
    "WorkflowStatus",
    "Zstd",
    "metadata",
]
