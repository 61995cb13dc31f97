"""How a payload's text is stored: through which codecs it goes, and the digest beside it.

Without codecs the text is stored as it is, so that SQL reads it as before. A payload that went through codecs is an
envelope of text: `~payload:zstd,aes-gcm=key-7:<base64>`, the tags in the order in which the codecs were applied. JSON
never begins with a tilde; a text that begins like an envelope (an error message may) is stored in one without tags.

The digest is taken over what is stored, so that damage is found without any key, and over the payload's identity,
so that a sound payload in the wrong row is found as well. It guards against accidents; against a forger, encrypt.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any, Final, NamedTuple, Protocol, cast

from orchestrator_state.concurrency import LONG, Aside
from orchestrator_state.errors import (
    ConfigurationError,
    CorruptPayload,
    InvalidPayload,
    PayloadError,
    PayloadTooLarge,
    UnknownCodec,
    UnprotectedPayload,
)
from orchestrator_state.payloads.blobs import BlobStore
from orchestrator_state.payloads.canonical import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_SNAPSHOT_BYTES,
    MAX_VALUES,
    MOST_VALUES,
    SNAPSHOT_LEVELS,
    encode,
    encode_small,
    encode_steady,
)
from orchestrator_state.payloads.offload import ENVELOPE_MARKER, REFERENCE_MARKER, Offload, parse_reference

_TAG: Final = re.compile(r"[A-Za-z0-9._-]+(=[A-Za-z0-9._=-]+)?")
_MAX_TAG: Final = 128
# 128 bits. An accident does not hit the same digest again, and the whole 256 would be half a short payload's row.
_DIGEST_DIGITS: Final = 32
# A snapshot may be as large as its workflow, a patch holds values as text, and errors have no limit of their own.
_WITHIN_PAYLOAD_BYTES: Final = frozenset({"context", "outputs", "result", "payload"})


class Codec(Protocol):
    """One link of the chain: bytes to bytes and back. Shared by threads; it must not touch the database.

    `identity` says whose payload it is (`step_states/<id>/<step id>/outputs`) and is the same when it is read. An
    encryption authenticates it, so that a payload moved to another place does not open.
    """

    @property
    def tag(self) -> str:
        """What is stored with each payload this codec writes: its name, or `name=parameter` (`aes-gcm=key-7`).

        It does not change in a codec's life, and each part is of letters, digits, dot, dash and underscore.
        """
        ...

    def encode(self, data: bytes, identity: bytes) -> bytes | None:
        """Return `data` encoded, or None to leave this payload as it is.

        Only a codec that leaves an empty payload as it is may return None, as below a threshold: whatever encodes the
        empty payload is taken for protection, which strict reading insists on.
        """
        ...

    def decode(self, data: bytes, identity: bytes, parameter: str) -> bytes:
        """Undo `encode`. `parameter` is what follows the `=` in the stored tag, or ''.

        Raises a `PayloadError` with a message free of the payload; anything else is reported as `CorruptPayload`.
        """
        ...


class ExpandingCodec(Codec, Protocol):
    """A codec that makes a large payload of a small one, and can be told when to stop."""

    def decode_up_to(self, data: bytes, max_bytes: int) -> bytes:
        """Like `decode`. Raises `PayloadTooLarge` for more than `max_bytes`, without the memory for it."""
        ...


class Sealed(NamedTuple):
    """What is stored of a payload: its text, and the digest of that text."""

    text: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The largest that is stored: bytes of JSON in a payload, bytes in a workflow's payloads together, levels of
    containers and number of values in a payload, and steps in a workflow."""

    payload_bytes: int = MAX_BYTES
    workflow_bytes: int = MAX_SNAPSHOT_BYTES
    depth: int = MAX_DEPTH
    values: int = MAX_VALUES
    steps: int = 100_000


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
        if blobs is not None and not isinstance(blobs, BlobStore):
            raise ConfigurationError(f"blobs is a {type(blobs).__name__}; give a BlobStore")
        self._chain = [(_checked_tag(codec), codec) for codec in codecs]
        self._by_name = _by_name([*self._chain, *((_checked_tag(codec), codec) for codec in readers)])
        self._protecting = [tag for tag, codec in self._chain if _encodes_everything(tag, codec)]
        self._strict = strict
        self._takes_plain = not (strict and self._protecting)
        self.limits = Limits()
        self.blobs: Final = blobs
        self.aside = Aside(threads=False)
        """Where long ones are sealed and opened; a store has threads for that."""
        self.offload: Offload | None = None
        """The blobs of the unit of work that these payloads are for. Without one, none is moved there."""

    def for_unit(self, namespace: str, *, ahead: bool = False) -> Payloads:
        """Return these payloads for one unit of work, if there is a blob store. For `ahead` see `Offload`."""
        if self.blobs is None:
            return self
        unit = copy(self)
        # A character is up to four bytes, and what codecs make of it a third longer.
        unit.offload = Offload(self.blobs, namespace, ahead=ahead, max_bytes=self.limits.workflow_bytes * 6)
        return unit

    def length(self, texts: Iterable[object]) -> int:
        """Of those of `texts` that are any, and of what was fetched from the blob store."""
        fetched = 0 if self.offload is None else self.offload.fetched_length
        return fetched + sum(len(text) for text in texts if isinstance(text, str))

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

    def encode(self, value: Any, path: str) -> str:
        """Return the canonical JSON text of a value within the limits. Raises `InvalidPayload`, `PayloadTooLarge`."""
        limits = self.limits
        return encode(value, path, max_bytes=limits.payload_bytes, max_depth=limits.depth, max_values=limits.values)

    async def encode_aside(self, value: Any, path: str) -> str:
        """`encode`, beside the event loop if the value is large."""
        text = self.encode_small(value, path)
        if text is None:
            text = await self.aside.call(partial(encode_steady, partial(self.encode, value, path)), LONG)
        return self.encode(value, path) if text is None else text

    def encode_small(self, value: Any, path: str) -> str | None:
        """`encode`, if the value is small; else None."""
        limits = self.limits
        return encode_small(
            value, path, max_bytes=limits.payload_bytes, max_depth=limits.depth, max_values=limits.values
        )

    def encode_snapshot(self, value: Any) -> str:
        """Like `encode`, for a value that may hold a whole workflow: its payloads, some levels down."""
        depth = self.limits.depth + SNAPSHOT_LEVELS
        return encode(value, "snapshot", max_bytes=self.limits.workflow_bytes, max_depth=depth, max_values=MOST_VALUES)

    def check_length(self, length: int, path: str) -> None:
        """Raise `PayloadTooLarge` for a payload of so many characters of JSON, put together from encoded parts."""
        if length > self.limits.payload_bytes:
            limit = self.limits.payload_bytes
            message = f"{path} is {length} bytes or more as JSON, over the limit of {limit}; store a reference instead"
            raise PayloadTooLarge(message, path=path, expected=limit, found=length)

    def check_size(self, payload_bytes: int, steps: int) -> None:
        """Raise `PayloadTooLarge` for a workflow of so many bytes of payload, or of so many steps."""
        limits = self.limits
        if steps > limits.steps:
            raise PayloadTooLarge(
                f"the workflow has {steps} steps, over the limit of {limits.steps}; start another, such as a child run",
                path="steps",
                expected=limits.steps,
                found=steps,
            )
        if payload_bytes > limits.workflow_bytes:
            raise PayloadTooLarge(
                f"the workflow's payloads are {payload_bytes} bytes, over the limit of {limits.workflow_bytes}",
                path="workflow",
                expected=limits.workflow_bytes,
                found=payload_bytes,
            )

    def seal(self, text: str, identity: str, bound_to: str = "") -> Sealed:
        """Return how `text` is stored as the payload `identity` names.

        `bound_to` is what an encryption authenticates beside the identity, and the digest does not know.
        Raises `InvalidPayload` when a codec does not encode it.
        """
        offload = self.offload
        if offload is not None and (known := offload.sealed.get((identity, text))):
            return Sealed(*known)
        sealed = self.placed(self.prepared(text, identity, bound_to), identity)
        if offload is not None and sealed.text.startswith(REFERENCE_MARKER):
            offload.sealed[identity, text] = sealed
        return sealed

    def prepared(self, text: str, identity: str, bound_to: str = "") -> Sealed:
        """What is long about `seal`, which can be done before there is a unit of work, and `placed` in it."""
        stored = self._encoded(text, identity, bound_to) if self._chain or text.startswith(ENVELOPE_MARKER) else text
        return Sealed(stored, digest_of(stored, identity))

    def placed(self, prepared: Sealed, identity: str) -> Sealed:
        """Where a `prepared` payload is too long for a row, have it uploaded: then the row gets the reference to it."""
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
            if self._strict:
                raise UnprotectedPayload(f"the stored {path} has no digest, and reading is strict", path=path)
        elif self._strict or not outdated or text.startswith(ENVELOPE_MARKER):
            check_digest(text, digest, identity, path)
        if text.startswith(REFERENCE_MARKER):
            text = self._from_blob(text, identity, path)
        if text.startswith(ENVELOPE_MARKER):
            return self._decoded(text, identity, path, bound_to)
        if self._strict:
            self._check_protected([], path)
        return text

    @property
    def is_strict(self) -> bool:
        return self._strict

    @property
    def protects(self) -> bool:
        """Whether there is a codec that encodes every payload: an encryption."""
        return bool(self._protecting)

    def check_absent(self, path: str) -> None:
        """Raise `UnprotectedPayload` if reading is strict: NULL in the place of a payload is one that nobody wrote."""
        if self._strict:
            raise UnprotectedPayload(f"the stored {path} is NULL, and reading is strict", path=path)

    def opens_as_it_is(self, text: object, digest: str, identity: str) -> bool:
        """Whether `open` returns `text` itself, its digest having been checked. False means no more than a doubt.

        What most payloads need, without the cost of a path that only errors show.
        """
        return (
            isinstance(text, str)  # SQLite keeps anything in any column
            and not text.startswith(ENVELOPE_MARKER)
            and self._takes_plain
            and _matches(text, digest, identity)
        )

    def is_current(self, text: str, digest: str | None) -> bool:
        """Whether a payload is stored as `seal` would store it now, to leave it alone when keys are changed.

        Only tags are looked at. A codec with a threshold may be absent.
        """
        if digest is None:
            return False
        if self.offload is not None and (reference := parse_reference(text)):
            text = self.offload.text(reference.name) or text
        remaining = tags_of(text)
        for tag, _ in self._chain:
            if remaining and remaining[0] == tag:
                del remaining[0]
            elif tag in self._protecting:
                return False
        return not remaining

    def _encoded(self, text: str, identity: str, bound_to: str) -> str:
        data, name = _bytes_of(text, identity), _bytes_of(identity + bound_to, identity)
        tags = []
        for tag, codec in self._chain:
            encoded = _encode(tag, codec, data, name, identity)
            if encoded is not None:
                data = encoded
                tags.append(tag)
            elif tag in self._protecting:
                raise InvalidPayload(f"the codec {tag} left {identity} unprotected", path=identity)
        if not tags and not text.startswith(ENVELOPE_MARKER):
            return text
        return f"{ENVELOPE_MARKER}{','.join(tags)}:{binascii.b2a_base64(data, newline=False).decode('ascii')}"

    def _most(self, identity: str) -> int:
        """As many bytes as what was encoded under these limits may have: a character is up to four."""
        bounded = identity.rpartition("/")[2] in _WITHIN_PAYLOAD_BYTES
        return 4 * (self.limits.payload_bytes if bounded else self.limits.workflow_bytes)

    def _decoded(self, text: str, identity: str, path: str, bound_to: str) -> str:
        tags, data = _opened_envelope(text, path)
        steps = [(tag, self._reader(tag, path)) for tag in reversed(tags)]
        if self._strict:
            self._check_protected(tags, path)
        name = (identity + bound_to).encode()
        for tag, codec in steps:
            data = _decode(tag, codec, data, name, path, self._most(identity))
        try:
            opened = data.decode()
        except UnicodeDecodeError:
            raise CorruptPayload(f"the stored {path} does not decode to text", path=path) from None
        if len(opened) > len(text) and identity.rpartition("/")[2] in _WITHIN_PAYLOAD_BYTES:
            self.check_length(len(opened), f"the stored {path}")
        return opened

    def _from_blob(self, text: str, identity: str, path: str) -> str:
        """The text that would be in the row if it were shorter."""
        reference = parse_reference(text)
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

    def _reader(self, tag: str, path: str) -> Codec:
        codec = self._by_name.get(_name(tag))
        if codec is None:
            raise UnknownCodec(
                f"the stored {path} was written with the codec {tag}, which is not configured; "
                "add it to the codecs, or to the readers if it is retired",
                path=path,
                tag=tag,
            )
        return codec

    def _check_protected(self, tags: Iterable[str], path: str) -> None:
        # By name: a payload under an older key is protected too.
        names = {_name(tag) for tag in tags}
        for tag in self._protecting:
            if _name(tag) not in names:
                message = f"the stored {path} was written without the codec {_name(tag)}, and reading is strict"
                raise UnprotectedPayload(message, path=path)


