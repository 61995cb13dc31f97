"""Delete what is too old, or too much, in transactions so short that writers beside do not feel them.

A batch is bounded by its rows. What has been committed stays deleted, so that an interrupted deletion is resumed by
calling it again. The steps of one workflow go in one transaction with it, however many they are: half of them would be
a run that does its work twice when somebody resumes it. So do the child runs whose results their parent may not have
recorded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, NamedTuple
from uuid import UUID

from orchestrator_state.arguments import as_count, as_utc
from orchestrator_state.maintenance.checkpoints import prune
from orchestrator_state.repositories.upkeep import Hanging, Place
from orchestrator_state.retry import after_an_effect
from orchestrator_state.transactions import StoreUnit, Transactions

_WORKFLOWS: Final = 200
_ROWS: Final = 5_000  # in a transaction
NOTHING: Final = Hanging(steps=0, checkpoints=0, signals=0)
"""Hangs on a workflow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletionProgress:
    """How far a deletion has come: what is counted here is gone for good."""

    deleted: int
    total: int
    """How many there were to delete at the start. Others may delete beside, or more may become old enough."""


OnProgress = Callable[[DeletionProgress], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """What one transaction deleted."""

    ids: Sequence[UUID]
    """Workflows."""
    after: Place | None
    """Where the next one begins: behind what was deleted, and what a descendant keeps."""
    is_last: bool


class Cut(NamedTuple):
    """How many of a workflow's checkpoints to keep."""

    workflow_state_id: UUID
    keep: int


async def _cutoff(transactions: Transactions, older_than: datetime | timedelta) -> datetime:
    if not isinstance(older_than, timedelta):
        return as_utc(older_than, "older_than")
    now = await transactions.read(lambda uow: uow.leases.database_time())
    try:
        return now - older_than
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)  # nothing is that old


async def delete_old_states(
    transactions: Transactions, older_than: datetime | timedelta, progress: OnProgress | None, *, dry_run: bool
) -> int:
    """See `StateStore.delete_old_states`."""
    cutoff, deleted, total = await _cutoff(transactions, older_than), 0, 0
    if dry_run:
        return await transactions.read(lambda uow: uow.retention.count_finished(older_than=cutoff))
    if progress is not None:
        total = await transactions.read(lambda uow: uow.retention.count_finished(older_than=cutoff))
    limit, is_first = _WORKFLOWS, True
    after: Place | None = None
    while True:
        delete = partial(_delete_batch, cutoff=cutoff, limit=limit, after=after)
        with after_an_effect(acted=not is_first):
            batch = await transactions.write_once("delete", delete)
        is_first = False
        deleted, after = deleted + len(batch.ids), batch.after
        if progress is not None:
            progress(DeletionProgress(deleted=deleted, total=max(total, deleted)))
        if batch.is_last:
            return deleted
        # No more are counted and locked than are likely to fit.
        limit = min(_WORKFLOWS, 2 * len(batch.ids) + 1)
        await let_others_in(transactions)


async def _delete_batch(uow: StoreUnit, *, cutoff: datetime, limit: int, after: Place | None) -> _Batch:
    rows, found = await uow.retention.lock_finished(older_than=cutoff, limit=limit, after=after)
    families = [family.ids for family in found if family.is_over]
    fitting, _ = await delete_fitting(uow, families)
    is_whole = fitting == len(families)
    done = len(rows) if is_whole else [row.id for row in rows].index(families[fitting][0])
    return _Batch(
        ids=[member for family in families[:fitting] for member in family],
        after=rows[done - 1].place if done else after,
        is_last=is_whole and len(rows) < limit,  # and not the families, of which one may be several rows
    )


async def delete_fitting(uow: StoreUnit, families: Sequence[Sequence[UUID]]) -> tuple[int, Hanging]:
    """Delete as many of these families, which the transaction has locked, as fit into it. Returns how many that were.

    And what hung on them. Of a first one that does not fit some of what hangs on it is deleted.
    """
    sizes = await _sizes(uow, families)
    fitting, rows = 0, 0
    for family, size in zip(families, sizes, strict=True):
        rows += len(family) + sum(size)
        if rows > _ROWS and (fitting or size.checkpoints or size.signals):
            break
        fitting += 1
    if fitting == 0 and families:
        # Signals that nobody asked for, and the oldest checkpoints, are the least loss to a family whose deletion goes
        # no further.
        return 0, await _prune_some(uow, families[0])
    await uow.retention.delete_locked([member for family in families[:fitting] for member in family])
    return fitting, sum_of(sizes[:fitting])


