"""The codecs that payloads go through, and the envelope that says which ones a stored text went through.

`~payload:zstd,aes-gcm=key-7:<base64>`: the tags in the order in which the codecs were applied. JSON never begins with
a tilde; a text that begins like an envelope (an error message may) is stored in one without tags.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from typing import Final, Protocol, cast

from orchestrator_state.errors import (
    ConfigurationError,
    CorruptPayload,
    InvalidPayload,
    PayloadError,
    UnknownCodec,
    UnprotectedPayload,
)

ENVELOPE_MARKER: Final = "~payload:"
_TAG: Final = re.compile(r"[A-Za-z0-9._-]+(=[A-Za-z0-9._=-]+)?")
_MAX_TAG: Final = 128


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
        """Return `data` encoded, or None to leave this payload as it is, as a compression does below a threshold.

        When the store is opened, each codec is tried with an empty payload. One that encodes it is taken for an
        encryption: it has to encode every payload, and strict reading refuses those without it. So a codec that may
        return None must return None for an empty payload.
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


class Chain:
    """The codecs of a store: those that are applied, in order, and `readers`, which are only read with.

    Raises `ConfigurationError` for a tag that cannot be stored or comes twice.
    """

    def __init__(self, codecs: Sequence[Codec], readers: Sequence[Codec]) -> None:
        self._codecs = [(_checked_tag(codec), codec) for codec in codecs]
        self._by_name = _by_name([*self._codecs, *((_checked_tag(codec), codec) for codec in readers)])
        self._protecting = [tag for tag, codec in self._codecs if _encodes_everything(tag, codec)]
        self.is_empty: Final = not self._codecs

    @property
    def protects(self) -> bool:
        """Whether there is a codec that encodes every payload: an encryption."""
        return bool(self._protecting)

    def encode(self, text: str, identity: str, bound_to: str) -> str:
        """The text to be stored. Raises `InvalidPayload` if a codec does not encode it."""
        data, name = _bytes_of(text, identity), _bytes_of(identity + bound_to, identity)
        tags = []
        for tag, codec in self._codecs:
            encoded = _encode(tag, codec, data, name, identity)
            if encoded is not None:
                data = encoded
                tags.append(tag)
            elif tag in self._protecting:
                raise InvalidPayload(f"the codec {tag} left {identity} unprotected", path=identity)
        if not tags and not is_encoded(text):
            return text
        return f"{ENVELOPE_MARKER}{','.join(tags)}:{binascii.b2a_base64(data, newline=False).decode('ascii')}"

    def decode(self, envelope: str, name: bytes, path: str, *, max_bytes: int, strict: bool) -> str:
        """The text in a stored envelope; `name` is the payload's identity, and what else it is bound to.

        Raises `CorruptPayload`, `UnknownCodec`, `UnprotectedPayload` if `strict`, and what the codecs raise.
        """
        tags, data = _opened_envelope(envelope, path)
        steps = [(tag, self._reader(tag, path)) for tag in reversed(tags)]
        if strict:
            self.check_protected(tags, path)
        for tag, codec in steps:
            data = _decode(tag, codec, data, name, path, max_bytes)
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise CorruptPayload(f"the stored {path} does not decode to text", path=path) from None

    def check_protected(self, tags: Iterable[str], path: str) -> None:
        """Raise `UnprotectedPayload` if an encryption is not among `tags`."""
        # By name: a payload under an older key is protected too.
        names = {_name(tag) for tag in tags}
        for tag in self._protecting:
            if _name(tag) not in names:
                message = f"the stored {path} was written without the codec {_name(tag)}, and reading is strict"
                raise UnprotectedPayload(message, path=path)

    def would_write(self, tags: Sequence[str]) -> bool:
        """Whether a payload with these tags is stored as it would be today. A codec with a threshold may be absent."""
        remaining = list(tags)
        for tag, _ in self._codecs:
            if remaining and remaining[0] == tag:
                del remaining[0]
            elif tag in self._protecting:
                return False
        return not remaining

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


def tags_of(stored: object) -> list[str]:
    """The tags of the codecs that a stored text, or its beginning, says it went through."""
    if not isinstance(stored, str) or not is_encoded(stored):
        return []
    return [tag for tag in stored.split(":", 2)[1].split(",") if tag]


def is_encoded(text: str) -> bool:
    """Whether the stored `text` went through codecs, or looks as if."""
    return text.startswith(ENVELOPE_MARKER)


def _bytes_of(text: str, identity: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidPayload(f"{identity} contains a lone surrogate; it is not valid text", path=identity) from None


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
