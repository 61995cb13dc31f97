"""Authenticated encryption of payloads: AES-GCM (NIST SP 800-38D), and the keys it uses.

    keys = KeyRing({"2026-01": old_key, "2026-07": new_key}, primary="2026-07")
    codec = AesGcm(keys.for_namespace("billing"))

New payloads are written under the primary key; the others are kept to read what was written under them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final, NoReturn

from orchestrator_state.errors import ConfigurationError, CorruptPayload, DecryptionFailed, MissingExtra
from orchestrator_state.payloads.texts import is_unicode, text_of

_KEY_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY_BYTES: Final = 32
_KEY_SIZES: Final = frozenset({16, 24, _KEY_BYTES})
_NONCE_BYTES: Final = 12
_MAC_BYTES: Final = 16


def new_key() -> bytes:
    """Return a fresh random key of 256 bits. Keep it where secrets are kept: what it wrote is lost with it."""
    return os.urandom(_KEY_BYTES)


class KeyRing:
    """Keys by id: `primary` is written with, all are read with. Its repr shows ids only, and it does not pickle.

    A key is 32 random bytes (24 and 16 are AES keys too); an id is up to 64 letters, digits, dots, dashes and
    underscores, and is stored in clear with each payload. Raises `ConfigurationError`, without quoting anything.
    """

    __slots__ = ("_keys", "_primary")

    def __init__(self, keys: Mapping[str, bytes], primary: str) -> None:
        if not isinstance(keys, Mapping):
            raise ConfigurationError(f"keys is a {type(keys).__name__}; give a mapping of ids to keys")
        self._keys = {(checked := _checked_id(key_id)): _checked_key(checked, key) for key_id, key in keys.items()}
        self._primary = text_of(primary) or ""
        if self._primary not in self._keys:
            raise ConfigurationError(f"the primary key is not in the ring, which has {_listed(self._keys)}")

    @property
    def primary(self) -> str:
        """The id of the key that new payloads are written under."""
        return self._primary

    def __repr__(self) -> str:
        return f"KeyRing(ids={sorted(self._keys)}, primary={self.primary!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a KeyRing does not pickle: its keys would be written out")

    def for_namespace(self, namespace: str) -> KeyRing:
        """Return a ring with the same ids and, for each key, one derived for `namespace` by HKDF-SHA256 (RFC 5869).

        One master key then serves all namespaces, and no payload of one opens in another. Raises `MissingExtra`, and
        `ConfigurationError` for what is no namespace.
        """
        name = text_of(namespace)
        if name is None or not is_unicode(name):
            raise ConfigurationError("the namespace of a ring is a text without lone surrogates")
        _require_cryptography()
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        info = b"orchestrator-state payloads of the namespace\0" + name.encode()
        derived = {
            key_id: HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=None, info=info).derive(key)
            for key_id, key in self._keys.items()
        }
        return KeyRing(derived, self.primary)


class AesGcm:
    """A codec that encrypts each payload under the ring's primary key, and decrypts under whichever key wrote it.

    The payload's identity and the key's id are authenticated with it, so that it opens nowhere else. Its nonce is 96
    random bits: use another primary key well before 2**32 payloads. Needs the extra `encryption`, or `MissingExtra`.
    """

    def __init__(self, keys: KeyRing) -> None:
        if not isinstance(keys, KeyRing):
            raise ConfigurationError(f"keys is a {type(keys).__name__}; give a KeyRing")
        _require_cryptography()
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self.tag: Final = f"aes-gcm={keys.primary}"
        self._ring = keys
        self._ciphers = {key_id: AESGCM(key) for key_id, key in keys._keys.items()}  # noqa: SLF001 - they stay in here
        self._invalid = InvalidTag

    def __repr__(self) -> str:
        return f"AesGcm({self._ring!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an AesGcm does not pickle: its keys would be written out")

    def encode(self, data: bytes, identity: bytes) -> bytes:
        key_id = self._ring.primary
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._ciphers[key_id].encrypt(nonce, data, _authenticated(key_id, identity))

    def decode(self, data: bytes, identity: bytes, parameter: str) -> bytes:
        """Return what was encrypted. Raises `DecryptionFailed` with the id of the key, and `CorruptPayload`."""
        cipher = self._ciphers.get(parameter)
        if cipher is None:
            message = f"it was encrypted under the key {parameter!r}, and the ring has {_listed(self._ciphers)}"
            raise DecryptionFailed(message, key_id=parameter)
        if len(data) < _NONCE_BYTES + _MAC_BYTES:
            raise CorruptPayload("it is too short for something encrypted")
        try:
            return cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], _authenticated(parameter, identity))
        except self._invalid:
            message = (
                f"it does not decrypt under the key {parameter}: the key is another one of that id, "
                "or the payload was damaged or moved here"
            )
            raise DecryptionFailed(message, key_id=parameter) from None


def _checked_id(key_id: object) -> str:
    # The error does not show the id: somebody may have swapped the ids and the keys, and then it would show a key.
    checked = text_of(key_id) or ""
    if not _KEY_ID.fullmatch(checked):
        message = "a key id must be 1 to 64 letters, digits, dots, dashes and underscores; one of the ring's is not"
        raise ConfigurationError(message)
    return checked


def _checked_key(key_id: str, key: object) -> bytes:
    if not isinstance(key, bytes) or len(key) not in _KEY_SIZES:
        raise ConfigurationError(f"the key {key_id} must be {_KEY_BYTES} bytes (or 24, or 16); see new_key()")
    return key


def _authenticated(key_id: str, identity: bytes) -> bytes:
    # A key id holds no NUL, so no two pairs run together.
    return b"%s\0%s" % (key_id.encode(), identity)


def _listed(ids: Mapping[str, object]) -> str:
    return ", ".join(sorted(ids)) or "none"


def _require_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        message = "encryption needs a library: pip install 'orchestrator-state[encryption]'"
        raise MissingExtra(message, extra="encryption") from error