async def _sizes(uow: StoreUnit, families: Sequence[Sequence[UUID]]) -> list[Hanging]:
    """How many rows hang on the members of each family."""
    each = iter(await uow.retention.count_hanging([member for family in families for member in family]))
    return [sum_of([next(each) for _ in family]) for family in families]


def sum_of(sizes: Sequence[Hanging]) -> Hanging:
    return Hanging(*map(sum, zip(NOTHING, *sizes, strict=True)))


async def _prune_some(uow: StoreUnit, family: Sequence[UUID]) -> Hanging:
    signals, checkpoints = 0, 0
    for member, size in zip(family, await uow.retention.count_hanging(family), strict=True):
        if size.signals and (left := _ROWS - signals - checkpoints):
            signals += await uow.retention.delete_signals(member, limit=left)
        if size.checkpoints and (left := _ROWS - signals - checkpoints):
            checkpoints += await uow.checkpoints.prune(member, keep=max(0, size.checkpoints - left))
    return Hanging(steps=0, checkpoints=checkpoints, signals=signals)


async def prune_checkpoints(
    transactions: Transactions,
    keep: int,
    progress: OnProgress | None,
    *,
    only: UUID | None = None,
    dry_run: bool = False,
) -> int:
    """See `StateStore.prune_checkpoints` and, for `only` one workflow, `StateStore.cleanup_old_checkpoints`."""
    keep = as_count(keep, "keep")
    deleted, total = 0, 0
    if dry_run:
        return await transactions.read(lambda uow: uow.retention.count_surplus_checkpoints(keep))
    if progress is not None:
        total = await transactions.read(lambda uow: uow.retention.count_surplus_checkpoints(keep))
    batches = _cuts(transactions, keep, only)
    while True:
        with after_an_effect(acted=deleted > 0):
            cuts = await anext(batches, None)
            if cuts is None:
                return deleted
            if deleted:
                await let_others_in(transactions)
            deleted += await transactions.write_once("prune", partial(_prune_each, cuts=cuts))
        if progress is not None:
            progress(DeletionProgress(deleted=deleted, total=max(total, deleted)))


async def _prune_each(uow: StoreUnit, *, cuts: Sequence[Cut]) -> int:
    return sum([await prune(uow, cut.workflow_state_id, cut.keep) for cut in cuts])


async def _cuts(transactions: Transactions, keep: int, only: UUID | None) -> AsyncIterator[Sequence[Cut]]:
    """What to prune, a transaction at a time."""
    after: UUID | None = None
    while True:

        async def find_surplus(uow: StoreUnit, after: UUID | None = after) -> Sequence[tuple[UUID, int]]:
            return await uow.retention.list_surplus_checkpoints(keep, after=after, only=only, limit=_WORKFLOWS)

        surplus = await transactions.read(find_surplus)
        for cuts in in_transactions(surplus, keep):
            yield cuts
        if only is not None or len(surplus) < _WORKFLOWS:
            return
        after = surplus[-1][0]


def in_transactions(surplus: Iterable[tuple[UUID, int]], keep: int) -> Iterator[Sequence[Cut]]:
    """The cuts of workflows that have so many checkpoints: what is more than fits goes into several transactions."""
    cuts: list[Cut] = []
    room = _ROWS
    for workflow_state_id, number in surplus:
        left = number
        while left > keep:
            kept = max(keep, left - room)
            cuts.append(Cut(workflow_state_id, kept))
            room -= left - kept
            left = kept
            if room == 0:
                yield cuts
                cuts, room = [], _ROWS
    if cuts:
        yield cuts


async def let_others_in(transactions: Transactions) -> None:
    await asyncio.sleep(transactions.database.pause_for_writers)