def tags_of(stored: object) -> list[str]:
    """The tags of the codecs that a stored text, or its beginning, says it went through."""
    if not isinstance(stored, str) or not stored.startswith(ENVELOPE_MARKER):
        return []
    return [tag for tag in stored.split(":", 2)[1].split(",") if tag]


def is_encoded(text: str) -> bool:
    """Whether the stored `text` went through codecs, or looks as if."""
    return text.startswith(ENVELOPE_MARKER)


def digest_of(text: str, identity: str) -> str:
    """Return the digest of the stored `text` as the payload `identity` names: 128 bits of SHA-256, in hex.

    SHA-256 because processors compute it themselves: it takes two thirds of BLAKE2b's time. An identity holds no NUL,
    so no two pairs run together. Raises `InvalidPayload` for a text that is not valid Unicode.
    """
    try:
        return sha256(f"{identity}\0{text}".encode()).hexdigest()[:_DIGEST_DIGITS]
    except UnicodeEncodeError:
        raise _not_text(identity) from None


def check_digest(text: str, digest: str, identity: str, path: str) -> None:
    """Raise `CorruptPayload` unless `digest` is that of the stored `text`; needs no keys."""
    if not _matches(text, digest, identity):
        message = f"the stored {path} does not match its digest: it was damaged, changed by hand, or moved here"
        raise CorruptPayload(message, path=path)


