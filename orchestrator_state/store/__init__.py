"""What applications hold: `StateStore`, its opening, and its calls."""

from orchestrator_state.store.opening import Opening
from orchestrator_state.store.starting import RunOptions
from orchestrator_state.store.state_store import StateStore

__all__ = ["Opening", "RunOptions", "StateStore"]
