"""An event loop in a thread of its own, which other threads call and wait for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

from orchestrator_state.blocking.calls import Call
from orchestrator_state.errors import ConfigurationError, StoreUnavailable

_T = TypeVar("_T")


class LoopThread:
    """Runs until `stop`. The thread is a daemon: it keeps no interpreter from exiting."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        # Of the kind that a signal's handler may take, too, in the thread that has it.
        self._lock = threading.RLock()
        self._calls: set[Call[Any]] = set()
        self._has_ended = False
        self._stopping = asyncio.Event()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="orchestrator_state blocking", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self.loop.close()
            raise

    @property
    def is_here(self) -> bool:
        """Whether it runs in this process, and not in the one that this was forked from."""
        return self._pid == os.getpid()

    def call(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Return `await work()`, awaited in the loop with the caller's context. Raises what it raises.

        What interrupts the caller, as Ctrl-C does, cancels the work, waits for its end, and is raised.
        """
        call = Call(work)
        return self.wait_for(call, call.begin)

    def wait_for(self, call: Call[_T], begin: Callable[[], object]) -> _T:
        """The same for what `begin`, which is called in the loop, begins."""
        with self.watching(call, begin):
            call.wait()
        return self.result_of(call)

    def result_of(self, call: Call[_T]) -> _T:
        """What has become of a call that nobody cancelled."""
        try:
            return call.result()
        except asyncio.CancelledError:
            raise StoreUnavailable("the store was closed while this call was under way", outcome_unknown=True) from None

    def start(self, call: Call[Any], begin: Callable[[], object]) -> None:
        """Begin `call`, of which somebody awaits the `end`."""
        self.refuse_misuse()
        with self._lock:
            if self._has_ended:
                raise ConfigurationError("the store is closed; open another")
            self._calls.add(call)
            self.loop.call_soon_threadsafe(begin)

    @contextlib.contextmanager
    def watching(self, call: Call[Any], begin: Callable[[], object]) -> Iterator[None]:
        """Begin `call`. If the block is interrupted, cancel it and wait for its end."""
        try:
            self.start(call, begin)
            yield
        except BaseException:
            self._cancel(call)
            raise
        finally:
            self._calls.discard(call)

    def end(self, call: Call[Any]) -> None:
        """Wait for the end of what was started. If this is interrupted, cancel it first."""
        try:
            call.wait()
        except BaseException:
            self._cancel(call)
            raise
        finally:
            self._calls.discard(call)

    def _cancel(self, call: Call[Any]) -> None:
        if call in self._calls:
            self.post(call.cancel)
            call.wait()

    def post(self, callback: Callable[..., object], *args: Any) -> None:
        """Have it called in the loop, if that still runs."""
        if self.is_here:
            with self._lock, contextlib.suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(callback, *args)

    def stop(self) -> None:
        """Cancel what is under way, and wait for the thread's end, unless this is it."""
        self.post(self._stopping.set)
        self.join()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the thread's end, unless this is it."""
        if self.is_here and threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def refuse_misuse(self) -> None:
        """Raise `ConfigurationError` in the loop's own thread, which would wait for itself, and in another process."""
        if not self.is_here:
            raise ConfigurationError("this was begun before the process was forked; begin it anew in the child")
        if threading.current_thread() is self._thread:
            raise ConfigurationError(
                "a blocking call was made by code that runs in the store's event loop, an async function or a hook, "
                "and would wait for itself; make that a plain function, which runs in a thread of its own"
            )

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
                try:
                    runner.run(self._stopping.wait())
                finally:
                    with self._lock:  # what comes too late is told so, and what is under way is cancelled now
                        self._has_ended = True
        finally:
            for call in list(self._calls):
                call.give_up()
