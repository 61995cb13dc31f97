"""Delete runs because somebody asks for it, whatever their status: one with its children, or all of a user's.

A family goes in one transaction, as in `retention`. Where that takes several, since it has blobs or very many rows, the
first one cancels it, so that nobody goes on with a run of which a part is gone; the same call again finishes what was
interrupted. Blobs are removed before the rows that refer to them: without those nobody would know whose they were.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final
from uuid import UUID

from orchestrator_state.arguments import as_flag, as_stored_name, as_uuid
from orchestrator_state.domain import WorkflowStatus
from orchestrator_state.errors import ConfigurationError, Conflict, WorkflowNotFound
from orchestrator_state.execution import Leaseholder, LeaseKeeper
from orchestrator_state.maintenance.retention import NOTHING, delete_fitting, let_others_in, sum_of
from orchestrator_state.payloads import BlobName
from orchestrator_state.repositories import lease_held
from orchestrator_state.repositories.upkeep import FoundFamilies, Hanging, OfUser
from orchestrator_state.retry import after_an_effect
from orchestrator_state.transactions import StoreUnit, Transactions

_FAMILIES: Final = 50  # in a transaction
_LISTED: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class EraseReport:
    """What `StateStore.erase` has deleted, or, as a dry run, what it would delete."""

    workflows: int
    steps: int
    checkpoints: int
    signals: int
    blobs: int
    usage: int = 0
    """Records of what calls of models have used."""
    owned: Sequence[UUID]
    """Runs with a live owner: they are left, and so are those that they descend from, or that descend from them."""


@dataclass(slots=True)
class _Gone:
    """What an erasure has deleted so far, or counted."""

    workflows: int = 0
    hanging: Hanging = NOTHING
    blobs: int = 0
    usage: int = 0
    owned: set[UUID] = field(default_factory=set)
    left: set[UUID] = field(default_factory=set)
    """All members of families that are left, since one of them is owned."""

    def report(self) -> EraseReport:
        counts = self.hanging._asdict()
        owned = tuple(sorted(self.owned))
        return EraseReport(workflows=self.workflows, blobs=self.blobs, usage=self.usage, owned=owned, **counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What one transaction did."""

    ids: Sequence[UUID] = ()
    """Of the runs that it deleted, or cancelled."""
    hanging: Hanging = NOTHING
    is_last: bool = True
    holders: Sequence[Leaseholder] = ()
    """Whoever had runs of `ids` under way here."""
    found: FoundFamilies


_Check = Callable[[StoreUnit, FoundFamilies], Awaitable[None]]


