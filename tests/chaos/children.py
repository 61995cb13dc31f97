"""Processes to kill and to freeze.

They are forked from a server that has imported everything already and runs no threads, so that one starts in a few
milliseconds; to the machine, and to the leases, each is a process of its own.
"""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Final, Self

import psutil

from tests.support.children import FORKS

_PATIENCE: Final = 60.0  # seconds until a child that says nothing is a failure

Pipe = Connection


class Child:
    """A process that runs `main(*args, pipe)` and reports through its pipe. Killed at the end of the block."""

    def __init__(self, main: Callable[..., None], *args: Any) -> None:
        self._pipe, theirs = FORKS.Pipe()
        self._process = FORKS.Process(target=main, args=(*args, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.messages: list[Any] = []
        # A reader whose task was cancelled reads on in its thread: the next one takes its turn after it.
        self._turn = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()
        self._pipe.close()

    async def message(self) -> Any:
        """The next message. Raises `EOFError` when the child is gone."""
        return await asyncio.to_thread(self._receive)

    async def end(self) -> list[Any]:
        """Wait until the child is gone, and return everything it ever said."""
        try:
            while True:
                await self.message()
        except EOFError:
            await asyncio.to_thread(self._process.join, _PATIENCE)
            return self.messages

    @property
    def exit_code(self) -> int | None:
        """As of `subprocess`: -9 for a process that was killed; None while it runs."""
        return self._process.exitcode

    def tell(self, message: Any) -> None:
        self._pipe.send(message)

    def kill(self) -> None:
        self._process.kill()

    def terminate(self) -> None:
        self._process.terminate()

    def freeze(self) -> bool:
        """Stop it as a paused machine stops, and wait until it has. False if it came to its end before."""
        deadline = time.monotonic() + _PATIENCE
        try:
            self._signal(signal.SIGSTOP)
            while (status := psutil.Process(self._process.pid).status()) != psutil.STATUS_STOPPED:
                if status == psutil.STATUS_ZOMBIE:
                    return False
                if time.monotonic() > deadline:
                    raise AssertionError("the process does not stop")
                time.sleep(0.001)
        except (ProcessLookupError, psutil.NoSuchProcess):
            return False
        return True

    def wake(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def _receive(self) -> Any:
        with self._turn:
            try:
                if not self._pipe.poll(_PATIENCE):
                    raise AssertionError(f"process {self._process.pid} has said nothing for {_PATIENCE:g} s")
                message = self._pipe.recv()
            except OSError:  # a message that a kill cut short
                raise EOFError from None
            self.messages.append(message)
            return message
