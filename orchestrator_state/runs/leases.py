"""What a run asks about leases. Who drives runs keeps them, and answers."""

from __future__ import annotations

from typing import Protocol
from uuid import UUID

from orchestrator_state.records import Lease, Owner


class Leases(Protocol):
    """The leases that this process holds."""

    @property
    def owner(self) -> Owner:
        """Whose they are."""

    def has(self, workflow_state_id: UUID) -> bool:
        """Whether that run is under way here."""

    def is_fresh(self, lease: Lease) -> bool:
        """Whether it was renewed within a term."""

    async def confirm(self, lease: Lease) -> None:
        """Ask the database for one that is not fresh. Raises `LeaseLost`."""
