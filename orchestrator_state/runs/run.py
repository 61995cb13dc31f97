"""`Run`: what a handler holds. Each of its calls is a durable step, found by its id when the handler runs again."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, Generic, Literal, NoReturn, Protocol, cast, overload
from uuid import UUID, uuid5

from pydantic import BaseModel
from typing_extensions import TypeVar

from orchestrator_state import hooks
from orchestrator_state.arguments import as_duration, as_function, as_name, as_signal_name
from orchestrator_state.concurrency import Outcome, Returned, Threads, awaiting, outlasting, uninterrupted
from orchestrator_state.database import Idling, idle_limit, statement_failed
from orchestrator_state.domain import StepStatus
from orchestrator_state.errors import (
    ConfigurationError,
    InvalidPayload,
    LeaseLost,
    OutcomeUnknown,
    RunCancelled,
    RunSuspended,
    StoreUnavailable,
)
from orchestrator_state.payloads import NotAccepted, ValueType, decode_value, encode
from orchestrator_state.records import UNREADABLE, Ack, StepRecord
from orchestrator_state.runs.calls import NotBegun, StepFunction, call
from orchestrator_state.runs.faults import NOT_THE_RUNS
from orchestrator_state.runs.journal import Entry, Journal
from orchestrator_state.runs.leases import Leases
from orchestrator_state.runs.retry import Retry, call_with_retries
from orchestrator_state.runs.stopping import StopSwitch
from orchestrator_state.runs.tasks import IN_STEP_OF
from orchestrator_state.runs.transacting import FunctionFailed, call_inside
from orchestrator_state.runs.types import RunTypes
from orchestrator_state.runs.waiting import WaitingRoom
from orchestrator_state.transactions import StoreUnit, Transactions

_T = TypeVar("_T")
_R = TypeVar("_R")
State = TypeVar("State", bound=BaseModel, default=Any)
"""The model of a run's state; without one `Run` is `Run[Any]`."""
_ChildState = TypeVar("_ChildState", bound=BaseModel)
Duration = timedelta | float
OnUnknown = Literal["retry", "raise"] | Callable[..., Any]
Handler = Callable[["Run[Any]"], Awaitable[_T]]

_TRANSACT: Final = "the function of run.transact"
_LONGEST_STRETCH: Final = 0.05  # seconds in which a handler that passes through recorded steps has the loop to itself
_current_step: Final[ContextVar[tuple[Run[Any], str] | None]] = ContextVar("orchestrator_state_step", default=None)


@dataclass(frozen=True, slots=True)
class Happened:
    """What an `on_unknown` callable returns when the step did take effect: these are its outputs."""

    outputs: Any = None


