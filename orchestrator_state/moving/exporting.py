"""Write the runs of a namespace to a file, page by page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Final
from uuid import UUID

from orchestrator_state import schema
from orchestrator_state.database import Idling
from orchestrator_state.domain import utc_now
from orchestrator_state.errors import ConfigurationError
from orchestrator_state.moving.files import Output, Place
from orchestrator_state.moving.lines import (
    FORMAT,
    VERSION,
    Blob,
    Header,
    MovedRun,
    Tally,
    end_line,
    header_line,
    row_lines,
    run_lines,
)
from orchestrator_state.payloads import Reference
from orchestrator_state.repositories.moving import TABLES, LeftRun, MovedTable, Row, RunRows, RunSize
from orchestrator_state.repositories.upkeep import fitting
from orchestrator_state.transactions import StoreUnit, Transactions

_RUNS_AT_ONCE: Final = 500
_BYTES_AT_ONCE: Final = 8 * 1024 * 1024
_ROWS_AT_ONCE: Final = 1000
_LISTED: Final = 1000


@dataclass(slots=True, kw_only=True)
class ExportReport:
    """What `export_runs` has written. Of the lists the first 1,000 are kept."""

    runs: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    """By table."""
    blobs: int = 0
    sha256: str = ""
    """Of all that was written, uncompressed, but the last line, which says it too."""
    left: int = 0
    """Runs that are not in the export: they have cells that hold no value of their type, or even an id that is none."""
    runs_left: list[MovedRun] = field(default_factory=list)
    lost_blobs: list[str] = field(default_factory=list)
    """Payloads that are in the export as references alone: their blobs are gone from the blob store."""

    @property
    def is_complete(self) -> bool:
        """Whether all runs of the namespace are in it, with all their payloads."""
        return not self.left and not self.lost_blobs


async def export_runs(
    transactions: Transactions, place: Place, *, overwrite: bool, progress: Callable[[int, int], object] | None
) -> ExportReport:
    """See `StateStore.export_runs`."""
    transactions.enter()
    output = Output(place, overwrite=overwrite, taken=transactions.database.file)
    try:
        report = await _Export(transactions, output, progress).written()
        await asyncio.to_thread(output.finish)
    except BaseException:
        output.give_up()
        raise
    return report


class _Export:
    def __init__(
        self, transactions: Transactions, output: Output, progress: Callable[[int, int], object] | None
    ) -> None:
        self._transactions = transactions
        self._output = output
        self._progress = progress
        self._tally = Tally()
        self._report = ExportReport()

    async def written(self) -> ExportReport:
        header = Header(
            format=FORMAT,
            version=VERSION,
            schema=schema.head_revision(),
            namespace=self._transactions.settings.namespace,
            package=version("orchestrator-state"),
            exported_at=utc_now(),
        )
        await self._write(header_line(header, self._tally))
        await self._runs()
        await self._rows_without_a_run()
        await self._write(end_line(self._tally))
        end = self._tally.end
        self._report.runs, self._report.rows = end.runs, {name: count for name, count in end.rows.items() if count}
        self._report.blobs, self._report.sha256 = end.blobs, end.sha256
        return self._report

    async def _runs(self) -> None:
        total = await self._transactions.read(lambda uow: uow.moving.count()) if self._progress else 0
        done, after = 0, None
        while sizes := await self._transactions.read(partial(_sizes, after=after)):
            while sizes:
                number = fitting([size.bytes for size in sizes], _BYTES_AT_ONCE)
                ids = [size.id for size in sizes[:number]]
                await self._page(*await self._transactions.write(partial(self._read, ids), idles=Idling.WITH_ROOM))
                sizes, after, done = sizes[number:], ids[-1], done + number
                if self._progress:
                    self._progress(done, max(done, total))
        self._report.left += await self._transactions.read(lambda uow: uow.moving.count_unaddressable())

    async def _read(self, ids: Sequence[UUID], uow: StoreUnit) -> tuple[list[RunRows], list[LeftRun]]:
        await self._transactions.database.hold_snapshot(uow.session)
        return await uow.moving.get(ids)

    async def _page(self, runs: Sequence[RunRows], left: Sequence[LeftRun]) -> None:
        for run in left:
            self._report.left += 1
            if len(self._report.runs_left) < _LISTED:
                self._report.runs_left.append(MovedRun(run.id, run.reason))
        found = [(run, await self._blobs(run)) for run in runs]
        await asyncio.to_thread(self._write_runs, found)

    def _write_runs(self, runs: Sequence[tuple[RunRows, Sequence[Blob]]]) -> None:
        for run, blobs in runs:
            self._output.write(run_lines(run, blobs, self._tally))

    async def _blobs(self, run: RunRows) -> Sequence[Blob]:
        references = Reference.all_in(row.values() for rows in run.rows.values() for row in rows)
        if not references:
            return ()
        store = self._transactions.payloads.blobs
        if store is None:
            raise ConfigurationError("some payloads are in a blob store: open the store with `blobs`, to export them")
        found = []
        for name in dict.fromkeys(reference.name for reference in references):
            content = await store.get(name)
            if content is not None:
                found.append(Blob(name, content))
            elif len(self._report.lost_blobs) < _LISTED:
                self._report.lost_blobs.append(name)
        return found

    async def _rows_without_a_run(self) -> None:
        for moved in TABLES.values():
            after = None
            while moved.outlives_run:
                rows = await self._transactions.read(partial(_outliving, moved, after))
                if not rows:
                    break
                await self._write(row_lines(moved, rows, self._tally))
                after = rows[-1]["id"]

    async def _write(self, content: bytes) -> None:
        await asyncio.to_thread(self._output.write, content)


async def _outliving(moved: MovedTable, after: UUID | None, uow: StoreUnit) -> Sequence[Row]:
    return await uow.moving.list_outliving(moved, after, _ROWS_AT_ONCE)


async def _sizes(uow: StoreUnit, after: UUID | None) -> Sequence[RunSize]:
    return await uow.moving.list_sizes(after, _RUNS_AT_ONCE)
