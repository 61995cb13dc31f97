"""How a run is asked for: the options of a start, and what they make of it."""

from __future__ import annotations

from typing import Any, Generic, TypedDict, TypeVar
from uuid import uuid4

from pydantic import BaseModel

from orchestrator_state.arguments import as_stored_name
from orchestrator_state.domain import WorkflowState
from orchestrator_state.errors import WorkflowNotFound
from orchestrator_state.execution import Executor, WantedRun
from orchestrator_state.repositories.runs import MOST_LOOKS
from orchestrator_state.retry import after_an_effect
from orchestrator_state.runs import Duration, RunTypes
from orchestrator_state.store.by_hand import load
from orchestrator_state.transactions import Transactions

_State = TypeVar("_State", bound=BaseModel)


class RunOptions(TypedDict, Generic[_State], total=False):
    """The options of `StateStore.run` for a type checker, but for `returns`, on which depends what it returns."""

    workflow_id: str | None
    context: dict[str, Any] | _State | None
    state: type[_State] | None
    user_id: str | None
    idempotency_key: str | None
    wait: Duration | None
    strict: bool


async def wanted_run(
    types: RunTypes,
    workflow_id: str | None,
    context: dict[str, Any] | BaseModel | None,
    user_id: str | None,
    idempotency_key: str | None,
) -> WantedRun:
    """Check the arguments of a start as the domain would."""
    if idempotency_key is not None:
        as_stored_name(idempotency_key, "idempotency_key")
    checked = WorkflowState(workflow_id=str(uuid4()), workflow_name=types.workflow_name, user_id=user_id)
    given = idempotency_key if workflow_id is None else workflow_id
    if given is not None:
        checked.workflow_id = given
    return WantedRun(
        types=types,
        name=checked.workflow_name,
        workflow_id=checked.workflow_id,
        context=None if context is None else await types.started_with(context),
        user_id=user_id,
        idempotency_key=idempotency_key,
    )


async def start(transactions: Transactions, executor: Executor, wanted: WantedRun) -> WorkflowState:
    """Record the run, unless it is on record, and return its state. See `StateStore.start`."""
    for looks_left in reversed(range(MOST_LOOKS)):
        workflow_state_id, is_new = await executor.start(wanted)
        with after_an_effect():
            try:
                return await load(transactions, workflow_state_id)
            except WorkflowNotFound:
                if is_new or not looks_left:
                    raise
        # What was found has been deleted since, as one that had ended long ago: it is not this start's run.
    raise AssertionError("the last look returns or raises")