class Erasure:
    """Deletes families of runs, a transaction at a time."""

    def __init__(self, transactions: Transactions, keeper: LeaseKeeper) -> None:
        self._transactions = transactions
        self._keeper = keeper

    async def delete(self, workflow_state_id: UUID | str, *, force: bool) -> int:
        """See `StateStore.delete`."""
        target, is_forced = as_uuid(workflow_state_id, "workflow_state_id"), as_flag(force, "force")
        gone = _Gone()
        await self._delete(
            [target], gone, force=is_forced, check=partial(_require_free, target=target, force=is_forced)
        )
        return gone.workflows

    async def erase(self, user_id: str, *, dry_run: bool, force: bool) -> EraseReport:
        """See `StateStore.erase`."""
        user = as_stored_name(user_id, "user_id")
        is_dry, is_forced = as_flag(dry_run, "dry_run"), as_flag(force, "force")
        gone, seen = _Gone(), set[UUID]()
        for eldest in (True, False):
            after: UUID | None = None
            while page := await self._page(user, after, eldest=eldest, acted=gone.workflows > 0):
                after = page[-1].id
                chosen = [run.id for run in page if not {run.id, run.parent_id} & gone.left and run.id not in seen]
                for start in range(0, len(chosen), _FAMILIES):
                    batch = chosen[start : start + _FAMILIES]
                    if is_dry:
                        seen |= await self._count(batch, gone, force=is_forced)
                    else:
                        await self._delete(batch, gone, force=is_forced)
        if is_dry:
            gone.usage = await self._transactions.read(lambda uow: uow.usage.count_of_user(user, gone.left))
        else:
            await self._delete_usage(user, gone)
        return gone.report()

    async def _delete_usage(self, user: str, gone: _Gone) -> None:
        """That of runs which are gone by now. A worker that still has one cannot add to it: see `add_usage`."""
        while True:
            with after_an_effect(acted=gone.workflows > 0 or gone.usage > 0):
                deleted = await self._transactions.write_once("erase", lambda uow: uow.usage.delete_of_user(user))
            gone.usage += deleted
            if not deleted:
                return
            await let_others_in(self._transactions)

    async def _page(self, user: str, after: UUID | None, *, eldest: bool, acted: bool) -> Sequence[OfUser]:
        with after_an_effect(acted=acted):
            return await self._transactions.read(
                lambda uow: uow.erasure.list_of_user(user, after, _LISTED, eldest=eldest)
            )

    async def _count(self, eldest: Sequence[UUID], gone: _Gone, *, force: bool) -> set[UUID]:
        """Returns all members of the families."""

        async def count(uow: StoreUnit) -> tuple[FoundFamilies, Sequence[UUID], Hanging]:
            found = await uow.erasure.find(eldest, locked=False)
            ids = [member for family in _chosen(found, force=force) for member in family]
            await self._require_blob_store(uow, ids)
            return found, ids, sum_of(await uow.retention.count_hanging(ids))

        found, ids, hanging = await self._transactions.read(count)
        gone.workflows += len(ids)
        gone.hanging = sum_of([gone.hanging, hanging])
        gone.blobs += len(await self._blobs_of(ids))
        _note_left(gone, found, force=force)
        return {member for family in found.families for member in family.ids}

    async def _delete(self, eldest: Sequence[UUID], gone: _Gone, *, force: bool, check: _Check | None = None) -> None:
        """Delete these families; those with an owner are left, unless by `force`. `check` may refuse all of it."""
        acted = False
        if self._transactions.payloads.blobs is not None:
            part = await self._once(partial(self._cancel, eldest=eldest, force=force, check=check))
            _note_left(gone, part.found, force=force)
            check, acted, cancelled = None, bool(part.ids), set(part.ids)
            eldest = [run_id for run_id in eldest if run_id in cancelled]
            with after_an_effect(acted=acted):
                names = await self._blobs_of(part.ids)
                await self._transactions.payloads.blobs.remove(names)
            gone.blobs += len(names)
        while True:
            with after_an_effect(acted=acted or gone.workflows > 0):
                part = await self._once(partial(self._delete_part, eldest=eldest, force=force, check=check))
            gone.workflows += len(part.ids)
            gone.hanging = sum_of([gone.hanging, part.hanging])
            if part.is_last:
                _note_left(gone, part.found, force=force)
                return
            check, acted = None, True
            await let_others_in(self._transactions)

    async def _once(self, work: Callable[[StoreUnit], Awaitable[_Part]]) -> _Part:
        part = await self._transactions.write_once("erase", work)
        self._keeper.revoke(part.holders)
        return part

    async def _cancel(self, uow: StoreUnit, *, eldest: Sequence[UUID], force: bool, check: _Check | None) -> _Part:
        """Cancel what is to be deleted."""
        found = await uow.erasure.find(eldest, locked=True)
        if check is not None:
            await check(uow, found)
        ids = [member for family in _chosen(found, force=force) for member in family]
        await uow.erasure.cancel(ids)
        return _Part(ids=ids, holders=self._keeper.holders_of(ids), found=found)

    async def _delete_part(self, uow: StoreUnit, *, eldest: Sequence[UUID], force: bool, check: _Check | None) -> _Part:
        """Delete as much as fits into a transaction."""
        found = await uow.erasure.find(eldest, locked=True)
        if check is not None:
            await check(uow, found)
        families = _chosen(found, force=force)
        ids = [member for family in families for member in family]
        await self._require_blob_store(uow, ids)
        await uow.erasure.cancel(ids)
        holders = self._keeper.holders_of(ids)
        deleted, hanging = await delete_fitting(uow, families)
        for parent in sorted(found.parents):
            await uow.runs.wake(parent)  # it may wait for a child that is gone, and call it again
        return _Part(
            ids=[member for family in families[:deleted] for member in family],
            hanging=hanging,
            is_last=deleted == len(families),
            holders=holders,
            found=found,
        )

    async def _require_blob_store(self, uow: StoreUnit, ids: Sequence[UUID]) -> None:
        """What is in a blob store that this store was not opened with would be left behind, and belong to nobody."""
        if self._transactions.payloads.blobs is None and await uow.retention.list_blobs(ids):
            raise ConfigurationError("payloads of these runs are in a blob store: open the store with it, then delete")

    async def _blobs_of(self, ids: Collection[UUID]) -> list[str]:
        """The names of all blobs of these runs, also of those that no row refers to any more."""
        blobs = self._transactions.payloads.blobs
        if blobs is None:
            return []
        directory = BlobName.directory_of(self._transactions.settings.namespace)
        found = [name for run_id in ids for name in await blobs.find(f"{directory}/{run_id}")]
        return [name for name in found if BlobName.parse(name) is not None]


def _chosen(found: FoundFamilies, *, force: bool) -> Sequence[Sequence[UUID]]:
    return [family.ids for family in found.families if family.is_over or force]


def _note_left(gone: _Gone, found: FoundFamilies, *, force: bool) -> None:
    if not force:
        gone.owned.update(row.id for row in found.owned)
        gone.left.update(member for family in found.families if not family.is_over for member in family.ids)


async def _require_free(uow: StoreUnit, found: FoundFamilies, *, target: UUID, force: bool) -> None:
    """Raises `WorkflowNotFound`, `LeaseHeld`, or `Conflict` for a child whose parent would call it again."""
    if not found.families:
        raise WorkflowNotFound(f"there is no workflow with id {target}", workflow_state_id=target)
    if force:
        return
    for row in found.owned:
        raise lease_held(row.id, row)
    for parent in found.parents:
        status = await uow.runs.find_status(parent)
        if status is not None and status != WorkflowStatus.COMPLETED:
            message = f"run {target} is a child of run {parent}, which is {status} and would call it again"
            raise Conflict(f"{message}: delete that one, or use force", workflow_state_id=target, parent_id=parent)
