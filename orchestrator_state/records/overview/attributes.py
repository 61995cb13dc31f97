"""What a run is to be found by: a small flat object, of values that are the same on both databases."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

from orchestrator_state.arguments import as_name
from orchestrator_state.errors import InvalidPayload, PayloadTooLarge

MOST_ATTRIBUTES: Final = 64
LONGEST_KEY: Final = 64
MOST_BYTES: Final = 4096

Attribute = str | int | float | bool | None

# Postgres holds numbers to their last digit, SQLite as a machine does. These are the same on both.
_WHOLE: Final = range(-(2**63), 2**63)
_LARGEST: Final = float(2**53)


def as_attributes(value: object, path: str) -> dict[str, Attribute]:
    """Return attributes that can be stored. Raises `InvalidPayload` or `PayloadTooLarge`."""
    if not isinstance(value, Mapping):
        raise InvalidPayload(f"{path} must be a mapping of names to values, not a {type(value).__name__}", path=path)
    found: dict[str, Attribute] = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise InvalidPayload(f"a name in {path} must be a str, not {type(key).__name__}", path=path)
        name = as_name(key, path)
        if not 1 <= len(name) <= LONGEST_KEY:
            raise InvalidPayload(f"a name in {path} must have 1 to {LONGEST_KEY} characters", path=path)
        found[name] = _as_attribute(item, f"{path}.{name}")
    require_small(found, path)
    return found


def require_small(attributes: Mapping[str, Attribute], path: str) -> None:
    """Raise `PayloadTooLarge` for more than a run may have altogether."""
    if len(attributes) > MOST_ATTRIBUTES:
        raise PayloadTooLarge(
            f"{path} has {len(attributes)} names; a run has at most {MOST_ATTRIBUTES}",
            path=path,
            expected=MOST_ATTRIBUTES,
            found=len(attributes),
        )
    length = len(json.dumps(attributes, ensure_ascii=False).encode())
    if length > MOST_BYTES:
        raise PayloadTooLarge(
            f"{path} takes {length} bytes; a run has at most {MOST_BYTES}", path=path, expected=MOST_BYTES, found=length
        )


def _as_attribute(value: object, path: str) -> Attribute:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return as_name(value, path)
    if isinstance(value, int):
        if int.__int__(value) not in _WHOLE:
            raise InvalidPayload(f"{path} is a number of more than 64 bits; give it as a text", path=path)
        return int.__int__(value)
    if isinstance(value, float):
        number = float.__float__(value)
        if not math.isfinite(number) or abs(number) > _LARGEST:
            raise InvalidPayload(f"{path} must be a finite number, no larger than 2**53", path=path)
        return number
    kind = type(value).__name__
    raise InvalidPayload(f"{path} must be a str, int, float, bool or None, and not a {kind}", path=path)


def merged(attributes: Mapping[str, Any], changes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    """`attributes` with the changes, of which None takes away."""
    return {name: value for name, value in {**attributes, **changes}.items() if value is not None}
