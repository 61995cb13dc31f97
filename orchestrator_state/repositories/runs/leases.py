"""The leases of many runs at once: renewed, prolonged, or ended because their owner is gone."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from functools import cache
from typing import Final
from uuid import UUID

from sqlalchemy import Executable, Float, bindparam, func, literal, select, update

from orchestrator_state.database import database_now, database_time_in, time_after
from orchestrator_state.domain import WorkflowStatus
from orchestrator_state.models import WorkflowRow
from orchestrator_state.records import Lease, Owner, Renewal
from orchestrator_state.repositories.base import Repository, chunks, rowcount
from orchestrator_state.repositories.claimable import IS_LEASED, lease_was_good
from orchestrator_state.repositories.expressions import IN_NAMESPACE

_LONG_AGO: Final = literal(-3600.0, Float)  # seconds
_HELD: Final = (IN_NAMESPACE, WorkflowRow.status == WorkflowStatus.RUNNING.value, IS_LEASED)
_OF_OWNER: Final = select(WorkflowRow.id, WorkflowRow.lease_owner, WorkflowRow.lease_token, WorkflowRow.version).where(
    *_HELD, WorkflowRow.lease_owner == bindparam("owner")
)


@cache  # of the one machine that a process is on
def _processes_of(machine: str) -> Executable:
    is_of_machine = WorkflowRow.lease_process.startswith(machine, autoescape=True)
    return select(WorkflowRow.lease_process).where(*_HELD, is_of_machine).distinct()


class LeaseRepository(Repository):
    """Leases by their owners and processes."""

    _ended: Collection[str] = ()
    """The processes whose leases this unit has ended."""

    async def renew(self, owner: Owner, ids: Collection[UUID], *, wait: bool = True) -> dict[UUID, Renewal]:
        """Extend the leases `owner` still has among `ids`.

        Without `wait`, rows that somebody has locked are passed over: nothing is known of their leases.
        """
        renewed: dict[UUID, Renewal] = {}
        for chunk in chunks(list(ids)):
            owned = (
                WorkflowRow.namespace == self._namespace,
                WorkflowRow.id.in_(chunk),
                WorkflowRow.lease_owner == owner.id,
                WorkflowRow.lease_expires_at.is_not(None),  # one that was let go is anybody's
            )
            free = select(WorkflowRow.id).where(*owned).with_for_update(skip_locked=True, key_share=True)
            cte = free.cte("free").prefix_with("MATERIALIZED", dialect="postgresql")
            rows = await self._execute(
                update(WorkflowRow)
                .where(*(owned if wait else (WorkflowRow.id == cte.c.id,)))
                .values(lease_expires_at=database_time_in(literal(owner.term.total_seconds(), Float)))
                .returning(WorkflowRow.id, WorkflowRow.lease_token, WorkflowRow.request, database_now().label("now"))
            )
            renewed |= {row.id: Renewal(row.lease_token, row.request, row.now) for row in rows}
        return renewed

    async def prolong(self, held: timedelta) -> None:
        """For a unit that has kept everybody else from writing for as long as `held`: let no lease have ended by that.

        Neither could their owners renew them meanwhile, nor anybody take them over. Of all namespaces; but none that
        the unit itself has ended.
        """
        seconds = held.total_seconds()
        await self._execute(
            update(WorkflowRow)
            .where(
                WorkflowRow.status == WorkflowStatus.RUNNING.value,
                lease_was_good(held),
                func.coalesce(WorkflowRow.lease_process, "").not_in(sorted(self._ended)),
            )
            .values(lease_expires_at=time_after(WorkflowRow.lease_expires_at, literal(seconds, Float)))
        )

    async def list_of(self, owner: UUID) -> list[Lease]:
        """The leases of `owner` which have not ended."""
        rows = await self._rows(_OF_OWNER, {"namespace": self._namespace, "owner": owner})
        return [Lease.of(row) for row in rows]

    async def list_processes(self, machine: str) -> list[str]:
        """The processes of `machine` that hold a lease which has not ended."""
        rows = await self._rows(_processes_of(machine), {"namespace": self._namespace})
        return [process for (process,) in rows if process]

    async def end_of(self, processes: Collection[str]) -> int:
        """End the leases of processes that are known to be dead."""
        self._ended = processes
        ended = await self._execute(
            update(WorkflowRow)
            .where(
                WorkflowRow.namespace == self._namespace,
                WorkflowRow.lease_process.in_(sorted(processes)),
                IS_LEASED,
            )
            .values(lease_expires_at=database_now())
        )
        if rowcount(ended):
            await self._announce()
        return rowcount(ended)

    async def end(self, lease: Lease) -> None:
        """End a lease as that of an owner who is long gone, if it is not another's by now. So no unit prolongs it."""
        await self._execute(
            update(WorkflowRow)
            .where(
                WorkflowRow.namespace == self._namespace,
                WorkflowRow.id == lease.workflow_state_id,
                WorkflowRow.lease_token == lease.token,
                IS_LEASED,
            )
            .values(lease_expires_at=database_time_in(_LONG_AGO))
        )
        await self._announce()

    async def database_time(self) -> datetime:
        """The present time by the database's clock."""
        now: datetime
        (now,) = await self._row(select(database_now()))
        return now
