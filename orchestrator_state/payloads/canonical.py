"""Payload -> text and back.

A payload (context, outputs, snapshot) is stored as JSON text in one canonical form on both databases.
What is accepted loads back equal in value and type; everything else is refused here, before any SQL.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import msgspec

from orchestrator_state.errors import CorruptPayload, InvalidPayload, PayloadError
from orchestrator_state.payloads.context_dict import ContextDict
from orchestrator_state.payloads.limits import DEFAULT, MOST, Limits
from orchestrator_state.payloads.texts import check_text

# CPython refuses to print longer integers: sys.int_info.default_max_str_digits. The decoder refuses to read them, and
# counts the minus sign as well.
MAX_INTEGER_DIGITS: Final = 4300
_OVER_INTEGERS: Final = 10**MAX_INTEGER_DIGITS
_UNDER_INTEGERS: Final = -(10 ** (MAX_INTEGER_DIGITS - 1))
# `_is_surely_json` says yes to no more values and characters than this, shared ones counted each time they come up;
# and to no larger numbers.
_EASY_SIZE: Final = 32_000_000
# What is encoded while everything waits: in a millisecond.
_FEW: Final = 5_000
_SMALL: Final = 256 * 1024
_EASY_LEAST: Final = -1e38
_EASY_MOST: Final = 1e38
_NUL: Final = rb"\u0000"

Encode = Callable[[Any, str], str]
"""`encode` under certain limits: a value and its path to its JSON text."""

_PIECE: Final = 64 * 1024
_split_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_split_list: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_to_json: Final = msgspec.json.Encoder().encode
_from_json: Final = msgspec.json.Decoder().decode


def encode(value: Any, path: str, limits: Limits = DEFAULT) -> str:
    """Return the canonical JSON text of `value`; `path` names it in errors (`steps['load'].outputs`).

    Accepted: None, bool, int up to 4,300 digits and sign, finite float, str, list, and dict with str keys, within
    `limits`. Raises `InvalidPayload` with the path of the offending place, or `PayloadTooLarge`.
    """
    is_sure = _is_surely_json(value, limits.depth, limits.values)
    return _written(value, path, limits, is_sure=is_sure)


def encode_small(value: Any, path: str, limits: Limits) -> str | None:
    """Like `encode`, if that takes no longer than a millisecond or so; else None. Raises `PayloadTooLarge`."""
    if not _is_surely_json(value, limits.depth, min(limits.values, _FEW), _SMALL):
        return None
    return _written(value, path, limits, is_sure=True)


def encode_steady(encode: Callable[[], str]) -> str | None:
    """Encode, in a thread, a value that somebody may change meanwhile. None if somebody did, or if it is refused.

    The value is encoded twice: if the two texts are the same, nobody changed what was checked in between.
    """
    try:
        text = encode()
        return text if encode() == text else None
    except (RuntimeError, PayloadError):  # a dict that changes its size says so
        return None


def _written(value: Any, path: str, limits: Limits, *, is_sure: bool) -> str:
    try:
        text: bytes = _to_json(value) if is_sure else b""
    except UnicodeEncodeError:  # a lone surrogate
        text = b""
    # The single character is looked for first: that is ten times as fast, and most texts have none.
    if not text or (b"\\" in text and _NUL in text):
        _refuse_what_json_would_change(value, path, limits)
        text = text or _to_json(value)
    if len(text) > limits.payload_bytes:
        limits.check_length(len(text), path)
    return text.decode()


def decode(text: str | bytes, path: str) -> Any:
    """Return the value of stored JSON `text`. Raises `CorruptPayload` if it is not JSON."""
    try:
        return _from_json(text)
    except (msgspec.DecodeError, TypeError, ValueError, RecursionError):
        # "from None": the decoder's own message may quote the payload.
        raise CorruptPayload(f"the stored {path} is not valid JSON", path=path) from None


def decode_long(text: str, path: str) -> Any:
    """`decode` in pieces, between which other threads have their turn: the decoder keeps them from it."""
    if len(text) <= _PIECE:
        return decode(text, path)
    try:
        return _in_pieces(text.encode())
    except (msgspec.DecodeError, TypeError, ValueError, RecursionError):
        raise CorruptPayload(f"the stored {path} is not valid JSON", path=path) from None


def _in_pieces(data: bytes | memoryview) -> Any:
    if len(data) <= _PIECE or data[:1] not in (b"[", b"{"):
        return _from_json(data)
    if data[:1] == b"{":
        return {key: _in_pieces(memoryview(item)) for key, item in _split_object(data).items()}
    return [_in_pieces(memoryview(item)) for item in _split_list(data)]


def copied(value: Any, path: str) -> Any:
    """Return an independent copy of a JSON value. Raises like `encode`, with the widest limits that there may be."""
    return decode(encode(value, path, MOST), path)


def _is_surely_json(root: Any, max_depth: int, max_values: int, most: int = _EASY_SIZE) -> bool:  # noqa: C901, PLR0912 - one loop is what makes it fast
    """Tell quickly, level by level, that `root` is small and all JSON but for NUL characters and lone surrogates.

    False means no more than a doubt: what is wrong, where, and whether, is for `_refuse_what_json_would_change`.
    Exact types only: the encoder takes tuples, bytes, enums or keys that are numbers for something else.
    """
    left, values_left = most, min(max_values, _EASY_SIZE) + 1  # the root itself
    level: list[Any] = [[root]]
    for _ in range(max_depth + 1):
        below: list[Any] = []
        for container in level:
            values_left -= len(container)
            if left < 0 or values_left < 0:
                return False
            values = container
            if type(container) is dict:
                values = container.values()
                for key in container:
                    if type(key) is not str:
                        return False
                    left -= len(key)
            for value in values:
                kind = type(value)
                if kind is str:
                    left -= len(value)
                elif kind is dict or kind is list:
                    below.append(value)
                elif kind is int or kind is float:
                    if not _EASY_LEAST < value < _EASY_MOST:  # nor is NaN
                        return False
                elif kind is ContextDict:
                    below.append(value.plain())
                elif kind is not bool and value is not None:
                    return False
        if not below:
            return left >= 0 and values_left >= 0
        level = below
    return False


def _refuse_what_json_would_change(root: Any, root_path: str, limits: Limits) -> None:
    """Walk `root` without recursion. A path is a chain of pairs, spelled out only when there is something to report.

    A few shared lists nested in each other can stand for 2**100 values, so a container that was walked to its end is
    only counted when it comes up again: `walked` holds its size and the depth at which it was found sound. Texts are
    counted by their length: a long one that stands in a million places must not be written out to be refused.
    """
    stack: list[tuple[Any, Any, int]] = [(root, root_path, 1)]
    walked: dict[int, tuple[int, int, int]] = {}
    plain: dict[int, dict[str, Any]] = {}
    least_bytes = values = 0
    while stack:
        value, path, depth = stack.pop()
        kind = type(value)
        if kind is ContextDict:
            value = plain.setdefault(id(value), value.plain())
            kind = dict
        if kind is _Leave:
            walked[value.container] = (least_bytes - value.bytes_before, values - value.values_before, depth)
            continue
        if kind is dict or kind is list:
            least_bytes += 2
            size, count, found_sound_at = walked.get(id(value), (0, 0, 0))
            if depth <= found_sound_at:
                least_bytes += size
                values += count
            elif depth > limits.depth:
                # Not the path: a hundred levels of it would be a wall of text, and the root says enough.
                message = f"{root_path} is nested deeper than {limits.depth} levels, or contains itself"
                raise InvalidPayload(message, path=root_path)
            elif value:
                stack.append((_Leave(id(value), least_bytes, values), path, depth))
                least_bytes += len(value) - 1
                values += len(value)
                if kind is dict:
                    least_bytes += _check_keys(value, path)
                    stack.extend([(child, (path, key), depth + 1) for key, child in value.items()])
                else:
                    stack.extend([(child, (path, index), depth + 1) for index, child in enumerate(value)])
        else:
            least_bytes += _check_scalar(value, kind, path)
        if least_bytes > limits.payload_bytes or values > limits.values:
            limits.check_length(least_bytes, root_path)
            limits.check_values(values, root_path)


class _Leave:
    """Stands on the stack below the children of a container: when it comes up, they have all been looked at."""

    __slots__ = ("bytes_before", "container", "values_before")

    def __init__(self, container: int, bytes_before: int, values_before: int) -> None:
        self.container = container
        self.bytes_before = bytes_before
        self.values_before = values_before


def _check_keys(value: dict[Any, Any], path: Any) -> int:
    """Return how many bytes of JSON the keys are at least."""
    least_bytes = 0
    for key in value:
        if type(key) is not str:
            where = _spell(path)
            raise InvalidPayload(f"{where} has a key of type {type(key).__qualname__}; use str", path=where)
        if not key.isascii() or "\0" in key:
            check_text(key, f"a key of {_spell(path)}")
        least_bytes += len(key) + 3
    return least_bytes


def _check_scalar(value: Any, kind: type, path: Any) -> int:
    """Return how many bytes of JSON the value is at least."""
    if kind is str:
        if not value.isascii() or "\0" in value:
            check_text(value, _spell(path))
        return len(value) + 2
    if kind is float:
        if not math.isfinite(value):
            where = _spell(path)
            raise InvalidPayload(f"{where} is not a finite number; JSON has no NaN and no infinity", path=where)
    elif kind is int:
        if not _UNDER_INTEGERS < value < _OVER_INTEGERS:
            where = _spell(path)
            message = f"{where} is an integer of more than {MAX_INTEGER_DIGITS} digits, its sign counted"
            raise InvalidPayload(message, path=where)
        return 1 + int((value.bit_length() - 1) * 0.301)  # log10(2), rounded down
    elif kind is not bool and value is not None:
        where = _spell(path)
        raise InvalidPayload(
            f"{where} is of type {kind.__qualname__}, which would not load back equal; "
            "use None, bool, int, float, str, list or dict",
            path=where,
            found=kind.__qualname__,
        )
    return 1


def _spell(path: Any) -> str:
    """`(("context", "items"), 3)` -> `context.items[3]`."""
    parts: list[str] = []
    while type(path) is tuple:
        path, last = path
        if type(last) is int:
            parts.append(f"[{last}]")
        else:
            parts.append(f".{last}" if last.isidentifier() and len(last) <= 64 else f"[{last[:64]!a}]")
    return str(path) + "".join(reversed(parts))
