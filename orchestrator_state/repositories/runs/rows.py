"""Rows of runs as records."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Row

from orchestrator_state.database import database_now
from orchestrator_state.models import WorkflowRow
from orchestrator_state.records import CELLS, ClaimedRun, FoundRun, Lease, StoredRun, damaged_columns
from orchestrator_state.repositories.claimable import IS_ASLEEP, LEASE_IS_FREE

FOUND: Final = (WorkflowRow, LEASE_IS_FREE.label("lease_is_free"), IS_ASLEEP.label("is_asleep"))
"""What `found` reads."""
_CELLS: Final = CELLS[WorkflowRow.__tablename__]
CLAIMED: Final = (WorkflowRow, database_now().label("now"))
"""What `claimed` reads."""


def found(row: Row[Any]) -> FoundRun:
    """Of a row that is anybody's."""
    return FoundRun(
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


def claimed(row: Row[Any]) -> ClaimedRun:
    """Of a row that was just claimed."""
    return ClaimedRun(
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
        now=row.now,
        damaged=damaged_columns(row, _CELLS),
        stored=StoredRun.of(row),
    )