class StartChild(Protocol):
    """Starts or resumes a child run of `parent`. See `Executor.run`."""

    async def __call__(
        self, parent: Run[Any], child_id: str, handler: Handler[Any], types: RunTypes, context: str | None
    ) -> Outcome[Any]: ...


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
        leases: Leases,
        transactions: Transactions,
        threads: Threads,
        start_child: StartChild,
        types: RunTypes,
    ) -> None:
        self._journal = journal
        self._switch = switch
        self.room = room
        self._leases = leases
        self._transactions = transactions
        self._threads = threads
        self._start_child = start_child
        self._went_on_at = time.monotonic()
        self._not_begun: dict[str, Coroutine[Any, Any, Any]] = {}
        self.types: Final = types

    def __reduce__(self) -> NoReturn:
        raise ConfigurationError("a Run belongs to its process: hand on its id, and what a step needs, not the run")

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
        as_function(fn, "the function of run.step")
        if not (callable(on_unknown) or on_unknown in ("retry", "raise")):
            raise ConfigurationError('on_unknown must be "retry", "raise", or a function that finds out')
        numbered = self._journal.number(step_id)
        policy, limit = Retry.of(retry), None if timeout is None else as_duration(timeout, "timeout")
        returns = self.types.of_step(numbered, returns)
        work = partial(self._step, numbered, fn, args, returns, policy, limit, on_unknown)
        return self._called(numbered, partial(self._recorded, returns), work)

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
        as_function(fn, _TRANSACT)
        numbered = self._journal.number(step_id)
        returns = self.types.of_step(numbered, returns)
        work = partial(self._transact, numbered, fn, args, returns)
        return self._called(numbered, partial(self._recorded, returns), work)

    def checkpoint(self, label: str = "checkpoint") -> Coroutine[Any, Any, None]:
        """Commit the context now, as a step of that name, with a checkpoint whatever the policy."""
        numbered = self._journal.number(label)
        return self._called(numbered, _nothing, partial(self._checkpoint, numbered))

    def append(self, key: str, item: Any) -> None:
        """Append `item` to the list `context[key]`, or that field of `state`; the next commit writes the item alone."""
        self._journal.history.held.append(as_name(key, "key"), item)

    def sleep(self, duration: Duration) -> Coroutine[Any, Any, None]:
        """Wait, durably: a restart waits for what is left, by the database's clock."""
        numbered = self._journal.number("sleep")
        return self._called(numbered, _nothing, partial(self._sleep, numbered, as_duration(duration, "duration")))

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
        returns = self.types.of_step(numbered, returns)
        work = partial(self._wait_for, numbered, name, limit, returns)
        return self._called(numbered, partial(self._recorded_signal, name, returns), work)

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
        as_function(handler, "the handler of run.child")
        types = RunTypes.of(self._transactions.schemas, self.types.payloads, name, state, returns)
        started_with = None if context is None else types.context_text(context)
        numbered = self._journal.number(f"child:{name}")
        # In the parent's record the result is outputs, and the parent's schema upcasts them.
        kind = self.types.of_step(numbered, types.result)
        work = partial(self._child, numbered, handler, types, started_with, kind)
        return self._called(numbered, partial(self._recorded, kind), work)

    # --- steps ---------------------------------------------------------------------------------------------------

    def _called(
        self, step_id: str, recorded: Callable[[StepRecord], Awaitable[_T]], work: Callable[[], Awaitable[_T]]
    ) -> Coroutine[Any, Any, _T]:
        """The call of a step, for the handler to await. See `_call`."""
        call = self._call(step_id, recorded, work)
        self._not_begun[step_id] = call
        return call

    def enter(self) -> None:
        """The handler is about to be called in this context."""
        self._journal.history.enter()

    def require_all_awaited(self) -> None:
        """Raise `ConfigurationError` if the handler has forgotten an `await`, so that a step was not even begun."""
        forgotten = [
            repr(step_id)
            for step_id, call in self._not_begun.items()
            if inspect.getcoroutinestate(call) == inspect.CORO_CREATED
        ]
        if forgotten:
            raise ConfigurationError(f"the handler ended without awaiting its steps {', '.join(forgotten)}")

    async def _call(
        self, step_id: str, recorded: Callable[[StepRecord], Awaitable[_T]], work: Callable[[], Awaitable[_T]]
    ) -> _T:
        """Return what is `recorded` of a call of the handler's; else do its `work`, a call under way until it is done.

        `work` is begun in here: a task that is cancelled before it begins would leave a coroutine that nobody awaits.
        """
        self._not_begun.pop(step_id, None)
        if time.monotonic() - self._went_on_at >= _LONGEST_STRETCH:
            # Recorded steps are passed through without a wait: thousands of them would stop the heartbeat.
            self._went_on_at = time.monotonic()
            await asyncio.sleep(0)
        self._switch.check()
        self._transactions.enter()
        self._require_handler()
        if (step := await self._journal.replay(step_id)) is not None:
            return await recorded(step)
        room, history = self.room, self._journal.history
        room.begin_call()
        place = history.begin_call()
        try:
            result = await work()
        finally:
            history.end_call(place)
            room.end_call()
        self._went_on_at = time.monotonic()  # everybody else has had a turn
        return result

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

    def _recorded(self, returns: Any, step: StepRecord) -> Coroutine[Any, Any, Any]:
        return self.types.decode_outputs(step, returns, self.id)

    def _recorded_signal(self, name: str, returns: Any, step: StepRecord) -> Coroutine[Any, Any, Any]:
        if step.status == StepStatus.SKIPPED:
            raise _late(name)
        return self._recorded(returns, step)

    async def _before_work(self) -> None:
        """Between steps: obey a request, and after a freeze make sure of the lease."""
        self._switch.obey()
        if not self._has_fresh_lease():
            await self._confirm_lease()

    def _has_fresh_lease(self) -> bool:
        return self._leases.is_fresh(self._journal.lease)

    async def _confirm_lease(self) -> None:
        with self._switch.on_fault():
            await self._leases.confirm(self._journal.lease)

    async def _call_once(self, fn: StepFunction[Any], args: tuple[Any, ...], limit: timedelta | None) -> Returned[Any]:
        """Call a step's function; not by a worker that was frozen meanwhile, while another one may have the run.

        There is time for a freeze: a call waits for its turn of the loop, for a thread, or out a pause after a failure.
        """
        while True:
            try:
                return await call(self._threads, fn, args, limit=limit, may_begin=self._has_fresh_lease)
            except NotBegun:
                await self._confirm_lease()

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
        if returns is not None:
            ValueType.of(returns).require_storable()
        await self._before_work()
        if on_unknown != "retry":
            happened = await self._settle(step_id, on_unknown)
            if happened is not None:
                encoded, outputs, cancelled = await self._encode(step_id, returns, happened.outputs)
                await self._finish(journal.new_step(step_id), encoded, cancelled)
                return outputs
            begun = await journal.begin_step(step_id)
        else:
            begun = journal.new_step(step_id)
        failures: list[Exception] = []

        async def attempt() -> Returned[Any]:
            number = begun.retry_count + len(failures) + 1
            hooks.tell(journal.hook, hooks.StepStarted, workflow_state_id=self.id, step_id=step_id, attempt=number)
            return await self._call_once(fn, args, limit)

        try:
            with _inside(self, step_id):
                outputs, cancelled = await call_with_retries(
                    attempt, retry, failures.append, f"step {step_id!r} of run {self.id}"
                )
            encoded, outputs, later = await self._encode(step_id, returns, outputs)
            cancelled = cancelled or later
        except Exception as error:
            await journal.fail_step(begun, error, calls=max(len(failures), 1))
            raise
        await self._finish(journal.after_failures(begun, failures), encoded, cancelled)
        return outputs

    async def _finish(self, begun: StepRecord, encoded: str, cancelled: asyncio.CancelledError | None) -> None:
        """Commit a step whose call came to its end, and raise the cancellation that came since it was made.

        One that comes while the step waits in line for its commit does not take away what was paid for either.
        """
        finish = self._journal.finish_step(begun, encoded)
        if cancelled is None and not self._journal.in_order.locked():
            await finish
            return
        await uninterrupted(finish)
        if cancelled is not None:
            raise cancelled

    async def _encode(self, step_id: str, returns: Any, outputs: Any) -> tuple[str, Any, asyncio.CancelledError | None]:
        """The outputs as JSON, and as they load from there; and a cancellation that came meanwhile.

        Raises `InvalidPayload`, `PayloadTooLarge`.
        """
        path = _outputs(step_id)
        cancelled: asyncio.CancelledError | None = None
        small = self.types.encode_small(returns, outputs, path)
        if small is not None:
            text, loaded = small
        else:
            (text, loaded), cancelled = await outlasting(self.types.encode(returns, outputs, path))
        self._journal.check_size(step_id, text)
        return text, loaded, cancelled

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
        found = (await self._call_once(on_unknown, (key,), None)).unless_cancelled()
        if found is None or isinstance(found, Happened):
            return found
        raise ConfigurationError("an on_unknown callable returns Happened(outputs), or None to run the step again")

    async def _checkpoint(self, step_id: str) -> None:
        await self._before_work()
        await self._journal.finish_step(self._journal.new_step(step_id), "null", checkpoint=True)

    # --- exactly once --------------------------------------------------------------------------------------------

    async def _transact(
        self, step_id: str, fn: Callable[..., Awaitable[Any]], args: tuple[Any, ...], returns: Any
    ) -> Any:
        journal = self._journal
        if returns is not None:
            ValueType.of(returns).require_storable()
        await self._before_work()
        begun, tries = journal.new_step(step_id), 0

        async def attempt(uow: StoreUnit) -> tuple[Any, Entry, Ack]:
            nonlocal tries
            tries += 1
            return await self._transact_once(uow, begun, fn, args, returns, is_repeated=tries > 1)

        try:
            async with self._transactions.places.taken(), journal.in_order:
                try:
                    outputs, entry, ack = await self._transactions.write(attempt, idles=Idling.AS_IT_SAYS)
                except _AlreadyRecorded as already:
                    journal.adopt(already.step)
                    return await self._recorded(returns, already.step)
                except (LeaseLost, StoreUnavailable):
                    raise
                except (Exception, asyncio.CancelledError) as error:
                    # Cancelled, perhaps in the middle of COMMIT; or refused, perhaps for what the try before it wrote.
                    is_cancelled = isinstance(error, asyncio.CancelledError)
                    found = await uninterrupted(self._find_out(step_id)) if is_cancelled or tries > 1 else None
                    if is_cancelled or found is None:
                        raise
                    return await self._recorded(returns, found)
                journal.accept(entry, ack)
                journal.lease.advance()
                return outputs
        except FunctionFailed as failed:
            own = failed.error
        except (LeaseLost, StoreUnavailable, *UNREADABLE) as fault:
            self._switch.stop(fault)
        except Exception as refused:  # noqa: BLE001 - what the function returned, or wrote
            own = refused
        await journal.fail_step(begun, own, calls=1)
        raise own

    async def _transact_once(
        self,
        uow: StoreUnit,
        begun: StepRecord,
        fn: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
        returns: Any,
        *,
        is_repeated: bool,
    ) -> tuple[Any, Entry, Ack]:
        """One try. After an unknown outcome it finds out whether the try before took effect.

        Looked up twice: before `fn`, to spare it, and after the guarded update, whose row lock has waited for a commit
        of the try before that was still on its way.
        """
        limit = idle_limit(self._transactions.settings.lease_term)
        await self._refuse_to_repeat(uow, begun.step_id, limit)
        hooks.tell(self._journal.hook, hooks.StepStarted, workflow_state_id=self.id, step_id=begun.step_id, attempt=1)
        with _inside(self, begun.step_id):
            call = partial(awaiting, _TRANSACT, fn, uow.session, *args)
            outputs = await call_inside(uow.session, call, limit, is_repeated=is_repeated)
        encoded, outputs, cancelled = await self._encode(begun.step_id, returns, outputs)
        step = self._journal.completed(begun, encoded)
        entry = await self._journal.entry(step, with_context=True)
        if (cancelled := cancelled or entry.cancelled) is not None:
            raise cancelled
        try:
            ack = await self._journal.write(uow, entry)
        except StoreUnavailable as error:
            if error.failed_before:  # past SQLAlchemy, which would have remembered
                raise FunctionFailed(statement_failed()) from None
            raise
        if ack.already_recorded:
            await self._refuse_to_repeat(uow, begun.step_id)
        return outputs, entry, ack

    async def _refuse_to_repeat(self, uow: StoreUnit, step_id: str, limit: timedelta | None = None) -> None:
        step = await uow.history.find_completed_step(self.id, step_id, idle_limit=limit)
        if step is not None:
            raise _AlreadyRecorded(step)

    async def _find_out(self, step_id: str) -> StepRecord | None:
        """After a transaction that did not come to its end here: did it commit all the same? Then, its step."""

        async def look(uow: StoreUnit) -> StepRecord | None:
            await uow.runs.wait_for_commits(self._journal.lease)
            return await uow.history.find_completed_step(self.id, step_id)

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
            if (until := _recorded_moment(recorded.outputs)) is not None:
                return until
            hooks.logger.warning("run %s: the recorded end of %r is no time; it waits anew", self.id, step_id)
        await self._before_work()
        until = self.room.clock.deadline(duration)
        await self._journal.begin_step(step_id, outputs=encode(until.isoformat(), "deadline"))
        return until

    async def _sleep(self, step_id: str, duration: timedelta) -> None:
        until = await self._deadline(step_id, duration)
        while self.room.seconds_until(until) > 0:
            await self.room.wait(until=until)
        await self._before_work()
        await self._journal.finish_step(self._journal.new_step(step_id), "null")
        self._switch.obey()

    async def _wait_for(self, step_id: str, name: str, limit: timedelta | None, returns: Any) -> Any:
        journal = self._journal
        until = None if limit is None else await self._deadline(step_id, limit)
        while True:
            await self._before_work()
            with self._switch.on_fault():
                signal = await self._transactions.read(lambda uow: uow.signals.next(self.id, name))
            if signal is not None and (taken := await self._take(step_id, signal, returns)):
                self._switch.obey()  # a signal that came after a cancel must not complete the run
                return taken.payload
            if until is not None and self.room.seconds_until(until) <= 0:
                await journal.finish_step(journal.new_step(step_id), "null", status=StepStatus.SKIPPED)
                self._switch.obey()
                raise _late(name)
            await self.room.wait(signals=frozenset({name}), until=until)

    async def _take(self, step_id: str, signal: Any, returns: Any) -> _Taken | None:
        """Consume a signal, unless another branch did. One of another type is consumed with the failure of the step."""
        journal = self._journal
        begun = journal.new_step(step_id)
        try:
            payload = await self._transactions.payloads.decode_aside(returns, signal.payload, step_id)
        except NotAccepted as refused:
            error = InvalidPayload(f"the type does not accept {refused}", path=refused.paths[0])
            if await journal.fail_step(begun, error, calls=1, consumed_signal=signal.id):
                raise error from None
            return None
        is_ours = await journal.finish_step(begun, signal.payload, consumed_signal=signal.id)
        return _Taken(payload) if is_ours else None

    async def _child(
        self, step_id: str, handler: Handler[Any], types: RunTypes, context: str | None, returns: Any
    ) -> Any:
        journal = self._journal
        try:
            result = (await self._outcome_of_child(step_id, handler, types, context)).result()
        except NOT_THE_RUNS as fault:
            self._switch.stop(fault)  # which the child met: it is left too, and this run goes on with it
        except Exception as error:
            await journal.fail_step(journal.new_step(step_id), error, calls=1)
            self._switch.obey()  # a cancelled child of a cancelled parent is no failure of the parent
            raise
        encoded, result, cancelled = await self._encode(step_id, returns, result)
        await self._finish(journal.new_step(step_id), encoded, cancelled)
        self._switch.obey()
        return result

    async def _outcome_of_child(
        self, step_id: str, handler: Handler[Any], types: RunTypes, context: str | None
    ) -> Outcome[Any]:
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


