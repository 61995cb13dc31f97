"""Run work in a transaction of its own, and repeat it when the database gave up on it."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import cached_property, partial
from typing import Any, Final, TypeVar
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state import hooks
from orchestrator_state.database import Database, Idling, Places, idling, lend
from orchestrator_state.errors import ConfigurationError, Conflict, CorruptPayload, StoreUnavailable
from orchestrator_state.payloads import BlobName, MoveFirst, Offload, Payloads
from orchestrator_state.repositories import MOST_AT_ONCE, CallRepository, PastRepository, Unit
from orchestrator_state.repositories.moving import MovingRepository
from orchestrator_state.repositories.overview import CurrentStepRepository, OverviewRepository, UsageRepository
from orchestrator_state.repositories.runs import (
    ClaimRepository,
    CommitRepository,
    HistoryRepository,
    LeaseRepository,
    LineageRepository,
    QuestionRepository,
    RunRepository,
    SignalRepository,
    WaitRepository,
)
from orchestrator_state.repositories.upkeep import (
    ErasureRepository,
    InspectionRepository,
    PayloadRepository,
    PolicyRepository,
    RetentionRepository,
)
from orchestrator_state.retry import while_transient
from orchestrator_state.settings import Settings
from orchestrator_state.state_schema import Schemas

_Result = TypeVar("_Result")
# A transaction writes and reads few kinds of payloads; one that needs more moves blobs while it is open.
_MOVES_AHEAD: Final = 5
_RENEWALS_TAKE: Final = 5  # times the pause in which a writer of another process has its turn
_LONG: Final = timedelta(seconds=1)  # for a wait of one transaction that writes
_TIDIED_EVERY: Final = 64  # calls, after which the ids of old ones are deleted


class StoreUnit(Unit):
    """The unit of the store's own calls: they act on runs, of any past, and on all that the store holds."""

    @property
    def namespace(self) -> str:
        namespace: str = self._options["namespace"]
        return namespace

    @cached_property
    def claims(self) -> ClaimRepository:
        return self._on_session(ClaimRepository)

    @cached_property
    def leases(self) -> LeaseRepository:
        return self._on_session(LeaseRepository)

    @cached_property
    def runs(self) -> RunRepository:
        return self._on_session(RunRepository)

    @cached_property
    def history(self) -> HistoryRepository:
        return self._on_session(HistoryRepository)

    @cached_property
    def lineage(self) -> LineageRepository:
        return self._on_session(LineageRepository)

    @cached_property
    def signals(self) -> SignalRepository:
        return self._on_session(SignalRepository)

    @cached_property
    def questions(self) -> QuestionRepository:
        return self._on_session(QuestionRepository)

    @cached_property
    def commits(self) -> CommitRepository:
        return self._on_session(CommitRepository)

    @cached_property
    def waits(self) -> WaitRepository:
        return self._on_session(WaitRepository)

    @cached_property
    def calls(self) -> CallRepository:
        return self._on_session(CallRepository)

    @cached_property
    def past(self) -> PastRepository:
        return self._on_session(PastRepository)

    @cached_property
    def retention(self) -> RetentionRepository:
        return self._on_session(RetentionRepository)

    @cached_property
    def policies(self) -> PolicyRepository:
        return self._on_session(PolicyRepository)

    @cached_property
    def usage(self) -> UsageRepository:
        return self._on_session(UsageRepository)

    @cached_property
    def erasure(self) -> ErasureRepository:
        return self._on_session(ErasureRepository)

    @cached_property
    def payloads(self) -> PayloadRepository:
        return self._on_session(PayloadRepository)

    @cached_property
    def inspection(self) -> InspectionRepository:
        return self._on_session(InspectionRepository)

    @cached_property
    def moving(self) -> MovingRepository:
        return self._on_session(MovingRepository)

    @cached_property
    def overview(self) -> OverviewRepository:
        return self._on_session(OverviewRepository)

    @cached_property
    def current_steps(self) -> CurrentStepRepository:
        return self._on_session(CurrentStepRepository)


class _HeldUp(Exception):
    """To write, there was something to wait for."""


Work = Callable[[StoreUnit], Awaitable[_Result]]


