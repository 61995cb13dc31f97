"""The units of work that a store lends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state.database import once_committed
from orchestrator_state.store.base import StoreCalls
from orchestrator_state.unit_of_work import UnitOfWork

if TYPE_CHECKING:
    from orchestrator_state.execution import Executor
    from orchestrator_state.payloads import Payloads
    from orchestrator_state.transactions import StoreUnit, Transactions


class UnitCalls(StoreCalls):
    """Several calls in one transaction: the store's, or the caller's."""

    def begin(self) -> AbstractAsyncContextManager[UnitOfWork]:
        """Open a unit of work: `async with store.begin() as uow`. It commits at the end of the block.

        Any exception, cancellation included, rolls it back, and the states saved in it go back to the version they
        had. The block is not repeated by itself. On SQLite it holds the file's write lock: keep it short.
        """
        return self._begin()

    @asynccontextmanager
    async def _begin(self) -> AsyncIterator[UnitOfWork]:
        payloads = self._transactions.unit_payloads()
        async with self._transactions.begin(payloads, for_caller=True) as uow:
            yield _UnitOfStore(uow.session, self._transactions, self._executor, payloads)

    def unit_of_work(self, session: AsyncSession) -> UnitOfWork:
        """The repositories on a session of the application's own, and its runs, as this store writes and reads.

        They have the store's namespace, schema, codecs, limits and state schemas. What they write commits with the
        session's transaction, which is the caller's; see `UnitOfWork`.
        """
        self._transactions.enter()
        return _UnitOfStore(session, self._transactions, self._executor, self._transactions.unit_payloads())


class _UnitOfStore(UnitOfWork):
    """Tells the runs that wait in this store; acts on runs as long as it is open."""

    def __init__(
        self, session: AsyncSession, transactions: Transactions, executor: Executor, payloads: Payloads
    ) -> None:
        super().__init__(session, **transactions.unit_options(payloads))
        self._transactions = transactions
        self._executor = executor

    def _entered(self) -> StoreUnit:
        self._transactions.enter()
        return super()._entered()

    def _taken_from(self, ids: Sequence[UUID]) -> None:
        keeper = self._executor.keeper
        if holders := keeper.holders_of(ids):
            once_committed(self.session, partial(keeper.revoke, holders))

    def _look_now(self) -> None:
        self._executor.lookout.look_now()
