"""What a blob is called, and how a row refers to it.

A row whose payload is in a blob holds `~payload:blob=<digest>:<name>`: the digest that the row would have had, and
where the text is that the row would have held. A name is used once, so a row never comes to refer to another content.
It says whose it is, so that a reference to another workflow's blob is none; when it was written, so that the garbage
of a crash can be told from an upload under way; and how long it is, so that no more is read. A name that older software
made has no length, and its first digit is 0.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable
from hashlib import sha256
from typing import Any, Final, NamedTuple

from orchestrator_state.payloads.codecs.chain import ENVELOPE_MARKER

REFERENCE_MARKER: Final = f"{ENVELOPE_MARKER}blob="
_REFERENCE: Final = re.compile(rf"{REFERENCE_MARKER}([0-9a-f]{{32}}):([a-z0-9_-]+/[0-9a-f-]{{36}}/[0-9a-f]{{32}})")
_NAME: Final = re.compile(
    r"([a-z0-9_-]+)/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/([0-9a-f])([0-9a-f]{11})([0-9a-f]{10})[0-9a-f]{10}"
)
_WITH_LENGTH: Final = "1"
_SAFE_NAMESPACE: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


class BlobName(NamedTuple):
    directory: str
    workflow_state_id: str
    written_at: int
    """Seconds since 1970, by the clock of who wrote it."""
    length: int | None
    """In bytes; None if older software wrote it."""

    @classmethod
    def parse(cls, name: str) -> BlobName | None:
        """None for what is no blob's name."""
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        directory, owner, form, moment, length = found.groups()
        if form != _WITH_LENGTH:
            return cls(directory, owner, int(form + moment, 16), None)
        return cls(directory, owner, int(moment, 16), int(length, 16))

    @staticmethod
    def new(directory: str, workflow_state_id: str, length: int) -> str:
        """The name of a blob that is about to be written."""
        written_at = int(time.time())
        return f"{directory}/{workflow_state_id}/{_WITH_LENGTH}{written_at:011x}{length:010x}{secrets.token_hex(5)}"

    @staticmethod
    def directory_of(namespace: str) -> str:
        """Where the blobs of a namespace are: some file systems take `A` for `a`, and `..` for another place."""
        if _SAFE_NAMESPACE.fullmatch(namespace):
            return namespace
        return f"sha256-{sha256(namespace.encode()).hexdigest()}"


class Reference(NamedTuple):
    digest: str
    name: str

    def __str__(self) -> str:
        return f"{REFERENCE_MARKER}{self.digest}:{self.name}"

    @classmethod
    def parse(cls, text: str) -> Reference | None:
        """None for a text that is no reference."""
        found = _REFERENCE.fullmatch(text)
        return None if found is None else cls(*found.groups())

    @classmethod
    def all_in(cls, rows: Iterable[Iterable[Any]]) -> list[Reference]:
        """All references among the values of `rows`."""
        return [
            reference
            for row in rows
            for value in row
            if isinstance(value, str) and value.startswith(REFERENCE_MARKER) and (reference := cls.parse(value))
        ]
