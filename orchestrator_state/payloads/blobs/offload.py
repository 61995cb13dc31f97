"""What one unit of work moves to the blob store and from it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from orchestrator_state.errors import StoreUnavailable
from orchestrator_state.payloads.blobs.names import BlobName, Reference
from orchestrator_state.payloads.blobs.store import BlobStore, in_parallel


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
        self._directory = BlobName.directory_of(namespace)
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
        name = BlobName.new(self._directory, workflow_state_id, len(text.encode()))
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
        parsed = BlobName.parse(name)
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
        parsed = BlobName.parse(name)
        return parsed is not None and parsed[:2] == (self._directory, workflow_state_id)

    def _names(self, rows: Iterable[Iterable[Any]]) -> set[str]:
        """The blobs of this namespace that `rows` refer to: others are none of its business, whatever a row says."""
        return {found.name for found in Reference.all_in(rows) if found.name.startswith(f"{self._directory}/")}
