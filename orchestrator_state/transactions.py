"""Run work in a transaction of its own, and repeat it when the database gave up on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state.engine import Database
from orchestrator_state.errors import ConfigurationError, Conflict, StoreUnavailable
from orchestrator_state.payloads import Payloads
from orchestrator_state.retry import while_transient
from orchestrator_state.settings import Settings
from orchestrator_state.state_schema import Schemas
from orchestrator_state.unit_of_work import UnitOfWork

_Result = TypeVar("_Result")
Work = Callable[[UnitOfWork], Awaitable[_Result]]


class Transactions:
    """The way to the database for everything above the unit of work: one namespace of one open store."""

    def __init__(self, database: Database, settings: Settings, payloads: Payloads, schemas: Schemas) -> None:
        self.database = database
        self.schemas = schemas
        self.settings = settings
        self.payloads = payloads
        self._closed = False

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self.database.close()

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[UnitOfWork]:
        """One unit of work: committed at the end of the block, rolled back on any exception, never repeated."""
        self._require_open()
        async with self.database.writing() as session:
            yield self._unit(session)

    async def read(self, work: Work[_Result]) -> _Result:
        """Run `work`, whose statements each see one snapshot, again if the connection fails it."""

        async def attempt() -> _Result:
            self._require_open()
            return await work(self._unit(self.database.reading()))

        return await while_transient(attempt, self.settings.retry_timeout)

    async def write(self, work: Work[_Result]) -> _Result:
        """Run `work` in one transaction, again if the database gave up on it: `work` must bear being done twice.

        Twice, because nobody knows the outcome when the connection drops during COMMIT.
        """

        async def attempt() -> _Result:
            async with self.begin() as uow:
                return await work(uow)

        return await while_transient(attempt, self.settings.retry_timeout)

    async def write_once(
        self, work: Work[None], conflict: type[Conflict], landed: Callable[[], Awaitable[bool]]
    ) -> None:
        """Like `write`, for work that must not be doubled.

        After an unknown outcome the repetition meets its own first attempt as `conflict`, and `landed` reads back and
        compares.
        """
        outcome_unknown = False

        async def attempt() -> None:
            nonlocal outcome_unknown
            try:
                try:
                    async with self.begin() as uow:
                        await work(uow)
                except conflict:
                    if not (outcome_unknown and await landed()):
                        raise
            except StoreUnavailable as error:
                # Of the whole call: an earlier attempt may have landed, although this one did not.
                outcome_unknown = error.outcome_unknown = outcome_unknown or error.outcome_unknown
                raise

        await while_transient(attempt, self.settings.retry_timeout)

    def _unit(self, session: AsyncSession) -> UnitOfWork:
        return UnitOfWork(
            session,
            namespace=self.settings.namespace,
            schema=self.settings.db_schema,
            payloads=self.payloads,
            schemas=self.schemas,
        )

    def _require_open(self) -> None:
        if self._closed:
            raise ConfigurationError("the store is closed; open another")
