"""Await the application's own code, and tell what it raises from what happens to whoever awaits it.

A library may raise `CancelledError` that nobody asked for, a function may call `sys.exit`, a thread may raise
`StopIteration`. Let through a task as they are, these would end the task, the worker or the process, or hang them. Here
they are what the code answered, like any exception.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, NamedTuple, TypeVar

from orchestrator_state.errors import AbnormalExit

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
        return Outcome(await work())
    except BaseException as error:  # noqa: BLE001 - any class is the code's own answer
        return Outcome(None, error)


async def call_apart(work: Callable[[], Awaitable[_T]]) -> Returned[_T]:
    """Await `work()` in a task of its own. Raises what it raises, as an `Exception` in any case.

    If our caller is cancelled, so is `work`, and once that is over the cancellation is raised, whatever `work` made of
    it. Only a value that it returned all the same is not thrown away.
    """
    caller = asyncio.current_task()
    requests = caller.cancelling() if caller is not None else 0
    task = asyncio.create_task(outcome_of(work))
    cancelled: asyncio.CancelledError | None = None
    try:
        outcome = await task  # a cancellation of ours goes on to the task, which does not raise it
    except asyncio.CancelledError as error:
        if task.cancelled():
            raise  # before it began
        cancelled, outcome = error, task.result()  # it was done already
    if cancelled is None and caller is not None and caller.cancelling() > requests:
        cancelled = asyncio.CancelledError()
    if cancelled is not None and outcome.error is not None:
        raise cancelled from None
    return Returned(outcome.result(), cancelled)


def as_exception(error: BaseException) -> Exception:
    """`error`, or for what would end a task, a generator or the process an `AbnormalExit` that has it as its cause."""
    kind = type(error)  # not isinstance, which asks the object
    if issubclass(kind, Exception) and not issubclass(kind, StopIteration):
        return error  # type: ignore[return-value]
    exit_ = AbnormalExit(f"the code raised {kind.__qualname__}, which counts as its failure", raised=kind.__qualname__)
    exit_.__cause__ = error
    return exit_
