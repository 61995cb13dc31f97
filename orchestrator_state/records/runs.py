"""A run as its row says, found or claimed under a lease; and what one is looked for by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from orchestrator_state.records.cells import CELLS, GROWING_COUNTS, damaged_columns, unwritable_columns
from orchestrator_state.records.leases import Lease

_CELLS: Final = CELLS["workflow_states"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunNames:
    """How a run may be found: by its key first, then by id, else the newest with that `workflow_id`.

    A key or a `workflow_id` that is None is not looked for.
    """

    ids: Sequence[UUID]
    """The id that it is given, and those that it is given if another namespace has taken the ones before."""
    idempotency_key: str | None = None
    workflow_id: str | None = None


class StoredRun(NamedTuple):
    """A run's context, payloads as they are stored."""

    id: UUID
    context: str | None
    context_digest: str | None
    initial_context: str | None
    """The context that the run started with, once another was written over it."""
    initial_context_digest: str | None
    context_position: int
    """The context has the patches of the steps up to this position in it."""
    schema_version: int | None
    updated_at: datetime
    digested_at: datetime | None

    @classmethod
    def of(cls, row: Any) -> StoredRun:
        """Of a row that has all of these columns, and more."""
        return cls(**{name: getattr(row, name) for name in cls._fields})


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class FoundRun:
    """A run that was found, and is not claimed: it may have changed since, unless its row is locked."""

    id: UUID
    workflow_id: str
    name: str
    status: str
    request: str | None
    """What somebody asked of its owner, who has not heard of it yet."""
    faults: int
    parent_id: UUID | None
    wake_at: datetime | None
    is_asleep: bool
    lease_owner: UUID | None
    lease_process: str | None
    lease_token: int
    lease_expires_at: datetime | None
    lease_is_free: bool
    result: str | None
    result_digest: str | None
    error: str | None
    error_digest: str | None
    damaged: Sequence[str]
    """Columns that hold no value of their type, payloads aside."""
    stored: StoredRun

    @classmethod
    def of(cls, row: Any) -> FoundRun:
        """Of a row that has all columns of `workflow_states`, and `lease_is_free` and `is_asleep`."""
        return cls(
            id=row.id,
            workflow_id=row.workflow_id,
            name=row.workflow_name,
            status=row.status,
            request=row.request,
            faults=row.faults,
            parent_id=row.parent_id,
            wake_at=row.wake_at,
            is_asleep=row.is_asleep,
            lease_owner=row.lease_owner,
            lease_process=row.lease_process,
            lease_token=row.lease_token,
            lease_expires_at=row.lease_expires_at,
            lease_is_free=row.lease_is_free,
            result=row.result,
            result_digest=row.result_digest,
            error=row.error,
            error_digest=row.error_digest,
            damaged=damaged_columns(row, _CELLS),
            stored=StoredRun.of(row),
        )

    @property
    def unclaimable(self) -> list[str]:
        """The columns that keep it from being claimed by whoever knows it: it is unwritable, or in no known status."""
        return [name for name in ("id", *GROWING_COUNTS, "status") if name in self.damaged]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ClaimedRun:
    """A run that was just claimed: what its row said, and the lease on it."""

    lease: Lease
    id: UUID
    workflow_id: str
    name: str
    user_id: str | None
    started_at: datetime
    parent_id: UUID | None
    attempts: int
    """How many workers vanished over it since it last finished a step."""
    faults: int
    """How often in a row it was let go of because of a fault."""
    request: str | None
    """What somebody asked of an owner that is gone."""
    budget_cost: int | None
    budget_tokens: int | None
    now: datetime
    """The database's time of the claim."""
    damaged: Sequence[str]
    """Columns that hold no value of their type, payloads aside: such a run cannot go on."""
    stored: StoredRun

    @classmethod
    def of(cls, row: Any) -> ClaimedRun:
        """Of a row that has all columns of `workflow_states`, and `now`."""
        return cls(
            lease=Lease.of(row),
            id=row.id,
            workflow_id=row.workflow_id,
            name=row.workflow_name,
            user_id=row.user_id,
            started_at=row.started_at,
            parent_id=row.parent_id,
            attempts=row.attempts,
            faults=row.faults,
            request=row.request,
            budget_cost=row.budget_cost,
            budget_tokens=row.budget_tokens,
            now=row.now,
            damaged=damaged_columns(row, _CELLS),
            stored=StoredRun.of(row),
        )


class UnclaimableRun(NamedTuple):
    """A run that nobody owns, and that is not claimed here."""

    id: UUID
    workflow_id: str
    name: str
    schema_version: int | None
    unwritable: Sequence[str]
    """Columns that keep it from being written to: a damaged id, or counts that cannot grow."""

    @classmethod
    def of(cls, row: Any) -> UnclaimableRun:
        """Of a row that has these columns and the counts, and `is_writable`."""
        unwritable = () if row.is_writable else unwritable_columns(row)
        return cls(row.id, row.workflow_id, row.workflow_name, row.schema_version, unwritable)
