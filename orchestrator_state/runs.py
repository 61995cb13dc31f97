"""`Run`: what a handler holds. Each of its calls is a durable step, found by its id when the handler runs again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, Generic, Literal, Protocol, cast, overload
from uuid import UUID, uuid5

from pydantic import BaseModel
from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from typing_extensions import TypeVar

from orchestrator_state import hooks
from orchestrator_state.arguments import as_duration, as_signal_name
from orchestrator_state.codecs import encode
from orchestrator_state.domain import StepStatus
from orchestrator_state.driver_errors import fault_in
from orchestrator_state.errors import (
    ConfigurationError,
    InvalidPayload,
    LeaseLost,
    OutcomeUnknown,
    RunCancelled,
    RunSuspended,
    StoreUnavailable,
)
from orchestrator_state.failed_statements import fault_under, refuse_after_failure
from orchestrator_state.faults import NOT_THE_RUNS
from orchestrator_state.journal import Entry, Journal
from orchestrator_state.leases import LeaseKeeper
from orchestrator_state.open_transactions import idle_limit, kept_open
from orchestrator_state.run_records import Ack, StepRecord
from orchestrator_state.run_tasks import step_of
from orchestrator_state.run_types import RunTypes
from orchestrator_state.sealing import UNREADABLE
from orchestrator_state.step_call import StepFunction, call
from orchestrator_state.step_retry import Retry, call_with_retries
from orchestrator_state.stopping import StopSwitch
from orchestrator_state.storable_types import require_storable
from orchestrator_state.threads import Threads
from orchestrator_state.transactions import Transactions
from orchestrator_state.typed_values import Unreadable, decode_value, encode_value
from orchestrator_state.uninterrupted import uninterrupted
from orchestrator_state.unit_of_work import UnitOfWork
from orchestrator_state.user_code import Returned, call_apart
from orchestrator_state.waiting import WaitingRoom

_T = TypeVar("_T")
_R = TypeVar("_R")
State = TypeVar("State", bound=BaseModel, default=Any)
"""The model of a run's state; without one `Run` is `Run[Any]`."""
_ChildState = TypeVar("_ChildState", bound=BaseModel)
Duration = timedelta | float
OnUnknown = Literal["retry", "raise"] | Callable[..., Any]
Handler = Callable[["Run[Any]"], Awaitable[_T]]

_LONGEST_STRETCH: Final = 0.05  # seconds in which a handler that passes through recorded steps has the loop to itself
_current_step: Final[ContextVar[tuple[Run[Any], str] | None]] = ContextVar("orchestrator_state_step", default=None)


@dataclass(frozen=True, slots=True)
class Happened:
    """What an `on_unknown` callable returns when the step did take effect: these are its outputs."""

    outputs: Any = None


class StartChild(Protocol):
    """Starts or resumes a child run of `parent`, and returns its result."""

    async def __call__(
        self, parent: Run[Any], child_id: str, handler: Handler[Any], types: RunTypes, context: str | None
    ) -> Any: ...


