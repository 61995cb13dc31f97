"""What came of a run, for who has neither its handler nor its lease."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from orchestrator_state.domain import WorkflowStatus
from orchestrator_state.errors import RunCancelled, RunUnfinished, WorkflowNotFound, concerning
from orchestrator_state.execution.outcomes.results import recorded_failure, recorded_result
from orchestrator_state.execution.outcomes.watch import EndWatch
from orchestrator_state.payloads import ValueType
from orchestrator_state.records import FoundRun, RunNames, corrupt_cells
from orchestrator_state.runs import RunTypes
from orchestrator_state.transactions import Transactions

_UNFINISHED: Final = frozenset({WorkflowStatus.PENDING, WorkflowStatus.RUNNING, WorkflowStatus.PAUSED})


class Outcomes:
    """Reads the ends of runs, and waits for them."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self.watch: Final = EndWatch(transactions)

    async def get(self, workflow_state_id: UUID, returns: Any) -> Any:
        """The result. Raises `RunFailed`, `RunCancelled`, `RunUnfinished`, `WorkflowNotFound`."""
        _require_storable(returns)
        with concerning(workflow_state_id=workflow_state_id):
            return await self._of(await self._find(workflow_state_id), returns)

    async def wait(self, workflow_state_id: UUID, limit: timedelta | None, returns: Any) -> Any:
        """The same once the run is over. Raises `TimeoutError`, having looked at least once."""
        _require_storable(returns)
        with concerning(workflow_state_id=workflow_state_id), self.watch.waiting(workflow_state_id) as waiter:
            run = await self._find(workflow_state_id)
            try:
                async with asyncio.timeout(None if limit is None else limit.total_seconds()):
                    while run.status in _UNFINISHED:
                        await waiter.wait()
                        run = await self._find(workflow_state_id)
            except TimeoutError:
                raise TimeoutError(f"run {workflow_state_id} is not over after {limit}") from None
            return await self._of(run, returns)

    async def _find(self, workflow_state_id: UUID) -> FoundRun:
        names = RunNames(ids=[workflow_state_id])
        run: FoundRun | None = await self._transactions.read(lambda uow: uow.claims.find(names))
        if run is None:
            message = f"there is no workflow with id {workflow_state_id}"
            raise WorkflowNotFound(message, workflow_state_id=workflow_state_id)
        if damaged := [name for name in ("status", "workflow_name") if name in run.damaged]:
            raise corrupt_cells(damaged, run.id)
        return run

    async def _of(self, run: FoundRun, returns: Any) -> Any:
        if run.status in _UNFINISHED:
            message = f"run {run.id} is {run.status}, and has no result yet; `store.wait` waits for it"
            raise RunUnfinished(message, workflow_state_id=run.id, status=run.status)
        if run.status == WorkflowStatus.CANCELLED:
            raise RunCancelled(f"run {run.id} was cancelled", workflow_state_id=run.id)
        if run.status == WorkflowStatus.FAILED:
            raise await recorded_failure(self._transactions, run)
        transactions = self._transactions
        types = RunTypes.of(transactions.schemas, transactions.payloads, run.name, None, returns)
        return (await recorded_result(transactions, run, types)).result()


def _require_storable(returns: Any) -> None:
    """Before it waits for a type that can never be had."""
    if returns is not None:
        ValueType.of(returns).require_storable()