class Transactions:
    """The way to the database for everything above the unit of work: one namespace of one open store.

    What only hands work on returns its coroutine: each frame that waits for another is run through at each wait.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        payloads: Payloads,
        schemas: Schemas,
        hook: hooks.Hook | None = None,
    ) -> None:
        self.database = database
        self.hook = hook
        self.schemas = schemas
        self.settings = settings
        self.payloads = payloads
        self.places: Final = Places(_places(database, settings))
        self.endures_crowds = False
        self._noted = 0

    def for_runs(self) -> Transactions:
        """The same for what a run has to get done: a full pool is waited for like a database that is away.

        Else what a run has paid for would be paid for again, because its application, or its neighbours, were busy.
        Who calls from outside is told after `pool_timeout`.
        """
        same = copy.copy(self)
        same.endures_crowds = True
        return same

    @property
    def closed(self) -> bool:
        return self.database.closed

    async def close(self) -> None:
        if not self.closed:
            await self.database.close()

    @asynccontextmanager
    async def begin(
        self,
        payloads: Payloads | None = None,
        *,
        urgent: bool = False,
        for_caller: bool = False,
        idles: Idling = Idling.WITH_ROOM,
    ) -> AsyncIterator[StoreUnit]:
        """One unit of work: committed at the end of the block, rolled back on any exception, never repeated.

        `urgent` and `for_caller` are as in `Database.writing`, `idles` how long Postgres bears it if its process is
        frozen.
        """
        self.enter()
        payloads = payloads or self.unit_payloads()
        if payloads.offload is not None:
            payloads.offload.discarded.clear()  # by a try before, which was rolled back
        async with self.database.writing(urgent=urgent, for_caller=for_caller) as session:
            if idles is not Idling.BRIEFLY and self.database.owned:
                lend(session)
            uow, since = self._unit(session, payloads), time.monotonic()
            async with idling(session, idles, self.settings, is_limited=self.database.has_idle_limit):
                yield uow
            held = timedelta(seconds=time.monotonic() - since)
            if self.database.held_up_renewals(held):
                await uow.leases.prolong(held)
        if payloads.offload is not None:
            await self.remove_discarded(payloads.offload)

    def read(self, work: Work[_Result], *, patience: timedelta | None = None) -> Coroutine[Any, Any, _Result]:
        """Run `work`, whose statements each see one snapshot, again if the connection fails it."""

        async def attempt() -> _Result:
            self.enter()
            payloads = self.unit_payloads()
            try:
                return await work(self._unit(self.database.reading(), payloads))
            except CorruptPayload:
                if payloads.offload is None or not payloads.offload.missing:
                    raise
            # Perhaps the row was deleted between its reading and that of the blob.
            return await work(self._unit(self.database.reading(), self.unit_payloads()))

        return self.repeated(attempt, patience)

    def write(
        self,
        work: Work[_Result],
        *,
        urgent: bool = False,
        for_caller: bool = False,
        patience: timedelta | None = None,
        idles: Idling = Idling.BRIEFLY,
    ) -> Coroutine[Any, Any, _Result]:
        """Run `work` in one transaction, again if the database gave up on it: `work` must bear being done twice.

        Twice, because nobody knows the outcome when the connection drops during COMMIT. `patience` is for who has
        less of it than `retry_timeout`; the others are as in `begin`.
        """

        async def attempt(payloads: Payloads) -> _Result:
            moves_blobs = payloads.offload is not None and not payloads.offload.ahead
            how = Idling.WITH_ROOM if moves_blobs and idles is Idling.BRIEFLY else idles
            async with self.begin(payloads, urgent=urgent, for_caller=for_caller, idles=how) as uow:
                return await work(uow)

        return self._moving_blobs_first(attempt, patience)

    async def write_after_renewals(self, work: Work[_Result], *, patience: timedelta | None = None) -> _Result:
        """Like `write`, for a claim: who has waited for it lets owners renew first, who could not meanwhile.

        Whoever kept all from writing may have done so past the end of leases, and prolonged none.
        """

        async def attempt(uow: StoreUnit) -> _Result:
            waited = await self.database.waited_to_begin(uow.session)
            if waited > min(self.settings.lease_term / 3, _LONG):  # a lease that is renewed lasts for longer
                raise _HeldUp
            return await work(uow)

        try:
            return await self.write(attempt, patience=patience)
        except _HeldUp:
            await asyncio.sleep(_RENEWALS_TAKE * self.database.pause_for_writers)
            return await self.write(work, patience=patience)

    async def write_once(self, kind: str, work: Work[_Result]) -> _Result:
        """Like `write`, for work that must not be done twice: its id commits with it, and its repetition finds that.

        The repetition then returns what the attempt that took effect returned. `kind` says in the row what it was.
        """
        call_id = uuid4()
        done: list[_Result] = []  # by the last attempt that came to its COMMIT: no other can have taken effect

        async def once(uow: StoreUnit) -> _Result:
            if await uow.calls.note(call_id, kind):
                done[:] = [await work(uow)]
            return done[0]

        result = await self.write(once)
        self._noted += 1
        if self._noted % _TIDIED_EVERY == 0:
            await self.forget_old_calls()
        return result

    def write_or_compare(
        self, work: Work[None], conflict: type[Conflict], landed: Callable[[], Awaitable[bool]]
    ) -> Coroutine[Any, Any, None]:
        """Like `write_once`, without a statement more: for work that cannot be done twice because its rows stop it.

        After an unknown outcome the repetition meets its own first attempt as `conflict`, and `landed` reads back and
        compares.
        """
        outcome_unknown = False

        async def attempt(payloads: Payloads) -> None:
            nonlocal outcome_unknown
            try:
                async with self.begin(payloads, idles=Idling.BRIEFLY) as uow:
                    await work(uow)
            except StoreUnavailable as error:
                outcome_unknown = outcome_unknown or error.outcome_unknown
                raise
            except conflict:
                if not (outcome_unknown and await landed()):
                    raise

        return self._moving_blobs_first(attempt)

    async def forget_old_calls(self) -> None:
        """Delete ids of calls that are older than a day: they are of use for minutes.

        What calls this has taken effect, whatever becomes of them.
        """
        try:
            forgotten = MOST_AT_ONCE
            while forgotten == MOST_AT_ONCE:
                async with self.begin(idles=Idling.BRIEFLY) as uow:
                    forgotten = await uow.calls.forget_old()
        except StoreUnavailable as error:
            hooks.logger.warning("the ids of old calls were left for the next time: %s", error)

    async def payloads_of(self, rows: Iterable[Iterable[Any]], *, for_many: bool = False) -> Payloads:
        """Return what opens the payloads in `rows`, with those fetched that are in the blob store.

        `for_many` is as in `Offload.fetch`.
        """
        payloads = self.unit_payloads()
        if payloads.offload is not None:
            await payloads.offload.fetch(rows, for_many=for_many)
        return payloads

    async def remove_discarded(self, offload: Offload, *, own: bool = False) -> None:
        """Remove the blobs of rows whose deletion has committed, as far as that works: the rest is garbage.

        One that another row refers to is kept: a row that was forged must not take another's blob along. That costs a
        statement, but for the caller's `own`, whose names nobody else has had.
        """
        try:
            await offload.remove_discarded(but=() if own else await self._referenced(offload.discarded))
        except StoreUnavailable as error:
            hooks.logger.warning("blobs were left to be collected as garbage: %s", error)

    async def _referenced(self, names: Iterable[str]) -> set[str]:
        owners = sorted({UUID(parsed.workflow_state_id) for name in names if (parsed := BlobName.parse(name))})
        if not owners:
            return set()
        return await self.read(lambda uow: uow.retention.list_blobs(owners))

    def _moving_blobs_first(
        self, attempt: Callable[[Payloads], Awaitable[_Result]], patience: timedelta | None = None
    ) -> Coroutine[Any, Any, _Result]:
        """`attempt` a transaction, see `repeated`; if it finds that blobs have to be moved, move them, and do it again.

        Not before the first: only the transaction finds out what has changed, and what there is to read.
        """
        payloads = self.unit_payloads(ahead=True)
        work = partial(self.repeated, partial(attempt, payloads), patience)
        return work() if payloads.offload is None else _moving(payloads.offload, work)

    def unit_payloads(self, *, ahead: bool = False) -> Payloads:
        """Payloads for one piece of work, which has blobs of its own to move."""
        return self.payloads.for_unit(self.settings.namespace, ahead=ahead)

    def unit_on(self, session: AsyncSession) -> StoreUnit:
        """All repositories, on a session that is the store's."""
        return self._unit(session, self.unit_payloads())

    def _unit(self, session: AsyncSession, payloads: Payloads) -> StoreUnit:
        return StoreUnit(session, self.unit_options(payloads))

    def unit_options(self, payloads: Payloads) -> dict[str, Any]:
        """Those of a unit that writes and reads as this store does."""
        return {
            "namespace": self.settings.namespace,
            "schema": self.database.schema,
            "payloads": payloads,
            "schemas": self.schemas,
        }

    def repeated(
        self, attempt: Callable[[], Awaitable[_Result]], patience: timedelta | None = None
    ) -> Coroutine[Any, Any, _Result]:
        """Await `attempt`, one whole transaction, again if the database gave up on it, for `retry_timeout` at most."""
        longest = self.settings.retry_timeout
        limit = longest if patience is None else min(patience, longest)
        return while_transient(attempt, limit, endures_crowds=self.endures_crowds, hook=self.hook)

    def enter(self) -> None:
        """Begin a call. Raises `ConfigurationError` if the store is closed, or of another event loop."""
        if self.database.closed:
            raise ConfigurationError("the store is closed; open another")
        self.database.enter()


async def _moving(offload: Offload, work: Callable[[], Awaitable[_Result]]) -> _Result:
    for _ in range(_MOVES_AHEAD):
        try:
            return await work()
        except MoveFirst:
            await offload.move()
    offload.ahead = False
    return await work()


def _places(database: Database, settings: Settings) -> int:
    """How many transactions may be open while the caller's code runs: half of the pool's, and all that SQLite has."""
    return max(1, min(settings.pool_max, database.most_writers) // 2)
