"""Whether the database answers, and that in time, and whether it still has our tables."""

from __future__ import annotations

import asyncio

from sqlalchemy import exists, false, select

from orchestrator_state.database import database_errors
from orchestrator_state.errors import SchemaChanged, StoreUnavailable
from orchestrator_state.models import metadata
from orchestrator_state.transactions import StoreUnit, Transactions


class HealthChecks:
    """The questions that a store has asked, and those whose answers nobody waits for any more."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self._asking: set[asyncio.Task[SchemaChanged | None]] = set()

    async def ask(self, seconds: float) -> None:
        """Raise `StoreUnavailable` unless the database answers a query about our tables within so many seconds."""
        self._transactions.enter()
        # In a task of its own: closing a connection to a server that is frozen takes a while, too.
        asking = asyncio.create_task(self._transactions.read(_ask), name="orchestrator_state health check")
        self._asking.add(asking)
        asking.add_done_callback(self._asked)
        try:
            await asyncio.wait({asking}, timeout=seconds)
        finally:
            answered = asking.done()
            asking.cancel()
        if not answered:
            raise StoreUnavailable(f"the database did not answer within {seconds:g} s")
        if (changed := await asking) is not None:
            raise changed

    async def settle(self) -> None:
        """Wait for the end of those whose time is over."""
        if self._asking:
            await asyncio.wait(self._asking)

    def _asked(self, asking: asyncio.Task[SchemaChanged | None]) -> None:
        self._asking.discard(asking)
        if not asking.cancelled():
            asking.exception()  # looked at, so that one that comes too late is not reported as lost


async def _ask(uow: StoreUnit) -> SchemaChanged | None:
    """Name all columns, and read no row. What is gone is returned: raised, it would be asked for again and again."""
    named = [exists(select(table).where(false())) for table in metadata.sorted_tables]
    try:
        with database_errors():
            await uow.session.execute(select(*named))
    except SchemaChanged as error:
        return error
    return None
