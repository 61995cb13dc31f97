"""AES-GCM: a payload opens under its key, in its place and in its namespace, whole - or not at all."""

import pickle
import sys
import traceback
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_state.encryption import AesGcm, KeyRing, new_key
from orchestrator_state.errors import ConfigurationError, CorruptPayload, DecryptionFailed, MissingExtra

NAME = b"step_states/1/load/outputs"
KEY = b"canary-key-canary-key-canary-key"
RING = KeyRing({"key-7": KEY}, "key-7")
DATA = b'{"note":"canary"}'


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=3000), identity=st.binary(max_size=100), size=st.sampled_from([16, 24, 32]))
def test_what_was_encrypted_decrypts(data: bytes, identity: bytes, size: int) -> None:
    codec = AesGcm(KeyRing({"a": KEY[:size]}, "a"))
    encoded = codec.encode(data, identity)
    assert codec.decode(encoded, identity, "a") == data
    assert len(encoded) == len(data) + 28


def test_an_older_key_is_read_with_and_the_primary_written_with() -> None:
    old, both = AesGcm(KeyRing({"old": KEY}, "old")), AesGcm(KeyRing({"old": KEY, "new": new_key()}, "new"))
    assert (old.tag, both.tag) == ("aes-gcm=old", "aes-gcm=new")
    assert both.decode(old.encode(DATA, NAME), NAME, "old") == DATA
    with pytest.raises(DecryptionFailed):
        old.decode(both.encode(DATA, NAME), NAME, "new")


def test_a_nonce_is_never_used_twice() -> None:
    codec = AesGcm(RING)
    sealed = {codec.encode(DATA, NAME) for _ in range(20_000)}
    assert len({one[:12] for one in sealed}) == 20_000
    assert len({one[12:] for one in sealed}) == 20_000


def test_it_is_aes_gcm_as_others_compute_it() -> None:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    encoded = AesGcm(RING).encode(DATA, NAME)
    assert AESGCM(KEY).decrypt(encoded[:12], encoded[12:], b"key-7\0" + NAME) == DATA


# --- what does not open ---


def test_data_cut_at_any_byte_does_not_open() -> None:
    codec = AesGcm(RING)
    encoded = codec.encode(DATA, NAME)
    for end in range(len(encoded)):
        with pytest.raises(CorruptPayload if end < 28 else DecryptionFailed):
            codec.decode(encoded[:end], NAME, "key-7")


def test_data_with_any_bit_flipped_does_not_open() -> None:
    codec = AesGcm(RING)
    encoded = codec.encode(DATA, NAME)
    for bit in range(len(encoded) * 8):
        damaged = bytearray(encoded)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DecryptionFailed):
            codec.decode(bytes(damaged), NAME, "key-7")


def test_another_identity_another_key_and_another_id_do_not_open() -> None:
    encoded = AesGcm(RING).encode(DATA, NAME)
    with pytest.raises(DecryptionFailed, match="moved here"):
        AesGcm(RING).decode(encoded, b"step_states/2/load/outputs", "key-7")
    with pytest.raises(DecryptionFailed):
        AesGcm(KeyRing({"key-7": new_key()}, "key-7")).decode(encoded, NAME, "key-7")
    with pytest.raises(DecryptionFailed):
        AesGcm(KeyRing({"key-7": KEY, "key-8": KEY}, "key-8")).decode(encoded, NAME, "key-8")
    with pytest.raises(DecryptionFailed, match="'key-9', and the ring has key-7") as refused:
        AesGcm(RING).decode(encoded, NAME, "key-9")
    assert refused.value.key_id == "key-9"


def test_a_ciphertext_of_one_namespace_does_not_open_in_another() -> None:
    encoded = AesGcm(RING.for_namespace("a")).encode(DATA, NAME)
    assert AesGcm(RING.for_namespace("a")).decode(encoded, NAME, "key-7") == DATA
    for ring in (RING.for_namespace("b"), RING.for_namespace(""), RING):
        with pytest.raises(DecryptionFailed):
            AesGcm(ring).decode(encoded, NAME, "key-7")


def test_each_key_of_a_ring_has_its_own_key_in_a_namespace() -> None:
    ring = KeyRing({"old": KEY, "new": new_key()}, "new").for_namespace("a")
    assert ring.primary == "new"
    old = AesGcm(KeyRing({"old": KEY}, "old").for_namespace("a"))
    assert AesGcm(ring).decode(old.encode(DATA, NAME), NAME, "old") == DATA


# --- keys ---


def test_a_new_key_is_new() -> None:
    assert len({new_key() for _ in range(100)}) == 100
    assert len(new_key()) == 32


@pytest.mark.parametrize(
    ("keys", "primary"),
    [
        ({}, "a"),
        ({"a": KEY}, "b"),
        ({"a": KEY}, KEY.decode()),
        ({"": KEY}, ""),
        ({"a b": KEY}, "a b"),
        ({"a=b": KEY}, "a=b"),
        ({"a\n": KEY}, "a\n"),
        ({"a" * 65: KEY}, "a" * 65),
        ({KEY: "a"}, KEY),
        ({f"{KEY.decode()}!": KEY}, "a"),
        ({"a": KEY[:31]}, "a"),
        ({"a": KEY + b"x"}, "a"),
        ({"a": b""}, "a"),
        ({"a": KEY.decode()}, "a"),
        ({"a": None}, "a"),
    ],
    ids=repr,
)
def test_a_ring_that_is_none_is_refused_without_showing_a_key(keys: Any, primary: Any) -> None:
    with pytest.raises(ConfigurationError) as refused:
        KeyRing(keys, primary)
    assert "canary" not in str(refused.value)


def test_no_key_is_shown_or_pickled() -> None:
    codec = AesGcm(RING)
    assert repr(RING) == "KeyRing(ids=['key-7'], primary='key-7')"
    assert repr(codec) == f"AesGcm({RING!r})"
    assert "canary" not in f"{RING} {codec} {vars(codec)}"
    for secret in (RING, codec):
        with pytest.raises(TypeError) as refused:
            pickle.dumps(secret)
        assert "canary" not in "".join(traceback.format_exception(refused.value))
    with pytest.raises(TypeError):
        vars(RING)


def test_a_failed_decryption_shows_neither_key_nor_payload() -> None:
    encoded = AesGcm(RING).encode(DATA, NAME)
    with pytest.raises(DecryptionFailed) as refused:
        AesGcm(RING).decode(encoded, b"elsewhere", "key-7")
    assert "canary" not in "".join(traceback.format_exception(refused.value)) + repr(vars(refused.value))


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for build in (lambda: AesGcm(RING), lambda: RING.for_namespace("a")):
        with pytest.raises(MissingExtra, match=r"orchestrator-state\[encryption\]") as refused:
            build()
        assert refused.value.extra == "encryption"
