"""The SQL of durable runs: under a lease, and on the way to one."""

from orchestrator_state.repositories.runs.commits import CommitRepository, commit_at_once
from orchestrator_state.repositories.runs.lifecycle import MOST_LOOKS, RunRepository, lease_lost
from orchestrator_state.repositories.runs.requests import CANCEL, PAUSE
from orchestrator_state.repositories.runs.suspects import FROM_ATTEMPT, Suspect
from orchestrator_state.repositories.runs.waits import Awaited, News, WaitRepository

__all__ = [
    "CANCEL",
    "FROM_ATTEMPT",
    "MOST_LOOKS",
    "PAUSE",
    "Awaited",
    "CommitRepository",
    "News",
    "RunRepository",
    "Suspect",
    "WaitRepository",
    "commit_at_once",
    "lease_lost",
]
