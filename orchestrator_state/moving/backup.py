"""Copy the file of a SQLite database, while it is used."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

from orchestrator_state.concurrency import uninterrupted
from orchestrator_state.errors import AlreadyExists, ConfigurationError
from orchestrator_state.transactions import Transactions

_UNFINISHED: Final = ".unfinished"


async def back_up(transactions: Transactions, target: str | os.PathLike[str], *, overwrite: bool) -> int:
    """See `StateStore.backup`."""
    transactions.enter()
    return await uninterrupted(_copied(transactions, Path(os.fspath(target)), overwrite=overwrite))


async def _copied(transactions: Transactions, path: Path, *, overwrite: bool) -> int:
    unfinished = path.with_name(path.name + _UNFINISHED)
    await asyncio.to_thread(_prepare, path, unfinished, overwrite=overwrite)
    try:
        await transactions.database.copy_to(unfinished)
        return await asyncio.to_thread(_finish, path, unfinished)
    finally:
        unfinished.unlink(missing_ok=True)


def _prepare(path: Path, unfinished: Path, *, overwrite: bool) -> None:
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigurationError("the backup must be a file, in a directory that is there")
    if path.exists() and not overwrite:
        raise AlreadyExists(f"there is a file at {str(path)!r}: name another one, or overwrite it")
    # For its owner alone, whatever the process's umask, and empty if one was left here before.
    os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))


def _finish(path: Path, unfinished: Path) -> int:
    _sync(unfinished)
    unfinished.replace(path)
    _sync(path.parent)
    return path.stat().st_size


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
