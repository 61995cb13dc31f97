"""SIGTERM and SIGINT, told to those who work in this process, for as long as they do."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_listeners: Final[dict[object, Callable[[], object]]] = {}
_before: Final[dict[signal.Signals, Any]] = {}
"""What the program does on them, while there are listeners."""


@contextlib.contextmanager
def on_signals(stop: Callable[[], None], loop: asyncio.AbstractEventLoop | None = None) -> Iterator[None]:
    """Call `stop` in `loop`, or in the running one, on SIGTERM and SIGINT, as every such block does that is open then.

    After the last block they are as they were before the first. So not by the loop's own `add_signal_handler`, which
    forgets what was there. Outside the main thread Python lets nobody take signals, and this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    in_loop = asyncio.get_running_loop() if loop is None else loop
    listener = object()
    _listeners[listener] = lambda: in_loop.call_soon_threadsafe(stop)
    for number in _SIGNALS:
        if signal.getsignal(number) is not _tell_all:
            _before[number] = signal.signal(number, _tell_all)
    try:
        yield
    finally:
        del _listeners[listener]
        if not _listeners:
            _give_back()


def _tell_all(*_: object) -> None:
    for tell in list(_listeners.values()):
        with contextlib.suppress(RuntimeError):  # its loop was closed under it
            tell()


def _give_back() -> None:
    while _before:
        number, before = _before.popitem()
        if signal.getsignal(number) is _tell_all:  # nobody has taken it from us meanwhile
            signal.signal(number, signal.SIG_DFL if before is None else before)
