"""What a handler waits for: a time with `run.sleep`, a signal with `run.wait_for`, another run with `run.child`.

Each wait is a step. It ends with a commit, so that a run which is resumed later has what it waited for. If it has to
wait, it begins with one too, so that whoever looks on sees what the run waits for and until when.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, NamedTuple, Protocol
from uuid import UUID, uuid5

from orchestrator_state import hooks
from orchestrator_state.concurrency import Outcome
from orchestrator_state.domain import StepStatus
from orchestrator_state.errors import InvalidPayload, LeaseLost, RunCancelled, RunSuspended
from orchestrator_state.payloads import NotAccepted, decode_value, encode
from orchestrator_state.records import CHILD, SIGNAL, SLEEP, ClaimedRun, OpenStep, Signal
from orchestrator_state.runs.steps import Steps
from orchestrator_state.runs.stopping import NOT_THE_RUNS
from orchestrator_state.runs.types import RunTypes

_NO_END: Final = "null"
"""The outputs of a step that waits, where others have the time at which they end."""


class StartChild(Protocol):
    """Starts or resumes a child run of `parent`. See `Executor.run`."""

    async def __call__(
        self,
        parent: ClaimedRun,
        step_id: str,
        handler: Callable[[Any], Awaitable[Any]],
        types: RunTypes,
        context: str | None,
    ) -> Outcome[Any]: ...


class Child(NamedTuple):
    """The child run that a step waits for."""

    handler: Callable[[Any], Awaitable[Any]]
    types: RunTypes
    context: str | None
    """What it is started with, as JSON."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A signal was consumed; its payload may be None."""

    payload: Any


# --- a time ------------------------------------------------------------------------------------------------------


async def sleep(steps: Steps, step_id: str, duration: timedelta) -> None:
    """The work of `run.sleep`."""
    wait = Wait.of(steps, step_id, SLEEP, duration)
    await wait.begin()
    while not wait.is_over:
        await steps.room.wait(until=wait.until)
    await steps.before_work()
    await steps.journal.finish_step(wait.step, "null")
    steps.switch.obey()


@dataclass(slots=True, kw_only=True)
class Wait:
    """A wait, and when it ends: on record once it `began`, so that a restart does not wait anew."""

    steps: Steps
    step_id: str
    kind: str
    until: datetime | None
    has_begun: bool

    @classmethod
    def of(cls, steps: Steps, step_id: str, kind: str, limit: timedelta | None) -> Wait:
        """As it is on record, if that fits the `limit`; else it begins now."""
        recorded = steps.journal.recorded(step_id)
        text = recorded.outputs if recorded is not None and recorded.status == StepStatus.RUNNING else None
        wait = partial(cls, steps=steps, step_id=step_id, kind=kind)
        if limit is None:
            return wait(until=None, has_begun=text == _NO_END)
        if text not in (None, _NO_END):
            if (until := _recorded_moment(text)) is not None:
                return wait(until=until, has_begun=True)
            hooks.logger.warning("run %s: the recorded end of %r is no time; it waits anew", steps.id, step_id)
        return wait(until=steps.room.clock.deadline(limit), has_begun=False)

    async def begin(self) -> None:
        """Commit that it waits, unless that is on record."""
        if self.has_begun:
            return
        await self.steps.before_work()
        outputs = _NO_END if self.until is None else encode(self.until.isoformat(), "deadline")
        await self.steps.journal.begin_step(self.step, outputs=outputs)
        self.has_begun = True

    async def for_signal(self, name: str) -> None:
        """Wait until a signal of that name is there, or the time is over."""
        await self.steps.room.wait(signals=frozenset({name}), until=self.until)

    async def give_up(self) -> None:
        """Commit that nothing came in time."""
        await self.steps.journal.finish_step(self.step, "null", status=StepStatus.SKIPPED)
        self.steps.switch.obey()

    @property
    def step(self) -> OpenStep:
        """Its step, to be committed."""
        return self.steps.journal.new_step(self.step_id, self.kind, self.until)

    @property
    def is_over(self) -> bool:
        """Whether its time is."""
        return self.until is not None and self.steps.room.seconds_until(self.until) <= 0


def _recorded_moment(text: str) -> datetime | None:
    """None if somebody has changed it by hand into something that is no time: then it is recorded anew."""
    moment = decode_value(None, text, "deadline")
    try:
        until = datetime.fromisoformat(moment)
    except (TypeError, ValueError):
        return None
    return until if until.tzinfo is not None else None


