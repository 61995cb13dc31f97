"""What `--json` prints: records as objects, with their fields' names, times in ISO 8601 and UTC, ids as text.

It is ASCII, so that no name in it can play with a terminal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from orchestrator_state.cli.output import write


def show_json(value: object) -> None:
    """Show a document, of an object or a list of them."""
    write(json.dumps(value, indent=2, default=_plain))


def show_json_line(value: object) -> None:
    """Show one of many documents, at once."""
    write(json.dumps(value, default=_plain), at_once=True)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, date | UUID):
        return str(value)
    if isinstance(value, Decimal):  # as text: of a number, a program would make binary fractions
        return f"{value:f}"
    if isinstance(value, timedelta):
        return value.total_seconds()
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} has no place in a document")
