"""The forms in which ids, times and statuses of the original software may stand in a row.

It writes an id as hyphenated text and a time as RFC 3339 with up to nine digits of a second. SQLite keeps anything in
any column, so what other versions and other software wrote there is read as well: sqlx's own form of an id is a blob,
and the text of a Rust time is `2026-11-22 21:37:53.123456789 UTC`.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final, TypeVar
from uuid import UUID

from orchestrator_state.damaged import DAMAGED_TIME
from orchestrator_state.domain import StepStatus, WorkflowStatus

_Status = TypeVar("_Status", WorkflowStatus, StepStatus)

_PLAIN_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_HYPHENATED: Final = re.compile(_PLAIN_ID.pattern, re.IGNORECASE)
_SIMPLE: Final = re.compile(r"[0-9a-f]{32}", re.IGNORECASE)
_ID_BYTES: Final = 16
_PLAIN_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?\+00:00")
_TIME: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?"
    r" ?(?:[Zz]|UTC|([+-])([0-9]{2}):?([0-9]{2})?)?"
)
_MINUTES: Final = 60


class Unreadable(ValueError):
    """A cell that is in none of the forms. Its message says what it should have been, and not what it holds."""


def as_id(value: Any) -> UUID:
    """An id: hyphenated, simple, in braces or as a URN, in any case; or a blob of 16 bytes. Raises `Unreadable`."""
    if isinstance(value, UUID):
        return value
    if isinstance(value, bytes) and len(value) == _ID_BYTES:
        return UUID(bytes=value)
    if isinstance(value, str):
        text = value.strip("{}") if value.startswith("{") and value.endswith("}") else value
        text = text[9:] if text.lower().startswith("urn:uuid:") else text
        if _HYPHENATED.fullmatch(text) or _SIMPLE.fullmatch(text):
            return UUID(text)
    raise Unreadable("is no UUID")


def is_plain_id(value: Any) -> bool:
    """Whether it stands there as ours do."""
    return isinstance(value, UUID) or (isinstance(value, str) and _PLAIN_ID.fullmatch(value) is not None)


def id_form(value: Any) -> str:
    """What an id looks like, for people."""
    if is_plain_id(value):
        return "hyphenated"
    try:
        as_id(value)
    except Unreadable:
        return "unreadable"
    return "blob" if isinstance(value, bytes) else "other text"


def spellings(of: UUID) -> list[Any]:
    """The forms in which SQLite's rows may refer to one id."""
    return [str(of), str(of).upper(), of.hex, of.hex.upper(), of.bytes]


def as_time(value: Any) -> datetime:
    """A moment in UTC; of a finer fraction of the second the first six digits. Without an offset it is UTC.

    Raises `Unreadable`.
    """
    if isinstance(value, datetime) and value != DAMAGED_TIME:
        return value
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise Unreadable("is no time")
    date, clock, fraction, sign, hours, minutes = match.groups()
    try:
        offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
        zone = UTC if not offset else timezone(-offset if sign == "-" else offset)
        if int(minutes or 0) >= _MINUTES:
            raise Unreadable("is no time")
        local = datetime.fromisoformat(f"{date}T{clock}.{(fraction or '')[:6]:0<6}")
        return local.replace(tzinfo=zone).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Unreadable("is no time") from None


def is_plain_time(value: Any) -> bool:
    """Whether our queries compare it rightly where it stands: RFC 3339 in UTC, spelled `+00:00`."""
    return isinstance(value, datetime) or (isinstance(value, str) and _PLAIN_TIME.fullmatch(value) is not None)


def time_form(value: Any) -> str:
    """What a time looks like, for people."""
    try:
        as_time(value)
    except Unreadable:
        return "unreadable"
    if is_plain_time(value):
        return "RFC 3339 in UTC"
    return "… UTC" if value.endswith("UTC") else "other text"


def as_status(value: Any, statuses: type[_Status]) -> _Status:
    """A status in any case, as the original software reads it. Raises `Unreadable`."""
    try:
        return statuses(value.lower())
    except (AttributeError, ValueError):
        raise Unreadable(f"is none of {', '.join(statuses)}") from None
