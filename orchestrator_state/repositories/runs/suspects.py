"""The rows of runs that were under way each time that workers vanished: who is a suspect, and which may be tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, Float, and_, case, exists, func, literal, not_, select, text
from sqlalchemy.orm import aliased
from sqlalchemy.sql import Select

from orchestrator_state.database import database_time_in
from orchestrator_state.domain import ACTIVE
from orchestrator_state.models import WorkflowRow
from orchestrator_state.repositories.claimable import rested_since

FROM_ATTEMPT: Final = 3
"""The worker that vanished over a run which makes it a suspect."""

_PAUSES: Final = {3: 0.5, 4: 1.0, 5: 2.0, 6: 4.0}  # seconds
_LONGEST_PAUSE: Final = 5.0
_READ: Final = 100  # at a time; those that come first decide

_child = aliased(WorkflowRow, name="child")
# A lease that ended without having been released is that of an owner that vanished.
ATTEMPTS_ONCE_CLAIMED: Final = case((WorkflowRow.has_progressed == 1, 0), else_=WorkflowRow.attempts) + case(
    (WorkflowRow.lease_expires_at.is_not(None), 1), else_=0
)
# As their index has it.
_IN_INDEX: Final = text("workflow_states.attempts > 1 AND workflow_states.status IN ('pending', 'running')")
IS_SUSPECT: Final = and_(WorkflowRow.attempts > 1, ATTEMPTS_ONCE_CLAIMED >= FROM_ATTEMPT)


@dataclass(frozen=True, slots=True)
class Suspect:
    """A run that may be tried, and how many workers have vanished over it."""

    workflow_state_id: UUID
    attempts: int


def rested_suspects(*conditions: ColumnElement[bool], patient: bool) -> Select[Any]:
    """The runs that fulfil `conditions` and may be tried, with their attempts, those that rested the longest first.

    So each has its turn, however many newcomers kill their workers. Who is `patient` lets them rest for longer each
    time. A parent is not tried while a child of its is suspect.
    """
    # Constants of their own sign: SQLite, which makes a text of them, knows no unary minus there.
    ago = {attempts: literal(-seconds, Float) for attempts, seconds in _PAUSES.items()}
    since = database_time_in(case(ago, value=ATTEMPTS_ONCE_CLAIMED, else_=literal(-_LONGEST_PAUSE, Float)))
    has_suspect_child = exists().where(
        _child.parent_id == WorkflowRow.id,
        _child.id != WorkflowRow.id,
        _child.namespace == WorkflowRow.namespace,
        _child.attempts > 1,
        _child.has_progressed == 0,
        _child.status.in_(sorted(ACTIVE)),
    )
    return (
        select(WorkflowRow.id, ATTEMPTS_ONCE_CLAIMED.label("attempts"))
        .where(_IN_INDEX, IS_SUSPECT, *conditions, not_(has_suspect_child), *([rested_since(since)] if patient else []))
        .order_by(
            func.coalesce(WorkflowRow.lease_expires_at, WorkflowRow.updated_at), ATTEMPTS_ONCE_CLAIMED, WorkflowRow.id
        )
        .limit(_READ)
    )
