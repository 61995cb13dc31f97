"""Durable runs, as applications start, resume and recover them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from decimal import Decimal
from typing import Any, TypeVar, Unpack, overload
from uuid import UUID

from pydantic import BaseModel

from orchestrator_state.arguments import as_duration, as_flag, as_function, as_uuid
from orchestrator_state.database import listening
from orchestrator_state.domain import WorkflowState
from orchestrator_state.execution import Recovery, RecoveryReport, wanted_run
from orchestrator_state.records.overview import Attribute
from orchestrator_state.runs import Budget, Duration, Handler, Run
from orchestrator_state.store.base import StoreCalls
from orchestrator_state.store.starting import RunOptions, start

_T = TypeVar("_T")
_R = TypeVar("_R")
_State = TypeVar("_State", bound=BaseModel)


class RunCalls(StoreCalls):
    """Start runs, resume them, and claim what others left."""

    # Overloads, since the last kind of `returns` is a type to pydantic and not to `type[...]`: a union, or Annotated.
    @overload
    async def run(
        self,
        name: str,
        handler: Callable[[Run[_State]], Awaitable[_T]],
        *,
        returns: None = None,
        **options: Unpack[RunOptions[_State]],
    ) -> _T: ...

    @overload
    async def run(
        self,
        name: str,
        handler: Callable[[Run[_State]], Awaitable[Any]],
        *,
        returns: type[_R],
        **options: Unpack[RunOptions[_State]],
    ) -> _R: ...

    @overload
    async def run(
        self,
        name: str,
        handler: Callable[[Run[_State]], Awaitable[Any]],
        *,
        returns: Any,
        **options: Unpack[RunOptions[_State]],
    ) -> Any: ...

    async def run(  # noqa: PLR0913 - how to start, what to make of it, and for how long
        self,
        name: str,
        handler: Callable[[Run[Any]], Awaitable[Any]],
        *,
        workflow_id: str | None = None,
        context: dict[str, Any] | BaseModel | None = None,
        state: type[BaseModel] | None = None,
        returns: Any = None,
        user_id: str | None = None,
        idempotency_key: str | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        budget: Budget | Decimal | float | None = None,
        wait: Duration | None = None,
        strict: bool = False,
    ) -> Any:
        """Start the run of `workflow_id`, resume it if it is unfinished, or return its recorded result.

        `handler(run)` is plain async code whose steps go through `run`. What it returns, any JSON value, is stored;
        what it raises marks the run failed and is raised here. Calling again resumes a failed run, its finished steps
        kept. `context` is the run's at its first start. Without a `workflow_id` each call is a run of its own, unless
        `idempotency_key` says which start it repeats. `attributes` are what it is to be found by: see `set_attributes`.
        `budget`, a `Budget` or US dollars, is what it may spend on models: then it asks, before its next new step.

        With `state=Model` the context is an instance of that model, or a dict that makes one, and the handler has it as
        `run.state`. With `returns=Type` the result is of that type, as the outputs of `run.step(..., returns=Type)`
        are. Where they are not given, they are those of the name's schema.

        The start, each step and the end are a transaction each, and none is open while the handler's code runs.
        Cancelling the call leaves the run for whoever comes next. `wait` (a duration, or seconds) is how long to wait
        for another worker to end or to vanish. `strict` fails a run that ends without asking for all its recorded
        steps.

        Raises `LeaseHeld` naming the owner if another worker has the run, `LeaseLost` if one took it over, and
        `RunPaused` or `RunCancelled` if somebody asked for that. `SchemaMismatch`, `DecryptionFailed`, `UnknownCodec`
        and `UnprotectedPayload` leave the run, unfinished, for a store that can read it; `CorruptPayload` fails it.
        """
        as_function(handler, "handler")
        types = self._executor.types_of(name, state, returns)
        wanted = await wanted_run(
            types,
            workflow_id=workflow_id,
            context=context,
            user_id=user_id,
            idempotency_key=idempotency_key,
            attributes=attributes,
            budget=budget,
        )
        patience = as_duration(0 if wait is None else wait, "wait")
        outcome = await self._executor.run(wanted, handler, wait=patience, strict=as_flag(strict, "strict"))
        return outcome.result()

    async def start(
        self,
        name: str,
        *,
        workflow_id: str | None = None,
        context: dict[str, Any] | BaseModel | None = None,
        state: type[BaseModel] | None = None,
        user_id: str | None = None,
        idempotency_key: str | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        budget: Budget | Decimal | float | None = None,
    ) -> WorkflowState:
        """Record a run for a `Worker` to execute, once for each `workflow_id` or `idempotency_key`.

        The arguments are as in `run`. Returns the run's state, pending if it is new.
        """
        types = self._executor.types_of(name, state)
        wanted = await wanted_run(
            types,
            workflow_id=workflow_id,
            context=context,
            user_id=user_id,
            idempotency_key=idempotency_key,
            attributes=attributes,
            budget=budget,
        )
        return await start(self._transactions, self._executor, wanted)

    @overload
    async def result(self, workflow_state_id: UUID | str, *, returns: type[_R]) -> _R: ...

    @overload
    async def result(self, workflow_state_id: UUID | str, *, returns: Any = None) -> Any: ...

    async def result(self, workflow_state_id: UUID | str, *, returns: Any = None) -> Any:
        """Return what the handler of a completed run returned, without that handler.

        `returns` is as in `run`; else the result is of the type that the schema of the run's name says. A state that
        was completed by hand has the result None.

        Raises `RunFailed` with the recorded error of a failed run, `RunCancelled`, `RunUnfinished` if the run is not
        over, `WorkflowNotFound`, and `PayloadError` for a result that cannot be read.
        """
        return await self._executor.outcomes.get(as_uuid(workflow_state_id, "workflow_state_id"), returns)

    @overload
    def wait(
        self, workflow_state_id: UUID | str, timeout: Duration | None = None, *, returns: type[_R]
    ) -> Coroutine[Any, Any, _R]: ...

    @overload
    def wait(
        self, workflow_state_id: UUID | str, timeout: Duration | None = None, *, returns: Any = None
    ) -> Coroutine[Any, Any, Any]: ...

    def wait(
        self, workflow_state_id: UUID | str, timeout: Duration | None = None, *, returns: Any = None
    ) -> Coroutine[Any, Any, Any]:
        """Wait until a run is over, whoever drives it, and return or raise what `result` does.

        A run that fails is over, also if it may be resumed. One that is paused is not: it is waited for until somebody
        resumes or cancels it. After `timeout` (a duration, or seconds) a `TimeoutError` is raised, and the run goes on.

        An end in this process is heard of at once, one in another by a notification of Postgres, or else by one look
        for all who wait in this store, four times a second on SQLite. It drives no run: somebody has to.
        """
        return self._end_of(workflow_state_id, timeout, returns)

    async def _end_of(self, workflow_state_id: UUID | str, patience: Duration | None, returns: Any) -> Any:
        limit = None if patience is None else as_duration(patience, "timeout")
        self._transactions.enter()
        return await self._executor.outcomes.wait(as_uuid(workflow_state_id, "workflow_state_id"), limit, returns)

    async def recover(self, handlers: Mapping[str, Handler[Any]], *, concurrency: int = 10) -> RecoveryReport:
        """Claim every abandoned run that has a handler here, and resume it: each to its end, or until it waits.

        Abandoned is a run whose worker vanished or let go of it, one that nobody started, one whose timer is due or
        whose signal came. `concurrency` is how many are resumed at a time. Handlers' exceptions do not stop it: they
        are in the report.
        """
        return await self.recovery(handlers).run_once(concurrency)

    def recovery(self, handlers: Mapping[str, Handler[Any]], *, patience: timedelta | None = None) -> Recovery:
        """The parts of `recover`, for `Worker`."""
        return Recovery(self._transactions.for_runs(), self._executor, handlers, patience=patience)

    def listening(self, wake: Callable[[], object]) -> AbstractAsyncContextManager[None]:
        """Call `wake` when Postgres announces that there is a run to claim, for the time of the block."""

        def told() -> None:
            self._executor.lookout.look_now()
            wake()

        return listening(self._transactions.database, self.namespace, told)
