"""Zstd: it shrinks what is worth it, and what it did not write, or what is a bomb, does not open."""

import json
import sys
import tracemalloc
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_state.errors import ConfigurationError, CorruptPayload, MissingExtra, PayloadTooLarge
from orchestrator_state.payloads import Payloads
from orchestrator_state.payloads.codecs.compression import MAX_DECOMPRESSED_BYTES, Zstd

NAME = b"step_states/1/load/outputs"
DATA = json.dumps([{"role": "user", "content": "what is it?", "number": number} for number in range(40)]).encode()


def compressed(data: bytes) -> bytes:
    encoded = Zstd(threshold=1).encode(data, NAME)
    assert encoded is not None
    return encoded


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=2000), times=st.integers(4, 50), level=st.sampled_from([-5, 1, 3, 19]))
def test_what_was_compressed_decompresses(data: bytes, times: int, level: int) -> None:
    codec = Zstd(level, threshold=1)
    encoded = codec.encode(data * times, NAME)
    assert encoded is None or codec.decode(encoded, NAME, "") == data * times


def test_repetitive_data_shrinks() -> None:
    assert len(compressed(DATA)) * 4 < len(DATA)


def test_short_data_and_data_that_does_not_shrink_are_left_as_they_are() -> None:
    assert Zstd(threshold=1001).encode(b"a" * 1000, NAME) is None
    assert Zstd(threshold=1000).encode(b"a" * 1000, NAME) is not None
    assert Zstd().encode(b"", NAME) is None
    assert Zstd().encode(Random(1).randbytes(100_000), NAME) is None


def test_a_compressed_text_is_never_stored_longer_than_it_was() -> None:
    payloads = Payloads([Zstd(threshold=1)])
    random = Random(2)
    for variety in range(1, 95):
        text = "".join(chr(33 + random.randrange(variety)) for _ in range(1500))
        # A shorter tag would do for the few bytes of the envelope's head.
        assert len(payloads.seal(text, "a").text) <= len(text) + len("~payload:zstd:") + 3


def test_data_cut_at_any_byte_is_corrupt() -> None:
    encoded = compressed(DATA)
    for end in range(len(encoded)):
        with pytest.raises(CorruptPayload):
            Zstd().decode(encoded[:end], NAME, "")


@pytest.mark.parametrize("data", [b"", b"garbage", DATA, compressed(DATA) + b"x", compressed(DATA) * 2])
def test_what_is_not_one_frame_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptPayload):
        Zstd().decode(data, NAME, "")


def test_a_bomb_is_refused_at_the_limit() -> None:
    encoded = compressed(b"\0" * 1_000_001)
    assert len(encoded) < 100
    assert len(Zstd(max_bytes=1_000_001).decode(encoded, NAME, "")) == 1_000_001
    with pytest.raises(PayloadTooLarge, match="more than 1000000 bytes"):
        Zstd(max_bytes=1_000_000).decode(encoded, NAME, "")


def test_a_bomb_does_not_take_more_memory_than_the_limit() -> None:
    encoded = compressed(b"\0" * 64_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge):
            Zstd(max_bytes=1_000_000).decode(encoded, NAME, "")
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


def test_a_bomb_is_a_payload_too_large_with_its_path() -> None:
    sealed = Payloads([Zstd()]).seal("0" * 5000, "a")
    with pytest.raises(PayloadTooLarge, match="the stored context: ") as refused:
        Payloads([Zstd(max_bytes=4999)]).open(*sealed, "a", "context")
    assert (refused.value.path, refused.value.expected, refused.value.found) == ("context", 4999, 5000)


def test_by_default_the_largest_snapshot_still_opens() -> None:
    from orchestrator_state.payloads import Limits

    assert Limits().workflow_bytes <= MAX_DECOMPRESSED_BYTES


@pytest.mark.parametrize("wrong", [{"level": 23}, {"level": -(10**6)}, {"threshold": 0}, {"max_bytes": 0}], ids=str)
def test_a_setting_out_of_range_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError):
        Zstd(**wrong)


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delattr("backports.zstd", raising=False)
    with pytest.raises(MissingExtra, match=r"orchestrator-state\[zstd\]") as refused:
        Zstd()
    assert refused.value.extra == "zstd"


def test_what_would_not_be_decompressed_is_not_compressed() -> None:
    """What is acknowledged has to come back."""
    payloads = Payloads([Zstd(threshold=1, max_bytes=2000)])
    for size in (1990, 2000, 2001, 9000):
        text = "a" * size
        sealed = payloads.seal(text, "a")
        assert payloads.open(sealed.text, sealed.digest, "a", "context") == text
