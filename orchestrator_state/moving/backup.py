"""Copy the file of a SQLite database, while it is used."""

from __future__ import annotations

import asyncio
import os

from orchestrator_state.concurrency import uninterrupted
from orchestrator_state.moving.files import NewFile
from orchestrator_state.transactions import Transactions


async def back_up(transactions: Transactions, target: str | os.PathLike[str], *, overwrite: bool) -> int:
    """See `StateStore.backup`."""
    transactions.enter()
    return await uninterrupted(_copied(transactions, target, overwrite=overwrite))


async def _copied(transactions: Transactions, target: str | os.PathLike[str], *, overwrite: bool) -> int:
    new = NewFile(target, overwrite=overwrite, taken=transactions.database.file)
    try:
        await transactions.database.copy_to(new.path)
        await asyncio.to_thread(new.finish)
    except BaseException:
        new.give_up()
        raise
    return await asyncio.to_thread(lambda: new.target.stat().st_size)
