"""Column types that mean the same on both databases.

SQLite has no UUID and no timestamp type. Both are stored there as text in the form that the original
schema's users know from their own SQL: `6f1e…-…` with hyphens, `2026-01-31T09:30:00.000000+00:00` in UTC,
fixed width, so that text order is time order.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import ColumnElement, DateTime, Dialect, LargeBinary, Text, Uuid, cast, type_coerce
from sqlalchemy.types import UserDefinedType

_to_text = lru_cache(maxsize=4096)(str)
_to_uuid = lru_cache(maxsize=1024)(UUID)  # the id of a workflow stands in the row of each of its steps


class SqliteUuid(UserDefinedType[UUID]):
    """UUID <-> hyphenated lower-case text."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "CHAR(36)"

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        return lambda value: None if value is None else _to_text(value)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        return lambda value: None if value is None else _to_uuid(value)


class SqliteTimestamp(UserDefinedType[datetime]):
    """Aware datetime <-> ISO 8601 text in UTC with microseconds. Text without an offset is read as UTC."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "TIMESTAMP"

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        return lambda value: None if value is None else _utc_text(value)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        def from_text(text: str | None) -> datetime | None:
            if text is None:
                return None
            value = datetime.fromisoformat(text)
            return value if value.tzinfo is UTC else _as_utc(value)

        return from_text


@lru_cache(maxsize=1024)  # a commit writes one moment into several rows
def _utc_text(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="microseconds")


def _as_utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class SqliteStoredText(UserDefinedType[str]):
    """A text that is read also if it is no valid UTF-8, its wrong bytes as lone surrogates.

    The driver refuses to fetch such a row, and the rest of the page with it.
    """

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "TEXT"

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        return type_coerce(cast(column, LargeBinary), self)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        return lambda value: None if value is None else value.decode(errors="surrogateescape")


Identifier = Uuid(as_uuid=True).with_variant(SqliteUuid(), "sqlite")
UtcTimestamp = DateTime(timezone=True).with_variant(SqliteTimestamp(), "sqlite")

# For reading what is stored whatever it looks like: damage must not stop the search for damage.
StoredText = Text().with_variant(SqliteStoredText(), "sqlite")
StoredIdentifier = Uuid(as_uuid=True).with_variant(Text(), "sqlite")


def render_item(kind: str, item: object, autogen_context: Any) -> str | Literal[False]:
    """Alembic's `render_item`, for the `env.py` of an application: its revisions name these types and import them."""
    for name, known in (("Identifier", Identifier), ("UtcTimestamp", UtcTimestamp)):
        if kind == "type" and item is known:
            autogen_context.imports.add("from orchestrator_state import column_types")
            return f"column_types.{name}"
    return False
