"""The fence: a write of a run matches its row only while the run's lease token is the row's, and it was not let go of.

A worker that lost its lease changes nothing and gets `LeaseLost`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import cache, partial
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Executable, Result, bindparam, case, func, not_, select, update
from sqlalchemy.sql import Update

from orchestrator_state.database import database_now, one_more
from orchestrator_state.errors import LeaseLost
from orchestrator_state.models import workflow_states
from orchestrator_state.records import Columns, Lease
from orchestrator_state.repositories.checkpointed import CheckpointedRepository

_w = workflow_states.c

_HAS_BEEN_OURS: Final = (
    _w.id == bindparam("fence_id"),
    _w.lease_owner == bindparam("fence_owner"),
    _w.lease_token == bindparam("fence_token"),
)
# Owner and token stay in the row when a run is let go of, and are good for nothing from then on: a branch that outlives
# its handler has them still.
NOT_LET_GO: Final = _w.lease_expires_at.is_not(None)
LET_GO: Final = select(_w.status, _w.parent_id).where(*_HAS_BEEN_OURS, not_(NOT_LET_GO))
# The fence: a write of a run matches its row only while the run's lease is the row's.
FENCE: Final = (*_HAS_BEEN_OURS, NOT_LET_GO)
# A commit of a step is for one place in the order of the run's commits.
IN_ITS_PLACE: Final = _w.version == bindparam("fence_version")
# The last owner and its token stay: a commit that is repeated because its outcome was unknown finds itself again.
RELEASED: Final[Columns] = {"lease_expires_at": None, "faults": 0}

FIRST_CONTEXT_KEPT: Final[dict[str, Any]] = {
    "initial_context": func.coalesce(_w.initial_context, _w.context),
    "initial_context_digest": case((_w.initial_context.is_(None), _w.context_digest), else_=_w.initial_context_digest),
}


# What `digested_at` becomes with `updated_at`, where not all payloads of the workflow are written anew.
STILL_DIGESTED_AT: Final[ColumnElement[datetime | None]] = case(
    (_w.digested_at == _w.updated_at, database_now()), else_=_w.digested_at
)


@cache
def fenced_update(columns: frozenset[str], stamped: frozenset[str] = frozenset()) -> Update:
    """UPDATE the run's row under its token; each of `columns` is a parameter of its name with `new_` before it.

    `stamped` become the time of the statement, by the database's clock, as `updated_at` always does. The first context
    that is written over another is kept: a resumed handler starts with it.
    """
    values: dict[str, Any] = {name: bindparam(f"new_{name}", type_=_w[name].type) for name in columns}
    values |= dict.fromkeys({"updated_at", *stamped}, database_now())
    if "context" in columns and "initial_context" not in columns:
        values |= FIRST_CONTEXT_KEPT
    if "digested_at" not in stamped:
        values["digested_at"] = STILL_DIGESTED_AT
    return update(workflow_states).where(*FENCE).values(values | {"version": one_more(_w.version)})


@cache
def going_on(columns: frozenset[str], stamped: frozenset[str] = frozenset()) -> Executable:
    """`fenced_update` of a run that goes on. Returns (version,)."""
    return fenced_update(columns, stamped).returning(_w.version)


class LetGo(NamedTuple):
    """A run that was let go of."""

    status: str
    parent_id: UUID | None


class FencedRepository(CheckpointedRepository):
    """Writes under a lease."""

    async def _write_fenced(self, lease: Lease, columns: Columns, *, renews_digests: bool = False) -> None:
        update_row = partial(going_on, stamped=frozenset({"digested_at"} if renews_digests else ()))
        version: int | None = (await self._execute_fenced(update_row, lease, columns)).scalar()
        if version is None:
            raise lease_lost(lease)
        lease.version = version

    async def _end_fenced(self, build: Callable[[frozenset[str]], Executable], lease: Lease, columns: Columns) -> LetGo:
        """Let go of the run. Raises `LeaseLost`.

        If it was let go of under this lease, that was an earlier attempt, whose answer was lost: that is returned.
        """
        row = (await self._execute_fenced(build, lease, columns | RELEASED)).first()
        if row is None:
            row = await self._row(LET_GO, fence(lease))
        if row is None:
            raise lease_lost(lease)
        return LetGo(row.status, row.parent_id)

    async def _execute_fenced(
        self, build: Callable[[frozenset[str]], Executable], lease: Lease, columns: Columns
    ) -> Result[Any]:
        columns = await self._sealed_workflow(lease.workflow_state_id, columns)
        return await self._execute(build(frozenset(columns)), fence(lease) | prefixed(columns))


def lease_lost(lease: Lease) -> LeaseLost:
    return LeaseLost(
        f"this worker no longer owns run {lease.workflow_state_id}; nothing was written",
        workflow_state_id=lease.workflow_state_id,
        owner=lease.owner,
        expected=lease.token,
    )


def fence(lease: Lease) -> Columns:
    """The parameters of `FENCE`."""
    return {"fence_id": lease.workflow_state_id, "fence_owner": lease.owner, "fence_token": lease.token}


def prefixed(columns: Columns) -> Columns:
    """The parameters of new values: named unlike the columns, or they would be values by themselves."""
    return {f"new_{name}": value for name, value in columns.items()}
