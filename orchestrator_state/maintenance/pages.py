"""Read a namespace page by page. A page is what one transaction reads: rows in the order of their keys."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from operator import attrgetter
from typing import Final, TypeVar

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

_Row = TypeVar("_Row")
_Key = TypeVar("_Key")
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
    transactions: Transactions,
    read: Callable[[StoreUnit, _Key | None], Awaitable[Sequence[_Row]]],
    key: Callable[[_Row], _Key],
) -> AsyncIterator[Sequence[_Row]]:
    """What `read` returns, until that is nothing: it is asked for the rows after the `key` of the last one."""
    after: _Key | None = None
    while True:

        async def read_next(uow: StoreUnit, after: _Key | None = after) -> Sequence[_Row]:
            return await read(uow, after)

        page = await transactions.read(read_next)
        if not page:
            return
        yield page
        after = key(page[-1])


async def payload_rows(
    transactions: Transactions, source: PayloadTable, *, max_rows: int, strays: bool = False
) -> AsyncIterator[Sequence[PayloadRow]]:
    """All rows of a table, some at a time: at most `max_rows` and about 2 MiB, blobs included, or one row.

    `strays`: also those that belong to no namespace, as their own is damaged, or their workflow is gone.
    """

    async def read(uow: StoreUnit, after: Key | None) -> Sequence[PayloadRow]:
        return await uow.payloads.page(source, after, max_rows, strays=strays)

    async for page in pages(transactions, read, attrgetter("key")):
        left = page
        while left:
            number = fitting([_bytes_in_blobs(row) for row in left])
            yield left[:number]
            left = left[number:]


def _bytes_in_blobs(row: PayloadRow) -> int:
    names = (BlobName.parse(found.name) for found in Reference.all_in([[payload.text for payload in row.payloads]]))
    return sum(_UNKNOWN_BLOB if name is None or name.length is None else name.length for name in names)
