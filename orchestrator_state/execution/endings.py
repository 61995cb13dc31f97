"""How an attempt at a run ends: it is over, it is let go of because somebody asked for that, or it is left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Final
from uuid import UUID

from orchestrator_state import hooks
from orchestrator_state.domain import FINISHED, WorkflowStatus
from orchestrator_state.errors import (
    LeaseLost,
    OrchestratorStateError,
    PauseTakenBack,
    RunCancelled,
    RunPaused,
    RunSuspended,
    SchemaMismatch,
)
from orchestrator_state.failures import describe, is_a, message_of, type_of
from orchestrator_state.records import NO_ERROR, ClaimedRun, Columns, prepared_workflow
from orchestrator_state.runs import NOT_THE_RUNS, WaitingRoom, pause_after
from orchestrator_state.transactions import StoreUnit, Transactions

GIVEN_UP: Final = "TooManyAttempts"
"""The `error_type` of a run that failed of no exception: too many workers vanished over it."""
_FAILED: Final[Columns] = {"status": WorkflowStatus.FAILED.value}
_RELEASE_WITHIN: Final = timedelta(seconds=2)  # of tries; a stop, or the error of a caller, waits for them


_OUTCOMES: Final[Mapping[type[BaseException], str]] = {
    asyncio.CancelledError: "released",
    PauseTakenBack: "released",
    RunSuspended: "suspended",
    RunPaused: "paused",
    RunCancelled: "cancelled",
    LeaseLost: "lost",
}


def outcome_of(error: BaseException, *, otherwise: str) -> str:
    """What has become of a run that something happened to, by what its attempt raised."""
    if is_a(error, NOT_THE_RUNS):
        return "interrupted"
    return next((outcome for kind, outcome in _OUTCOMES.items() if is_a(error, kind)), otherwise)


class Endings:
    """Writes them. `tell` is called with the id of a run that is over: its parent may wait for it, or a caller."""

    def __init__(self, transactions: Transactions, tell: Callable[[UUID], object]) -> None:
        self._transactions = transactions
        self._tell = tell

    async def complete(self, run: ClaimedRun, result: str, context: Columns) -> None:
        """`context` is what it ends with. Raises `LeaseLost`."""
        await self._finish(run, {"status": WorkflowStatus.COMPLETED.value, "result": result} | NO_ERROR | context)

    async def fail(self, run: ClaimedRun, error: BaseException) -> str:
        """Returns the status: a run that fails although it was to be cancelled is cancelled. Raises `LeaseLost`."""
        return await self._finish(run, _FAILED | {"error": describe(error), "error_type": type_of(error)})

    async def give_up(self, run: ClaimedRun, message: str) -> str:
        """Like `fail`, of a run that kills its workers; it takes none of its ancestors with it."""
        return await self._finish(run, _FAILED | {"error": message, "error_type": GIVEN_UP}, spare_ancestors=True)

    async def _finish(self, run: ClaimedRun, columns: Columns, *, spare_ancestors: bool = False) -> str:
        columns = columns | {"wake_at": None, "request": None}
        columns = await prepared_workflow(self._transactions.payloads, run.id, columns)

        async def finish(uow: StoreUnit) -> str:
            status = await uow.runs.finish(run.lease, columns)
            if spare_ancestors:
                await uow.lineage.spare_ancestors(run.parent_id)
            return status

        status = await self._transactions.write(finish)
        self._tell(run.id)
        return status

    async def suspend(self, run: ClaimedRun, room: WaitingRoom) -> str:
        """Release a run that waits. Returns its status. Raises `LeaseLost`."""
        return await self._transactions.write(
            lambda uow: uow.runs.suspend(
                run.lease, wake_at=room.wake_at, signals=room.awaited_signals, children=room.awaited_children
            )
        )

    async def let_go(self, run: ClaimedRun) -> str:
        """Do what was asked of the run, and release it. Returns its status. Raises `LeaseLost`."""
        status = await self._transactions.write(lambda uow: uow.runs.let_go(run.lease))
        if status in FINISHED:
            self._tell(run.id)
        return status

    async def leave(self, run: ClaimedRun, error: BaseException, *, progress: bool) -> None:
        """Let go of the run; after a fault with a pause, which grows while faults follow each other without progress.

        Best effort: a lease that is not released ends by itself.
        """
        faults, pause = (0 if progress else run.faults), timedelta()
        if is_a(error, OrchestratorStateError):
            faults += 1
            pause = pause_after(error, faults, self._transactions.settings.lease_term)
        try:
            is_left = await self._transactions.write(
                lambda uow: uow.runs.release(run.lease, pause, faults=faults), patience=_RELEASE_WITHIN
            )
        except OrchestratorStateError:
            is_left = True
            hooks.logger.warning("the lease of run %s could not be released; it ends by itself", run.id)
        if pause and is_left:
            whom = "code that can read it" if is_a(error, SchemaMismatch) else "whoever comes next"
            seconds, why = pause.total_seconds(), message_of(error)
            hooks.logger.warning("run %s is left to %s in %.1f s: %s", run.id, whom, seconds, why)
