"""How a run is asked for: the options of a start, and what they make of it."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Generic, TypedDict, TypeVar

from pydantic import BaseModel

from orchestrator_state.domain import WorkflowState
from orchestrator_state.errors import WorkflowNotFound
from orchestrator_state.execution import Executor, WantedRun
from orchestrator_state.records.overview import Attribute
from orchestrator_state.repositories.runs import MOST_LOOKS
from orchestrator_state.retry import after_an_effect
from orchestrator_state.runs import Budget, Duration
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
    attributes: Mapping[str, Attribute] | None
    budget: Budget | Decimal | float | None
    wait: Duration | None
    strict: bool


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
