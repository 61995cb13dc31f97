"""Take the runs of an export into a store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Final, NamedTuple
from uuid import UUID

from orchestrator_state import schema
from orchestrator_state.errors import ConfigurationError, Conflict, PayloadError
from orchestrator_state.moving.files import Input, Place
from orchestrator_state.moving.lines import (
    LONGEST_HEADER,
    Assembly,
    MovedRun,
    Tally,
    Whole,
    read_header,
    read_line,
    require_whole,
)
from orchestrator_state.repositories.moving import MovedTable, Row, RunRows
from orchestrator_state.transactions import StoreUnit, Transactions

_ROWS_AT_ONCE: Final = 5000
_LISTED: Final = 1000
_DIFFERS: Final = "is there already, and differs"
_PART_TAKEN: Final = "a part of it is there already, of another run"
_KEY_TAKEN: Final = "another run has its idempotency key, or it is in another namespace"


@dataclass(slots=True, kw_only=True)
class ImportReport:
    """What `import_runs` did. Of the list the first 1,000 are kept."""

    imported: int = 0
    """Runs that were not there before."""
    present: int = 0
    """Runs that were there already, and are the same."""
    conflicting: int = 0
    """Runs that were left, because what is there under their id, or that of a part of them, is something else."""
    conflicts: list[MovedRun] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    """By table: of the whole export."""
    blobs: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether all that the export holds is in the store now."""
        return not self.conflicting

    def _left(self, workflow_state_id: UUID, reason: str) -> None:
        self.conflicting += 1
        if len(self.conflicts) < _LISTED:
            self.conflicts.append(MovedRun(workflow_state_id, reason))


async def import_runs(
    transactions: Transactions, place: Place, *, progress: Callable[[int, int], object] | None
) -> ImportReport:
    """See `StateStore.import_runs`."""
    transactions.enter()
    source = await asyncio.to_thread(Input, place)
    try:
        total = 0
        if source.can_be_read_twice:
            total = await asyncio.to_thread(_verified, source, transactions.settings.namespace)
            await asyncio.to_thread(source.begin)
        return await _Import(transactions, source, progress, total).done()
    finally:
        await asyncio.to_thread(source.close)


def _verified(source: Input, namespace: str) -> int:
    """How many bytes the export has. Raises before anything is written: see `read_header` and `require_whole`."""
    line, number, tally = source.header(LONGEST_HEADER), 1, Tally()
    read_header(line, schema=schema.head_revision(), namespace=namespace)
    tally.add(line)
    while lines := source.lines():
        for line in lines:
            number += 1
            tally.add(line)
            if tally.last is None:
                tally.count(line)
    require_whole(tally, number)
    return tally.bytes


class _Part(NamedTuple):
    """What some lines have brought: runs that are whole, and rows whose run is not in the export."""

    whole: Sequence[Whole]
    outliving: Sequence[tuple[MovedTable, Row]]


class _Import:
    def __init__(
        self,
        transactions: Transactions,
        source: Input,
        progress: Callable[[int, int], object] | None,
        total: int,
    ) -> None:
        self._transactions = transactions
        self._source = source
        self._progress = progress
        self._total = total
        self._tally = Tally()
        self._lines = 1
        self._report = ImportReport()
        self._assembly = Assembly(transactions.settings.namespace)

    async def done(self) -> ImportReport:
        line = await asyncio.to_thread(self._source.header, LONGEST_HEADER)
        read_header(line, schema=schema.head_revision(), namespace=self._transactions.settings.namespace)
        self._tally.add(line)
        # The next lines are read while the rows of these are written.
        reading = self._reading()
        try:
            while (part := await reading) is not None:
                reading = self._reading()
                await self._write(part.whole)
                await self._write_outliving(part.outliving)
                if self._progress:
                    self._progress(self._tally.bytes, max(self._tally.bytes, self._total))
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)  # what it has met beside an error of the writing
        # A stream that is cut off has no end: the run that it ends with may lack a part.
        require_whole(self._tally, self._lines)
        await self._write([*self._assembly.rest()])
        end = self._tally.end
        self._report.rows, self._report.blobs = {name: n for name, n in end.rows.items() if n}, end.blobs
        return self._report

    async def _write(self, runs: Sequence[Whole]) -> None:
        """In transactions of many; one by one where one of them is refused."""
        await self._put_blobs(runs)
        start = 0
        while start < len(runs):
            end, rows = start, 0
            while end < len(runs) and (end == start or rows < _ROWS_AT_ONCE):
                rows += sum(len(each) for each in runs[end].rows.rows.values())
                end += 1
            await self._insert([run.rows for run in runs[start:end]])
            start = end

    def _reading(self) -> asyncio.Task[_Part | None]:
        return asyncio.create_task(asyncio.to_thread(self._next), name="orchestrator_state reading of an export")

    def _next(self) -> _Part | None:
        """The runs that are whole with the next lines; None at the end."""
        whole: list[Whole] = []
        lines = self._source.lines()
        for line in lines:
            self._lines += 1
            self._tally.add(line)
            if self._tally.last is None:
                whole += self._assembly.add(read_line(line, self._lines, self._tally), self._lines)
        outliving, self._assembly.outliving = self._assembly.outliving, []
        return _Part(whole, outliving) if lines else None

    async def _write_outliving(self, rows: Sequence[tuple[MovedTable, Row]]) -> None:
        if rows:
            await self._transactions.write(partial(_insert_rows, rows))

    async def _put_blobs(self, runs: Sequence[Whole]) -> None:
        blobs = [blob for run in runs for blob in run.blobs]
        if not blobs:
            return
        store = self._transactions.payloads.blobs
        if store is None:
            raise ConfigurationError("the export has payloads of a blob store: open the store with `blobs`")
        for blob in blobs:
            await store.put(blob.name, blob.content)

    async def _insert(self, runs: Sequence[RunRows]) -> None:
        inserted: set[UUID] = set()  # also by a try whose answer was lost
        try:
            found = await self._transactions.write(partial(_insert, runs, inserted))
        except (Conflict, PayloadError) as error:
            if len(runs) > 1:
                for run in runs:
                    await self._insert([run])
            else:
                reason = _PART_TAKEN if isinstance(error, Conflict) else str(error)
                self._report._left(runs[0].id, reason)  # noqa: SLF001
            return
        there, damaged = found
        for run in runs:
            if run.id not in there:
                self._report._left(run.id, damaged.get(run.id, _KEY_TAKEN))  # noqa: SLF001
            elif not run.equals(there[run.id]):
                self._report._left(run.id, _DIFFERS)  # noqa: SLF001
            elif run.id in inserted:
                self._report.imported += 1
            else:
                self._report.present += 1


async def _insert(
    runs: Sequence[RunRows], inserted: set[UUID], uow: StoreUnit
) -> tuple[dict[UUID, RunRows], dict[UUID, str]]:
    """Those that are there now, by id; and of those that cannot be read, why.

    What was inserted is as it was read, and need not be looked at.
    """
    new = await uow.moving.insert(runs)
    inserted |= new
    others = [run.id for run in runs if run.id not in new]
    there, damaged = await uow.moving.get(others) if others else ([], [])
    found = {run.id: run for run in (*(run for run in runs if run.id in new), *there)}
    return found, {run.id: f"is there already: {run.reason}" for run in damaged}


async def _insert_rows(rows: Sequence[tuple[MovedTable, Row]], uow: StoreUnit) -> None:
    for moved, each in groupby(rows, key=itemgetter(0)):
        await uow.moving.insert_rows(moved, [row for _, row in each])
