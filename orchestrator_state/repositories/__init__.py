"""All SQL. A repository adds and flushes, and never commits."""

from orchestrator_state.repositories.calls import MOST_AT_ONCE, CallRepository
from orchestrator_state.repositories.expressions import Children
from orchestrator_state.repositories.families import DESCENDED_FROM_THEMSELVES
from orchestrator_state.repositories.payloads import (
    CHECKED_TABLES,
    PAGE_BYTES,
    PAYLOAD_TABLES,
    Key,
    PayloadRepository,
    PayloadRow,
    PayloadTable,
    StoredPayload,
    fitting,
)
from orchestrator_state.repositories.undeclared import UndeclaredPayloads
from orchestrator_state.repositories.workflows import (
    CheckpointRepository,
    OnDamaged,
    Repository,
    StepRepository,
    WorkflowRepository,
    chunks,
    lease_held,
)

__all__ = [
    "CHECKED_TABLES",
    "DESCENDED_FROM_THEMSELVES",
    "MOST_AT_ONCE",
    "PAGE_BYTES",
    "PAYLOAD_TABLES",
    "CallRepository",
    "CheckpointRepository",
    "Children",
    "Key",
    "OnDamaged",
    "PayloadRepository",
    "PayloadRow",
    "PayloadTable",
    "Repository",
    "StepRepository",
    "StoredPayload",
    "UndeclaredPayloads",
    "WorkflowRepository",
    "chunks",
    "fitting",
    "lease_held",
]
