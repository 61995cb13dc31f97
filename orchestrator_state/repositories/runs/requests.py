"""What is asked of a run that somebody owns: to pause, or to be cancelled. The order in which requests count.

The owner acts between its steps. Whoever lets go of a run for another reason acts in the same transaction, so that no
request is left to nobody. A cancel outranks everything: nothing replaces it and nothing takes it back.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from sqlalchemy import Executable, and_, bindparam, case, null

from orchestrator_state.database import database_now, one_more
from orchestrator_state.domain import WorkflowStatus
from orchestrator_state.models import workflow_states
from orchestrator_state.records import Columns
from orchestrator_state.repositories.claimable import LEASE_IS_FREE
from orchestrator_state.repositories.runs.fence import STILL_DIGESTED_AT, fenced_update

PAUSE: Final = "pause"
CANCEL: Final = "cancel"

_w = workflow_states.c
_CANCELLED: Final = WorkflowStatus.CANCELLED.value
_STATUS_ASKED_FOR: Final = case(
    (_w.request == CANCEL, _CANCELLED), (_w.request == PAUSE, WorkflowStatus.PAUSED.value), else_=_w.status
)


def _heeded() -> Columns:
    return {
        "status": _STATUS_ASKED_FOR,
        "completed_at": case((_w.request == CANCEL, database_now()), else_=_w.completed_at),
        "request": None,
    }


def heeded() -> Columns:
    """What becomes of an active run that nobody owns any more: what was asked of its owner, if anything."""
    asked = _w.request.is_not(None)
    return _heeded() | {
        "updated_at": case((asked, database_now()), else_=_w.updated_at),
        "digested_at": case((asked, STILL_DIGESTED_AT), else_=_w.digested_at),
    }


def cancelled(*, force: bool = False) -> Columns:
    """A run that nobody owns is cancelled at once, its token grows; of the others it is asked, unless by `force`."""
    values: Columns = {
        "status": _CANCELLED,
        "completed_at": database_now(),
        "request": null(),
        "lease_token": one_more(_w.lease_token),
        "lease_expires_at": null(),
        "version": one_more(_w.version),
        "updated_at": database_now(),
        "digested_at": STILL_DIGESTED_AT,
    }
    if force:
        return values
    otherwise: Columns = {name: _w[name] for name in values} | {"request": CANCEL}
    return {name: case((LEASE_IS_FREE, value), else_=otherwise[name]) for name, value in values.items()}


@cache
def letting_go(columns: frozenset[str]) -> Executable:
    """`fenced_update` of a run that ends unfinished: it does what was asked. Returns (status, parent_id)."""
    return fenced_update(columns).values(_heeded()).returning(_w.status, _w.parent_id)


@cache
def finishing(columns: frozenset[str]) -> Executable:
    """`fenced_update` of a run that is done, as of now. Returns (status, parent_id).

    A run that completes before its owner has heard of a cancel is completed. One that fails is cancelled: a failed run
    could be resumed.
    """
    status: Any = bindparam("new_status", type_=_w.status.type)
    fails = status == WorkflowStatus.FAILED.value
    return (
        fenced_update(columns, frozenset({"completed_at"})).values(
            status=case((and_(fails, _w.request == CANCEL), _CANCELLED), else_=status)
        )
    ).returning(_w.status, _w.parent_id)
