"""Every payload of a namespace, page by page, each in a transaction of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from orchestrator_state.payloads import BlobName, Reference
from orchestrator_state.repositories.upkeep import (
    PAGE_BYTES,
    PAYLOAD_TABLES,
    Key,
    PayloadRow,
    PayloadTable,
    fitting,
)
from orchestrator_state.transactions import StoreUnit, Transactions

Progress = Callable[[int, int], object]

# Of a blob whose name does not tell, as those that older software made.
_UNKNOWN_BLOB: Final = PAGE_BYTES


async def row_counter(
    transactions: Transactions, progress: Progress | None, sources: Sequence[PayloadTable] = PAYLOAD_TABLES
) -> Callable[[int], None]:
    """How to tell `progress` of rows of `sources` as they come: how many so far, and of how many."""
    if progress is None:
        return lambda _: None

    async def count(uow: StoreUnit) -> int:
        return sum([await uow.payloads.count(source) for source in sources])

    total, done = await transactions.read(count), 0

    def on_rows(rows: int) -> None:
        nonlocal done
        done += rows
        progress(done, max(done, total))

    on_rows(0)
    return on_rows


async def pages(
    transactions: Transactions, source: PayloadTable, *, max_rows: int, strays: bool = False
) -> AsyncIterator[Sequence[PayloadRow]]:
    """All rows, in pages of at most `max_rows` and of about 2 MiB, blobs included, or of one row.

    `strays`: also those that belong to no namespace, as their own is damaged, or their workflow is gone.

    Each is read in a transaction of its own.
    """
    after: Key | None = None
    while True:

        async def read(uow: StoreUnit, after: Key | None = after) -> Sequence[PayloadRow]:
            return await uow.payloads.page(source, after, max_rows, strays=strays)

        rows = await transactions.read(read)
        if not rows:
            return
        after = rows[-1].key
        while rows:
            number = fitting([_bytes_in_blobs(row) for row in rows])
            yield rows[:number]
            rows = rows[number:]


def _bytes_in_blobs(row: PayloadRow) -> int:
    names = (BlobName.parse(found.name) for found in Reference.all_in([[payload.text for payload in row.payloads]]))
    return sum(_UNKNOWN_BLOB if name is None or name.length is None else name.length for name in names)