class Run(Generic[State]):
    """A durable run, as its handler sees it. Made by `store.run`, `store.recover` and `Worker`.

    `Run[Totals]` is one whose `state` is a `Totals`.

    A step that finished never runs again: when the handler is resumed, the same call returns what was recorded. Steps
    are found by id, so that a new version of the handler may add or reorder them. Apart from its steps a handler is
    plain async code. No database connection is held while a step runs.
    """

    def __init__(
        self,
        journal: Journal,
        switch: StopSwitch,
        room: WaitingRoom,
        keeper: LeaseKeeper,
        transactions: Transactions,
        threads: Threads,
        start_child: StartChild,
        types: RunTypes,
    ) -> None:
        self._journal = journal
        self._switch = switch
        self.room = room
        self._keeper = keeper
        self._transactions = transactions
        self._threads = threads
        self._start_child = start_child
        self._went_on_at = time.monotonic()
        self.types: Final = types

    # --- what it is ----------------------------------------------------------------------------------------------

    @property
    def id(self) -> UUID:
        """Of the workflow's row: what `store.signal`, `pause` and `cancel` take."""
        return self._journal.row.id

    @property
    def workflow_id(self) -> str:
        """What the run was started as."""
        return self._journal.row.workflow_id

    @property
    def name(self) -> str:
        """The name under which handlers are found; the row's `workflow_name`."""
        return self._journal.row.name

    @property
    def user_id(self) -> str | None:
        """Whose run it is, as given at the start."""
        return self._journal.row.user_id

    @property
    def parent_id(self) -> UUID | None:
        """The run that started this one with `run.child`."""
        return self._journal.row.parent_id

    @property
    def attempts(self) -> int:
        """How often the run was taken over from a worker that vanished, since it last finished a step."""
        return self._journal.row.attempts

    @property
    def context(self) -> dict[str, Any]:
        """The run's JSON context. What changed in it is saved with the next step's commit.

        A resumed handler finds it as it was at the start, and after each recorded step as that step's commit saved it.
        Branches that run side by side share it, and each commit saves what all of them did to it; on a resume each line
        of theirs counts once. Take it from here where you change it: so it is known who did. Raises
        `ConfigurationError` if the run has a `state`.
        """
        if self.types.state is not None:
            raise ConfigurationError(f"the context of this run is a {self.types.state.__qualname__}: use run.state")
        return cast("dict[str, Any]", self._journal.history.held.taken_up())

    @property
    def state(self) -> State:
        """The run's context as the model that `state=`, or the schema, says it is.

        It is saved, replayed and shared like `context`, and always is the same object. Raises `ConfigurationError` if
        the run has no model.
        """
        if self.types.state is None:
            raise ConfigurationError("this run has no model of its state: pass `state=`, or use run.context")
        return cast("State", self._journal.history.held.taken_up())

    @property
    def step_key(self) -> str:
        """The idempotency key of the step that is running: the same in every attempt, another for every step.

        Give it to services that can tell a repetition by it. Raises `ConfigurationError` outside a step's function.
        """
        step_id = self._running_step()
        if step_id is None:
            raise ConfigurationError("run.step_key is for the function of a step; none is running here")
        return self._journal.key(step_id)

    @property
    def unused_steps(self) -> tuple[str, ...]:
        """Finished steps on record that the handler has not asked for: in the end, those that it no longer has."""
        return self._journal.unused

    # --- durable calls -------------------------------------------------------------------------------------------

    # Overloads and not a union: of that a type checker makes Never for every async function. The last one is for what
    # is a type to pydantic and not to `type[...]`: a union, or Annotated.
    @overload
    def step(
        self,
        step_id: str,
        fn: Callable[..., Awaitable[_T]],
        *args: Any,
        returns: None = None,
        retry: Retry | int | None = None,
        timeout: Duration | None = None,
        on_unknown: OnUnknown = "retry",
    ) -> Coroutine[Any, Any, _T]: ...

    @overload
    def step(
        self,
        step_id: str,
        fn: Callable[..., _T],
        *args: Any,
        returns: None = None,
        retry: Retry | int | None = None,
        timeout: Duration | None = None,
        on_unknown: OnUnknown = "retry",
    ) -> Coroutine[Any, Any, _T]: ...

    @overload
    def step(
        self,
        step_id: str,
        fn: Callable[..., Any],
        *args: Any,
        returns: type[_R],
        retry: Retry | int | None = None,
        timeout: Duration | None = None,
        on_unknown: OnUnknown = "retry",
    ) -> Coroutine[Any, Any, _R]: ...

    @overload
    def step(
        self,
        step_id: str,
        fn: Callable[..., Any],
        *args: Any,
        returns: Any,
        retry: Retry | int | None = None,
        timeout: Duration | None = None,
        on_unknown: OnUnknown = "retry",
    ) -> Coroutine[Any, Any, Any]: ...

    def step(
        self,
        step_id: str,
        fn: Callable[..., Any],
        *args: Any,
        returns: Any = None,
        retry: Retry | int | None = None,
        timeout: Duration | None = None,
        on_unknown: OnUnknown = "retry",
    ) -> Coroutine[Any, Any, Any]:
        """Return `fn(*args)`, computed once: after a crash the recorded outputs come back instead.

        `fn` is async, or sync and then runs in a thread; what it returns must be JSON. One commit writes the step, the
        changed context, the checkpoint and its pruning, and only then is the result returned. The same id called again
        is `step_id#2`, and so on, numbered when `step` is called. A step that was under way at a crash runs again,
        with the same `step_key`. With `on_unknown="raise"`, or a callable, the intent is committed first, so that this
        is noticed: then `OutcomeUnknown` is raised, or the callable is called with the key and returns `Happened`, or
        None to run the step again.

        With `returns=SomeType` the outputs are of that type, for which pydantic has a schema: a model, a dataclass,
        `datetime`, `list[Page]`. What comes back is loaded from what was stored, the first time too.

        `retry` is the number of calls in all, or a `Retry`; `timeout` bounds each of them, from the moment that `fn` is
        called. Whatever it raises is a failure. When the last call fails, the failure is committed and its exception
        raised; for what is no `Exception`, such as `SystemExit`, an `AbnormalExit`. A cancellation from outside is no
        failure. Raises `InvalidPayload` for outputs that cannot be stored, and
        `StateMismatch` if `returns` does not accept recorded ones.
        """
        numbered = self._journal.number(step_id)
        policy, limit = Retry.of(retry), None if timeout is None else as_duration(timeout, "timeout")
        returns = self.types.of_step(numbered, returns)
        return self._call(partial(self._step, numbered, fn, args, returns, policy, limit, on_unknown))

    @overload
    def transact(
        self, step_id: str, fn: Callable[..., Awaitable[_T]], *args: Any, returns: None = None
    ) -> Coroutine[Any, Any, _T]: ...

    @overload
    def transact(
        self, step_id: str, fn: Callable[..., Awaitable[Any]], *args: Any, returns: type[_R]
    ) -> Coroutine[Any, Any, _R]: ...

    @overload
    def transact(
        self, step_id: str, fn: Callable[..., Awaitable[Any]], *args: Any, returns: Any
    ) -> Coroutine[Any, Any, Any]: ...

    def transact(
        self, step_id: str, fn: Callable[..., Awaitable[Any]], *args: Any, returns: Any = None
    ) -> Coroutine[Any, Any, Any]:
        """Return `await fn(session, *args)`, whose rows commit together with the step: exactly once.

        `session` is an `AsyncSession`: add and flush, and leave the commit to the run. If the database gives up on the
        transaction, all of it is repeated. It is open while `fn` runs, so `fn` should do nothing but write rows.
        `returns` is as in `step`.
        """
        numbered = self._journal.number(step_id)
        return self._call(partial(self._transact, numbered, fn, args, self.types.of_step(numbered, returns)))

    def checkpoint(self, label: str = "checkpoint") -> Coroutine[Any, Any, None]:
        """Commit the context now, as a step of that name, with a checkpoint whatever the policy."""
        numbered = self._journal.number(label)
        return self._call(partial(self._checkpoint, numbered))

    def append(self, key: str, item: Any) -> None:
        """Append `item` to the list `context[key]`, or that field of `state`; the next commit writes the item alone."""
        self._journal.history.held.append(key, item)

    def sleep(self, duration: Duration) -> Coroutine[Any, Any, None]:
        """Wait, durably: a restart waits for what is left, by the database's clock."""
        numbered = self._journal.number("sleep")
        return self._call(partial(self._sleep, numbered, as_duration(duration, "duration")))

    @overload
    def wait_for(self, name: str, timeout: Duration | None = None, *, returns: type[_R]) -> Coroutine[Any, Any, _R]: ...

    @overload
    def wait_for(
        self, name: str, timeout: Duration | None = None, *, returns: Any = None
    ) -> Coroutine[Any, Any, Any]: ...

    def wait_for(self, name: str, timeout: Duration | None = None, *, returns: Any = None) -> Coroutine[Any, Any, Any]:
        """Return the payload of the oldest signal `name`, waiting if there is none. It is consumed with this step.

        Raises `TimeoutError` after `timeout`, which is durable too. Under `store.recover` and `Worker` a waiting run is
        let go of, and resumed when the signal is there. `returns` is as in `step`; a payload that it does not accept is
        consumed all the same, and raises `InvalidPayload`: the next call waits for the next signal.
        """
        numbered = self._journal.number(f"signal:{as_signal_name(name)}")
        limit = None if timeout is None else as_duration(timeout, "timeout")
        return self._call(partial(self._wait_for, numbered, name, limit, self.types.of_step(numbered, returns)))

    @overload
    def child(
        self,
        name: str,
        handler: Callable[[Run[_ChildState]], Awaitable[_T]],
        *,
        context: dict[str, Any] | _ChildState | None = None,
        state: type[_ChildState] | None = None,
        returns: None = None,
    ) -> Coroutine[Any, Any, _T]: ...

    @overload
    def child(
        self,
        name: str,
        handler: Callable[[Run[_ChildState]], Awaitable[Any]],
        *,
        context: dict[str, Any] | _ChildState | None = None,
        state: type[_ChildState] | None = None,
        returns: type[_R],
    ) -> Coroutine[Any, Any, _R]: ...

    @overload
    def child(
        self,
        name: str,
        handler: Callable[[Run[_ChildState]], Awaitable[Any]],
        *,
        context: dict[str, Any] | _ChildState | None = None,
        state: type[_ChildState] | None = None,
        returns: Any,
    ) -> Coroutine[Any, Any, Any]: ...

    def child(
        self,
        name: str,
        handler: Callable[[Run[Any]], Awaitable[Any]],
        *,
        context: dict[str, Any] | BaseModel | None = None,
        state: type[BaseModel] | None = None,
        returns: Any = None,
    ) -> Coroutine[Any, Any, Any]:
        """Return the result of another run, started once for this call, and cancelled with this run.

        `context`, `state` and `returns` are as in `store.run`.
        """
        types = RunTypes.of(self._transactions.schemas, self.types.encode, name, state, returns)
        started_with = None if context is None else types.context_text(context)
        numbered = self._journal.number(f"child:{name}")
        return self._call(partial(self._child, numbered, handler, types, started_with))

    # --- steps ---------------------------------------------------------------------------------------------------

    async def _call(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Account for a call of the handler's while it is under way.

        `work` is begun in here: a task that is cancelled before it begins would leave a coroutine that nobody awaits.
        """
        self._transactions.enter()
        if time.monotonic() - self._went_on_at >= _LONGEST_STRETCH:
            # Recorded steps are passed through without a wait: thousands of them would stop the heartbeat.
            self._went_on_at = time.monotonic()
            await asyncio.sleep(0)
        self._switch.check()
        self._require_handler()
        with self.room.call(), self._journal.history.call():
            return await work()

    def _require_handler(self) -> None:
        """A step inside a step's function is one that a resumed run never meets; inside a transaction, a deadlock."""
        if (outer := self._running_step()) is not None:
            raise ConfigurationError(
                f"the function of step {outer!r} called a step of its own run; call it from the handler instead"
            )

    def _running_step(self) -> str | None:
        """The step of this run whose function is calling, if any."""
        run, step_id = _current_step.get() or (None, None)
        return step_id if run is self else None

    def _recorded(self, step: StepRecord, returns: Any) -> Any:
        return self.types.decode_outputs(step, returns, self.id)

    async def _before_work(self) -> None:
        """Between steps: obey a request, and after a freeze make sure of the lease."""
        self._switch.obey()
        if not self._keeper.is_fresh(self._journal.lease):
            with self._switch.on_fault():
                await self._keeper.confirm(self._journal.lease)

    async def _step(
        self,
        step_id: str,
        fn: StepFunction[Any],
        args: tuple[Any, ...],
        returns: Any,
        retry: Retry,
        limit: timedelta | None,
        on_unknown: OnUnknown,
    ) -> Any:
        journal = self._journal
        if (recorded := journal.replay(step_id)) is not None:
            return self._recorded(recorded, returns)
        require_storable(returns)
        await self._before_work()
        if on_unknown != "retry":
            happened = await self._settle(step_id, on_unknown)
            if happened is not None:
                encoded, outputs = self._encode(step_id, returns, happened.outputs)
                await journal.finish_step(journal.new_step(step_id), encoded)
                return outputs
            begun = await journal.begin_step(step_id)
        else:
            begun = journal.new_step(step_id)
        failures: list[Exception] = []

        async def attempt() -> Returned[Any]:
            number = begun.retry_count + len(failures) + 1
            hooks.tell(journal.hook, hooks.StepStarted(workflow_state_id=self.id, step_id=step_id, attempt=number))
            return await call(self._threads, fn, args, limit=limit)

        try:
            with _inside(self, step_id):
                outputs, cancelled = await call_with_retries(
                    attempt, retry, failures.append, f"step {step_id!r} of run {self.id}"
                )
            encoded, outputs = self._encode(step_id, returns, outputs)
        except Exception as error:
            await journal.fail_step(begun, error, calls=max(len(failures), 1))
            raise
        finish = journal.finish_step(journal.after_failures(begun, failures), encoded)
        if cancelled is not None:
            await uninterrupted(finish)  # the call was made, and came to its end
            raise cancelled
        await finish
        return outputs

    def _encode(self, step_id: str, returns: Any, outputs: Any) -> tuple[str, Any]:
        """The outputs as JSON, and as they load from there. Raises `InvalidPayload`, `PayloadTooLarge`."""
        encoded, loaded = encode_value(returns, outputs, _outputs(step_id), self.types.encode)
        self._journal.check_size(step_id, encoded)
        return encoded, loaded

    async def _settle(self, step_id: str, on_unknown: OnUnknown) -> Happened | None:
        """If a worker vanished in the middle of the step: has it taken effect?"""
        recorded = self._journal.recorded(step_id)
        if recorded is None or recorded.status != StepStatus.RUNNING:
            return None
        key = self._journal.key(step_id)
        if not callable(on_unknown):
            raise OutcomeUnknown(
                f"step {step_id!r} was under way when its worker vanished, and may or may not have taken effect; "
                "find out, then rewind or fork the run",
                workflow_state_id=self.id,
                step_id=step_id,
                step_key=key,
            )
        found = (await call(self._threads, on_unknown, (key,))).unless_cancelled()
        if found is None or isinstance(found, Happened):
            return found
        raise ConfigurationError("an on_unknown callable returns Happened(outputs), or None to run the step again")

    async def _checkpoint(self, step_id: str) -> None:
        if self._journal.replay(step_id) is None:
            await self._before_work()
            await self._journal.finish_step(self._journal.new_step(step_id), "null", checkpoint=True)

    # --- exactly once --------------------------------------------------------------------------------------------

    async def _transact(
        self, step_id: str, fn: Callable[..., Awaitable[Any]], args: tuple[Any, ...], returns: Any
    ) -> Any:
        journal = self._journal
        if (recorded := journal.replay(step_id)) is not None:
            return self._recorded(recorded, returns)
        require_storable(returns)
        await self._before_work()
        begun, tries = journal.new_step(step_id), 0

        async def attempt(uow: UnitOfWork) -> tuple[Any, Entry, Ack]:
            nonlocal tries
            tries += 1
            return await self._transact_once(uow, begun, fn, args, returns)

        try:
            async with self._transactions.places.taken(), journal.in_order:
                try:
                    outputs, entry, ack = await self._transactions.write(attempt)
                except _AlreadyRecorded as already:
                    journal.adopt(already.step)
                    return self._recorded(already.step, returns)
                except (LeaseLost, StoreUnavailable):
                    raise
                except (Exception, asyncio.CancelledError) as error:
                    # Cancelled, perhaps in the middle of COMMIT; or refused, perhaps for what the try before it wrote.
                    is_cancelled = isinstance(error, asyncio.CancelledError)
                    found = await uninterrupted(self._find_out(step_id)) if is_cancelled or tries > 1 else None
                    if is_cancelled or found is None:
                        raise
                    return self._recorded(found, returns)
                journal.accept(entry, ack)
                journal.lease.advance()
                return outputs
        except (LeaseLost, StoreUnavailable, *UNREADABLE) as error:
            self._switch.stop(error)
        except Exception as error:
            await journal.fail_step(begun, error, calls=1)
            raise

    async def _transact_once(
        self,
        uow: UnitOfWork,
        begun: StepRecord,
        fn: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
        returns: Any,
    ) -> tuple[Any, Entry, Ack]:
        """One try. After an unknown outcome it finds out whether the try before took effect.

        Looked up twice: before `fn`, to spare it, and after the guarded update, whose row lock has waited for a commit
        of the try before that was still on its way.
        """
        limit = idle_limit(self._transactions.settings.lease_term)
        await self._refuse_to_repeat(uow, begun.step_id, limit)
        hooks.tell(self._journal.hook, hooks.StepStarted(workflow_state_id=self.id, step_id=begun.step_id, attempt=1))
        connection = cast("Connection", (await uow.session.connection()).sync_connection)
        with _inside(self, begun.step_id), _only_the_run_commits(uow.session):
            try:
                async with kept_open(uow.session, limit):
                    outputs = (await call_apart(lambda: fn(uow.session, *args))).unless_cancelled()
                await uow.session.flush()
            except Exception as error:
                # In whatever it has wrapped that; and what else it raised may have come of it.
                fault = fault_in(error) or fault_under(connection)
                if fault is not None:
                    raise fault from None
                raise
        refuse_after_failure(connection)  # for the function may have swallowed it
        encoded, outputs = self._encode(begun.step_id, returns, outputs)
        step = self._journal.completed(begun, encoded)
        entry = self._journal.entry(step, with_context=True)
        ack = await self._journal.write(uow, entry)
        if ack.already_recorded:
            await self._refuse_to_repeat(uow, begun.step_id)
        return outputs, entry, ack

    async def _refuse_to_repeat(self, uow: UnitOfWork, step_id: str, limit: timedelta | None = None) -> None:
        step = await uow.runs.find_completed_step(self.id, step_id, idle_limit=limit)
        if step is not None:
            raise _AlreadyRecorded(step)

    async def _find_out(self, step_id: str) -> StepRecord | None:
        """After a transaction that did not come to its end here: did it commit all the same? Then, its step."""

        async def look(uow: UnitOfWork) -> StepRecord | None:
            await uow.runs.wait_for_commits(self._journal.lease)
            return await uow.runs.find_completed_step(self.id, step_id)

        try:
            step = await self._transactions.write(look)
        except (LeaseLost, StoreUnavailable) as error:
            self._switch.trip(error)
            return None
        if step is not None:
            self._journal.adopt(step)
        return step

    # --- waiting -------------------------------------------------------------------------------------------------

    async def _deadline(self, step_id: str, duration: timedelta) -> datetime:
        """When a wait ends: committed the first time, so that a restart does not wait anew."""
        recorded = self._journal.recorded(step_id)
        if recorded is not None and recorded.status == StepStatus.RUNNING:
            return datetime.fromisoformat(decode_value(None, recorded.outputs, "deadline"))
        await self._before_work()
        until = self.room.clock.deadline(duration)
        await self._journal.begin_step(step_id, outputs=encode(until.isoformat(), "deadline"))
        return until

    async def _sleep(self, step_id: str, duration: timedelta) -> None:
        if self._journal.replay(step_id) is not None:
            return
        until = await self._deadline(step_id, duration)
        while self.room.seconds_until(until) > 0:
            await self.room.wait(until=until)
        await self._before_work()
        await self._journal.finish_step(self._journal.new_step(step_id), "null")
        self._switch.obey()

    async def _wait_for(self, step_id: str, name: str, limit: timedelta | None, returns: Any) -> Any:
        journal = self._journal
        late = TimeoutError(f"no signal {name!r} came in time")
        if (recorded := journal.replay(step_id)) is not None:
            if recorded.status == StepStatus.SKIPPED:
                raise late
            return self._recorded(recorded, returns)
        until = None if limit is None else await self._deadline(step_id, limit)
        while True:
            await self._before_work()
            with self._switch.on_fault():
                signal = await self._transactions.read(lambda uow: uow.runs.next_signal(self.id, name))
            if signal is not None and (taken := await self._take(step_id, signal, returns)):
                self._switch.obey()  # a signal that came after a cancel must not complete the run
                return taken.payload
            if until is not None and self.room.seconds_until(until) <= 0:
                await journal.finish_step(journal.new_step(step_id), "null", status=StepStatus.SKIPPED)
                self._switch.obey()
                raise late
            await self.room.wait(signals=frozenset({name}), until=until)

    async def _take(self, step_id: str, signal: Any, returns: Any) -> _Taken | None:
        """Consume a signal, unless another branch did. One of another type is consumed with the failure of the step."""
        journal = self._journal
        begun = journal.new_step(step_id)
        try:
            payload = decode_value(returns, signal.payload, step_id)
        except Unreadable as unreadable:
            error = InvalidPayload(f"the type does not accept {unreadable}", path=unreadable.paths[0])
            if await journal.fail_step(begun, error, calls=1, consumed_signal=signal.id):
                raise error from None
            return None
        is_ours = await journal.finish_step(begun, signal.payload, consumed_signal=signal.id)
        return _Taken(payload) if is_ours else None

    async def _child(self, step_id: str, handler: Handler[Any], types: RunTypes, context: str | None) -> Any:
        journal = self._journal
        # In the parent's record the result is outputs, and the parent's schema upcasts them.
        returns = self.types.of_step(step_id, types.result)
        if (recorded := journal.replay(step_id)) is not None:
            return self._recorded(recorded, returns)
        try:
            result = await self._result_of_child(step_id, handler, types, context)
        except NOT_THE_RUNS as fault:
            self._switch.stop(fault)  # which the child met: it is left too, and this run goes on with it
        except Exception as error:
            await journal.fail_step(journal.new_step(step_id), error, calls=1)
            self._switch.obey()  # a cancelled child of a cancelled parent is no failure of the parent
            raise
        encoded, result = self._encode(step_id, returns, result)
        await journal.finish_step(journal.new_step(step_id), encoded)
        self._switch.obey()
        return result

    async def _result_of_child(self, step_id: str, handler: Handler[Any], types: RunTypes, context: str | None) -> Any:
        child: UUID | None = None
        until: datetime | None = None
        if self._journal.lease.token > 1:  # a run that is resumed may have started it before
            wanted = child_run_id(self.id, step_id)
            child = wanted if await self.room.is_to_wait_for(wanted) else None
        while True:
            if child is not None:
                await self.room.wait(child=child, until=until)
            await self._before_work()
            child = None
            try:
                return await self._start_child(self, step_id, handler, types, context)
            except RunCancelled as cancelled:
                if cancelled.workflow_state_id != self.id:
                    raise
                self._switch.stop(cancelled)  # before the child was started
            except LeaseLost as lost:
                if lost.workflow_state_id == self.id:
                    self._switch.stop(lost)
                # The child's: another worker has it.
            except RunSuspended as waiting:
                child, until = waiting.workflow_state_id, waiting.wake_at


@dataclass(frozen=True, slots=True)
class _Taken:
    """A signal was consumed; its payload may be None."""

    payload: Any


class _AlreadyRecorded(Exception):
    """The try before did commit; its transaction's repetition is rolled back."""

    def __init__(self, step: StepRecord) -> None:
        super().__init__()
        self.step = step


class _inside(step_of):  # noqa: N801 - a context manager reads as a phrase: `with _inside(run, step_id):`
    __slots__ = ("_step", "_step_token")

    def __init__(self, run: Run[Any], step_id: str) -> None:
        super().__init__(run.room)
        self._step = run, step_id

    def __enter__(self) -> None:
        super().__enter__()
        self._step_token = _current_step.set(self._step)

    def __exit__(self, *_: object) -> None:
        _current_step.reset(self._step_token)
        super().__exit__()


@contextmanager
def _only_the_run_commits(session: AsyncSession) -> Iterator[None]:
    """A commit inside `fn` would part the business rows from the step. The end of a savepoint is no commit."""

    def refuse(committing: Session) -> None:
        if committing.in_nested_transaction():
            return
        raise ConfigurationError("the function of run.transact must not commit: the run does, with the step")

    event.listen(session.sync_session, "before_commit", refuse)
    try:
        yield
    finally:
        event.remove(session.sync_session, "before_commit", refuse)


def child_run_id(parent: UUID, step_id: str) -> UUID:
    """The id of the child run that this call of the parent starts."""
    return uuid5(parent, step_id)


def _outputs(step_id: str) -> str:
    return f"steps[{step_id!r}].outputs"
