"""Which `RunCondition` a run is in, as one expression of SQL."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Float, and_, bindparam, case, exists, func, literal_column, null, or_
from sqlalchemy.orm import aliased

from orchestrator_state.database import FAR_FUTURE, database_time_in
from orchestrator_state.domain import ACTIVE, FINISHED, StepStatus, WorkflowStatus
from orchestrator_state.models import CurrentStepRow, StepRow, WorkflowRow
from orchestrator_state.records import FINAL, SLEEP, WAITS
from orchestrator_state.records.overview import RunCondition
from orchestrator_state.repositories.claimable import IS_ASLEEP, IS_LEASED

_child: Final = aliased(WorkflowRow, name="child")
_ended: Final = aliased(StepRow, name="ended")


def _in_words(value: str) -> ColumnElement[str]:
    """Not a parameter: an index of some statuses only serves what names them."""
    return literal_column(f"'{value}'")


IS_RUNNING: Final = StepRow.status == _in_words(StepStatus.RUNNING)
IS_UNFINISHED_CHILD: Final = and_(_child.namespace == WorkflowRow.namespace, _child.status.in_(sorted(ACTIVE)))
# Never NULL: it is asked what is not of a kind. Software of earlier versions says it of no step.
_KIND: Final = func.coalesce(StepRow.kind, "")
_WAITS_FOR_SOMEBODY: Final = or_(
    _KIND.in_(sorted(WAITS - {SLEEP} | {"question"})),
    and_(_KIND == "", func.substr(StepRow.step_id, 1, len("signal:")) == "signal:"),
)
_SLEEPS: Final = or_(
    _KIND == SLEEP,
    and_(_KIND == "", or_(StepRow.step_id == "sleep", func.substr(StepRow.step_id, 1, 6) == "sleep#")),
)
HAS_ENDED: Final = exists().where(
    _ended.workflow_state_id == CurrentStepRow.workflow_state_id,
    _ended.step_id == CurrentStepRow.step_id,
    or_(_ended.status.in_(sorted(FINAL)), _ended.completed_at >= CurrentStepRow.started_at),
)
"""Of a current step: whether it is none any more."""


def _has_running_step(*of_kind: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists().where(StepRow.workflow_state_id == WorkflowRow.id, IS_RUNNING, *of_kind)


_IS_AT_WORK: Final = or_(
    _has_running_step(~_WAITS_FOR_SOMEBODY, ~_SLEEPS),
    exists().where(
        CurrentStepRow.workflow_state_id == WorkflowRow.id,
        CurrentStepRow.lease_token == WorkflowRow.lease_token,
        ~HAS_ENDED,
    ),
)
_AWAITS: Final = or_(
    _has_running_step(_WAITS_FOR_SOMEBODY),
    exists().where(_child.parent_id == WorkflowRow.id, IS_UNFINISHED_CHILD),
)
_WAITS_WITHOUT_LIMIT: Final = and_(WorkflowRow.wake_at.is_not(None), WorkflowRow.wake_at == FAR_FUTURE)

# Longer ago there was no database; and the further a time lies back, the fewer of them know how to count to it.
_LONGEST: Final = timedelta(days=365_000)

WAKES_AT: Final = case((and_(IS_ASLEEP, ~_WAITS_WITHOUT_LIMIT), WorkflowRow.wake_at), else_=null())
"""When the clock wakes it."""


def condition(stuck_for: timedelta) -> ColumnElement[Any]:
    """NULL if its status is damaged. The table in `docs/how-to/see-runs.md` says the same."""
    seconds = min(stuck_for, _LONGEST).total_seconds()
    before: ColumnElement[Any] = bindparam("stuck_before", -seconds, type_=Float())
    status = WorkflowRow.status
    is_under_way = status.in_((WorkflowStatus.PENDING.value, WorkflowStatus.RUNNING.value))
    return case(
        (status.in_(sorted(FINISHED)), _in_words(RunCondition.FINISHED)),
        (status == WorkflowStatus.PAUSED.value, _in_words(RunCondition.PAUSED)),
        (~is_under_way, null()),
        (and_(IS_LEASED, ~_IS_AT_WORK, _AWAITS), _in_words(RunCondition.WAITING)),
        (and_(IS_LEASED, ~_IS_AT_WORK, _has_running_step(_SLEEPS)), _in_words(RunCondition.ASLEEP)),
        (and_(IS_LEASED, WorkflowRow.updated_at < database_time_in(before)), _in_words(RunCondition.STUCK)),
        (IS_LEASED, _in_words(RunCondition.OWNED)),
        (and_(IS_ASLEEP, or_(_WAITS_WITHOUT_LIMIT, _AWAITS)), _in_words(RunCondition.WAITING)),
        (IS_ASLEEP, _in_words(RunCondition.ASLEEP)),
        (
            and_(status == WorkflowStatus.RUNNING.value, WorkflowRow.lease_expires_at.is_not(None)),
            _in_words(RunCondition.ABANDONED),
        ),
        else_=_in_words(RunCondition.RUNNABLE),
    )
