"""Whose turn it is: one at a time, the urgent first."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque


class Turns:
    """A lock whose waiters get it in the order in which they came, but for the urgent ones, who come first.

    What is urgent must be short: while there is some of it, nobody else gets a turn.
    """

    def __init__(self) -> None:
        self.is_taken = False
        """Whether somebody has the turn."""
        self._urgent: deque[asyncio.Future[None]] = deque()
        self._others: deque[asyncio.Future[None]] = deque()

    async def __aenter__(self) -> None:
        if self.is_taken:
            await self.acquire()
        self.is_taken = True

    async def __aexit__(self, *_: object) -> None:
        if self._urgent or self._others:
            self.release()
        else:
            self.is_taken = False

    def take(self) -> bool:
        """Take the turn if it is free: nobody waits for it then."""
        is_free = not self.is_taken
        self.is_taken = True
        return is_free

    async def acquire(self, *, urgent: bool = False) -> None:
        if self.take():
            return
        queue = self._urgent if urgent else self._others
        turn = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with contextlib.suppress(ValueError):  # passed over already, in the moment between
                    queue.remove(turn)
            else:
                self.release()  # it was given to us in the same moment
            raise

    def release(self) -> None:
        for queue in (self._urgent, self._others):
            while queue:
                turn = queue.popleft()
                if not turn.done():
                    turn.set_result(None)
                    return
        self.is_taken = False
