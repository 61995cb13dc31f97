"""Where a test interferes with the steps of a run. In an application nothing does."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from orchestrator_state.database import DatabaseClock
from orchestrator_state.records import Lease, OpenStep


class Faults(Protocol):
    """Called when an attempt begins, and at the moments at which a process may vanish.

    What a method raises of `LeaseLost` ends the attempt there, and nothing more is written of it.
    """

    def clock(self, database_now: datetime, asked_at: float) -> DatabaseClock:
        """The clock of an attempt."""

    def before_call(self, lease: Lease, step_id: str) -> Exception | None:
        """The function of the step is about to be called. Returns what it is to have raised, without being called."""

    def before_commit(self, lease: Lease, step: OpenStep) -> None:
        """`step` is about to be sent, each time that it is; of a `transact`: it was sent, COMMIT comes next."""

    def after_commit(self, lease: Lease, step: OpenStep) -> None:
        """`step` is durable, and the handler does not know yet."""
