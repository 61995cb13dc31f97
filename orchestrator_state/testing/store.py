"""The store of a test: it lets its runs crash, loses answers of the database, and takes over at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state.database import Database
from orchestrator_state.errors import StoreUnavailable
from orchestrator_state.execution import Recovery
from orchestrator_state.records import Lease
from orchestrator_state.runs import Handler
from orchestrator_state.store import StateStore
from orchestrator_state.testing.clock import Clock, MovableTime
from orchestrator_state.testing.faults import Crashed, Faults, is_answer_lost
from orchestrator_state.transactions import StoreUnit, Transactions


class StoreUnderTest(StateStore):
    """A `StateStore` whose runs go wrong where `faults` says, and whose clock can be moved.

    A run that waits is let go of at once, and one that crashed is taken over at once: no test waits for either.
    """

    def __init__(self, transactions: Transactions) -> None:
        self.faults: Final = Faults()
        transactions.database = cast(Database, _ForgetfulDatabase(transactions.database))
        super().__init__(transactions, self.faults)
        self.not_in_a_jump: Final = asyncio.Lock()

    async def clock(self, time: MovableTime) -> Clock:
        """Make the database's clock one that can be moved. To be called before the store is used."""
        await time.install(self._transactions.database)
        return Clock(self._transactions, self._executor.keeper, time, self.not_in_a_jump)

    @property
    def resting(self) -> int:
        """How many of the runs under way have nothing to do for now: a step of theirs waits to be called again."""
        return self._executor.keeper.resting

    def recovery(self, handlers: Mapping[str, Handler[Any]], *, patience: timedelta | None = None) -> Recovery:
        """See `StateStore.recovery`."""
        recovery = _Recovery(self._transactions.for_runs(), self._executor, handlers, patience=patience)
        recovery.store = self
        return recovery

    if not TYPE_CHECKING:  # as `StateStore.run`, to a type checker

        async def run(self, *arguments: Any, **options: Any) -> Any:
            """See `StateStore.run`. Raises `Crashed` where `faults` says so."""
            try:
                return await super().run(*arguments, **options)
            except Crashed:
                await self.settle()
                raise

    async def settle(self) -> None:
        """End the leases of the runs that have crashed. They are not released: their owner is to count as vanished."""
        for lease in self.faults.take_crashed(self._executor.keeper.has):
            await self._transactions.write(partial(_end, lease=lease))


class _Recovery(Recovery):
    store: StoreUnderTest

    async def end_dead_leases(self) -> None:
        await self.store.settle()
        await super().end_dead_leases()

    async def start(self, limit: int, watch: Callable[..., object], *, linger: timedelta = timedelta()) -> None:
        await self.store.settle()
        async with self.store.not_in_a_jump:  # a run begins with the time as of its claim
            await super().start(limit, watch, linger=timedelta())


class _ForgetfulDatabase:
    """A `Database` that commits, and does not say so, where `faults` wants it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    @asynccontextmanager
    async def writing(self, **how: Any) -> AsyncIterator[AsyncSession]:
        """See `Database.writing`."""
        try:
            async with self._database.writing(**how) as session:
                yield session
        except BaseException:
            is_answer_lost()  # of a commit that did not come to pass there is none
            raise
        if is_answer_lost():
            raise _lost()

    async def write_at_once(self, batch: Any) -> Any:
        """See `Database.write_at_once`."""
        is_lost = is_answer_lost()
        answer = await self._database.write_at_once(batch)
        if is_lost:
            raise _lost()
        return answer


async def _end(uow: StoreUnit, lease: Lease) -> None:
    await uow.leases.end(lease)


def _lost() -> StoreUnavailable:
    return StoreUnavailable("the test let the answer of a commit get lost", transient=True, outcome_unknown=True)
