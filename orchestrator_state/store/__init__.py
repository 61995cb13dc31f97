"""What applications hold: `StateStore`, its opening, and its calls."""

from orchestrator_state.store.state_store import StateStore

__all__ = ["StateStore"]
