"""Find damaged payloads without opening them, and what the application of tomorrow could not load."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final
from uuid import UUID

from orchestrator_state.errors import CorruptPayload, PayloadError, StoreUnavailable
from orchestrator_state.maintenance.pages import pages
from orchestrator_state.models import WorkflowRow
from orchestrator_state.payloads import BlobName, Reference, check_digest, decode_long, is_encoded, is_unicode
from orchestrator_state.records import FREE_TEXTS, Opener, OpenStep, RunNames, corrupt_cells, open_rows
from orchestrator_state.repositories.upkeep import (
    CHECKED_TABLES,
    InspectionRepository,
    Named,
    PayloadRow,
    StoredPayload,
)
from orchestrator_state.runs import RunTypes, as_of_today
from orchestrator_state.transactions import StoreUnit, Transactions

_PAGE_ROWS: Final = 500
_LISTED: Final = 1000
_OWN_ID: Final = {
    "workflow_states": "workflow_state_id",
    "checkpoints": "checkpoint_id",
    "signals": "signal_id",
    "requests": "request_id",
}
_ListNext = Callable[[InspectionRepository, UUID | None, int], Awaitable[Sequence[Named]]]
_Blobs = Mapping[str, str | None]
"""The content of blobs by name; None: it is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A payload that is not what was written, and where it stands."""

    table: str
    column: str
    workflow_state_id: str | None = None
    """None of a request, which is of no single workflow."""
    step_id: str | None = None
    checkpoint_id: str | None = None
    signal_id: str | None = None
    request_id: str | None = None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unloadable:
    """A live workflow, or its newest checkpoint, that the application cannot load. `error` is the error's class."""

    workflow_state_id: UUID
    workflow_id: str
    what: str
    error: str
    path: str | None
    message: str


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
        async for rows in pages(transactions, source, max_rows=_PAGE_ROWS, strays=True):
            blobs = await _blobs_of(transactions, rows)
            texts = (payload.text for row in rows for payload in row.payloads)
            length = transactions.payloads.length([*texts, *blobs.values()])
            await transactions.payloads.aside.call(partial(_check_rows, rows, blobs, report), length)
            on_rows(len(rows))
    async for children in _pages_of_workflows(transactions, InspectionRepository.list_children):
        await _check_parents(transactions, [child.id for child in children], report)
    if load:
        async for active in _pages_of_workflows(transactions, InspectionRepository.list_active):
            for workflow in active:
                await _load(transactions, workflow, report)
    return report


async def _blobs_of(transactions: Transactions, rows: Sequence[PayloadRow]) -> _Blobs:
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


def _check_rows(rows: Sequence[PayloadRow], blobs: _Blobs, report: VerifyReport) -> None:
    for row in rows:
        for payload in row.payloads:
            _check(row, payload, blobs, report)
        _check_cells(row, report)


def _check(row: PayloadRow, payload: StoredPayload, blobs: _Blobs, report: VerifyReport) -> None:
    report.payloads += 1
    try:
        intact = _is_intact(payload, outdated=row.outdated)
        _check_text(payload)
        _check_blob(payload, blobs)
    except CorruptPayload as error:
        report.damaged += 1
        _list(_damage(row, payload.column, str(error)), report)
        return
    if intact:
        report.intact += 1
    elif payload.digest is None:
        report.undigested += 1
    else:
        report.unverified += 1


def _check_cells(row: PayloadRow, report: VerifyReport) -> None:
    if row.is_orphan:
        report.damaged_cells += 1
        _list(_damage(row, "workflow_state_id", "the workflow that it belongs to is not there"), report)
    for column in row.damaged_cells:
        report.damaged_cells += 1
        _list(_damage(row, column, f"the stored {column} is no value of the column's type"), report)


def _list(damage: Damage, report: VerifyReport) -> None:
    if len(report.damage) < _LISTED:
        report.damage.append(damage)


def _is_intact(payload: StoredPayload, *, outdated: bool) -> bool:
    """False if older software wrote it, so that nobody can tell. Raises `CorruptPayload`."""
    column, text, digest, identity = payload
    if text is None and not outdated:
        raise CorruptPayload(f"the stored {column} is gone, but not its digest", path=column)
    if text is None or digest is None:
        return False
    try:
        check_digest(text, digest, identity, column)
    except CorruptPayload:
        if outdated and not is_encoded(text):  # older software writes plain texts only
            return False
        raise
    return True


