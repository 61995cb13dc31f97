"""The SQL of what is done beside live runs: deletions, and reading and writing what is stored as it is stored."""

from orchestrator_state.repositories.upkeep.inspection import InspectionRepository, Named
from orchestrator_state.repositories.upkeep.payloads import (
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
from orchestrator_state.repositories.upkeep.retention import Hanging, RetentionRepository

__all__ = [
    "CHECKED_TABLES",
    "PAGE_BYTES",
    "PAYLOAD_TABLES",
    "Hanging",
    "InspectionRepository",
    "Key",
    "Named",
    "PayloadRepository",
    "PayloadRow",
    "PayloadTable",
    "RetentionRepository",
    "StoredPayload",
    "fitting",
]
