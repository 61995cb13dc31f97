"""Load what is unfinished as a run that is resumed would, to find out whether the application can."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from orchestrator_state.errors import PayloadError, StoreUnavailable
from orchestrator_state.records import Opener, OpenStep, RunNames, corrupt_cells, open_rows
from orchestrator_state.repositories.upkeep import Named
from orchestrator_state.runs import RunTypes, as_of_today
from orchestrator_state.transactions import StoreUnit, Transactions


@dataclass(frozen=True, slots=True, kw_only=True)
class Unloadable:
    """A live workflow, or its newest checkpoint, that the application cannot load. `error` is the error's class."""

    workflow_state_id: UUID
    workflow_id: str
    what: str
    error: str
    path: str | None
    message: str


async def failures_to_load(transactions: Transactions, workflow: Named) -> list[Unloadable]:
    """Load a workflow and its newest checkpoint. Raises `StoreUnavailable`, but not for a single blob."""
    loads: dict[str, Callable[[StoreUnit], Awaitable[object]]] = {
        "workflow": partial(_load_workflow, transactions=transactions, workflow_state_id=workflow.id),
        "newest checkpoint": lambda uow: uow.checkpoints.find_latest(workflow.id),
    }
    found: list[Unloadable] = []
    for what, load in loads.items():
        try:
            await transactions.read(load)
        except (PayloadError, StoreUnavailable) as error:
            if not (isinstance(error, PayloadError) or error.one_blob):
                raise
            found.append(
                Unloadable(
                    workflow_state_id=workflow.id,
                    workflow_id=workflow.workflow_id,
                    what=what,
                    error=type(error).__name__,
                    path=getattr(error, "path", None),
                    message=str(error),
                )
            )
    return found


async def _load_workflow(uow: StoreUnit, *, transactions: Transactions, workflow_state_id: UUID) -> None:
    """Also as a resumed run does: its first context, and each one that a step left behind."""
    await uow.workflows.find(workflow_state_id)
    run = await uow.claims.find(RunNames(ids=[workflow_state_id]))
    if run is None:  # deleted in between
        return
    if run.damaged:
        raise corrupt_cells(run.damaged, run.id)
    stored = run.stored
    steps = (await uow.history.list_steps_of([run.id]))[run.id]
    payloads = await transactions.payloads_of([stored, *steps])
    opener = Opener.of(payloads, stored)
    opener.workflow("initial_context", stored.initial_context, stored.initial_context_digest)
    for step in steps:
        OpenStep.of(step, opener)
    recorded = open_rows(stored, steps, payloads)
    if recorded.is_sound:  # else its context is no object, so that it is no run
        history, _ = recorded.history()
        types = RunTypes.of(transactions.schemas, transactions.payloads, run.name)
        transactions.schemas.require_runnable(run.name, stored.schema_version, run.id)
        as_of_today(stored, types, (recorded.steps, history))
