"""The mechanics of a step: found on record by its id, or else done, and committed with what came of it."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from orchestrator_state.concurrency import Returned, Threads, outlasting, uninterrupted
from orchestrator_state.database import elapsed
from orchestrator_state.domain import StepStatus
from orchestrator_state.errors import ConfigurationError, ExecutorUnavailable, OutcomeUnknown
from orchestrator_state.failures import describe
from orchestrator_state.payloads import ValueType
from orchestrator_state.records import CHECKPOINT, FINAL, OpenStep
from orchestrator_state.runs.calls import Calling, OnUnknown, StepFunction, call, pause_before_next
from orchestrator_state.runs.elsewhere import NotTaken
from orchestrator_state.runs.journal.current_steps import CurrentSteps
from orchestrator_state.runs.journal.journal import Journal
from orchestrator_state.runs.spending.recording import CALL
from orchestrator_state.runs.step_ids import StepIds
from orchestrator_state.runs.stopping import StopSwitch
from orchestrator_state.runs.types import RunTypes
from orchestrator_state.runs.waiting.exits import IN_STEP
from orchestrator_state.runs.waiting.lookout import Leases
from orchestrator_state.runs.waiting.room import WaitingRoom
from orchestrator_state.transactions import Transactions

_T = TypeVar("_T")

_LONGEST_STRETCH: Final = 0.05  # seconds in which a handler that passes through recorded steps has the loop to itself


@dataclass(frozen=True, slots=True)
class Happened:
    """What an `on_unknown` callable returns when the step did take effect: these are its outputs."""

    outputs: Any = None


class Steps:
    """The durable calls of one attempt of a handler, and what all of them go by."""

    def __init__(
        self,
        journal: Journal,
        switch: StopSwitch,
        room: WaitingRoom,
        leases: Leases,
        transactions: Transactions,
        threads: Threads,
        current: CurrentSteps,
        types: RunTypes,
    ) -> None:
        self.id: Final = journal.run.id
        self.journal: Final = journal
        self.switch: Final = switch
        self.room: Final = room
        self.transactions: Final = transactions
        self.types: Final = types
        self.current: Final = current.here()
        self._has_fresh_lease = partial(leases.is_fresh, journal.lease)
        self._ids = StepIds(journal.steps)
        self.number: Final = self._ids.number
        """See `StepIds.number`."""
        self.next_id: Final = self._ids.peek
        # A worker that was frozen asks for its lease before it calls: another one may have the run by now.
        self._call_function = partial(call, threads, may_begin=self._has_fresh_lease, ask=self._confirm_lease)
        self._leases = leases
        self._database = transactions.database
        self._went_on_at = time.monotonic()
        self._not_begun: dict[str, Coroutine[Any, Any, Any]] = {}
        self.guard: Callable[[], Awaitable[None]] | None = None
        """Of a run that has a budget: stands before each step that may spend."""

    def enter(self) -> None:
        """The handler is about to be called in this context."""
        self.journal.history.enter()

    def require_all_awaited(self) -> None:
        """Raise `ConfigurationError` if the handler has forgotten an `await`, so that a step was not even begun."""
        forgotten = [
            repr(step_id)
            for step_id, call in self._not_begun.items()
            if inspect.getcoroutinestate(call) == inspect.CORO_CREATED
        ]
        if forgotten:
            raise ConfigurationError(f"the handler ended without awaiting its steps {', '.join(forgotten)}")

    @property
    def unused(self) -> tuple[str, ...]:
        """Finished steps on record that the handler has not asked for."""
        recorded = self.journal.steps.items()
        return tuple(step_id for step_id, step in recorded if step.status in FINAL and step_id not in self._ids.asked)

    # --- any durable call ----------------------------------------------------------------------------------------

    def call(
        self, step_id: str, recorded: Callable[[OpenStep], Awaitable[_T]], work: Callable[[], Awaitable[_T]]
    ) -> Coroutine[Any, Any, _T]:
        """The call of a step, for the handler to await: what is `recorded` of it, or else what its `work` returns."""
        call = self._call(step_id, recorded, work)
        self._not_begun[step_id] = call
        return call

    async def _call(
        self, step_id: str, recorded: Callable[[OpenStep], Awaitable[_T]], work: Callable[[], Awaitable[_T]]
    ) -> _T:
        """`work` is called in here: a task that is cancelled before it begins leaves no second coroutine behind."""
        self._not_begun.pop(step_id, None)
        if time.monotonic() - self._went_on_at >= _LONGEST_STRETCH:
            # Recorded steps are passed through without a wait: thousands of them would stop the heartbeat.
            self._went_on_at = time.monotonic()
            await asyncio.sleep(0)
        if not self.switch.is_quiet:
            self.switch.check()
        if self._database.closed:
            self.transactions.enter()  # which refuses
        self._database.enter()
        within = IN_STEP.get()
        if within is not None and within[0] is self.room:
            # A resumed run would not come to it: the function of a recorded step is not called again. And inside a
            # transaction it would wait for itself.
            raise ConfigurationError(
                f"the function of step {within[1]!r} called a step of its own run; call it from the handler instead"
            )
        if (step := await self.journal.replay(step_id)) is not None:
            return await recorded(step)
        room, history = self.room, self.journal.history
        room.begin_call()
        place = history.begin_call()
        try:
            result = await work()
        finally:
            history.end_call(place)
            room.end_call()
        self._went_on_at = time.monotonic()  # everybody else has had a turn
        return result

    @property
    def running(self) -> str | None:
        """The step of this run whose function is calling, if any."""
        room, step_id = IN_STEP.get() or (None, None)
        return step_id if room is self.room else None

    def recorded(self, returns: Any, step: OpenStep) -> Coroutine[Any, Any, Any]:
        """The outputs on record."""
        return self.types.decode_outputs(step, returns, self.id)

    async def before_work(self) -> None:
        """Between steps: obey a request, and after a freeze make sure of the lease."""
        if not self.switch.is_quiet:
            self.switch.obey()
        if not self._has_fresh_lease():
            await self._confirm_lease()

    async def before_spending(self) -> None:
        """`before_work`, of a step that may call a model."""
        await self.before_work()
        if self.guard is not None:
            await self.guard()

    def asked_by_us(self, step_id: str) -> None:
        """A step that no call of the handler's is, so that none has forgotten it."""
        self._ids.asked.add(step_id)

    async def _confirm_lease(self) -> None:
        """After a freeze another worker may have the run."""
        with self.switch.on_fault():
            await self._leases.confirm(self.journal.lease)

    # --- run.step ------------------------------------------------------------------------------------------------

    def begin(
        self,
        step_id: str,
        fn: StepFunction[Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        returns: Any,
        calling: Calling,
    ) -> Coroutine[Any, Any, Any]:
        """The call of `run.step`: `fn(*args, **kwargs)`, or what is recorded of it. What it is given was checked."""
        numbered = self.number(step_id)
        if kwargs:
            fn = partial(fn, **kwargs)
        if returns is not None or self.types.schema is not None:
            returns = self.types.of_step(numbered, returns)
        work = partial(self.step, numbered, fn, args, returns, calling)
        return self.call(numbered, partial(self.recorded, returns), work)

    async def step(
        self,
        step_id: str,
        fn: StepFunction[Any],
        args: tuple[Any, ...],
        returns: Any,
        calling: Calling,
    ) -> Any:
        """The work of `run.step`: call `fn`, again if it fails, and commit what it returned or failed of."""
        journal = self.journal
        if returns is not None:
            ValueType.of(returns).require_storable()
        await self.before_spending()
        if calling.on_unknown != "retry":
            happened = await self._settle(step_id, calling.on_unknown)
            if happened is not None:
                encoded, outputs, cancelled = await self.encode(step_id, returns, happened.outputs)
                await self.finish(journal.new_step(step_id), encoded, cancelled)
                return outputs
            begun = await journal.begin_step(journal.new_step(step_id))
        else:
            begun = journal.new_step(step_id)
        failures: list[Exception] = []
        try:
            try:
                outputs, cancelled = await self._outputs(begun, fn, args, calling, failures)
                encoded, outputs, later = await self.encode(step_id, returns, outputs)
            except Exception as error:
                await journal.fail_step(begun, error, calls=max(len(failures), 1))
                raise
            if failures:
                begun = begun._replace(retry_count=begun.retried(len(failures)), error=describe(failures[-1]))
            await self.finish(begun, encoded, cancelled or later)
        finally:
            journal.spending.end(step_id)
        return outputs

    async def _outputs(
        self,
        begun: OpenStep,
        fn: StepFunction[Any],
        args: tuple[Any, ...],
        calling: Calling,
        failures: list[Exception],
    ) -> Returned[Any]:
        """What `fn` returns, once it does not fail any more. Adds to `failures`, and raises the last of them."""
        telling, step_id, current = self.journal.telling, begun.step_id, self.current
        this = (self.room, step_id)
        within, calling_from = IN_STEP.set(this), CALL.get()
        current.running[this] = self.journal.lease, elapsed()
        if not current.is_watching:
            current.watch()
        try:
            while True:
                try:
                    self.before_call(step_id)
                    CALL.set(self.journal.spending.begin(step_id))
                    call_it = partial(self._call_function, fn, args, calling.limit, calling.executor)
                    if telling is None:
                        return await call_it()
                    number = begun.retry_count + len(failures) + 1
                    return await telling.step_started(step_id, number, call_it)
                except NotTaken as not_taken:
                    if failures and isinstance(failures[-1], BrokenExecutor):
                        raise failures[-1] from None  # it was our call, perhaps, that has broken it
                    self.switch.stop(self._executor_unavailable(step_id, not_taken))
                except Exception as error:
                    failures.append(error)
                    pause = pause_before_next(calling.retry, error, len(failures), f"step {step_id!r} of run {self.id}")
                    if pause is None:
                        raise
                    if telling is not None:
                        telling.step_failed(step_id, error, will_retry=True)
                await self.room.rest(pause)
        finally:
            current.running.pop(this, None)
            IN_STEP.reset(within)
            CALL.set(calling_from)

    def _executor_unavailable(self, step_id: str, not_taken: NotTaken) -> ExecutorUnavailable:
        return ExecutorUnavailable(
            f"the executor of step {step_id!r} did not call its function ({not_taken}): is it shut down, or broken?",
            workflow_state_id=self.id,
            step_id=step_id,
        )

    def before_call(self, step_id: str) -> None:
        """The last moment before a step's function is called."""
        if (faults := self.journal.faults) is not None:
            with self.switch.on_fault():
                error = faults.before_call(self.journal.lease, step_id)
            if error is not None:
                raise error

    async def _settle(self, step_id: str, on_unknown: OnUnknown) -> Happened | None:
        """If a worker vanished in the middle of the step: has it taken effect?"""
        recorded = self.journal.recorded(step_id)
        if recorded is None or recorded.status != StepStatus.RUNNING:
            return None
        key = self.journal.key(step_id)
        if not callable(on_unknown):
            raise OutcomeUnknown(
                f"step {step_id!r} was under way when its worker vanished, and may or may not have taken effect; "
                "find out, then rewind or fork the run",
                workflow_state_id=self.id,
                step_id=step_id,
                step_key=key,
            )
        found = (await self._call_function(on_unknown, (key,), None)).unless_cancelled()
        if found is None or isinstance(found, Happened):
            return found
        raise ConfigurationError("an on_unknown callable returns Happened(outputs), or None to run the step again")

    async def encode(self, step_id: str, returns: Any, outputs: Any) -> tuple[str, Any, asyncio.CancelledError | None]:
        """The outputs as JSON, and as they load from there; and a cancellation that came meanwhile.

        Raises `InvalidPayload`, `PayloadTooLarge`.
        """
        path = f"steps[{step_id!r}].outputs"
        cancelled: asyncio.CancelledError | None = None
        payloads = self.types.payloads
        if returns is not None:
            text, loaded = ValueType.of(returns).encode(outputs, path, payloads.encode)
        elif (small := payloads.encode_small(outputs, path)) is not None:
            text, loaded = small, outputs
        else:
            (text, loaded), cancelled = await outlasting(self.types.encode(None, outputs, path))
        self.journal.check_size(step_id, text)
        return text, loaded, cancelled

    def finish(
        self, begun: OpenStep, encoded: str, cancelled: asyncio.CancelledError | None
    ) -> Coroutine[Any, Any, object]:
        """Commit a step whose call came to its end, and raise the cancellation that came since it was made.

        One that comes while the step waits in line is raised after the commit, too: the call has been paid for.
        """
        finish = self.journal.finish_step(begun, encoded)
        if cancelled is None and not self.journal.in_order.is_taken:
            return finish
        return _all_the_same(finish, cancelled)

    # --- run.checkpoint ------------------------------------------------------------------------------------------

    async def checkpoint(self, step_id: str) -> None:
        """The work of `run.checkpoint`: a step of no function, with a checkpoint whatever the policy."""
        await self.before_work()
        await self.journal.finish_step(self.journal.new_step(step_id, CHECKPOINT), "null", checkpoint=True)


async def _all_the_same(finish: Coroutine[Any, Any, object], cancelled: asyncio.CancelledError | None) -> None:
    await uninterrupted(finish)
    if cancelled is not None:
        raise cancelled


async def nothing(_: OpenStep) -> None:
    """What a call returns that has no outputs."""
