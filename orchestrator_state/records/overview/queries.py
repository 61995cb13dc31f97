"""What runs are asked for, checked before any SQL, and where the next page of them begins."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Final, TypedDict, TypeVar
from uuid import UUID

from orchestrator_state.arguments import as_duration, as_name, as_utc, as_uuid
from orchestrator_state.domain import WorkflowStatus
from orchestrator_state.errors import InvalidPayload
from orchestrator_state.payloads import text_of
from orchestrator_state.records.overview.attributes import Attribute, as_attributes
from orchestrator_state.records.overview.conditions import RunCondition

MOST_AT_ONCE: Final = 500
STUCK_FOR: Final = timedelta(minutes=10)
_LONGEST_TEXT: Final = 1000

_Choice = TypeVar("_Choice", WorkflowStatus, RunCondition)
Range = tuple[datetime | None, datetime | None]
"""From the first moment on, and before the second one. None is no limit."""


class RunFilters(TypedDict, total=False):
    """The filters of `store.list_runs`. A run that is listed passes all that are given."""

    status: WorkflowStatus | str | Collection[WorkflowStatus | str] | None
    """One of these."""
    condition: RunCondition | str | Collection[RunCondition | str] | None
    """One of these."""
    name: str | None
    workflow_id: str | None
    user_id: str | None
    parent: UUID | str | None
    """The child runs of this run."""
    started: Range | None
    updated: Range | None
    finished: Range | None
    attributes: Mapping[str, Attribute] | None
    """All of these, with these values."""
    error_contains: str | None
    """This stands in the recorded error, in capital or small letters (A to Z), where that is neither encrypted nor
    compressed nor in a blob store."""
    stuck_for: timedelta | float | None
    """For how long no step of a run has ended that counts as stuck: a duration, or seconds; ten minutes by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunQuery:
    """The filters, checked. None is anything."""

    statuses: frozenset[WorkflowStatus] | None
    conditions: frozenset[RunCondition] | None
    name: str | None
    workflow_id: str | None
    user_id: str | None
    parent: UUID | None
    ranges: Mapping[str, Range]
    """By column."""
    attributes: Mapping[str, Attribute]
    error_contains: str | None
    stuck_for: timedelta

    @classmethod
    def of(cls, filters: RunFilters) -> RunQuery:
        """Raises `InvalidPayload`, whose `path` names the filter."""
        unknown = set(filters) - RunFilters.__annotations__.keys()
        if unknown:
            raise TypeError(f"list_runs() got an unexpected keyword argument {min(unknown)!r}")
        given: dict[str, Any] = {name: value for name, value in filters.items() if value is not None}
        columns = {"started": "started_at", "updated": "updated_at", "finished": "completed_at"}
        parent = given.get("parent")
        return cls(
            statuses=_choices(WorkflowStatus, given.get("status"), "status"),
            conditions=_choices(RunCondition, given.get("condition"), "condition"),
            parent=None if parent is None else as_uuid(parent, "parent"),
            ranges={column: _range(given[name], name) for name, column in columns.items() if name in given},
            attributes=as_attributes(given.get("attributes", {}), "attributes"),
            stuck_for=as_duration(given.get("stuck_for", STUCK_FOR), "stuck_for"),
            error_contains=_part(given.get("error_contains")),
            **{name: _name(given.get(name), name) for name in ("name", "workflow_id", "user_id")},
        )

    def fingerprint(self, namespace: str) -> str:
        """The same for equal queries alone."""
        said = {
            "namespace": namespace,
            "statuses": self.statuses and sorted(self.statuses),
            "conditions": self.conditions and sorted(self.conditions),
            "names": [self.name, self.workflow_id, self.user_id, self.parent and str(self.parent)],
            "ranges": {name: [end and end.isoformat() for end in ends] for name, ends in self.ranges.items()},
            "attributes": self.attributes,
            "error_contains": self.error_contains,
            "stuck_for": self.stuck_for.total_seconds(),
        }
        return sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def as_limit(value: object, path: str = "limit") -> int:
    """Return how many of a list are wanted: 1 to 500. Raises `InvalidPayload`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_AT_ONCE:
        raise InvalidPayload(f"{path} must be a whole number from 1 to {MOST_AT_ONCE}", path=path)
    return int.__int__(value)


# --- cursors -----------------------------------------------------------------------------------------------------


def cursor_after(place: tuple[Any, ...], fingerprint: str) -> str:
    """What `place_after` takes: for whoever turns the page, and of no meaning to them."""
    cells = [{"bytes": cell.hex()} if isinstance(cell, bytes) else str(cell) for cell in place]
    body = json.dumps(cells, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_check(body, fingerprint) + body).decode()


def place_after(cursor: object, fingerprint: str, path: str = "cursor") -> tuple[Any, ...]:
    """The cells of the last row of the page before. Raises `InvalidPayload` for what is no cursor of this query."""
    text = text_of(cursor)
    if text is None:
        raise InvalidPayload(f"{path} must be a str, not a {type(cursor).__name__}", path=path)
    try:
        raw = base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        raise _not_a_cursor(path) from None
    length_of_check = len(_check(b"", ""))
    check, body = raw[:length_of_check], raw[length_of_check:]
    if check != _check(body, fingerprint):
        raise _not_a_cursor(path)
    cells = json.loads(body)
    return tuple(bytes.fromhex(cell["bytes"]) if isinstance(cell, dict) else cell for cell in cells)


def _check(body: bytes, fingerprint: str) -> bytes:
    return sha256(fingerprint.encode() + body).digest()[:12]


def _not_a_cursor(path: str) -> InvalidPayload:
    return InvalidPayload(
        f"{path} is none that a page of this very query gave: ask for each page as for the first", path=path
    )


# --- filters -----------------------------------------------------------------------------------------------------


def _choices(kind: type[_Choice], value: object, path: str) -> frozenset[_Choice] | None:
    if value is None:
        return None
    many = value if isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping) else [value]
    chosen = frozenset(_choice(kind, item, path) for item in many)
    if not chosen:
        raise InvalidPayload(f"{path} is empty: no run passes that", path=path)
    return chosen


def _choice(kind: type[_Choice], value: object, path: str) -> _Choice:
    text = text_of(value)
    found = None if text is None else next((each for each in kind if each.value == text), None)
    if found is None:
        raise InvalidPayload(f"{path} must be one of {', '.join(each.value for each in kind)}", path=path)
    return found


def _range(value: object, path: str) -> Range:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise InvalidPayload(f"{path} must be two times: (from, before), of which one may be None", path=path)
    first, end = (None if moment is None else as_utc(moment, path) for moment in value)
    if first is not None and end is not None and end < first:
        raise InvalidPayload(f"{path} ends before it begins", path=path)
    return first, end


def _name(value: object, path: str) -> str | None:
    return None if value is None else as_name(value, path)


def _part(value: object) -> str | None:
    part = _name(value, "error_contains")
    if part is not None and not 1 <= len(part) <= _LONGEST_TEXT:
        raise InvalidPayload(f"error_contains must have 1 to {_LONGEST_TEXT} characters", path="error_contains")
    return part