# --- a signal ----------------------------------------------------------------------------------------------------


async def wait_for(steps: Steps, step_id: str, name: str, limit: timedelta | None, returns: Any) -> Any:
    """The work of `run.wait_for`."""
    wait = Wait.of(steps, step_id, SIGNAL, limit)
    while not (taken := await _taken_signal(wait, name, returns)):
        if wait.is_over:
            await wait.give_up()
            raise _late(name)
        await wait.begin()
        await wait.for_signal(name)
    return taken.payload


def recorded_signal(steps: Steps, name: str, returns: Any, step: OpenStep) -> Coroutine[Any, Any, Any]:
    """The payload on record. Raises `TimeoutError` if what is on record is that none came."""
    if step.status == StepStatus.SKIPPED:
        raise _late(name)
    return steps.recorded(returns, step)


async def next_signal(wait: Wait, name: str) -> Signal | None:
    """The oldest signal of that name, not consumed yet."""
    steps = wait.steps
    await steps.before_work()
    with steps.switch.on_fault():
        return await steps.transactions.read(lambda uow: uow.signals.next(steps.id, name))


async def take(wait: Wait, signal: Signal, returns: Any) -> Taken | None:
    """Consume a signal with the step, unless another branch did. Raises `NotAccepted` for one of another type."""
    steps, begun = wait.steps, wait.step
    payload = await steps.transactions.payloads.decode_aside(returns, signal.payload, begun.step_id)
    if not await steps.journal.finish_step(begun, signal.payload, consumed_signal=signal.id):
        return None
    steps.switch.obey()  # a signal that came after a cancel must not complete the run
    return Taken(payload)


async def _taken_signal(wait: Wait, name: str, returns: Any) -> Taken | None:
    """The oldest signal of that name. None if there is none; one of another type fails the step and is consumed."""
    signal = await next_signal(wait, name)
    if signal is None:
        return None
    try:
        return await take(wait, signal, returns)
    except NotAccepted as refused:
        error = InvalidPayload(f"the type does not accept {refused}", path=refused.paths[0])
    if await wait.steps.journal.fail_step(wait.step, error, calls=1, consumed_signal=signal.id):
        raise error
    return None


def _late(signal: str) -> TimeoutError:
    return TimeoutError(f"no signal {signal!r} came in time")


# --- another run -------------------------------------------------------------------------------------------------


def child_run_id(parent: UUID, step_id: str) -> UUID:
    """The id of the child run that this call of the parent starts."""
    return uuid5(parent, step_id)


async def child(steps: Steps, step_id: str, start: StartChild, wanted: Child, returns: Any) -> Any:
    """The work of `run.child`."""
    journal = steps.journal
    if journal.recorded(step_id) is None:
        await steps.before_spending()
    try:
        result = (await _outcome_of(steps, step_id, start, wanted)).result()
    except NOT_THE_RUNS as fault:
        steps.switch.stop(fault)  # which the child met: it is left too, and this run goes on with it
    except Exception as error:
        await journal.fail_step(journal.new_step(step_id, CHILD), error, calls=1)
        steps.switch.obey()  # a cancelled child of a cancelled parent is no failure of the parent
        raise
    encoded, result, cancelled = await steps.encode(step_id, returns, result)
    await steps.finish(journal.new_step(step_id, CHILD), encoded, cancelled)
    steps.switch.obey()
    return result


async def _outcome_of(steps: Steps, step_id: str, start: StartChild, wanted: Child) -> Outcome[Any]:
    wait = Wait.of(steps, step_id, CHILD, None)
    child: UUID | None = None
    until: datetime | None = None
    if steps.journal.lease.token > 1:  # a run that is resumed may have started it before
        started = child_run_id(steps.id, step_id)
        child = started if await steps.room.is_to_wait_for(started) else None
    while True:
        if child is not None:
            await wait.begin()
            await steps.room.wait(child=child, until=until)
        await steps.before_work()
        child = None
        try:
            return await start(steps.journal.run, step_id, wanted.handler, wanted.types, wanted.context)
        except RunCancelled as cancelled:
            if cancelled.workflow_state_id != steps.id:
                raise
            steps.switch.stop(cancelled)  # before the child was started
        except LeaseLost as lost:
            if lost.workflow_state_id == steps.id:
                steps.switch.stop(lost)
            # The child's: another worker has it.
        except RunSuspended as waiting:
            child, until = waiting.workflow_state_id, waiting.wake_at