class _inside:  # noqa: N801 - a context manager reads as a phrase: `with _inside(run, step_id):`
    """The function of a step is called in here, and what it starts is none of the handler's tasks."""

    __slots__ = ("_of_a_step", "_step", "_token")

    def __init__(self, run: Run[Any], step_id: str) -> None:
        self._step = run, step_id

    def __enter__(self) -> None:
        self._of_a_step = IN_STEP_OF.set(self._step[0].room)
        self._token = _current_step.set(self._step)

    def __exit__(self, *_: object) -> None:
        _current_step.reset(self._token)
        IN_STEP_OF.reset(self._of_a_step)


def child_run_id(parent: UUID, step_id: str) -> UUID:
    """The id of the child run that this call of the parent starts."""
    return uuid5(parent, step_id)


async def _nothing(_: StepRecord) -> None:
    """What a call returns that has no outputs."""


def _recorded_moment(text: str) -> datetime | None:
    """None for what was changed by hand into no time: like a damaged one, it is recorded anew."""
    moment = decode_value(None, text, "deadline")
    try:
        until = datetime.fromisoformat(moment)
    except (TypeError, ValueError):
        return None
    return until if until.tzinfo is not None else None


def _late(signal: str) -> TimeoutError:
    return TimeoutError(f"no signal {signal!r} came in time")


def _outputs(step_id: str) -> str:
    return f"steps[{step_id!r}].outputs"
