"""Plain SQL on either database, past the package: what other software sees and does."""

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import Any

import asyncpg

from tests.support.postgres_server import run_in_own_loop

SQLITE = "sqlite:///"
Rows = list[tuple[Any, ...]]


def execute(url: str, *statements: str) -> None:
    """Run the statements in one transaction, with foreign keys enforced; literals mean the same on both."""
    if url.startswith(SQLITE):
        with closing(sqlite3.connect(url.removeprefix(SQLITE))) as connection:
            connection.execute("PRAGMA foreign_keys=ON")
            with connection:
                for statement in statements:
                    connection.execute(statement)
    else:
        run_in_own_loop(partial(_postgres, url, statements))


def fetch(url: str, query: str) -> Rows:
    """Return the rows of one query."""
    if url.startswith(SQLITE):
        with closing(sqlite3.connect(url.removeprefix(SQLITE))) as connection:
            return connection.execute(query).fetchall()
    return run_in_own_loop(partial(_postgres, url, [query]))


def tables(url: str) -> list[str]:
    """The names of the tables in the database (Postgres: in the schema `public`), sorted."""
    if url.startswith(SQLITE):
        names = fetch(url, "SELECT name FROM sqlite_master WHERE type = 'table'")
    else:
        names = fetch(url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    return sorted(name for (name,) in names)


def contents(url: str) -> dict[str, Rows]:
    """All that is in the database: the columns, indexes and constraints under "", and the rows by table."""
    if url.startswith(SQLITE):
        structure = fetch(url, "SELECT type, name, sql FROM sqlite_master ORDER BY type, name")
    else:
        structure = fetch(
            url,
            """
            SELECT table_name, column_name, data_type, is_nullable, column_default
            FROM information_schema.columns WHERE table_schema = 'public'
            UNION ALL
            SELECT tablename, indexname, indexdef, '', '' FROM pg_indexes WHERE schemaname = 'public'
            UNION ALL
            SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid), '', ''
            FROM pg_constraint WHERE connamespace = 'public'::regnamespace
            ORDER BY 1, 2, 3
            """,
        )
    return {"": structure} | {name: sorted(fetch(url, f'SELECT * FROM "{name}"'), key=repr) for name in tables(url)}


async def _postgres(url: str, statements: Sequence[str]) -> Rows:
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            results = [await connection.fetch(statement) for statement in statements]
    finally:
        await asyncio.shield(connection.close())
    return [tuple(row) for row in results[-1]]
