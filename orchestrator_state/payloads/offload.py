"""What one unit of work moves to the blob store and from it.

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
from collections.abc import Collection, Iterable
from hashlib import sha256
from typing import Any, Final, NamedTuple

from orchestrator_state.errors import StoreUnavailable
from orchestrator_state.payloads.blobs import BlobStore, in_parallel

ENVELOPE_MARKER: Final = "~payload:"
REFERENCE_MARKER: Final = "~payload:blob="
_REFERENCE: Final = re.compile(r"~payload:blob=([0-9a-f]{32}):([a-z0-9_-]+/[0-9a-f-]{36}/[0-9a-f]{32})")
_NAME: Final = re.compile(
    r"([a-z0-9_-]+)/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/([0-9a-f])([0-9a-f]{11})([0-9a-f]{10})[0-9a-f]{10}"
)
_WITH_LENGTH: Final = "1"
_SAFE_NAMESPACE: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


class Reference(NamedTuple):
    digest: str
    name: str

    def __str__(self) -> str:
        return f"{REFERENCE_MARKER}{self.digest}:{self.name}"


class BlobName(NamedTuple):
    directory: str
    workflow_state_id: str
    written_at: int
    """Seconds since 1970, by the clock of who wrote it."""
    length: int | None
    """In bytes; None if older software wrote it."""


class MoveFirst(Exception):
    """Blobs have to be moved before the transaction can be done: give it up, `move`, and do it again."""


class Offload:
    """The blobs of one unit of work.

    With `ahead`, uploads and downloads that turn out to be needed raise `MoveFirst`, so that no transaction is open,
    and no connection taken, while they last. Otherwise they are done on the spot.
    """

    def __init__(self, store: BlobStore, namespace: str, *, ahead: bool, max_bytes: int) -> None:
        """No blob of more than `max_bytes` is read."""
        self.ahead = ahead
        self._max_bytes = max_bytes
        self._directory = directory_of(namespace)
        self.sealed: dict[tuple[str, str], tuple[str, str]] = {}
        """What became of (identity, text). An encryption would make another blob of it when the work is repeated."""
        self.missing = False
        """Whether a blob was not there."""
        self.discarded: set[str] = set()
        self._store = store
        self._uploads: dict[str, str] = {}
        self._wanted: set[str] = set()
        self._texts: dict[str, str | None] = {}
        self._unread: dict[str, str] = {}
        self._for_many = False

    # --- writing -------------------------------------------------------------------------------------------------

    def takes(self, text: str) -> bool:
        above = self._store.above
        # A character is up to four bytes.
        return len(text) * 4 > above and (len(text) > above or len(text.encode()) > above)

    def put(self, text: str, digest: str, workflow_state_id: str) -> str:
        """Note that `text` is to be uploaded; returns the reference to it."""
        moment, length = f"{int(time.time()):011x}", f"{len(text.encode()):010x}"
        name = f"{self._directory}/{workflow_state_id}/{_WITH_LENGTH}{moment}{length}{secrets.token_hex(5)}"
        self._uploads[name] = text
        return str(Reference(digest, name))

    @property
    def has_uploads(self) -> bool:
        return bool(self._uploads)

    async def settle(self) -> None:
        """Have what was `put` uploaded before a row refers to it. Raises `StoreUnavailable`."""
        if self.ahead:
            raise MoveFirst
        await self.move()

    # --- reading -------------------------------------------------------------------------------------------------

    async def fetch(self, rows: Iterable[Iterable[Any]], *, for_many: bool = False) -> None:
        """Get the blobs that `rows` refer to. Raises `StoreUnavailable`.

        `for_many`: the rows are of many workflows, which go on without the one whose blob cannot be read.
        """
        self._for_many = for_many
        self._wanted = self._names(rows) - self._texts.keys()
        if self._wanted:
            await self.settle()

    def has(self, name: str) -> bool:
        """Whether the blob was fetched, or found to be missing."""
        return name in self._texts

    def text(self, name: str) -> str | None:
        """A blob that was fetched; None if it is not there."""
        return self._texts.get(name)

    def lacks(self, rows: Iterable[Iterable[Any]]) -> bool:
        """Whether a blob that `rows` refer to was found to be missing."""
        return self.missing and any(self.text(name) is None for name in self._names(rows) & self._texts.keys())

    def why_unread(self, name: str) -> str | None:
        """Why a blob of one of many workflows cannot be read."""
        return self._unread.get(name)

    @property
    def fetched_length(self) -> int:
        return sum(len(text) for text in self._texts.values() if text is not None)

    # --- moving --------------------------------------------------------------------------------------------------

    async def move(self) -> None:
        """Upload and download what is due. Raises `StoreUnavailable`; what was moved until then stays moved."""
        uploads = [self._upload(name, text) for name, text in self._uploads.items()]
        await in_parallel([*uploads, *(self._download(name) for name in self._wanted)])

    def discard(self, rows: Iterable[Iterable[Any]]) -> None:
        """Note that what `rows` refer to is garbage once the transaction has committed."""
        self.discarded |= self._names(rows)
        # The same payload written again needs a blob that stays. All others are still the ones to refer to when the
        # transaction is repeated: with new ones it would have to be repeated for their upload, over and over.
        gone = {known for known, sealed in self.sealed.items() if not self.discarded.isdisjoint(self._names([sealed]))}
        for known in gone:
            del self.sealed[known]

    async def remove_discarded(self, *, but: Collection[str] = ()) -> None:
        """Remove what was discarded, all `but` what rows still refer to."""
        discarded, self.discarded = self.discarded, set()
        await self._store.remove(discarded.difference(but))

    async def _upload(self, name: str, text: str) -> None:
        await self._store.put(name, text.encode())
        del self._uploads[name]

    async def _download(self, name: str) -> None:
        parsed = parse_name(name)
        known = None if parsed is None else parsed.length
        most = self._max_bytes if known is None else min(known, self._max_bytes)
        try:
            content = await self._store.get(name, most)
        except StoreUnavailable as error:
            if not (self._for_many and error.one_blob):
                raise
            self._unread[name] = str(error)
            return
        self.missing = self.missing or content is None
        # What does not decode does not match its digest afterwards.
        self._texts[name] = None if content is None else content.decode(errors="replace")

    def is_of(self, name: str, workflow_state_id: str) -> bool:
        """Whether the blob is one of this workflow's, in this namespace."""
        parsed = parse_name(name)
        return parsed is not None and parsed[:2] == (self._directory, workflow_state_id)

    def _names(self, rows: Iterable[Iterable[Any]]) -> set[str]:
        """The blobs of this namespace that `rows` refer to: others are none of its business, whatever a row says."""
        return {found.name for found in references(rows) if found.name.startswith(f"{self._directory}/")}


def parse_reference(text: str) -> Reference | None:
    found = _REFERENCE.fullmatch(text)
    return None if found is None else Reference(*found.groups())


def references(rows: Iterable[Iterable[Any]]) -> list[Reference]:
    """All references among the values of `rows`."""
    return [
        reference
        for row in rows
        for value in row
        if isinstance(value, str) and value.startswith(REFERENCE_MARKER) and (reference := parse_reference(value))
    ]


def parse_name(name: str) -> BlobName | None:
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    directory, owner, form, moment, length = found.groups()
    if form != _WITH_LENGTH:
        return BlobName(directory, owner, int(form + moment, 16), None)
    return BlobName(directory, owner, int(moment, 16), int(length, 16))


def directory_of(namespace: str) -> str:
    """Where the blobs of a namespace are: some file systems take `A` for `a`, and `..` for another place."""
    if _SAFE_NAMESPACE.fullmatch(namespace):
        return namespace
    return f"sha256-{sha256(namespace.encode()).hexdigest()}"
