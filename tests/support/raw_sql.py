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
        run_in_own_loop(partial(_on_postgres, url, statements))


def fetch(url: str, query: str) -> Rows:
    """Return the rows of one query."""
    return _fetch_all(url, [query])[0]


def _fetch_all(url: str, queries: Sequence[str]) -> list[Rows]:
    """The rows of each query, on one connection: one of Postgres's takes longer than all of them."""
    if url.startswith(SQLITE):
        with closing(sqlite3.connect(url.removeprefix(SQLITE))) as connection:
            return [connection.execute(query).fetchall() for query in queries]
    return run_in_own_loop(partial(_on_postgres, url, queries))


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
        structure = "SELECT type, name, sql FROM sqlite_master ORDER BY type, name"
    else:
        structure = """
            SELECT table_name, column_name, data_type, is_nullable, column_default
            FROM information_schema.columns WHERE table_schema = 'public'
            UNION ALL
            SELECT tablename, indexname, indexdef, '', '' FROM pg_indexes WHERE schemaname = 'public'
            UNION ALL
            SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid), '', ''
            FROM pg_constraint WHERE connamespace = 'public'::regnamespace
            ORDER BY 1, 2, 3
            """
    names = tables(url)
    found, *rows = _fetch_all(url, [structure, *(f'SELECT * FROM "{name}"' for name in names)])
    return {"": found} | {name: sorted(of, key=repr) for name, of in zip(names, rows, strict=True)}


async def _on_postgres(url: str, statements: Sequence[str]) -> list[Rows]:
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            results = [await connection.fetch(statement) for statement in statements]
    finally:
        await asyncio.shield(connection.close())
    return [[tuple(row) for row in rows] for rows in results]
