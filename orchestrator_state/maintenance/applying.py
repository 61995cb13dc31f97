"""Do what a `Retention` says, in transactions as short as those of `retention`, which a dry run only counts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, NamedTuple
from uuid import UUID

from orchestrator_state.arguments import as_flag
from orchestrator_state.errors import ConfigurationError
from orchestrator_state.maintenance.checkpoints import kept
from orchestrator_state.maintenance.policy import CHECKPOINTS, Removed, Retention, RetentionReport
from orchestrator_state.maintenance.retention import Cut, delete_fitting, in_transactions, let_others_in
from orchestrator_state.payloads import BlobName, Reference
from orchestrator_state.repositories import RETENTION_SUCCESS
from orchestrator_state.repositories.upkeep import KinRow, Place, Size
from orchestrator_state.retry import after_an_effect
from orchestrator_state.transactions import StoreUnit, Transactions, Work

_WORKFLOWS: Final = 200  # in a transaction

OnRetained = Callable[[RetentionReport], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """What one transaction did, or a page of a dry run counted."""

    removed: Removed
    families: int = 0
    """How many of those that were due are gone."""
    ids: Sequence[UUID] = ()
    held: Collection[UUID] = ()
    after: Place | None = None
    """Where the next page begins."""
    is_last: bool = False


class _Stored(NamedTuple):
    size: Size
    blobs: set[str]

    def removed(self, left: _Stored) -> Removed:
        """What is gone of this, where that is `left`."""
        runs, checkpoints, length = (before - after for before, after in zip(self.size, left.size, strict=True))
        return _removed(Size(runs, checkpoints, length), self.blobs - left.blobs)


_NOTHING: Final = _Stored(Size(), set())


async def apply_retention(
    transactions: Transactions,
    policy: Retention,
    *,
    dry_run: bool,
    progress: OnRetained | None,
    between: Callable[[], Awaitable[object]] | None = None,
) -> RetentionReport:
    """See `StateStore.apply_retention`. `between` is awaited after each transaction."""
    if not isinstance(policy, Retention):
        raise ConfigurationError(f"policy must be a Retention, not a {type(policy).__name__}")
    is_dry = as_flag(dry_run, "dry_run")
    now = await transactions.read(lambda uow: uow.leases.database_time())
    cutoffs = {status: _before(now, age) for status, age in policy.ages.items()}
    one = _Pass(transactions, policy, cutoffs, is_dry=is_dry, progress=progress, between=between)
    for status in cutoffs:
        await one.delete(status)
    if policy.keep_checkpoints is not None:
        await one.prune(policy.keep_checkpoints)
    if not is_dry:
        with after_an_effect(acted=one.has_acted):
            await transactions.write(lambda uow: uow.policies.note(RETENTION_SUCCESS))
    return one.report()


def _before(now: datetime, age: timedelta) -> datetime:
    try:
        return now - age
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)  # nothing is that old


@dataclass(slots=True)
class _Pass:
    """One pass of a policy over a namespace."""

    transactions: Transactions
    policy: Retention
    cutoffs: Mapping[str, datetime]
    is_dry: bool = field(kw_only=True)
    progress: OnRetained | None = field(kw_only=True)
    between: Callable[[], Awaitable[object]] | None = field(kw_only=True)
    rules: dict[str, Removed] = field(init=False, default_factory=dict)
    held: set[UUID] = field(init=False, default_factory=set)
    counted: set[UUID] = field(init=False, default_factory=set)
    """Of a dry run: a run may be due by itself and with its parent, and its checkpoints go with it."""

    @property
    def has_acted(self) -> bool:
        return not self.is_dry and any(removed != Removed() for removed in self.rules.values())

    def report(self) -> RetentionReport:
        total = sum(self.rules.values(), Removed())
        return RetentionReport(**asdict(total), rules=dict(self.rules), held=len(self.held))

    # --- runs --------------------------------------------------------------------------------------------------------

    async def delete(self, status: str) -> None:
        """Delete runs of a status that are old, each with its descendants."""
        self.rules[status] = Removed()
        after: Place | None = None
        limit = _WORKFLOWS
        while True:
            batch = await self._do(partial(self._delete_batch, status=status, after=after, limit=limit))
            await self._note(status, batch)
            if batch.is_last or (batch.after == after and batch.removed == Removed()):
                return
            after = batch.after
            if not self.is_dry:  # no more are counted and locked than are likely to fit
                limit = min(_WORKFLOWS, 2 * batch.families + 1)

    async def _delete_batch(self, uow: StoreUnit, *, status: str, after: Place | None, limit: int) -> _Batch:
        rows = await uow.policies.list_due(status, self.cutoffs, after, limit, locked=not self.is_dry)
        found = await uow.retention.families_of(rows, self.cutoffs, locked=not self.is_dry)
        due = [family.ids for family in found if family.is_over]
        held = await self._held(uow, [ids[0] for ids in due])
        free = [ids for ids in due if ids[0] not in held]
        members = [member for ids in free for member in ids if member not in self.counted]
        stored = await self._stored(uow, members)
        fitting, left = len(free), _NOTHING
        if not self.is_dry:
            fitting, _ = await delete_fitting(uow, free)
            left = await self._stored(uow, members)
        done = len(rows) if fitting == len(free) else [row.id for row in rows].index(free[fitting][0])
        return _Batch(
            removed=stored.removed(left),
            families=fitting,
            ids=members,
            held=[member for ids in due if ids[0] in held for member in ids],
            after=rows[done - 1].place if done else after,
            is_last=fitting == len(free) and len(rows) < limit,
        )

    async def _held(self, uow: StoreUnit, ids: Sequence[UUID]) -> set[UUID]:
        """Which of these workflows are held, by themselves or by a relative."""
        if self.policy.hold is None or not ids:
            return set()
        kin = await uow.policies.list_kin(ids)
        eldest = {workflow: _eldest_of(workflow, kin) for workflow in kin}
        holding = {eldest[row.id] for row in kin.values() if self.policy.holds(row.attributes)}
        return {workflow for workflow in ids if eldest.get(workflow) in holding}

    async def _stored(self, uow: StoreUnit, ids: Sequence[UUID]) -> _Stored:
        blobs = await uow.retention.list_blobs(ids)
        self._require_blob_store(blobs)
        return _Stored(await uow.policies.size_of(ids), blobs)

    def _require_blob_store(self, blobs: Collection[object]) -> None:
        """What is in a blob store that this store was not opened with would be left behind, and belong to nobody."""
        if blobs and self.transactions.payloads.blobs is None:
            raise ConfigurationError("payloads of these runs are in a blob store: open the store with it")

    # --- checkpoints -------------------------------------------------------------------------------------------------

    async def prune(self, keep: int) -> None:
        """Delete checkpoints that are too many."""
        self.rules[CHECKPOINTS] = Removed()
        after: UUID | None = None
        while True:

            async def find(uow: StoreUnit, after: UUID | None = after) -> Sequence[tuple[UUID, int]]:
                return await uow.retention.list_surplus_checkpoints(keep, after=after, only=None, limit=_WORKFLOWS)

            with after_an_effect(acted=self.has_acted):
                surplus = await self.transactions.read(find)
            left = [each for each in surplus if each[0] not in self.counted]
            for cuts in [[Cut(run, keep) for run, _ in left]] if self.is_dry else in_transactions(left, keep):
                await self._note(CHECKPOINTS, await self._do(partial(self._prune_batch, cuts=cuts)))
            if len(surplus) < _WORKFLOWS:
                return
            after = surplus[-1][0]

    async def _prune_batch(self, uow: StoreUnit, *, cuts: Sequence[Cut]) -> _Batch:
        held = await self._held(uow, [cut.workflow_state_id for cut in cuts])
        removed = Removed()
        for run, keep in cuts:
            if run not in held and (self.is_dry or await uow.policies.hold(run)):
                stay = await kept(uow, run, keep)
                snapshots = await uow.policies.list_surplus_references(run, stay)
                names = {found.name for found in Reference.all_in(snapshots)}
                self._require_blob_store(names)
                removed += _removed(await uow.policies.size_of_surplus(run, stay), names)
                if not self.is_dry:
                    await uow.policies.delete_surplus(run, stay)
        return _Batch(removed=removed)

    # --- both --------------------------------------------------------------------------------------------------------

    async def _do(self, work: Work[_Batch]) -> _Batch:
        with after_an_effect(acted=self.has_acted):
            if self.is_dry:
                return await self.transactions.read(work)
            return await self.transactions.write_once("retain", work)

    async def _note(self, rule: str, batch: _Batch) -> None:
        self.rules[rule] += batch.removed
        self.held.update(batch.held)
        if self.is_dry:
            self.counted.update(batch.ids)
        if self.progress is not None:
            self.progress(self.report())
        if not self.is_dry:
            await let_others_in(self.transactions)
        if self.between is not None:
            await self.between()


def _eldest_of(workflow: UUID, kin: Mapping[UUID, KinRow]) -> UUID:
    """The ancestor of all. Of a ring, which only damage makes, the same one for all of its members."""
    line: dict[UUID, None] = {}
    at = workflow
    while at not in line:
        line[at] = None
        parent = kin[at].parent_id
        if parent is None or parent not in kin:
            return at
        at = parent
    ring = list(line)
    return min(ring[ring.index(at) :])


def _removed(size: Size, blobs: Collection[str]) -> Removed:
    lengths = [(BlobName.parse(name), name) for name in blobs]
    in_blobs = sum(parsed.length or 0 for parsed, _ in lengths if parsed is not None)
    return Removed(runs=size.runs, checkpoints=size.checkpoints, blobs=len(blobs), bytes=size.bytes + in_blobs)
