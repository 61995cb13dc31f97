"""Await the application's own code, and tell what it raises from what happens to whoever awaits it.

A library may raise `CancelledError` that nobody asked for, a function may call `sys.exit`, a thread may raise
`StopIteration`. Let through a task as they are, these would end the task, the worker or the process, or hang them. Here
they are what the code answered, like any exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Generic, NamedTuple, TypeVar

from orchestrator_state.concurrency.uninterrupted import Unstoppable
from orchestrator_state.errors import AbnormalExit
from orchestrator_state.failures import name_of

_T = TypeVar("_T")


class Outcome(NamedTuple, Generic[_T]):
    """What became of a call: its value, or what it raised."""

    value: Any
    error: BaseException | None = None

    def result(self) -> _T:
        """The value. Raises the error, as an `Exception` in any case."""
        if self.error is not None:
            raise as_exception(self.error)
        value: _T = self.value
        return value


class Returned(NamedTuple, Generic[_T]):
    """A value that was returned, and the cancellation of the caller that came meanwhile: for the caller to raise."""

    value: _T
    cancelled: asyncio.CancelledError | None = None

    def unless_cancelled(self) -> _T:
        if self.cancelled is not None:
            raise self.cancelled
        return self.value


async def outcome_of(work: Callable[[], Awaitable[_T]]) -> Outcome[_T]:
    """Await `work()`. Whatever it raises is in the outcome, so await this in a task of its own."""
    try:
        outcome: Outcome[_T] = Outcome(await work())
    except GeneratorExit as error:  # perhaps of this coroutine, which must not await any more then
        return Outcome(None, error)
    except BaseException as error:  # noqa: BLE001 - any class is the code's own answer
        outcome = Outcome(None, error)
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        # Code that cancels its own task, and does not wait any more, would have its answer thrown away.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
    return outcome


def awaitable(what: str, fn: Callable[..., Any], *args: Any) -> Awaitable[Any]:
    """Return `fn(*args)`, to be awaited. Raises `TypeError` as Python would, but in words, if it cannot be."""
    answer = fn(*args)
    if not inspect.isawaitable(answer):
        raise TypeError(f"{what} returned a {type(answer).__name__} and nothing to await: define it with `async def`")
    return answer


class _Answer(Unstoppable[Outcome[_T]]):
    """Of code that runs in a task of its own. A cancellation of whoever awaits it goes on to that task."""

    task: asyncio.Task[None]

    def cancel(self, msg: Any = None) -> bool:
        self.task.cancel(msg)
        return super().cancel(msg)

    async def by(self, work: Callable[[], Awaitable[_T]]) -> None:
        """In the task: by its last act, whoever waits goes on one turn of the loop sooner than by its callbacks."""
        self.set_result(await outcome_of(work))

    def give_up(self, _: asyncio.Task[None]) -> None:
        """The task is done; perhaps cancelled before it began.

        That is an answer, and no exception of this future's: in the place of one, asyncio raises no cancellation of
        whoever awaits it, and its message would be lost.
        """
        if not self.done():
            self.set_result(Outcome(None, asyncio.CancelledError()))


async def call_apart(work: Callable[[], Awaitable[_T]]) -> Returned[_T]:
    """Await `work()` in a task of its own. Raises what it raises, as an `Exception` in any case.

    If our caller is cancelled, so is `work`, and once that is over the cancellation is raised, whatever `work` made of
    it. Only a value that it returned all the same is not thrown away.
    """
    loop = asyncio.get_running_loop()
    answer: _Answer[_T] = _Answer(loop=loop)
    answer.task = loop.create_task(answer.by(work))
    answer.task.add_done_callback(answer.give_up)
    cancelled: asyncio.CancelledError | None = None
    try:
        outcome = await answer
    except asyncio.CancelledError as error:
        outcome, cancelled = answer.result(), error
    if cancelled is not None and outcome.error is not None:
        raise cancelled
    if outcome.error is not None:
        raise as_exception(outcome.error)
    return Returned(outcome.value, cancelled)


def as_exception(error: BaseException) -> Exception:
    """`error`, or for what would end a task, a generator or the process an `AbnormalExit` that has it as its cause."""
    kind = type(error)  # not isinstance, which asks the object
    if issubclass(kind, Exception) and not issubclass(kind, StopIteration):
        return error  # type: ignore[return-value]
    name = name_of(error)
    exit_ = AbnormalExit(f"the code raised {name}, which counts as its failure", raised=name)
    exit_.__cause__ = error
    return exit_
