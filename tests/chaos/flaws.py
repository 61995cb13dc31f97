"""What can be wrong with a store: each flaw is there to be found by the harness beside which it stands."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, Literal
from unittest import mock
from uuid import UUID, uuid4

from orchestrator_state import StoreUnavailable, transactions, writer
from orchestrator_state.journal import Entry, Journal
from orchestrator_state.request_log import RequestRepository
from orchestrator_state.run_records import Ack

Flaw = Literal["forgets what finished", "takes a fault for success"]


def plant(flaw: Flaw) -> None:
    """Make this process a worker with that flaw."""
    _PLANT[flaw]()


@contextmanager
def blind_repetitions() -> Iterator[None]:
    """In this block a repetition of a call does not find what its own first attempt did; it comes a while later."""
    note = RequestRepository.note
    seen: set[UUID] = set()

    async def always_new(self: RequestRepository, request_id: UUID, kind: str) -> bool:
        if request_id in seen:
            await asyncio.sleep(0.5)
        seen.add(request_id)
        return await note(self, uuid4(), kind)

    with mock.patch.object(RequestRepository, "note", always_new):
        yield


def _forget_what_finished() -> None:
    def replay(self: Journal, step_id: str) -> Any:
        return None

    Journal.replay = replay  # type: ignore[method-assign]


def _take_faults_for_success() -> None:
    async def once(work: Callable[[], Awaitable[Any]], patience: timedelta) -> Any:
        return await work()

    def accept_outcome(self: Journal, entry: Entry, writing: asyncio.Future[Ack]) -> None:
        try:
            ack = writing.result()
        except StoreUnavailable:
            ack = Ack(request=None)
        self.accept(entry, ack)

    transactions.while_transient = writer.while_transient = once  # type: ignore[attr-defined]
    Journal._accept_outcome = accept_outcome  # type: ignore[method-assign]


_PLANT: Final[dict[Flaw, Callable[[], None]]] = {
    "forgets what finished": _forget_what_finished,
    "takes a fault for success": _take_faults_for_success,
}