def _check_blob(payload: StoredPayload, blobs: _Blobs) -> None:
    reference = None if payload.text is None else Reference.parse(payload.text)
    if reference is not None and reference.name in blobs:
        content = blobs[reference.name]
        if content is None:
            raise CorruptPayload(
                f"the blob of the stored {payload.column} is not there, or cannot be read", path=payload.column
            )
        check_digest(content, reference.digest, payload.identity, payload.column)


def _check_text(payload: StoredPayload) -> None:
    column, text, _, _ = payload
    if text is None:
        return
    if not is_unicode(text):
        raise CorruptPayload(f"the stored {column} is not valid UTF-8", path=column)
    if column not in FREE_TEXTS and not is_encoded(text):
        decode_long(text, column)


def _damage(row: PayloadRow, column: str, reason: str) -> Damage:
    ids = {name: str(value) for name, value in row.ids.items()}
    own_id = ids.pop("id", None)
    if own_id is not None:
        ids[_OWN_ID[row.source.name]] = own_id
    return Damage(table=row.source.name, column=column, reason=reason, **ids)


async def _check_parents(transactions: Transactions, ids: Sequence[UUID], report: VerifyReport) -> None:
    for found in await transactions.read(lambda uow: uow.inspection.list_descended_from_themselves(ids)):
        report.damaged_cells += 1
        _list(
            Damage(
                table=WorkflowRow.__tablename__,
                column=WorkflowRow.parent_id.key,
                workflow_state_id=str(found),
                reason="the run descends from itself: it is its own parent, or that of one of its ancestors",
            ),
            report,
        )


async def _pages_of_workflows(transactions: Transactions, list_next: _ListNext) -> AsyncIterator[Sequence[Named]]:
    after: UUID | None = None
    while True:

        async def read(uow: StoreUnit, after: UUID | None = after) -> Sequence[Named]:
            return await list_next(uow.inspection, after, _PAGE_ROWS)

        workflows = await transactions.read(read)
        if not workflows:
            return
        yield workflows
        after = workflows[-1].id


async def _load(transactions: Transactions, workflow: Named, report: VerifyReport) -> None:
    """Load a workflow and its newest checkpoint, as a run that is resumed would, and note what fails."""
    found: list[Unloadable] = []
    for what, load in (("workflow", _load_workflow), ("newest checkpoint", _load_checkpoint)):
        try:
            await transactions.read(partial(load, transactions, workflow.id))
        except (PayloadError, StoreUnavailable) as error:
            if not (isinstance(error, PayloadError) or error.one_blob):
                raise
            found.append(
                Unloadable(
                    workflow_state_id=workflow.id,
                    workflow_id=workflow.workflow_id,
                    what=what,
                    error=type(error).__name__,
                    path=getattr(error, "path", None),
                    message=str(error),
                )
            )
    report.failed += bool(found)
    report.loaded += not found
    report.unloadable += found[: _LISTED - len(report.unloadable)]


async def _load_workflow(transactions: Transactions, workflow_state_id: UUID, uow: StoreUnit) -> None:
    """Also as a resumed run does: its first context, and each one that a step left behind."""
    await uow.workflows.find(workflow_state_id)
    run = await uow.claims.find(RunNames(ids=[workflow_state_id]))
    if run is None:  # deleted in between
        return
    if run.damaged:
        raise corrupt_cells(run.damaged, run.id)
    stored = run.stored
    steps = (await uow.history.list_steps_of([run.id]))[run.id]
    payloads = await transactions.payloads_of([stored, *steps])
    opener = Opener.of(payloads, stored)
    opener.workflow("initial_context", stored.initial_context, stored.initial_context_digest)
    for step in steps:
        OpenStep.of(step, opener)
    recorded = open_rows(stored, steps, payloads)
    if recorded.is_sound:  # else its context is no object, so that it is no run
        history, _ = recorded.history()
        types = RunTypes.of(transactions.schemas, transactions.payloads, run.name)
        transactions.schemas.require_runnable(run.name, stored.schema_version, run.id)
        as_of_today(stored, types, (recorded.steps, history))


async def _load_checkpoint(_: Transactions, workflow_state_id: UUID, uow: StoreUnit) -> None:
    await uow.checkpoints.find_latest(workflow_state_id)
