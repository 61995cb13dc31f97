"""How a run comes to its end, or is let go of before; and what is asked of its owner meanwhile."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import Float, func, literal, not_, select, update

from orchestrator_state.arguments import as_uuid
from orchestrator_state.database import database_now, database_time_in, one_more
from orchestrator_state.domain import FINISHED, WorkflowStatus
from orchestrator_state.models import SignalRow, WorkflowRow
from orchestrator_state.records import Columns, FoundRun, Lease
from orchestrator_state.repositories.claimable import FOUND, IS_ACTIVE, IS_FINISHED, LEASE_IS_FREE
from orchestrator_state.repositories.counts import IS_WRITABLE
from orchestrator_state.repositories.expressions import IN_NAMESPACE, OF_WORKFLOW
from orchestrator_state.repositories.runs.fence import (
    FENCE,
    RELEASED,
    STILL_DIGESTED_AT,
    FencedRepository,
    LetGo,
    fence,
    lease_lost,
)
from orchestrator_state.repositories.runs.requests import CANCEL, finishing, heeded, letting_go

_SET_STATUS: Final = (
    update(WorkflowRow)
    .where(*OF_WORKFLOW)
    .values(
        RELEASED
        | {
            "version": one_more(WorkflowRow.version),
            "lease_token": one_more(WorkflowRow.lease_token),
            "updated_at": database_now(),
            "digested_at": STILL_DIGESTED_AT,
            "request": None,
        }
    )
)
"""Sets the columns that it is given values for as well."""
_STATUS: Final = select(WorkflowRow.status).where(*OF_WORKFLOW)
_END: Final = _SET_STATUS.values(completed_at=database_now())
_UNHEEDED: Final = (WorkflowRow.request.is_not(None), IS_ACTIVE, LEASE_IS_FREE, IS_WRITABLE)
_ANY_UNHEEDED: Final = select(WorkflowRow.id).where(IN_NAMESPACE, *_UNHEEDED).limit(1)


class RunRepository(FencedRepository):
    """The status of runs, and the requests that are left for their owners."""

    async def lock(self, workflow_state_id: UUID) -> FoundRun | None:
        """The run, its row locked until the transaction ends."""
        query = (
            select(*FOUND)
            .where(
                WorkflowRow.id == as_uuid(workflow_state_id, "workflow_state_id"),
                WorkflowRow.namespace == self._namespace,
            )
            .with_for_update()
        )
        row = await self._row(query)
        return None if row is None else FoundRun.of(row)

    async def set_status(self, workflow_state_id: UUID, columns: Columns) -> None:
        """Change a run, and take it from whoever has it: its token grows, so that an owner cannot write any more.

        `completed_at` is now, if it is finished.
        """
        statement = _END if columns["status"] in FINISHED else _SET_STATUS
        of_workflow = {"of_id": workflow_state_id, "of_namespace": self._namespace}
        await self._execute(statement, of_workflow | await self._sealed_workflow(workflow_state_id, columns))
        if columns["status"] == WorkflowStatus.PENDING.value:
            await self._announce()

    async def find_status(self, workflow_state_id: UUID) -> str | None:
        """The run's status; None if there is no such run."""
        of_workflow = {"of_id": workflow_state_id, "of_namespace": self._namespace}
        row = await self._row(_STATUS, of_workflow)
        return None if row is None else row.status

    async def wake(self, workflow_state_id: UUID) -> None:
        """Let a sleeping run be claimed now. Locks its row in any case: it may be about to fall asleep."""
        await self._wake(workflow_state_id)

    async def leave_request(self, workflow_state_id: UUID, request: str | None) -> None:
        """Leave a request for the live owner, or take it back. A cancel stays."""
        await self._execute(
            update(WorkflowRow)
            .where(
                WorkflowRow.id == workflow_state_id,
                WorkflowRow.namespace == self._namespace,
                WorkflowRow.request.is_distinct_from(CANCEL),
            )
            .values(request=request)
        )

    async def hold_owned(self, lease: Lease) -> str | None:
        """Keep the run as it is until the transaction ends: no request comes in. Returns that which is there.

        Raises `LeaseLost`.
        """
        row = await self._row(select(WorkflowRow.request).where(*FENCE).with_for_update(read=True), fence(lease))
        if row is None:
            raise lease_lost(lease)
        request: str | None = row.request
        return request

    async def wait_for_commits(self, lease: Lease) -> None:
        """Wait until no other transaction of this run is under way. Raises `LeaseLost`."""
        locked = select(WorkflowRow.id).where(*FENCE).with_for_update()
        if await self._row(locked, fence(lease)) is None:
            raise lease_lost(lease)

    async def release(self, lease: Lease, pause: timedelta = timedelta(), *, faults: int | None = None) -> bool:
        """Let go of an unfinished run, if it is still ours, for the next worker to find once `pause` is over.

        Returns whether it was: a run that has ended, say, has nobody's lease.
        If a pause or a cancellation was asked of us, it becomes that instead. `faults` is how many it has met in a row;
        None leaves that as it is.
        """
        columns: Columns = {
            "version": one_more(WorkflowRow.version),
            **RELEASED,
            "faults": WorkflowRow.faults if faults is None else faults,
        }
        columns |= heeded()
        if pause:
            columns["wake_at"] = database_time_in(literal(pause.total_seconds(), Float))
        unfinished = WorkflowRow.status == WorkflowStatus.RUNNING.value
        releasing = update(WorkflowRow).where(*FENCE, unfinished).values(columns)
        row = await self._row(releasing.returning(WorkflowRow.status, WorkflowRow.parent_id), fence(lease))
        if row is not None:
            await self._tell_of(LetGo(row.status, row.parent_id), may_be_claimed=not pause)
        return row is not None

    async def let_go(self, lease: Lease) -> str:
        """Do what was asked of the run, and release it. Returns its status then: running, if the request is gone.

        Raises `LeaseLost`.
        """
        run = await self._end_fenced(letting_go, lease, {"wake_at": None})
        await self._tell_of(run, may_be_claimed=True)
        return run.status

    async def suspend(
        self, lease: Lease, *, wake_at: datetime, signals: Collection[str], children: Collection[UUID]
    ) -> str:
        """Release a waiting run until `wake_at`, or at once if what it waits for came in between. Raises `LeaseLost`.

        A signal, and a child run that ends, lock this row too: they come before the look here, or after, and then wake.
        So does a request, which is heeded here or, after this, at once. Returns the run's status.
        """
        run = await self._end_fenced(letting_go, lease, {"wake_at": wake_at})
        if run.status != WorkflowStatus.RUNNING:
            await self._tell_of(run, may_be_claimed=False)
        elif (signals and await self._has_signal(lease.workflow_state_id, signals)) or (
            children and await self._lacks_unfinished(children)
        ):
            await self.wake(lease.workflow_state_id)
        return run.status

    async def finish(self, lease: Lease, columns: Columns) -> str:
        """Write how the run ended, and that it did now, release it, and wake the run that waits for it.

        Raises `LeaseLost`. Returns the status: a run that fails although it was to be cancelled is cancelled.
        """
        run = await self._end_fenced(finishing, lease, columns)
        if run.status == WorkflowStatus.RUNNING:
            raise lease_lost(lease)  # let go of, and not by this
        if run.parent_id is not None:
            await self.wake(run.parent_id)
        return run.status

    async def heed_requests(self) -> int:
        """Do what was asked of owners that are gone. Returns of how many runs."""
        columns: Columns = {
            "version": one_more(WorkflowRow.version),
            "lease_token": one_more(WorkflowRow.lease_token),
            **RELEASED,
        }
        heeding = (
            update(WorkflowRow)
            .where(WorkflowRow.namespace == self._namespace, *_UNHEEDED)
            .values(columns | heeded())
            .returning(WorkflowRow.status, WorkflowRow.parent_id)
        )
        rows = await self._rows(heeding)
        for row in rows:
            await self._tell_of(LetGo(row.status, row.parent_id), may_be_claimed=False)
        return len(rows)

    async def has_unheeded_requests(self) -> bool:
        return await self._row(_ANY_UNHEEDED, {"namespace": self._namespace}) is not None

    async def _tell_of(self, run: LetGo, *, may_be_claimed: bool) -> None:
        """Wake whoever has to know of it."""
        if run.status == WorkflowStatus.CANCELLED and run.parent_id is not None:
            await self.wake(run.parent_id)
        elif run.status == WorkflowStatus.RUNNING and may_be_claimed:
            await self._announce()

    async def _has_signal(self, workflow_state_id: UUID, names: Collection[str]) -> bool:
        query = select(SignalRow.id).where(
            SignalRow.workflow_state_id == workflow_state_id, SignalRow.name.in_(sorted(names))
        )
        return await self._row(query.limit(1)) is not None

    async def _lacks_unfinished(self, workflow_state_ids: Collection[UUID]) -> bool:
        """Whether one of these runs is finished, or was deleted."""
        query = select(func.count()).where(
            WorkflowRow.namespace == self._namespace,
            WorkflowRow.id.in_(list(workflow_state_ids)),
            not_(IS_FINISHED),
        )
        (unfinished,) = await self._row(query)
        return int(unfinished) < len(workflow_state_ids)
