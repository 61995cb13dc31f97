"""Where long texts are worked on: beside the event loop, which everything else of the process is waiting for.

To seal, digest, compare or decode megabytes takes tenths of a second. A thread helps although there is one interpreter:
compressing, encrypting and digesting go on without it, and the rest lets the loop in every few milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from orchestrator_state.concurrency.threads import Threads

_T = TypeVar("_T")
LONG: Final = 256 * 1024
"""Characters of JSON. What is shorter is done at once, in the time in which a thread would take over."""
_THREADS: Final = 2


class Aside:
    """Threads for that, started when there is something long; or none, and all is done at once."""

    def __init__(self, *, threads: bool = True) -> None:
        self._threads = Threads("orchestrator_state payloads", _THREADS) if threads else None

    async def call(self, work: Callable[[], _T], size: int) -> _T:
        """Return `work()`, which handles texts of `size` characters that nobody changes. Raises what it raises.

        A caller that is cancelled leaves a thread to its work: keep others from what that changes, or wait for it.
        """
        if self._threads is None or size < LONG:
            return work()
        return await self._threads.call(work)

    def close(self) -> None:
        if self._threads is not None:
            self._threads.close()
