"""How many bytes a database takes once its housekeeping is done."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.raw import RawDriver


@dataclass(frozen=True)
class Footprint:
    megabytes: float
    """The file, or all tables with their indexes and TOAST."""
    payload_megabytes: float
    """The texts and bytes in all columns, before Postgres compresses any."""


async def footprint(raw: RawDriver, url: str) -> Footprint:
    return await (_on_postgres(raw) if url.startswith("postgresql:") else _on_sqlite(raw))


async def _on_postgres(raw: RawDriver) -> Footprint:
    """After a plain VACUUM, as autovacuum does it: the space is free, but stays the table's."""
    await raw.fetch("VACUUM")
    tables = await raw.fetch(
        "SELECT oid::regclass::text, pg_total_relation_size(oid) FROM pg_class"
        " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    )
    columns = await raw.fetch(
        "SELECT attrelid::regclass::text, quote_ident(attname) || CASE WHEN atttypid IN ('jsonb'::regtype,"
        " 'json'::regtype) THEN '::text' ELSE '' END FROM pg_attribute JOIN pg_class ON oid = attrelid"
        " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND attnum > 0 AND NOT attisdropped"
        " AND atttypid IN ('text'::regtype, 'bytea'::regtype, 'jsonb'::regtype, 'json'::regtype)"
    )
    lengths = [f"(SELECT coalesce(sum(octet_length({name})), 0) FROM {table})" for table, name in columns]
    [(payloads,)] = await raw.fetch(f"SELECT {' + '.join(lengths)}")
    return Footprint(sum(size for _, size in tables) / 1e6, int(payloads) / 1e6)


async def _on_sqlite(raw: RawDriver) -> Footprint:
    await raw.fetch("VACUUM")
    await raw.fetch("PRAGMA wal_checkpoint(TRUNCATE)")
    columns = await raw.fetch(
        "SELECT m.name, c.name FROM sqlite_master AS m, pragma_table_info(m.name) AS c"
        " WHERE m.type = 'table' AND upper(c.type) IN ('TEXT', 'BLOB')"
    )
    lengths = [f'(SELECT coalesce(sum(length(CAST("{name}" AS BLOB))), 0) FROM "{table}")' for table, name in columns]
    [(payloads,)] = await raw.fetch(f"SELECT {' + '.join(lengths)}")
    [(pages,)], [(page_size,)] = await raw.fetch("PRAGMA page_count"), await raw.fetch("PRAGMA page_size")
    return Footprint(pages * page_size / 1e6, int(payloads) / 1e6)