def _matches(text: str, digest: str, identity: str) -> bool:
    try:
        return digest_of(text, identity) == digest
    except InvalidPayload:
        return False


def _bytes_of(text: str, identity: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise _not_text(identity) from None


def _not_text(identity: str) -> InvalidPayload:
    return InvalidPayload(f"{identity} contains a lone surrogate; it is not valid text", path=identity)


def _name(tag: str) -> str:
    return tag.partition("=")[0]


def _checked_tag(codec: Codec) -> str:
    tag: object = getattr(codec, "tag", None)
    if not isinstance(tag, str) or len(tag) > _MAX_TAG or not _TAG.fullmatch(tag):
        raise ConfigurationError(
            f"the tag of the codec {type(codec).__qualname__} must be a name or name=parameter of letters, digits, "
            f"dots, dashes and underscores, at most {_MAX_TAG} long"
        )
    return tag


def _by_name(codecs: Iterable[tuple[str, Codec]]) -> dict[str, Codec]:
    by_name: dict[str, Codec] = {}
    for tag, codec in codecs:
        if _name(tag) == "blob":
            raise ConfigurationError(
                "no codec can be named blob: that is what a payload in the blob store is marked with"
            )
        if _name(tag) in by_name:
            message = f"two codecs are named {_name(tag)}: a stored payload would not say which one wrote it"
            raise ConfigurationError(message)
        by_name[_name(tag)] = codec
    return by_name


def _encodes_everything(tag: str, codec: Codec) -> bool:
    try:
        return _encode(tag, codec, b"", b"", "an empty payload") is not None
    except PayloadError:
        raise ConfigurationError(f"the codec {tag} does not encode an empty payload") from None


def _encode(tag: str, codec: Codec, data: bytes, name: bytes, identity: str) -> bytes | None:
    try:
        encoded: object = codec.encode(data, name)
    except PayloadError:
        raise
    except BaseException:  # noqa: BLE001 - a codec of the application's may raise anything
        # "from None", here and below: the codec's own message may quote the payload.
        raise InvalidPayload(f"the codec {tag} failed to encode {identity}", path=identity) from None
    if encoded is None or isinstance(encoded, bytes):
        return encoded
    raise InvalidPayload(f"the codec {tag} encoded {identity} to something else than bytes", path=identity)


def _decode(tag: str, codec: Codec, data: bytes, name: bytes, path: str, max_bytes: int) -> bytes:
    try:
        if hasattr(codec, "decode_up_to"):
            decoded: object = cast(ExpandingCodec, codec).decode_up_to(data, max_bytes)
        else:
            decoded = codec.decode(data, name, tag.partition("=")[2])
    except PayloadError as error:
        # The codec does not know which payload it was.
        raise type(error)(f"the stored {path}: {error}", **error.about | {"path": path}) from None
    except BaseException:  # noqa: BLE001
        raise CorruptPayload(f"the codec {tag} failed to decode the stored {path}", path=path) from None
    if isinstance(decoded, bytes):
        return decoded
    raise CorruptPayload(f"the codec {tag} decoded the stored {path} to something else than bytes", path=path)


def _opened_envelope(text: str, path: str) -> tuple[list[str], bytes]:
    tags_text, colon, encoded = text[len(ENVELOPE_MARKER) :].partition(":")
    tags = tags_text.split(",") if tags_text else []
    sound = all(len(tag) <= _MAX_TAG and _TAG.fullmatch(tag) for tag in tags)
    if not colon or not sound or len(set(map(_name, tags))) < len(tags):
        raise CorruptPayload(f"the stored {path} begins like an encoded payload, and is none", path=path)
    try:
        return tags, base64.b64decode(encoded, validate=True)
    except ValueError:
        raise CorruptPayload(f"the stored {path} is not valid base64", path=path) from None


PLAIN: Final = Payloads()
"""Payloads as they are, with their digests: what a store that is given no codecs uses."""
