"""Commits of a store whose answer is lost, or which are refused for a moment: at the store's last door."""

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Literal

from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state import StateStore, StoreUnavailable

Fate = Literal["sound", "refused", "answer lost"]


class FatedCommits:
    """What becomes of the next commits of a store, one after the other; those that have no fate are sound.

    refused
        Nothing is kept, and the caller is told that it may try again.
    answer lost
        Everything is kept, and the caller hears that nobody knows.
    """

    def __init__(self, store: StateStore) -> None:
        self.fates: deque[Fate] = deque()
        self.commits = 0
        self.faults = 0
        database: Any = store._transactions.database
        self._writing = database.writing
        database.writing = self._fated_unit
        database.write_at_once = self._fated_call(database.write_at_once)

    @contextmanager
    def in_good_weather(self) -> Iterator[None]:
        """What is committed in the block is sound; the fates are for later commits."""
        kept, self.fates = self.fates, deque()
        try:
            yield
        finally:
            self.fates = kept

    def _next(self) -> Fate:
        self.commits += 1
        fate = self.fates.popleft() if self.fates else "sound"
        self.faults += fate != "sound"
        return fate

    @asynccontextmanager
    async def _fated_unit(self, *arguments: Any, **options: Any) -> AsyncIterator[AsyncSession]:
        async with self._writing(*arguments, **options) as session:
            yield session
            fate = self._next()
            if fate == "refused":
                raise StoreUnavailable("refused, for the test", transient=True)
        if fate == "answer lost":
            raise StoreUnavailable("the answer was lost, for the test", transient=True, outcome_unknown=True)

    def _fated_call(self, call: Callable[..., Any]) -> Callable[..., Any]:
        async def fated(*arguments: Any, **options: Any) -> Any:
            fate = self._next()
            if fate == "refused":
                raise StoreUnavailable("refused, for the test", transient=True)
            answer = await call(*arguments, **options)
            if fate == "answer lost":
                raise StoreUnavailable("the answer was lost, for the test", transient=True, outcome_unknown=True)
            return answer

        return fated
