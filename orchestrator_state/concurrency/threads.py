"""Threads for calls that block.

Not `asyncio.to_thread`, whose few threads (processors + 4) are everybody's: a call would wait there behind a slow disk
or another library, and its time limit would count the wait. And not `concurrent.futures`, whose threads the interpreter
joins at its end, even one that hangs for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, Final, TypeVar

from orchestrator_state.concurrency.user_code import Outcome

_T = TypeVar("_T")
_IDLE: Final = 10.0  # seconds until a thread without work ends


class _Call:
    __slots__ = ("context", "future", "is_abandoned", "is_running", "loop", "on_start", "work")

    def __init__(self, work: Callable[[], Any], on_start: Callable[[], object] | None) -> None:
        self.work = work
        self.on_start = on_start
        self.context = copy_context()
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Outcome[Any]] = self.loop.create_future()
        self.is_running = self.is_abandoned = False

    def run(self) -> None:
        if self.on_start is not None:
            self._tell(self.on_start)
        try:
            outcome: Outcome[Any] = Outcome(self.context.run(self.work))
        except BaseException as error:  # noqa: BLE001 - any class is the answer
            outcome = Outcome(None, error)
        self._tell(self._finish, outcome)

    def _finish(self, outcome: Outcome[Any]) -> None:
        if not self.future.done():
            self.future.set_result(outcome)

    def _tell(self, callback: Callable[..., object], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            self.loop.call_soon_threadsafe(callback, *args)


class Threads:
    """Up to `most` daemon threads, made when a call finds none idle; one that stays idle ends.

    A call that its caller has given up on runs to its end, since a thread cannot be stopped. Its place is given to
    another thread, until `most` calls hang like that. Belongs to no event loop; a forked child begins anew.
    """

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._start_anew()

    def _start_anew(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._waiting: deque[_Call] = deque()
        self._idle = 0
        self._threads = 0
        self._abandoned = 0
        self._closed = False

    async def call(self, work: Callable[[], _T], on_start: Callable[[], object] | None = None) -> _T:
        """Return `work()`, called in a thread with the caller's context. Raises what it raises, as an `Exception`.

        `on_start` is called in the event loop when the call begins. If the caller is cancelled before, it never does.
        """
        if self._pid != os.getpid():
            self._start_anew()
        call = _Call(work, on_start)
        with self._changed:
            self._waiting.append(call)
            self._find_a_thread()
        try:
            outcome: Outcome[_T] = await call.future
        except asyncio.CancelledError:
            self._give_up(call)
            raise
        return outcome.result()

    def close(self) -> None:
        """Let idle threads end at once."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _find_a_thread(self) -> None:
        if self._idle >= len(self._waiting):
            self._changed.notify()
        elif self._threads < self._most:
            self._threads += 1
            try:
                threading.Thread(target=self._serve, name=self._name, daemon=True).start()
            except RuntimeError:  # the system has no more threads; those there are will come to it
                self._threads -= 1
                if self._threads == 0:
                    self._waiting.pop()
                    raise

    def _give_up(self, call: _Call) -> None:
        with self._changed:
            if not call.is_running:
                with contextlib.suppress(ValueError):
                    self._waiting.remove(call)
            elif self._abandoned < self._most:
                call.is_abandoned = True
                self._abandoned += 1
                self._threads -= 1
                self._find_a_thread()

    def _serve(self) -> None:
        while (call := self._next()) is not None:
            call.run()
            with self._changed:
                call.is_running = False
                if call.is_abandoned:  # another thread has this one's place
                    self._abandoned -= 1
                    return
            del call  # while there is nothing to do, nobody's arguments are kept alive

    def _next(self) -> _Call | None:
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._waiting or self._closed, timeout=_IDLE)
            self._idle -= 1
            if not self._waiting:
                self._threads -= 1
                return None
            call = self._waiting.popleft()
            call.is_running = True
            return call
