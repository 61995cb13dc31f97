"""How one text is made of another: which stretches of it stay, and what comes between them.

What a change costs is then what was changed, wherever in a long value that is. The stretches are found as rsync and
VCDIFF (RFC 3284) find them: by short pieces of the old text that come up in the new one, each extended both ways.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from orchestrator_state.errors import CorruptPayload

_PIECE: Final = 32
"""Characters by which a stretch is recognised."""
_MOST_PIECES: Final = 16 * 1024
_ANCHOR: Final = re.compile(r"\W")
"""A piece begins after one, so that what moved is found wherever it is now."""
_NEAR: Final = 256
_LONGEST_LOOK: Final = 64 * 1024
_MOST_PARTS: Final = 8192
"""A text that falls into more is stored whole: to find them takes too long."""
_PATIENCE: Final = 32
"""Pieces not found, after which one more character is skipped each time: in a text that is new few are looked at."""

Stretch = tuple[int, int]
"""From where to where in the old text."""


@dataclass(frozen=True, slots=True, repr=False)
class Edit:
    """The parts of a text, in order: stretches of another one, and what is new."""

    length: int
    """Of the text that it was made of. It is done to no other."""
    checksum: int
    """Of that text, too: one as long, with stretches copied out of it, would be damage that nobody sees."""
    parts: tuple[Stretch | str, ...]

    def apply(self, text: str) -> str:
        """Raises `CorruptPayload` for a text that it is not for."""
        if len(text) != self.length or _checksum(text) != self.checksum:
            raise _none()
        return "".join(part if isinstance(part, str) else text[slice(*part)] for part in self.parts)

    def to_json(self) -> str:
        encoded: bytes = msgspec.json.encode([self.length, self.checksum, *self.parts])
        return encoded.decode()

    @classmethod
    def from_json(cls, text: str) -> Edit:
        """Raises `CorruptPayload` for what `to_json` has not written: no more is copied than there is to copy."""
        try:
            length, checksum, *parts = msgspec.json.decode(text, type=list[int | Stretch | str])
        except (msgspec.DecodeError, ValueError, RecursionError):
            raise _none() from None
        known = tuple(part for part in parts if not isinstance(part, int))
        stretches = [part for part in known if isinstance(part, tuple)]
        if not (isinstance(length, int) and isinstance(checksum, int) and len(known) == len(parts)):
            raise _none()
        copied = sum(end - start for start, end in stretches)
        if copied > length or not all(0 <= start <= end <= length for start, end in stretches):
            raise _none()
        return cls(length, checksum, known)


def edit_between(before: str, after: str) -> Edit | None:
    """What makes `after` of `before`; None if it is not much shorter than `after` itself."""
    head = _alike(min(len(before), len(after)), lambda n, m: before[n:m] == after[n:m])
    ends, ended = len(before), len(after)
    rest = min(ends, ended) - head
    tail = _alike(rest, lambda n, m: before[ends - m : ends - n] == after[ended - m : ended - n])
    parts: list[Stretch | str] = [(0, head)]
    cost = 0
    for part in _between(before, after, head, ended - tail, left=ends - head - tail):
        parts.append(part)
        cost += _cost(part)
        if cost * 2 > ended or len(parts) > _MOST_PARTS:
            return None
    parts.append((ends - tail, ends))
    return Edit(ends, _checksum(before), tuple(part for part in parts if _length(part)))


def _between(before: str, after: str, start: int, end: int, *, left: int) -> Iterator[Stretch | str]:
    """The parts of `after[start:end]`; at most `left` characters of `before` are copied."""
    places = _places(before) if min(left, end - start) > _PIECE else {}
    at, misses = start, 0  # `start` is where what is new begins
    while at < end - _PIECE and places and left > 0:
        found = places.get(after[at : at + _PIECE])
        if found is None:
            misses += 1
            at = _anchored(after, at + 1 + misses // _PATIENCE)
            continue
        first, last = _extended(before, found, after, (start, at, end))
        last = min(last, first + left)
        yield after[start : at - (found - first)]
        yield first, last
        left -= last - first
        start = at = at - (found - first) + (last - first)
        misses //= 2
    yield after[start:end]


def _places(text: str) -> dict[str, int]:
    """Where pieces of a text are, some of them."""
    distance = max(_PIECE, len(text) // _MOST_PIECES)
    places: dict[str, int] = {}
    at = _anchored(text, 0)
    while at < len(text):
        places.setdefault(text[at : at + _PIECE], at)
        at = _anchored(text, at + distance)
    return places


def _anchored(text: str, at: int) -> int:
    """The next place behind an anchor, or `at` where none is near."""
    anchor = _ANCHOR.search(text, at, at + _NEAR)
    return at if anchor is None else anchor.end()


def _extended(before: str, found: int, after: str, within: tuple[int, int, int]) -> Stretch:
    """The stretch around a piece that is `found` in the old text."""
    start, at, end = within
    back = _alike(min(found, at - start), lambda n, m: before[found - m : found - n] == after[at - m : at - n])
    most = min(len(before) - found, end - at)
    return found - back, found + _alike(most, lambda n, m: before[found + n : found + m] == after[at + n : at + m])


def _alike(most: int, is_same: Callable[[int, int], bool]) -> int:
    """How many of `most` characters are the same; `is_same` compares those from one place to another."""
    same, step = 0, _PIECE
    while same < most and is_same(same, min(same + step, most)):
        same = min(same + step, most)
        step = min(2 * step, _LONGEST_LOOK)
    most = min(same + step, most)
    while same < most:
        middle = (same + most + 1) // 2
        if is_same(same, middle):
            same = middle
        else:
            most = middle - 1
    return same


def _checksum(text: str) -> int:
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))


def _length(part: Stretch | str) -> int:
    return len(part) if isinstance(part, str) else part[1] - part[0]


def _cost(part: Stretch | str) -> int:
    return len(part) if isinstance(part, str) else _PIECE


def _none() -> CorruptPayload:
    return CorruptPayload("the stored context_patch is for another text, or none", path="context_patch")
