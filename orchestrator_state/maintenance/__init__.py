"""What is done beside live runs, page by page."""

from orchestrator_state.maintenance.damage import Damage
from orchestrator_state.maintenance.erasure import EraseReport, Erasure
from orchestrator_state.maintenance.garbage import collect_garbage
from orchestrator_state.maintenance.loads import Unloadable
from orchestrator_state.maintenance.pages import Progress, row_counter
from orchestrator_state.maintenance.rekeying import RekeyReport, Unopened, rekey
from orchestrator_state.maintenance.retention import DeletionProgress, OnProgress, delete_old_states, prune_checkpoints
from orchestrator_state.maintenance.verification import VerifyReport, verify

__all__ = [
    "Damage",
    "DeletionProgress",
    "EraseReport",
    "Erasure",
    "OnProgress",
    "Progress",
    "RekeyReport",
    "Unloadable",
    "Unopened",
    "VerifyReport",
    "collect_garbage",
    "delete_old_states",
    "prune_checkpoints",
    "rekey",
    "row_counter",
    "verify",
]
