"""What outlives a killed process and does not pass through the store: a journal of calls, and a table of the user's."""

import os
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state import StateStore


class Journal:
    """One line for each call of a step's function, on disk before the function does anything."""

    def __init__(self, path: str | Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(self, line: str) -> None:
        os.write(self._file, f"{line}\n".encode())
        os.fsync(self._file)


def read_journal(path: str | Path) -> list[str]:
    path = Path(path)
    return path.read_text().splitlines() if path.exists() else []


async def create_ledger(store: StateStore) -> None:
    """A business table without any constraint that would hide a double."""
    async with store.begin() as uow:
        await uow.session.execute(text("CREATE TABLE IF NOT EXISTS ledger (workflow_id TEXT, entry TEXT)"))


async def book(session: AsyncSession, workflow_id: str, entry: str) -> str:
    """The business function of `run.transact`."""
    await session.execute(
        text("INSERT INTO ledger (workflow_id, entry) VALUES (:workflow_id, :entry)"),
        {"workflow_id": workflow_id, "entry": entry},
    )
    return entry


async def book_once(store: StateStore, workflow_id: str, key: str) -> str:
    """An outside service that takes an idempotency key."""
    async with store.begin() as uow:
        await uow.session.execute(
            text(
                "INSERT INTO ledger (workflow_id, entry) SELECT CAST(:workflow_id AS TEXT), CAST(:entry AS TEXT) "
                "WHERE NOT EXISTS (SELECT 1 FROM ledger WHERE workflow_id = :workflow_id AND entry = :entry)"
            ),
            {"workflow_id": workflow_id, "entry": key},
        )
    return key


async def entries(store: StateStore, workflow_id: str) -> list[str]:
    """The booked entries of one workflow, doubles included."""
    async with store.begin() as uow:
        rows = await uow.session.execute(
            text("SELECT entry FROM ledger WHERE workflow_id = :workflow_id"), {"workflow_id": workflow_id}
        )
        return sorted(rows.scalars())
