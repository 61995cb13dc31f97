"""Take over the runs of a database of the original software, a Rust crate, into a store of ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final
from uuid import UUID

from orchestrator_state import schema
from orchestrator_state.database import Source
from orchestrator_state.errors import ConfigurationError, Conflict, PayloadError
from orchestrator_state.records.original import OriginalFlaw, RawRun, ReadRun, named, read_run
from orchestrator_state.records.states import check_state, payload_bytes, state_columns
from orchestrator_state.repositories.original import Page, count_runs, read_page, read_strays
from orchestrator_state.transactions import StoreUnit, Transactions

_RUNS_AT_ONCE: Final = 100
_LISTED: Final = 1000
_DIFFERS: Final = "is there already, and differs"


@dataclass(slots=True, kw_only=True)
class OriginalImport:
    """What `import_original` did, or with `dry_run` would do. The counts are of everything.

    Of each list the first 1,000 are kept.
    """

    imported: int = 0
    """Runs that were not there before."""
    steps: int = 0
    """Of those."""
    checkpoints: int = 0
    """Of those."""
    present: int = 0
    """Runs that were there already, and are the same."""
    conflicting: int = 0
    """Runs that were left because what is there under their id, or that of a checkpoint, is something else."""
    conflicts: list[OriginalFlaw] = field(default_factory=list)
    unreadable: int = 0
    """Rows that were left because they cannot be understood or stored; of a step, its whole run was."""
    flaws: list[OriginalFlaw] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether all that the source holds is in the store now."""
        return not self.conflicting and not self.unreadable

    def _note_flaw(self, flaw: OriginalFlaw) -> None:
        self.unreadable += 1
        if len(self.flaws) < _LISTED:
            self.flaws.append(flaw)

    def _note_conflict(self, flaw: OriginalFlaw) -> None:
        self.conflicting += 1
        if len(self.conflicts) < _LISTED:
            self.conflicts.append(flaw)

    def _note_taken(self, run: ReadRun, *, is_new: bool) -> None:
        if not is_new:
            self.present += 1
            return
        self.imported += 1
        self.steps += len(run.state.steps)
        self.checkpoints += len(run.checkpoints)


async def import_original(
    transactions: Transactions, database: str, *, dry_run: bool, progress: Callable[[int, int], object] | None
) -> OriginalImport:
    """See `StateStore.import_original`."""
    transactions.enter()
    report = OriginalImport()
    async with Source(transactions.settings.model_copy(update={"database_url": database})) as source:
        _require_original(await source.read(schema.state_of))
        total, done = await source.read(count_runs), 0
        take = _Checking(transactions, report) if dry_run else _Taking(transactions, report)
        after = None
        while True:
            page: Page = await source.read(read_page, after, _RUNS_AT_ONCE)
            await take.page(page.runs)
            done += len(page.runs)
            if progress is not None:
                progress(done, max(done, total))
            if (after := page.last) is None:
                break
        for flaw in await source.read(read_strays):
            report._note_flaw(flaw)  # noqa: SLF001
    return report


def _require_original(state: schema.SchemaState) -> None:
    if state.original:
        return
    if state.current is not None or state.foreign:
        raise ConfigurationError("the database to import is one of orchestrator_state's own: open it with a store")
    raise ConfigurationError("the database to import is not one of the original Rust crate: it lacks its three tables")


class _Taking:
    """Write runs into the store, in transactions of many; one by one where one of them is refused."""

    def __init__(self, transactions: Transactions, report: OriginalImport) -> None:
        self._transactions = transactions
        self._report = report

    async def page(self, raws: Sequence[RawRun]) -> None:
        length = self._transactions.payloads.length(text for raw in raws for text in _texts_of(raw))
        runs = []
        for run in await self._transactions.payloads.aside.call(lambda: [read_run(raw) for raw in raws], length):
            if isinstance(run, OriginalFlaw):
                self._report._note_flaw(run)  # noqa: SLF001
                continue
            for flaw in run.flaws:
                self._report._note_flaw(flaw)  # noqa: SLF001
            runs.append(run)
        await self._take(runs)

    async def _take(self, runs: Sequence[ReadRun]) -> None:
        try:
            are_new = await self._transactions.write(partial(_write, runs))
        except (PayloadError, Conflict) as error:
            if len(runs) > 1:
                for run in runs:
                    await self._take([run])
                return
            self._note_refused(runs[0], error)
            return
        for run, is_new in zip(runs, are_new, strict=True):
            self._note(run, is_new)

    def _note(self, run: ReadRun, is_new: bool | None) -> None:  # noqa: FBT001
        if is_new is None:
            self._report._note_conflict(_flaw_of(run.state.id, _DIFFERS))  # noqa: SLF001
        else:
            self._report._note_taken(run, is_new=is_new)  # noqa: SLF001

    def _note_refused(self, run: ReadRun, error: PayloadError | Conflict) -> None:
        note = self._report._note_conflict if isinstance(error, Conflict) else self._report._note_flaw  # noqa: SLF001
        note(_flaw_of(run.state.id, str(error)))


class _Checking(_Taking):
    """Find out what would become of the runs, and write nothing."""

    async def _take(self, runs: Sequence[ReadRun]) -> None:
        for run in runs:
            try:
                self._require_storable(run)
                is_new = await self._transactions.read(partial(_find, run))
            except (PayloadError, Conflict) as error:
                self._note_refused(run, error)
            else:
                self._note(run, is_new)

    def _require_storable(self, run: ReadRun) -> None:
        payloads = self._transactions.payloads
        check_state(run.state, self._transactions.schemas, payloads)
        columns, steps = state_columns(run.state, payloads)
        payloads.limits.check_workflow(payload_bytes(columns, steps), len(steps))


async def _write(runs: Sequence[ReadRun], uow: StoreUnit) -> list[bool | None]:
    """Of each: whether it is new; None if something else is there."""
    are_new = []
    for run in runs:
        is_new = await _find(run, uow)
        if is_new:
            await uow.workflows.save(run.state)
            for checkpoint in run.checkpoints:
                await uow.checkpoints.add(checkpoint)
        are_new.append(is_new)
    return are_new


async def _find(run: ReadRun, uow: StoreUnit) -> bool | None:
    found = await uow.workflows.find(run.state.id)
    if found is None:
        return True
    there = [(each.id, each.step_id, each.timestamp, each.snapshot) for each in await uow.checkpoints.list(found.id)]
    wanted = [(each.id, each.step_id, each.timestamp, each.snapshot) for each in reversed(run.checkpoints)]
    same = found.model_dump(exclude={"version"}) == run.state.model_dump(exclude={"version"}) and there == wanted
    return False if same else None


def _texts_of(raw: RawRun) -> list[str | None]:
    payloads = [raw.workflow["context"], *(row["outputs"] for row in raw.steps)]
    payloads += [row["snapshot"] for row in raw.checkpoints]
    return [text for text in payloads if isinstance(text, str)]


def _flaw_of(workflow_state_id: UUID, reason: str) -> OriginalFlaw:
    return OriginalFlaw("workflow_states", named(workflow_state_id), reason)
