"""What is done beside live runs, page by page."""

from orchestrator_state.maintenance.applying import OnRetained, apply_retention
from orchestrator_state.maintenance.damage import Damage
from orchestrator_state.maintenance.duty import RetentionDuty, on_duty
from orchestrator_state.maintenance.erasure import EraseReport, Erasure
from orchestrator_state.maintenance.garbage import collect_garbage
from orchestrator_state.maintenance.loads import Unloadable
from orchestrator_state.maintenance.pages import Progress, row_counter
from orchestrator_state.maintenance.policy import Removed, Retention, RetentionReport
from orchestrator_state.maintenance.rekeying import RekeyReport, Unopened, rekey
from orchestrator_state.maintenance.retention import DeletionProgress, OnProgress, delete_old_states, prune_checkpoints
from orchestrator_state.maintenance.verification import VerifyReport, verify

__all__ = [
    "Damage",
    "DeletionProgress",
    "EraseReport",
    "Erasure",
    "OnProgress",
    "OnRetained",
    "Progress",
    "RekeyReport",
    "Removed",
    "Retention",
    "RetentionDuty",
    "RetentionReport",
    "Unloadable",
    "Unopened",
    "VerifyReport",
    "apply_retention",
    "collect_garbage",
    "delete_old_states",
    "on_duty",
    "prune_checkpoints",
    "rekey",
    "row_counter",
    "verify",
]
