"""The SQL of what is done beside live runs: deletions, and reading and writing what is stored as it is stored."""

from orchestrator_state.repositories.upkeep.erasure import ErasureRepository, FoundFamilies, OfUser
from orchestrator_state.repositories.upkeep.families import Place
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
from orchestrator_state.repositories.upkeep.policies import CheckpointParts, KinRow, PolicyRepository, Size
from orchestrator_state.repositories.upkeep.retention import Hanging, RetentionRepository

__all__ = [
    "CHECKED_TABLES",
    "PAGE_BYTES",
    "PAYLOAD_TABLES",
    "CheckpointParts",
    "ErasureRepository",
    "FoundFamilies",
    "Hanging",
    "InspectionRepository",
    "Key",
    "KinRow",
    "Named",
    "OfUser",
    "PayloadRepository",
    "PayloadRow",
    "PayloadTable",
    "Place",
    "PolicyRepository",
    "RetentionRepository",
    "Size",
    "StoredPayload",
    "fitting",
]
