"""Which texts can be stored: the one rule for payloads, names, settings and what a connection is opened with.

Postgres has no NUL in a text, and neither database has a lone surrogate (half of a pair, for which UTF-8 has no bytes).
A name stands in a column of 255 characters.
"""

from __future__ import annotations

from typing import Final

from orchestrator_state.errors import InvalidPayload

LONGEST_NAME: Final = 255
_REMEDIES: Final = {
    "a NUL character": "remove it",
    "a lone surrogate": "it is not valid Unicode text",
}


def text_of(value: object) -> str | None:
    """The text itself, where `value` is of a subclass, with methods of its own; None if it is no text."""
    return str.__str__(value) if isinstance(value, str) else None


def is_unicode(text: str) -> bool:
    """Whether there is no lone surrogate in `text`. Bytes that were read leniently, and are no UTF-8, come as such."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def flaw_of(text: str) -> str | None:
    """What `text` contains that cannot be stored; None for nothing of the kind."""
    if "\0" in text:
        return "a NUL character"
    return None if is_unicode(text) else "a lone surrogate"


def check_text(text: str, path: str) -> None:
    """Raise `InvalidPayload` if `text`, which `path` names, cannot be stored."""
    if (flaw := flaw_of(text)) is not None:
        raise InvalidPayload(f"{path} contains {flaw}; {_REMEDIES[flaw]}", path=path)
