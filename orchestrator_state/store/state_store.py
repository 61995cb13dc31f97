"""`StateStore`: its opening and closing. Its calls are in the modules beside."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, NoReturn, Self, Unpack

from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from orchestrator_state import hooks
from orchestrator_state.arguments import as_duration
from orchestrator_state.errors import ConfigurationError
from orchestrator_state.payloads import PLAIN, Payloads
from orchestrator_state.runs import Duration, Faults
from orchestrator_state.settings import Options
from orchestrator_state.state_schema import Schemas, StateSchema
from orchestrator_state.store.by_hand import StatesByHand
from orchestrator_state.store.control import ControlCalls
from orchestrator_state.store.health import HealthChecks
from orchestrator_state.store.maintenance import MaintenanceCalls
from orchestrator_state.store.opening import Opening, open_transactions, settings_for
from orchestrator_state.store.operating import OperatingCalls
from orchestrator_state.store.questions import QuestionCalls
from orchestrator_state.store.runs import RunCalls
from orchestrator_state.store.units import UnitCalls
from orchestrator_state.transactions import Transactions

_HEALTH_CHECK_LIMIT: Final = timedelta(seconds=5)


class StateStore(RunCalls, ControlCalls, QuestionCalls, OperatingCalls, UnitCalls, StatesByHand, MaintenanceCalls):
    """Workflow state in the application's own database. Open it with `StateStore.open`.

    Each call is one transaction of its own, unless it says otherwise; `begin` groups several calls in one. When the
    database gives up on a transaction (a deadlock, a dropped connection, a busy file), the call repeats it for
    `retry_timeout` before it raises `StoreUnavailable`, which any call may raise. Calls see the store's namespace
    only. A store may be used by many tasks of one event loop at once.
    """

    def __init__(self, transactions: Transactions, faults: Faults | None = None) -> None:
        super().__init__(transactions, faults)
        self._health = HealthChecks(transactions)
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    def open(
        cls,
        database: str | os.PathLike[str] | None = None,
        *,
        engine: AsyncEngine | None = None,
        sessionmaker: async_sessionmaker[Any] | None = None,
        migrate: bool | None = None,
        hook: hooks.Hook | Sequence[hooks.Hook] | None = None,
        payloads: Payloads = PLAIN,
        schemas: Iterable[StateSchema] = (),
        **options: Unpack[Options],
    ) -> Opening[Self]:
        """Open a store: `store = await StateStore.open(url)`, or `async with StateStore.open(url) as store`.

        `database` is a path, `:memory:`, `sqlite:///…` or `postgresql://…`; None is `DATABASE_URL`, else
        `./workflows.db`. `engine` is an `AsyncEngine` of the application's to use instead: its pool, which `close`
        leaves open. `sessionmaker` is its `async_sessionmaker`, if `run.transact` and `begin` are to give its code
        sessions of that kind. `options` are settings; those not given come from the environment. See `Settings` for
        their meaning and defaults.

        `migrate`: bring the schema up to date (True), or only verify it (False). By default an SQLite file is migrated
        and Postgres, or the application's engine, is verified.

        `payloads` says how payloads are written and read, if not as they are. `schemas` are the versions and types of
        the application's state, one for each workflow name. Under a name without one, state is stored as it is. `hook`
        is told what happens to the runs of this store; a list of hooks, each of them.

        Raises `ConfigurationError` for a URL or option that cannot work, `SchemaOutOfDate` naming the command to run,
        and `StoreUnavailable` within `connect_timeout` if the database cannot be reached.
        """
        settings = settings_for(database, engine, sessionmaker, payloads, dict(options))
        known, listener = Schemas(schemas), hooks.as_hook(hook)

        async def open_store() -> Self:
            opening = open_transactions(settings, engine, sessionmaker, known, payloads, listener, migrate=migrate)
            return cls(await opening)

        return Opening(cls, open_store)

    def __reduce__(self) -> NoReturn:
        raise ConfigurationError("a store belongs to its process, and does not pickle: open another one there")

    @property
    def payloads(self) -> Payloads:
        """How this store writes and reads payloads, for a `UnitOfWork` of the application's own."""
        return self._transactions.payloads

    async def close(self) -> None:
        """Close the store's connections. Closing twice is harmless; any other call afterwards raises.

        Runs under way are stopped where they are, as by a fault of the database, and let go of for whoever comes next.
        Once begun, closing goes on even if this call is cancelled; calling it again waits for the end.
        """
        if self._closing is not None and self._closing.cancelled():  # with the event loop that it ran in
            self._closing = None
        if self._closing is None or not self._closing.done():
            self._transactions.database.enter()
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="orchestrator_state closing")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await self._health.settle()
        await self._executor.close()
        self.payloads.aside.close()
        await self._transactions.close()

    async def __aenter__(self) -> Self:
        self._transactions.enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def health_check(self, timeout: Duration = _HEALTH_CHECK_LIMIT) -> None:  # noqa: ASYNC109 - no task is cut off
        """Raise `StoreUnavailable` unless the database answers a query within `timeout` (a duration, or seconds).

        If it answers, and tables or columns that this version works with are gone, that is a `SchemaChanged`.
        """
        await self._health.ask(as_duration(timeout, "timeout").total_seconds())
