"""Column types that mean the same on both databases.

SQLite has no UUID and no timestamp type. Both are stored there as text in the form that the original
schema's users know from their own SQL: `6f1e…-…` with hyphens, `2026-01-31T09:30:00.000000+00:00` in UTC,
fixed width, so that text order is time order.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, Literal
from uuid import UUID

from sqlalchemy import (
    BindParameter,
    Column,
    ColumnElement,
    DateTime,
    Dialect,
    LargeBinary,
    Text,
    Uuid,
    and_,
    case,
    cast,
    func,
    literal_column,
    or_,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeDecorator, UserDefinedType

from orchestrator_state.damaged import DAMAGED_ID, DAMAGED_TIME

__all__ = [
    "Attributes",
    "Identifier",
    "UtcTimestamp",
    "render_item",
]

_POSTGRES_DAMAGED_TIME: Final[ColumnElement[Any]] = literal_column("TIMESTAMPTZ '0001-01-02 03:04:05.678901+00'")
POSTGRES_FIRST: Final[ColumnElement[Any]] = literal_column("TIMESTAMPTZ '0001-01-01 00:00:00+00'")
POSTGRES_END: Final[ColumnElement[Any]] = literal_column("TIMESTAMPTZ '10000-01-01 00:00:00+00'")

_to_uuid = lru_cache(maxsize=1024)(UUID)  # the id of a workflow stands in the row of each of its steps


class SqliteUuid(UserDefinedType[UUID]):
    """UUID <-> hyphenated lower-case text."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "CHAR(36)"

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        return _uuid_text

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        def from_text(text: Any) -> UUID | None:
            if text is None:
                return None
            try:
                return _to_uuid(text)
            except (ValueError, TypeError, AttributeError):  # SQLite keeps anything in any column
                return DAMAGED_ID

        return from_text


class SqliteTimestamp(UserDefinedType[datetime]):
    """Aware datetime <-> ISO 8601 text in UTC with microseconds. Text without an offset is read as UTC."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "TIMESTAMP"

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        return _utc_text

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        def from_text(text: Any) -> datetime | None:
            if text is None:
                return None
            try:
                value = datetime.fromisoformat(text)
                return value if value.tzinfo is UTC else _as_utc(value)
            except (ValueError, TypeError, OverflowError):
                return DAMAGED_TIME

        return from_text


class PostgresTimestamp(TypeDecorator[datetime]):
    """Postgres keeps years that Python has not, and the driver fails on them; infinity it returns without a zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        if not isinstance(column, Column):  # what is computed in a statement
            return column
        within = and_(column >= POSTGRES_FIRST, column < POSTGRES_END)
        return type_coerce(case((or_(column.is_(None), within), column), else_=_POSTGRES_DAMAGED_TIME), self)


@lru_cache(maxsize=4096)  # the id of a workflow is written into many rows
def _uuid_text(value: UUID | None) -> str | None:
    return None if value is None else str(value)


@lru_cache(maxsize=1024)  # a commit writes one moment into several rows
def _utc_text(value: datetime | None) -> str | None:
    return None if value is None else value.astimezone(UTC).isoformat(timespec="microseconds")


def _as_utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class SqliteAttributes(UserDefinedType[dict[str, Any]]):
    """A small JSON object as text. Text that is no JSON comes back as it is: damage, and no `dict`."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "TEXT"

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        return lambda value: None if value is None else json.dumps(value, ensure_ascii=False)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        def from_text(text: Any) -> Any:
            if text is None:
                return None
            try:
                return json.loads(text)
            except (ValueError, TypeError, RecursionError):
                return text

        return from_text


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


class SqliteStoredKey(UserDefinedType[Any]):
    """A key to go on from, as it was read, to be compared with its column: a text, perhaps no valid UTF-8, or a blob.

    The driver binds no such text, and a blob is no text to SQLite: both are bound as bytes, the first of which tells.
    """

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "BLOB"

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        return _with_its_kind

    def bind_expression(self, bindvalue: BindParameter[Any]) -> ColumnElement[Any]:
        content = func.substr(bindvalue, 2, type_=LargeBinary)
        is_text = func.substr(bindvalue, 1, 1, type_=LargeBinary) == literal_column("x'74'")
        return case((is_text, cast(content, Text)), else_=content)


def _with_its_kind(key: Any) -> bytes:
    if isinstance(key, bytes):
        return b"b" + key
    # NULL sorts before the empty text, with nothing in between.
    return b"t" + ("" if key is None else str(key)).encode(errors="surrogateescape")


Identifier = Uuid(as_uuid=True).with_variant(SqliteUuid(), "sqlite")
"""The type of our ids: UUID on Postgres, hyphenated text on SQLite."""
UtcTimestamp = PostgresTimestamp().with_variant(SqliteTimestamp(), "sqlite")
"""The type of our times: `timestamptz` on Postgres, ISO text in UTC on SQLite; aware datetimes in Python."""
Attributes = JSONB(none_as_null=True).with_variant(SqliteAttributes(), "sqlite")
"""The type of `attributes`: JSONB on Postgres, text on SQLite; a dict in Python."""

# For reading what is stored whatever it looks like: damage must not stop the search for damage.
StoredText = Text().with_variant(SqliteStoredText(), "sqlite")
StoredIdentifier = Uuid(as_uuid=True).with_variant(Text(), "sqlite")
StoredIdentifierKey = Uuid(as_uuid=True).with_variant(SqliteStoredKey(), "sqlite")
StoredTextKey = Text().with_variant(SqliteStoredKey(), "sqlite")

_NAMES: Final = {id(Identifier): "Identifier", id(Attributes): "Attributes"}


def render_item(kind: str, item: object, autogen_context: Any) -> str | Literal[False]:
    """Alembic's `render_item`, for the `env.py` of an application: its revisions name these types and import them."""
    # A copy of a column, as autogenerate makes one, copies a type decorator.
    name = "UtcTimestamp" if isinstance(item, PostgresTimestamp) else _NAMES.get(id(item))
    if kind != "type" or name is None:
        return False
    autogen_context.imports.add("from orchestrator_state import column_types")
    return f"column_types.{name}"
