"""Look at all that a namespace holds: is it what was written, and can the application load it?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Final
from uuid import UUID

from orchestrator_state.errors import CorruptPayload
from orchestrator_state.maintenance.damage import Blobs, Damage, Digest, damage_to, damaged_cells_of, digest_of
from orchestrator_state.maintenance.loads import Unloadable, failures_to_load
from orchestrator_state.maintenance.pages import pages, payload_rows
from orchestrator_state.models import WorkflowRow
from orchestrator_state.payloads import BlobName, Reference
from orchestrator_state.repositories.upkeep import CHECKED_TABLES, Named, PayloadRow
from orchestrator_state.transactions import StoreUnit, Transactions

_PAGE_ROWS: Final = 500
_LISTED: Final = 1000


@dataclass(slots=True, kw_only=True)
class VerifyReport:
    """What `verify` found. The counts are of everything; of each list the first 1,000 are kept."""

    payloads: int = 0
    """Payloads looked at; each is one of the following."""
    intact: int = 0
    """Their digest is that of what is stored."""
    undigested: int = 0
    """Older software wrote them, without a digest. They are JSON where they have to be."""
    unverified: int = 0
    """Older software changed them, and left the digest. They are JSON where they have to be."""
    damaged: int = 0
    damaged_cells: int = 0
    """Ids, times, numbers and names, beside the payloads, that are none, ids of workflows that are not there, and
    parents that make a run its own ancestor.

    They are in `damage` as well. What belongs to no namespace any more is told to whoever asks.
    """
    damage: list[Damage] = field(default_factory=list)
    loaded: int = 0
    """Live workflows that load, with their newest checkpoint; only counted when asked to load."""
    failed: int = 0
    """Live workflows that do not, or whose newest checkpoint does not."""
    unloadable: list[Unloadable] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether nothing is damaged, and nothing that was to be loaded failed to."""
        return not self.damaged and not self.damaged_cells and not self.failed


async def verify(
    transactions: Transactions, *, load: bool, on_rows: Callable[[int], object] = lambda _: None
) -> VerifyReport:
    """Check every payload of the namespace, page by page; see `StateStore.verify`. `on_rows` is told of progress."""
    report = VerifyReport()
    for source in CHECKED_TABLES:
        async for rows in payload_rows(transactions, source, max_rows=_PAGE_ROWS, strays=True):
            blobs = await _blobs_of(transactions, rows)
            texts = (payload.text for row in rows for payload in row.payloads)
            length = transactions.payloads.length([*texts, *blobs.values()])
            await transactions.payloads.aside.call(partial(_check_rows, rows, blobs, report), length)
            on_rows(len(rows))
    async for children in pages(transactions, _children, attrgetter("id")):
        await _check_parents(transactions, [child.id for child in children], report)
    if load:
        async for active in pages(transactions, _active, attrgetter("id")):
            for workflow in active:
                failures = await failures_to_load(transactions, workflow)
                report.failed += bool(failures)
                report.loaded += not failures
                report.unloadable += failures[: _LISTED - len(report.unloadable)]
    return report


async def _children(uow: StoreUnit, after: UUID | None) -> Sequence[Named]:
    return await uow.inspection.list_children(after, _PAGE_ROWS)


async def _active(uow: StoreUnit, after: UUID | None) -> Sequence[Named]:
    return await uow.inspection.list_active(after, _PAGE_ROWS)


async def _blobs_of(transactions: Transactions, rows: Sequence[PayloadRow]) -> Blobs:
    """The blobs that `rows` refer to; None for one that is not there although a row still refers to it."""
    texts = [[payload.text for payload in row.payloads] for row in rows]
    payloads = await transactions.payloads_of(texts, for_many=True)
    offload = payloads.offload
    if offload is None:
        return {}
    found = Reference.all_in(texts)
    blobs = {reference.name: offload.text(reference.name) for reference in found}
    missing = [name for name, content in blobs.items() if content is None]
    if missing:
        owners = sorted({UUID(parsed.workflow_state_id) for name in missing if (parsed := BlobName.parse(name))})
        # A row that was written or deleted meanwhile took its blob with it.
        wanted = await transactions.read(lambda uow: uow.retention.list_blobs(owners))
        blobs = {name: content for name, content in blobs.items() if content is not None or name in wanted}
    return blobs


def _check_rows(rows: Sequence[PayloadRow], blobs: Blobs, report: VerifyReport) -> None:
    for row in rows:
        for payload in row.payloads:
            report.payloads += 1
            try:
                digest = digest_of(payload, blobs, outdated=row.outdated)
            except CorruptPayload as error:
                report.damaged += 1
                _list(damage_to(row, payload.column, str(error)), report)
                continue
            report.intact += digest is Digest.FITS
            report.undigested += digest is Digest.MISSING
            report.unverified += digest is Digest.LEFT
        for damage in damaged_cells_of(row):
            report.damaged_cells += 1
            _list(damage, report)


async def _check_parents(transactions: Transactions, ids: Sequence[UUID], report: VerifyReport) -> None:
    for found in await transactions.read(lambda uow: uow.inspection.list_descended_from_themselves(ids)):
        report.damaged_cells += 1
        damage = Damage(
            table=WorkflowRow.__tablename__,
            column=WorkflowRow.parent_id.key,
            workflow_state_id=str(found),
            reason="the run descends from itself: it is its own parent, or that of one of its ancestors",
        )
        _list(damage, report)


def _list(damage: Damage, report: VerifyReport) -> None:
    if len(report.damage) < _LISTED:
        report.damage.append(damage)
