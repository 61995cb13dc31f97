"""The SQL of durable runs: under a lease, and on the way to one."""

from orchestrator_state.repositories.runs.claims import MOST_LOOKS, ClaimRepository
from orchestrator_state.repositories.runs.commits.repository import CommitRepository, commit_at_once
from orchestrator_state.repositories.runs.fence import lease_lost
from orchestrator_state.repositories.runs.history import HistoryRepository
from orchestrator_state.repositories.runs.leases import LeaseRepository
from orchestrator_state.repositories.runs.lifecycle import RunRepository
from orchestrator_state.repositories.runs.lineage import LineageRepository
from orchestrator_state.repositories.runs.questions import QuestionRepository
from orchestrator_state.repositories.runs.requests import CANCEL, PAUSE
from orchestrator_state.repositories.runs.signals import SignalRepository
from orchestrator_state.repositories.runs.suspects import FROM_ATTEMPT, Suspect
from orchestrator_state.repositories.runs.waits import Awaited, News, WaitRepository

__all__ = [
    "CANCEL",
    "FROM_ATTEMPT",
    "MOST_LOOKS",
    "PAUSE",
    "Awaited",
    "ClaimRepository",
    "CommitRepository",
    "HistoryRepository",
    "LeaseRepository",
    "LineageRepository",
    "News",
    "QuestionRepository",
    "RunRepository",
    "SignalRepository",
    "Suspect",
    "WaitRepository",
    "commit_at_once",
    "lease_lost",
]
