"""The steps that have been running for a while, as their workers write them down."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import Float, bindparam, delete, exists, or_, select

from orchestrator_state.database import conflict_aware_insert, database_time_in
from orchestrator_state.domain import WorkflowStatus
from orchestrator_state.models import CurrentStepRow, WorkflowRow, current_steps
from orchestrator_state.repositories.base import Repository
from orchestrator_state.repositories.expressions import IN_NAMESPACE

# Whoever holds a run's row is not waited for. The lock is the one that the foreign key takes: it is in nobody's way
# who renews the lease, or commits a step.
_OWNED: Final = (
    select(WorkflowRow.id, WorkflowRow.lease_owner, WorkflowRow.lease_token)
    .where(
        IN_NAMESPACE,
        WorkflowRow.id.in_(bindparam("ids", expanding=True)),
        WorkflowRow.status == WorkflowStatus.RUNNING.value,
        WorkflowRow.lease_expires_at.is_not(None),
    )
    .with_for_update(read=True, key_share=True, skip_locked=True)
)
_ENDED: Final = delete(current_steps).where(
    current_steps.c.workflow_state_id == bindparam("of_id"),
    current_steps.c.step_id == bindparam("of_step"),
    current_steps.c.lease_token == bindparam("of_token"),
)
# By tokens, and not by the end of the lease: one that ended may still be renewed, and its owner writes a row once.
_LEFT_BEHIND: Final = delete(current_steps).where(
    exists()
    .where(
        WorkflowRow.id == CurrentStepRow.workflow_state_id,
        IN_NAMESPACE,
        or_(WorkflowRow.lease_token != CurrentStepRow.lease_token, WorkflowRow.lease_expires_at.is_(None)),
    )
    .correlate(current_steps)
)


class RunningStep(NamedTuple):
    """A step whose function is being called, under a lease."""

    run: UUID
    owner: UUID
    token: int
    step_id: str
    seconds: float
    """How long it has been running."""


class CurrentStepRepository(Repository):
    """Writes what `OverviewRepository` shows."""

    async def add(self, steps: Sequence[RunningStep]) -> list[RunningStep]:
        """Write down those whose lease is still good. Returns them; the others' runs are lost, or locked by somebody.

        A run may be lost in between, on Postgres: then the row has a token that is no longer the run's, and says
        nothing, nor does it replace one that does.
        """
        if not steps:
            return []
        ids = list(dict.fromkeys(step.run for step in steps))
        rows = await self._rows(_OWNED, {"namespace": self._namespace, "ids": ids})
        leases = {(row.id, row.lease_owner, row.lease_token) for row in rows}
        owned = [step for step in steps if step[:3] in leases]
        if owned:
            values = [
                {"of_id": run, "of_step": step_id, "of_token": token, "seconds": -seconds}
                for run, _, token, step_id, seconds in owned
            ]
            await self._execute(_BEGUN[self._dialect], values)
        return owned

    async def remove(self, steps: Collection[RunningStep]) -> None:
        """Delete the rows of steps that have ended."""
        if steps:
            values = [{"of_id": step.run, "of_step": step.step_id, "of_token": step.token} for step in steps]
            await self._execute(_ENDED, values)

    async def remove_left_behind(self) -> None:
        """Delete the rows of owners that have lost their run, or let go of it."""
        await self._execute(_LEFT_BEHIND, {"namespace": self._namespace})


def _begun(dialect: str) -> Any:
    insert = conflict_aware_insert(dialect, current_steps).values(
        workflow_state_id=bindparam("of_id"),
        step_id=bindparam("of_step"),
        lease_token=bindparam("of_token"),
        started_at=database_time_in(bindparam("seconds", type_=Float())),
    )
    new = {name: insert.excluded[name] for name in ("lease_token", "started_at")}
    is_older = current_steps.c.lease_token <= insert.excluded.lease_token
    return insert.on_conflict_do_update(index_elements=list(current_steps.primary_key), set_=new, where=is_older)


_BEGUN: Final = {dialect: _begun(dialect) for dialect in ("sqlite", "postgresql")}
