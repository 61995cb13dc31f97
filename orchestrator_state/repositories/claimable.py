"""When a run is anybody's: no lease on it is good, and it is not asleep.

A time that cannot be one holds nobody up. Damage may leave a lease, or a sleep, that no clock comes to the end of: what
is unreadable, or further away than anything that is ever written there, is taken for over. Taking the run then writes
both columns anew. If the lease was somebody's after all, its token is not, and its owner writes nothing any more.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Float, and_, literal, literal_column, not_, or_

from orchestrator_state.column_types import UtcTimestamp
from orchestrator_state.database import FAR_FUTURE, LATEST_WAKING, database_now, database_time_in, lies_ahead
from orchestrator_state.domain import ACTIVE, FINISHED, WorkflowStatus
from orchestrator_state.models import WorkflowRow
from orchestrator_state.settings import LONGEST_LEASE

# Twice: a lease is prolonged by the time in which nobody could write, and clocks are set back a little.
# A constant: the statements that ask this have parameters enough.
_FURTHEST_LEASE: Final = database_time_in(literal_column(str(2 * LONGEST_LEASE.total_seconds())))

IS_ACTIVE: Final = WorkflowRow.status.in_(sorted(ACTIVE))
IS_FINISHED: Final = WorkflowRow.status.in_(sorted(FINISHED))
IS_UNDER_WAY: Final = WorkflowRow.status.in_((WorkflowStatus.PENDING.value, WorkflowStatus.RUNNING.value))
"""Neither over nor paused."""
IS_LEASED: Final = lies_ahead(WorkflowRow.lease_expires_at, _FURTHEST_LEASE)
LEASE_IS_FREE: Final = not_(IS_LEASED)
# Never NULL, as the negation of that would be neither.
_IS_ASLEEP_FOR_EVER: Final = and_(WorkflowRow.wake_at.is_not(None), WorkflowRow.wake_at == FAR_FUTURE)
IS_ASLEEP: Final = or_(lies_ahead(WorkflowRow.wake_at, literal(LATEST_WAKING, UtcTimestamp)), _IS_ASLEEP_FOR_EVER)
IS_AWAKE: Final = not_(IS_ASLEEP)

FOUND: Final = (WorkflowRow, LEASE_IS_FREE.label("lease_is_free"), IS_ASLEEP.label("is_asleep"))
"""What a `FoundRun` is made of."""


def lease_was_good(ago: timedelta) -> ColumnElement[bool]:
    """Whether a lease had not ended that long ago."""
    earliest = database_time_in(literal(-ago.total_seconds(), Float))
    return and_(WorkflowRow.lease_expires_at > earliest, WorkflowRow.lease_expires_at <= _FURTHEST_LEASE)


def rested_since(moment: ColumnElement[Any]) -> ColumnElement[bool]:
    """Of a run whose lease is free: whether it has been so since then."""
    end = WorkflowRow.lease_expires_at
    return or_(end.is_(None), end <= moment, end > database_now())
