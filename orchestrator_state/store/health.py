"""Whether the database answers, and that in time."""

from __future__ import annotations

import asyncio

from sqlalchemy import select

from orchestrator_state.database import database_errors
from orchestrator_state.errors import StoreUnavailable
from orchestrator_state.transactions import StoreUnit, Transactions


class HealthChecks:
    """The questions that a store has asked, and those whose answers nobody waits for any more."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self._asking: set[asyncio.Task[None]] = set()

    async def ask(self, seconds: float) -> None:
        """Raise `StoreUnavailable` unless the database answers a query within so many seconds."""
        self._transactions.enter()
        # In a task of its own: closing a connection to a server that is frozen takes a while, too.
        asking = asyncio.create_task(self._transactions.read(_select_one), name="orchestrator_state health check")
        self._asking.add(asking)
        asking.add_done_callback(self._asked)
        try:
            await asyncio.wait({asking}, timeout=seconds)
        finally:
            answered = asking.done()
            asking.cancel()
        if not answered:
            raise StoreUnavailable(f"the database did not answer within {seconds:g} s")
        await asking

    async def settle(self) -> None:
        """Wait for the end of those whose time is over."""
        if self._asking:
            await asyncio.wait(self._asking)

    def _asked(self, asking: asyncio.Task[None]) -> None:
        self._asking.discard(asking)
        if not asking.cancelled():
            asking.exception()  # looked at, so that one that comes too late is not reported as lost


async def _select_one(uow: StoreUnit) -> None:
    with database_errors():
        await uow.session.execute(select(1))
