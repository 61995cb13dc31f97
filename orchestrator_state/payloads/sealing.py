"""How a payload's text is stored: through the chain of codecs, perhaps in a blob, and with a digest beside it.

Without codecs the text is stored as it is, so that SQL reads it as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from functools import partial
from typing import Any, Final, NamedTuple

from orchestrator_state.concurrency import LONG, Aside
from orchestrator_state.errors import (
    ConfigurationError,
    CorruptPayload,
    InvalidPayload,
    PayloadTooLarge,
    UnknownCodec,
    UnprotectedPayload,
)
from orchestrator_state.payloads.blobs.names import REFERENCE_MARKER, Reference
from orchestrator_state.payloads.blobs.offload import Offload
from orchestrator_state.payloads.blobs.store import BlobStore
from orchestrator_state.payloads.canonical import encode, encode_small, encode_steady
from orchestrator_state.payloads.codecs.chain import ENVELOPE_MARKER, Chain, Codec, is_encoded, tags_of
from orchestrator_state.payloads.digests import check_digest, digest_of
from orchestrator_state.payloads.limits import DEFAULT, Limits
from orchestrator_state.payloads.typed.values import decode_value

# A snapshot may be as large as its workflow, a patch holds values as text, and errors have no limit of their own.
_WITHIN_PAYLOAD_BYTES: Final = frozenset({"context", "outputs", "result", "payload"})


class Sealed(NamedTuple):
    """What is stored of a payload: its text, and the digest of that text."""

    text: str
    digest: str


class Payloads:
    """How payloads are written and read: the chain of codecs, and whether payloads written without it are refused.

    `codecs` are applied in order on writing; `readers` are further ones that are only read with, such as a retired
    codec. Payloads written before there were codecs or digests stay readable, unless `strict`: then those without a
    digest, or without a codec of the chain that always applies (an encryption; not a compression, which has a
    threshold), raise `UnprotectedPayload`. `blobs` is where the large ones are kept, encoded as they are in a row.
    Raises `ConfigurationError` for a tag that cannot be stored or comes twice.
    """

    def __init__(
        self,
        codecs: Sequence[Codec] = (),
        *,
        readers: Sequence[Codec] = (),
        strict: bool = False,
        blobs: BlobStore | None = None,
    ) -> None:
        for name, given in (("codecs", codecs), ("readers", readers)):
            if not isinstance(given, Iterable):
                raise ConfigurationError(f"{name} is a {type(given).__name__}; give a list")
        if type(strict) is not bool:
            raise ConfigurationError(f"strict must be True or False, not a {type(strict).__name__}")
        if blobs is not None and not isinstance(blobs, BlobStore):
            raise ConfigurationError(f"blobs is a {type(blobs).__name__}; give a BlobStore")
        self._chain = Chain(codecs, readers)
        self.is_strict: Final = strict
        self.protects: Final = self._chain.protects
        """Whether there is a codec that encodes every payload: an encryption."""
        self._takes_plain = not (strict and self.protects)
        self.limits = DEFAULT
        self.blobs: Final = blobs
        self.aside = Aside(threads=False)
        """Where long payloads are sealed and opened; a store has threads for that."""
        self.offload: Offload | None = None
        """The blobs of the unit of work that these payloads are for; None if nothing is moved to a blob store."""

    def for_unit(self, namespace: str, *, ahead: bool = False) -> Payloads:
        """Return these payloads for one unit of work, if there is a blob store. For `ahead` see `Offload`."""
        if self.blobs is None:
            return self
        unit = copy(self)
        # A character is up to four bytes, and what codecs make of it a third longer.
        unit.offload = Offload(self.blobs, namespace, ahead=ahead, max_bytes=self.limits.workflow_bytes * 6)
        return unit

    def length(self, texts: Iterable[object]) -> int:
        """Characters in those of `texts` that are texts, and in what was fetched from the blob store."""
        length = 0 if self.offload is None else self.offload.fetched_length
        for text in texts:
            if isinstance(text, str):
                length += len(text)
        return length

    @property
    def misses_blobs(self) -> bool:
        """Whether a blob that was to be read was not there."""
        return self.offload is not None and self.offload.missing

    def within(self, limits: Limits, aside: Aside | None = None) -> Payloads:
        """Return these payloads under other limits; long ones are handled `aside`."""
        limited = copy(self)
        limited.limits = limits
        limited.aside = aside or self.aside
        return limited

    # --- values and their JSON -----------------------------------------------------------------------------------

    def encode(self, value: Any, path: str) -> str:
        """Return the canonical JSON text of a value within the limits. Raises `InvalidPayload`, `PayloadTooLarge`."""
        return encode(value, path, self.limits)

    def encode_small(self, value: Any, path: str) -> str | None:
        """`encode`, if the value is small; else None."""
        return encode_small(value, path, self.limits)

    def encode_steady(self, value: Any, path: str) -> str | None:
        """`encode`, for a thread: None if somebody changed the value meanwhile, or if it is refused."""
        return encode_steady(partial(encode, value, path, self.limits))

    async def encode_aside(self, value: Any, path: str) -> str:
        """`encode`, beside the event loop if the value is large."""
        text = self.encode_small(value, path)
        if text is None:
            text = await self.aside.call(partial(self.encode_steady, value, path), LONG)
        return self.encode(value, path) if text is None else text

    async def decode_aside(self, kind: Any, text: str, path: str) -> Any:
        """`decode_value`, beside the event loop if it is long. Validators of a type are called in the loop.

        Raises `NotAccepted`, `CorruptPayload`.
        """
        return await self.aside.call(partial(decode_value, kind, text, path), len(text) if kind is None else 0)

    # --- texts as they are stored --------------------------------------------------------------------------------

    def seal(self, text: str, identity: str, bound_to: str = "") -> Sealed:
        """Return how `text` is stored as the payload `identity` names.

        `bound_to` is what an encryption authenticates beside the identity, and the digest does not know.
        Raises `InvalidPayload` when a codec does not encode it.
        """
        offload = self.offload
        if offload is None:
            return self.prepared(text, identity, bound_to)
        if known := offload.sealed.get((identity, text)):
            return Sealed(*known)
        sealed = self.placed(self.prepared(text, identity, bound_to), identity)
        if sealed.text.startswith(REFERENCE_MARKER):
            offload.sealed[identity, text] = sealed
        return sealed

    def prepared(self, text: str, identity: str, bound_to: str = "") -> Sealed:
        """The part of `seal` that takes long, and needs no unit of work. `placed` is the rest."""
        is_plain = self._chain.is_empty and not text.startswith(ENVELOPE_MARKER)
        stored = text if is_plain else self._chain.encode(text, identity, bound_to)
        return Sealed(stored, digest_of(stored, identity))

    def placed(self, prepared: Sealed, identity: str) -> Sealed:
        """Have a `prepared` payload uploaded if it is too long for a row; then the row gets a reference to it."""
        offload, stored = self.offload, prepared.text
        if offload is None or stored.startswith(REFERENCE_MARKER) or not offload.takes(stored):
            return prepared
        if known := offload.sealed.get((identity, stored)):
            return Sealed(*known)
        reference = offload.put(stored, prepared.digest, workflow_state_id=identity.split("/")[1])
        placed = Sealed(reference, digest_of(reference, identity))
        offload.sealed[identity, stored] = placed
        return placed

    def open(
        self,
        text: object,
        digest: str | None,
        identity: str,
        path: str,
        *,
        outdated: bool = False,
        bound_to: str = "",
    ) -> str:
        """Return the text that was sealed as `text` and `digest`; `path` names the payload in errors.

        Software that does not know digests left `digest` None, or changed the row since (`outdated`): what it wrote is
        taken as it is, but not when strict. It writes no envelopes, so the digest of one always holds.

        Raises `CorruptPayload`, `UnknownCodec` for a tag that no codec here has, `UnprotectedPayload` when strict, and
        what the codecs raise, such as `DecryptionFailed`.
        """
        if not isinstance(text, str):
            raise CorruptPayload(f"the stored {path} is no text", path=path)
        if digest is None:
            if self.is_strict:
                raise UnprotectedPayload(f"the stored {path} has no digest, and reading is strict", path=path)
        elif self.is_strict or not outdated or is_encoded(text):
            check_digest(text, digest, identity, path)
        if text.startswith(REFERENCE_MARKER):
            text = self._from_blob(text, identity, path)
        if is_encoded(text):
            try:
                return self._decoded(text, identity, path, bound_to)
            except PayloadTooLarge as error:
                raise error.concerning(is_stored=True) from None
        if self.is_strict:
            self._chain.check_protected([], path)
        return text

    def check_absent(self, path: str) -> None:
        """Raise `UnprotectedPayload` if reading is strict: NULL in the place of a payload is one that nobody wrote."""
        if self.is_strict:
            raise UnprotectedPayload(f"the stored {path} is NULL, and reading is strict", path=path)

    def opens_as_it_is(self, text: object, digest: str, identity: str) -> bool:
        """Whether `open` returns `text` itself, its digest having been checked. False means no more than a doubt.

        What most payloads need, without the cost of a path that only errors show.
        """
        if not isinstance(text, str) or text.startswith(ENVELOPE_MARKER):  # SQLite keeps anything in any column
            return False
        try:
            return self._takes_plain and digest_of(text, identity) == digest
        except InvalidPayload:
            return False

    def is_current(self, text: str, digest: str | None) -> bool:
        """Whether a payload is stored as `seal` would store it now, to leave it alone when keys are changed.

        Only tags are looked at. A codec with a threshold may be absent.
        """
        if digest is None:
            return False
        if self.offload is not None and (reference := Reference.parse(text)):
            text = self.offload.text(reference.name) or text
        return self._chain.would_write(tags_of(text))

    def _decoded(self, envelope: str, identity: str, path: str, bound_to: str) -> str:
        is_bounded = identity.rpartition("/")[2] in _WITHIN_PAYLOAD_BYTES
        limits = self.limits
        # As many bytes as what was encoded under these limits may have: a character is up to four.
        most = 4 * (limits.payload_bytes if is_bounded else limits.workflow_bytes)
        name = (identity + bound_to).encode()
        text = self._chain.decode(envelope, name, path, max_bytes=most, strict=self.is_strict)
        if is_bounded and len(text) > len(envelope):
            limits.check_length(len(text), f"the stored {path}")
        return text

    def _from_blob(self, text: str, identity: str, path: str) -> str:
        """The text that would be in the row if it were shorter."""
        reference = Reference.parse(text)
        if reference is None:
            raise CorruptPayload(f"the stored {path} begins like a reference to a blob, and is none", path=path)
        if self.offload is not None and not self.offload.is_of(reference.name, identity.split("/")[1]):
            raise CorruptPayload(f"the stored {path} refers to a blob that is not its workflow's", path=path)
        if self.offload is not None and (reason := self.offload.why_unread(reference.name)) is not None:
            raise CorruptPayload(f"the stored {path} is in a blob: {reason}", path=path)
        if self.offload is None or not self.offload.has(reference.name):
            message = f"the stored {path} is in a blob store, and there is none here to read it from"
            raise UnknownCodec(message, path=path, tag="blob")
        stored = self.offload.text(reference.name)
        if stored is None:
            raise CorruptPayload(f"the blob with the stored {path} is gone", path=path)
        check_digest(stored, reference.digest, identity, path)
        return stored


PLAIN: Final = Payloads()
"""Payloads as they are, with their digests: what a store that is given no codecs uses."""
