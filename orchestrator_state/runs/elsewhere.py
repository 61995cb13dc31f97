"""Call a step's function in an executor of the application's: in its threads or processes, or on other machines.

Nobody outside can stop such a call, or is told when it begins, but for the standard library's own executors: these mark
the call's future. What they say is used for the time limit, and to know whose failure a broken pool is.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import inspect
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextvars import copy_context
from datetime import timedelta
from functools import partial
from typing import Any, Final
from uuid import uuid4

from orchestrator_state.concurrency import Outcome, Threads
from orchestrator_state.errors import OrchestratorStateError

_MARKS_THE_BEGINNING: Final = (ThreadPoolExecutor, ProcessPoolExecutor)
# It is a ThreadPoolExecutor, from Python 3.14 on, whose threads share nothing.
_APART: Final = getattr(concurrent.futures, "InterpreterPoolExecutor", ())
# What the executor says of a function, or of arguments, that cannot be sent. Whatever else it raises is about itself.
_UNSENDABLE: Final = (
    pickle.PicklingError,
    TypeError,
    ValueError,
    AttributeError,
    RecursionError,
    OrchestratorStateError,  # a run that was passed on
)


class NotTaken(Exception):
    """The executor takes no calls, or has dropped this one: the function was not called."""


def start_clock(clock: asyncio.Timeout, limit: timedelta | None) -> None:
    """In the loop, when the call begins."""
    if limit is not None:
        with contextlib.suppress(RuntimeError):  # nobody waits for the call any more
            clock.reschedule(asyncio.get_running_loop().time() + limit.total_seconds())


async def call_elsewhere(
    executor: Executor,
    threads: Threads,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    limit: timedelta | None,
    begin: Callable[[], None],
) -> Any:
    """Return what `fn` returns. Raises what it raises, `NotTaken`, or `TimeoutError` once `limit` is over.

    `begin` is called in one of `threads` before the executor is given the call: that may have to start processes, or
    to write to a network. After a timeout or a cancellation a call that has begun goes on, and its result is dropped.
    """
    async with asyncio.timeout(None) as clock:
        call = _Call(executor, fn, args, begin, partial(start_clock, clock, limit))
        try:
            if not call.marks_its_beginning:
                start_clock(clock, limit)
            await threads.call(call.hand_over)
            outcome = await call.answer
        except asyncio.CancelledError:
            call.give_up()
            raise
        result = outcome.result()
        return await result if inspect.isawaitable(result) else result


class _Work:
    """One call of `fn(*args)`. In the other process it is a plain `partial`: this package need not be there.

    Dask takes calls of one function with equal arguments for one, and would answer a second step, or a retry, with what
    came of the first. It is told that they are not the same.
    """

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._fn = fn
        self._args = args
        self.__name__ = getattr(fn, "__name__", type(fn).__name__)  # which monitors show

    def __call__(self) -> Any:
        return self._fn(*self._args)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial, (self._fn, *self._args)

    def __dask_tokenize__(self) -> str:
        return uuid4().hex


class _Call:
    def __init__(
        self,
        executor: Executor,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        begin: Callable[[], None],
        on_start: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._executor = executor
        self._work: Callable[[], Any] = _Work(fn, args)
        self._begin = begin
        self._on_start = on_start
        self._lock = threading.Lock()
        self._future: Future[Any] | None = None
        self._is_given_up = self._has_begun = False
        self.answer: asyncio.Future[Outcome[Any]] = self._loop.create_future()
        self.marks_its_beginning = isinstance(executor, _MARKS_THE_BEGINNING)

    def hand_over(self) -> None:
        """Raises `NotTaken`; and what the executor says of arguments that it cannot send."""
        self._begin()
        work = self._work
        if isinstance(self._executor, ThreadPoolExecutor) and not isinstance(self._executor, _APART):
            work = partial(copy_context().run, work)
        try:
            future = self._executor.submit(work)
        except _UNSENDABLE:
            raise
        except Exception as error:
            raise NotTaken(type(error).__qualname__) from error
        if self.marks_its_beginning:
            self._listen_to(future)
        with self._lock:
            self._future, is_given_up = future, self._is_given_up
        if is_given_up:
            future.cancel()
        future.add_done_callback(self._done)

    def _listen_to(self, future: Future[Any]) -> None:
        mark = future.set_running_or_notify_cancel

        def marked() -> bool:
            begins = mark()
            if begins:
                self._started()
            return begins

        future.set_running_or_notify_cancel = marked  # type: ignore[method-assign]
        if future.running():  # since before we listened
            self._started()

    def _started(self) -> None:
        self._has_begun = True
        self._tell(self._on_start)

    def _done(self, future: Future[Any]) -> None:
        if future.cancelled():
            outcome: Outcome[Any] = Outcome(None, NotTaken("it has dropped the call"))
        elif (error := future.exception()) is None:
            outcome = Outcome(future.result())
        elif isinstance(error, BrokenExecutor) and self.marks_its_beginning and not self._has_begun:
            outcome = Outcome(None, NotTaken(type(error).__qualname__))
        else:
            outcome = Outcome(None, error)
        self._tell(self._finish, outcome)

    def _finish(self, outcome: Outcome[Any]) -> None:
        if not self.answer.done():
            self.answer.set_result(outcome)

    def _tell(self, callback: Callable[..., object], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            self._loop.call_soon_threadsafe(callback, *args)

    def give_up(self) -> None:
        """Let a call that has not begun never begin."""
        with self._lock:
            self._is_given_up, future = True, self._future
        if future is not None and not future.done():
            # A cluster's may have to be written to, and nobody waits for that.
            with contextlib.suppress(RuntimeError):
                threading.Thread(target=future.cancel, name="orchestrator_state cancel", daemon=True).start()
