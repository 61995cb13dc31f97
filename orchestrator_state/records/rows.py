"""The rows that statements find: of each kind the columns that are read of it here, by name.

What is claimed, loaded or opened is a row of SQLAlchemy's, whose attributes are the mapped ones; these say which.
"""

from __future__ import annotations

from datetime import datetime
from typing import Protocol
from uuid import UUID


class DigestedRow(Protocol):
    """What tells of a workflow whether the digests beside its payloads are of today."""

    @property
    def id(self) -> UUID: ...
    @property
    def updated_at(self) -> datetime | None: ...
    @property
    def digested_at(self) -> datetime | None: ...


class WorkflowCells(Protocol):
    """Of `workflow_states`."""

    id: UUID
    workflow_id: str
    workflow_name: str
    status: str
    user_id: str | None
    started_at: datetime
    updated_at: datetime
    digested_at: datetime | None
    context: str | None
    context_digest: str | None
    context_position: int
    initial_context: str | None
    initial_context_digest: str | None
    schema_version: int | None


class ClaimedCells(Protocol):
    """Of a row of `workflow_states` that was just claimed."""

    id: UUID
    lease_owner: UUID
    lease_token: int
    version: int


class StepCells(Protocol):
    """Of `step_states`, with the name of the workflow and whether its digests are `outdated`."""

    workflow_state_id: UUID
    step_id: str
    status: str
    started_at: datetime | None
    completed_at: datetime | None
    outputs: str | None
    outputs_digest: str | None
    error: str | None
    error_digest: str | None
    retry_count: int | None
    schema_version: int | None
    workflow_name: str
    outdated: bool


class CheckpointCells(Protocol):
    """Of `checkpoints`."""

    id: UUID
    workflow_state_id: UUID
    step_id: str
    timestamp: datetime
    snapshot: str
    snapshot_digest: str | None
    seq: int | None
    position: int | None
    schema_version: int | None
