"""What can be wrong with a store: each flaw is there to be found by the harness beside which it stands."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, Literal
from unittest import mock
from uuid import UUID, uuid4

from sqlalchemy import Engine, event

from orchestrator_state import StateStore, StoreUnavailable, transactions
from orchestrator_state.database.clock import DatabaseClock
from orchestrator_state.records import Ack, OpenStep
from orchestrator_state.repositories.calls import CallRepository
from orchestrator_state.runs.journal import group_commit
from orchestrator_state.runs.journal.entries import Entry
from orchestrator_state.runs.journal.journal import Journal
from tests.support.statements import without_the_fence

Flaw = Literal[
    "forgets what finished",
    "takes a fault for success",
    "writes without a fence",
    "goes by its own clock",
]


def plant(flaw: Flaw) -> None:
    """Make this process a worker with that flaw."""
    _PLANT[flaw]()


@contextmanager
def blind_repetitions() -> Iterator[None]:
    """In this block a repetition of a call does not find what its own first attempt did; it comes a while later."""
    note = CallRepository.note
    seen: set[UUID] = set()

    async def always_new(self: CallRepository, call_id: UUID, kind: str) -> bool:
        if call_id in seen:
            await asyncio.sleep(0.5)
        seen.add(call_id)
        return await note(self, uuid4(), kind)

    with mock.patch.object(CallRepository, "note", always_new):
        yield


@contextmanager
def dropped_cancels() -> Iterator[None]:
    """In this block a store acknowledges a cancel, and does nothing."""

    async def cancel(self: StateStore, workflow_state_id: UUID) -> None:
        await self.load_workflow_state(workflow_state_id)

    with mock.patch.object(StateStore, "cancel", cancel):
        yield


async def _find_nothing(self: Journal, step_id: str) -> OpenStep | None:
    return None


def _forget_what_finished() -> None:
    Journal.replay = _find_nothing  # type: ignore[method-assign]


def _take_faults_for_success() -> None:
    async def once(work: Callable[[], Awaitable[Any]], *_: object, **__: object) -> Any:
        return await work()

    def accept_outcome(self: Journal, entry: Entry, writing: asyncio.Future[Ack]) -> None:
        try:
            ack = writing.result()
        except StoreUnavailable:
            ack = Ack(request=None)
        self.accept(entry, ack)

    for module in (transactions, group_commit):
        module.while_transient = once  # type: ignore[attr-defined]
    Journal._accept_outcome = accept_outcome  # type: ignore[method-assign]


def _write_without_a_fence() -> None:
    event.listen(Engine, "before_cursor_execute", without_the_fence, retval=True)


def _go_by_its_own_clock() -> None:
    def now(self: DatabaseClock) -> datetime:
        return datetime.now(UTC)

    DatabaseClock.now = now  # type: ignore[method-assign]


_PLANT: Final[dict[Flaw, Callable[[], None]]] = {
    "forgets what finished": _forget_what_finished,
    "takes a fault for success": _take_faults_for_success,
    "writes without a fence": _write_without_a_fence,
    "goes by its own clock": _go_by_its_own_clock,
}
