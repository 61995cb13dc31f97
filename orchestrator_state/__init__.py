"""Durable state for LLM workflows, in the application's own SQLite or Postgres tables."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator_state.blocking import BlockingRun, BlockingStore
    from orchestrator_state.domain import (
        Checkpoint,
        QuestionStatus,
        StepState,
        StepStatus,
        WorkflowState,
        WorkflowStatus,
    )
    from orchestrator_state.errors import (
        AbnormalExit,
        AccessLost,
        AlreadyExists,
        BudgetSpent,
        CheckpointNotFound,
        ConfigurationError,
        Conflict,
        CorruptPayload,
        DecryptionFailed,
        ExecutorUnavailable,
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
        QuestionClosed,
        QuestionNotFound,
        RunCancelled,
        RunFailed,
        RunPaused,
        RunSuspended,
        RunUnfinished,
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
    from orchestrator_state.execution import RecoveredRun, RecoveryReport, WorkerHealth
    from orchestrator_state.hooks import Event, Hook
    from orchestrator_state.maintenance import (
        Damage,
        DeletionProgress,
        EraseReport,
        RekeyReport,
        Removed,
        Retention,
        RetentionReport,
        Unloadable,
        Unopened,
        VerifyReport,
    )
    from orchestrator_state.models import metadata
    from orchestrator_state.moving import ExportReport, ImportReport, MovedRun, OriginalFlaw, OriginalImport
    from orchestrator_state.payloads import AesGcm, BlobStore, Codec, KeyRing, Payloads, Zstd
    from orchestrator_state.records import Question, QuestionFilters, QuestionPage
    from orchestrator_state.records.overview import (
        CheckpointPage,
        CheckpointSummary,
        CurrentStep,
        FinishedCount,
        RunCondition,
        RunDetails,
        RunFilters,
        RunOwner,
        RunPage,
        RunStats,
        RunSummary,
        StepSummary,
        UnfinishedCount,
        UsageFilters,
        UsageTotal,
    )
    from orchestrator_state.runs import Budget, Happened, Retry, Run
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
    "BlockingRun",
    "BlockingStore",
    "Budget",
    "BudgetSpent",
    "Checkpoint",
    "CheckpointNotFound",
    "CheckpointPage",
    "CheckpointSummary",
    "Codec",
    "ConfigurationError",
    "Conflict",
    "CorruptPayload",
    "CurrentStep",
    "Damage",
    "DecryptionFailed",
    "DeletionProgress",
    "EraseReport",
    "Event",
    "ExecutorUnavailable",
    "ExportReport",
    "FinishedCount",
    "Happened",
    "Hook",
    "ImportReport",
    "InvalidPayload",
    "InvalidTransition",
    "KeyRing",
    "LeaseHeld",
    "LeaseLost",
    "MissingExtra",
    "MovedRun",
    "NewerSchemaVersion",
    "NotFound",
    "OrchestratorStateError",
    "OriginalFlaw",
    "OriginalImport",
    "OutcomeUnknown",
    "PauseTakenBack",
    "PayloadError",
    "PayloadTooLarge",
    "Payloads",
    "Question",
    "QuestionClosed",
    "QuestionFilters",
    "QuestionNotFound",
    "QuestionPage",
    "QuestionStatus",
    "RecoveredRun",
    "RecoveryReport",
    "RekeyReport",
    "Removed",
    "Retention",
    "RetentionReport",
    "Retry",
    "Run",
    "RunCancelled",
    "RunCondition",
    "RunDetails",
    "RunFailed",
    "RunFilters",
    "RunOwner",
    "RunPage",
    "RunPaused",
    "RunStats",
    "RunSummary",
    "RunSuspended",
    "RunUnfinished",
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
    "StepSummary",
    "StoreUnavailable",
    "UnfinishedCount",
    "UnitOfWork",
    "UnknownCodec",
    "Unloadable",
    "Unopened",
    "UnprotectedPayload",
    "UnusedSteps",
    "UpcasterFailed",
    "UpcasterMissing",
    "UsageFilters",
    "UsageTotal",
    "VerifyReport",
    "Worker",
    "WorkerHealth",
    "WorkflowNotFound",
    "WorkflowState",
    "WorkflowStatus",
    "Zstd",
    "metadata",
]

# From what loads at once to what loads all. Whoever wants no more than an error, as the command line does before it
# knows which command is meant, need not wait for SQLAlchemy and pydantic.
_HOMES = (
    "errors",
    "hooks",
    "payloads",
    "state_schema",
    "domain",
    "records",
    "records.overview",
    "models",
    "runs",
    "unit_of_work",
    "execution",
    "maintenance",
    "moving",
    "store",
    "worker",
    "blocking",
)

if not TYPE_CHECKING:  # a type checker reads the imports above

    def __getattr__(name: str) -> Any:
        """Import what is asked for, when it is."""
        from importlib import import_module

        if name in __all__:
            homes = (import_module(f"{__name__}.{home}") for home in _HOMES)
            globals()[name] = found = next(getattr(home, name) for home in homes if hasattr(home, name))
            return found
        if not name.startswith("_"):
            try:
                return import_module(f"{__name__}.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"{__name__}.{name}":
                    raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
