"""JSON texts, taken apart and put together without decoding what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from orchestrator_state.errors import InvalidPayload
from orchestrator_state.payloads import decode, decode_long

PATH: Final = "context_patch"
"""What is said to be wrong where a patch is."""
_NUMBER: Final = frozenset("-0123456789")
_split: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_split_list: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
Encoded = dict[str, str]
"""A context by top-level key, each value as JSON."""
Decoded = dict[str, tuple[str, Any]]
"""By key, a JSON text and what it stands for."""


def split(text: str, path: str) -> Encoded:
    """Take the JSON text of an object apart by top-level key, without decoding the values."""
    try:
        return {key: bytes(value).decode() for key, value in _split(text).items()}
    except (msgspec.DecodeError, ValueError, TypeError, RecursionError):
        raise InvalidPayload(f"{path} is not a JSON object", path=path) from None


def join(parts: Mapping[str, str]) -> str:
    """The JSON text of an object whose values are JSON texts already."""
    text: bytes = msgspec.json.encode({key: msgspec.Raw(value.encode()) for key, value in parts.items()})
    return text.decode()


def decoded(values: Encoded) -> Decoded:
    """For a thread. Each value is new, and for one place only."""
    return {key: (text, decode_long(text, f"context.{key}")) for key, text in values.items()}


def raw_items(text: str) -> list[msgspec.Raw]:
    try:
        return _split_list(text)
    except (msgspec.DecodeError, ValueError, TypeError, RecursionError):
        raise InvalidPayload(f"{PATH} is for a list, which is none", path=PATH) from None


def items_of(text: str) -> list[str]:
    return [bytes(item).decode() for item in raw_items(text)]


def is_number(text: str) -> bool:
    return text[0] in _NUMBER and type(decode(text, PATH)) in (int, float)
