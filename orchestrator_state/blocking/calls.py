"""One call of a blocking thread, which is awaited in the event loop of another one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import copy_context
from functools import wraps
from typing import Any, Concatenate, Final, Generic, ParamSpec, TypeVar, cast

from orchestrator_state.concurrency import Outcome

_T = TypeVar("_T")
_P = ParamSpec("_P")
_Owner = TypeVar("_Owner")

_LOOK_UP: Final = 0.5  # seconds


def blocking(
    method: Callable[Concatenate[_Owner, _P], Coroutine[Any, Any, _T]],
) -> Callable[Concatenate[Any, _P], _T]:
    """The same method for a class that blocks: same name, arguments and docstring, also for who checks types.

    The class says in `_call(method, args, options)` where the method is awaited.
    """

    def call(self: Any, *args: _P.args, **options: _P.kwargs) -> _T:
        return cast("_T", self._call(method, args, options))

    return cast("Callable[Concatenate[Any, _P], _T]", wraps(method)(call))


class Call(Generic[_T]):
    """What a thread waits for. Whatever it raises, of any class, is raised in that thread, with its traceback."""

    def __init__(self, work: Callable[[], Awaitable[_T]]) -> None:
        self._work = work
        self.context: Final = copy_context()
        self._ended = threading.Event()
        self._outcome: Outcome[_T] = Outcome(None, asyncio.CancelledError())
        self._task: asyncio.Task[Any] | None = None
        self._is_cancelled = False
        self._interrupted: asyncio.Task[Any] | None = None

    # --- in the thread -------------------------------------------------------------------------------------------

    def wait(self) -> None:
        # Only the main thread runs the handlers of signals, and the system may have told another one, which wakes
        # nobody: so it looks up now and then.
        limit = _LOOK_UP if threading.current_thread() is threading.main_thread() else None
        while not self._ended.wait(limit):
            pass

    def result(self) -> _T:
        """Raises `CancelledError` if the call was cut off."""
        value, error = self._outcome
        if error is None:
            return cast("_T", value)
        self._outcome = Outcome(None)
        try:
            raise error
        finally:
            del error, self  # which the traceback holds

    # --- in the loop ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Do it in this task. Raises nothing but `CancelledError`, if the task is stopped by others than `cancel`."""
        if self._is_cancelled:
            self.give_up()
            return
        self._task = task = cast("asyncio.Task[Any]", asyncio.current_task())
        before = task.cancelling()
        try:
            self._outcome = Outcome(await self._work())
        except BaseException as error:  # noqa: BLE001 - any class is the answer
            self._outcome = Outcome(None, error)
        self._task = None
        if self._interrupted is not None:
            task.uncancel()
        is_cut_off = type(self._outcome.error) is asyncio.CancelledError and self._interrupted is None
        self._ended.set()
        if is_cut_off or task.cancelling() > before:
            raise asyncio.CancelledError

    def begin(self) -> None:
        """Do it in a task of its own."""
        loop = asyncio.get_running_loop()
        task = loop.create_task(self.run(), name="orchestrator_state blocking call", context=self.context)
        task.add_done_callback(lambda _: self.give_up())

    def cancel(self) -> None:
        self._is_cancelled = True
        if self._task is not None and self._interrupted is None:
            self._interrupted = self._task
            self._task.cancel()

    def give_up(self) -> None:
        """Nobody is going to do it, unless it is done."""
        self._ended.set()


class Errands:
    """What a thread has done in one certain task, one thing after the other: it matters there which task it is."""

    def __init__(self) -> None:
        self._asked: asyncio.Queue[Call[Any] | None] = asyncio.Queue()
        self._has_ended = False
        self.was_cut_off = False
        """Whether the task was cancelled while the thread waited for it."""

    async def serve(self) -> None:
        """In the task: do what is asked, until `end`."""
        try:
            while (call := await self._asked.get()) is not None:
                self.was_cut_off = True
                await call.run()
                self.was_cut_off = False
        finally:
            self.refuse()

    def take(self, call: Call[Any]) -> None:
        """In the loop: let the task do it, if it is still there."""
        if self._has_ended:
            call.give_up()
        else:
            self._asked.put_nowait(call)

    def end(self) -> None:
        """In the loop: nothing more is asked."""
        self._asked.put_nowait(None)

    def refuse(self) -> None:
        """In the loop: do nothing more, whoever asks."""
        self._has_ended = True
        while not self._asked.empty():
            if (call := self._asked.get_nowait()) is not None:
                call.give_up()
