"""Which namespaces of which databases an open store of this process encrypts.

For whoever is about to write plain text there: as long as there are no rows, nothing in the database tells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator_state.database.urls import path_of

if TYPE_CHECKING:
    from orchestrator_state.database.engine import Database

# Two servers may have a database of the same name and number: then more is refused than has to be.
_DATABASE: Final = text("SELECT datname || ' ' || oid FROM pg_database WHERE datname = current_database()")
_protected: Final = WeakKeyDictionary["Database", tuple[str | None, str]]()


async def note_protected(database: Database, connection: AsyncConnection, namespace: str) -> None:
    """Note, for as long as `database` is open, that it encrypts the payloads of `namespace`."""
    _protected[database] = (await _place(connection), namespace)


async def is_protected(connection: AsyncConnection, namespace: str) -> bool:
    """Whether an open store of this process encrypts that namespace of the database that `connection` leads to."""
    noted = [place for database, (place, name) in list(_protected.items()) if name == namespace and not database.closed]
    if not noted:
        return False
    place = await _place(connection)
    return place in noted or None in (place, *noted)


async def _place(connection: AsyncConnection) -> str | None:
    if connection.dialect.name == "sqlite":
        return path_of(connection.sync_engine)
    place: str = (await connection.execute(_DATABASE)).scalar_one()
    return place
