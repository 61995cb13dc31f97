"""The right to write a run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol
from uuid import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who claims: one store in one process."""

    id: UUID
    process: str
    term: timedelta


class ClaimedCells(Protocol):
    """What a row of `workflow_states` that was just claimed says of its lease."""

    @property
    def id(self) -> UUID: ...
    @property
    def lease_owner(self) -> UUID: ...
    @property
    def lease_token(self) -> int: ...
    @property
    def version(self) -> int: ...


@dataclass(slots=True, kw_only=True, eq=False)
class Lease:
    """The right to write one run, good while the row's token is this one; and how far its writing has come.

    `version` is the row's as of the last write that is known to have landed. Nobody else moves it while the lease is
    held, so the next commit is for this version and no other: a commit that arrives late, after its own repetition and
    what followed, finds that the row has moved on.
    """

    workflow_state_id: UUID
    owner: UUID
    token: int
    version: int

    @classmethod
    def of(cls, row: ClaimedCells) -> Lease:
        """Of a row that was just claimed."""
        return cls(workflow_state_id=row.id, owner=row.lease_owner, token=row.lease_token, version=row.version)

    def revoke(self) -> None:
        """It was taken away: what is still on its way under it matches no row, also if the run is made anew."""
        self.token = 0

    def advance(self) -> None:
        """A commit for this version has landed."""
        self.version += 1


class Renewal(NamedTuple):
    """What the owner of a run learns when its lease is renewed."""

    token: int
    """Another than the owner's: the lease is."""
    request: str | None
    now: datetime
    """The database's time."""
