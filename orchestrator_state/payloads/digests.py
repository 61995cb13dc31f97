"""The digest beside each stored payload.

It is taken over what is stored, so that damage is found without any key, and over the payload's identity, so that a
sound payload in the wrong row is found as well. It guards against accidents; against a forger, encrypt.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

from orchestrator_state.errors import CorruptPayload, InvalidPayload

# 128 bits. An accident does not hit the same digest again, and the whole 256 would be half a short payload's row.
_DIGITS: Final = 32


def digest_of(text: str, identity: str) -> str:
    """Return the digest of the stored `text` as the payload `identity` names: 128 bits of SHA-256, in hex.

    SHA-256 because processors compute it themselves: it takes two thirds of BLAKE2b's time. An identity holds no NUL,
    so no two pairs run together. Raises `InvalidPayload` for a text that is not valid Unicode.
    """
    try:
        return sha256(f"{identity}\0{text}".encode()).hexdigest()[:_DIGITS]
    except UnicodeEncodeError:
        raise InvalidPayload(f"{identity} contains a lone surrogate; it is not valid text", path=identity) from None


def check_digest(text: str, digest: str, identity: str, path: str) -> None:
    """Raise `CorruptPayload` unless `digest` is that of the stored `text`; needs no keys."""
    try:
        is_intact = digest_of(text, identity) == digest
    except InvalidPayload:
        is_intact = False
    if not is_intact:
        message = f"the stored {path} does not match its digest: it was damaged, changed by hand, or moved here"
        raise CorruptPayload(message, path=path)
