"""The chain of codecs and the digest: what was sealed opens, and nothing else does."""

import base64
import traceback
from collections.abc import Callable
from typing import Any, ParamSpec

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_state.compression import Zstd
from orchestrator_state.encryption import AesGcm, KeyRing, new_key
from orchestrator_state.errors import (
    ConfigurationError,
    CorruptPayload,
    DecryptionFailed,
    InvalidPayload,
    PayloadError,
    UnknownCodec,
    UnprotectedPayload,
)
from orchestrator_state.payloads import Codec, Payloads, check_digest
from orchestrator_state.payloads.digests import digest_of

P = ParamSpec("P")

IDENTITY = "step_states/0192f0c4-7b7a-7cc2-8b3e-0123456789ab/load/outputs"
ELSEWHERE = "step_states/0192f0c4-7b7a-7cc2-8b3e-0123456789ab/check/outputs"
PATH = "steps['load'].outputs"
CANARY = "canary-4711-canary"
TEXT = '{"note":"' + f"{CANARY} é😀 " * 6 + '"}'


class Reversed:
    """A codec of an application's own, which takes a parameter."""

    def __init__(self, tag: str = "reversed=2") -> None:
        self.tag = tag
        self.parameters: list[str] = []

    def encode(self, data: bytes, identity: bytes) -> bytes | None:
        return data[::-1]

    def decode(self, data: bytes, identity: bytes, parameter: str) -> bytes:
        self.parameters.append(parameter)
        return data[::-1]


class Broken(Reversed):
    """Raises, or returns, what no codec should, once the payload is not empty."""

    def __init__(self, answer: object) -> None:
        super().__init__("broken")
        self.answer = answer

    def _answer(self, data: bytes) -> Any:
        if data and isinstance(self.answer, Exception):
            raise self.answer
        return self.answer if data else b""

    def encode(self, data: bytes, identity: bytes) -> bytes | None:
        answer: bytes | None = self._answer(data)
        return answer

    def decode(self, data: bytes, identity: bytes, parameter: str) -> bytes:
        answer: bytes = self._answer(data)
        return answer


RING = KeyRing({"key-7": new_key()}, "key-7")
CHAINS: dict[str, tuple[Codec, ...]] = {
    "plain": (),
    "zstd": (Zstd(threshold=1),),
    "aes-gcm": (AesGcm(RING),),
    "zstd and aes-gcm": (Zstd(threshold=1), AesGcm(RING)),
    "one's own, and all": (Reversed(), Zstd(threshold=1), AesGcm(RING)),
}
each_chain = pytest.mark.parametrize("codecs", CHAINS.values(), ids=CHAINS)


def assert_silent(error: BaseException) -> None:
    """Neither the error nor its traceback shows the payload."""
    shown = "".join(traceback.format_exception(error)) + str(error) + repr(error) + repr(vars(error))
    assert CANARY not in shown
    assert error.__context__ is None or error.__suppress_context__
    assert base64.b64encode(TEXT.encode()).decode()[:24] not in shown


def refusal(kind: type[PayloadError], call: Callable[P, object], *args: P.args, **options: P.kwargs) -> PayloadError:
    with pytest.raises(PayloadError) as refused:
        call(*args, **options)
    assert type(refused.value) is kind
    assert refused.value.about["path"] == PATH
    assert_silent(refused.value)
    return refused.value


# --- there and back ---


@each_chain
@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4000))
def test_what_was_sealed_opens(codecs: tuple[Codec, ...], text: str) -> None:
    payloads = Payloads(codecs)
    sealed = payloads.seal(text, IDENTITY)
    assert payloads.open(*sealed, IDENTITY, PATH) == text
    assert payloads.is_current(*sealed)
    assert "\0" not in sealed.text


@each_chain
@pytest.mark.parametrize("text", ["~payload:", "~payload::", "~payload::e30=", "~payload:zstd:e30=", "~payload:{}"])
def test_a_text_that_begins_like_an_envelope_is_not_mistaken_for_one(codecs: tuple[Codec, ...], text: str) -> None:
    payloads = Payloads(codecs, strict=True)
    sealed = payloads.seal(text, IDENTITY)
    assert payloads.open(*sealed, IDENTITY, PATH) == text
    assert payloads.is_current(*sealed)


def test_without_codecs_the_text_itself_is_stored() -> None:
    assert Payloads().seal(TEXT, IDENTITY).text == TEXT
    assert Payloads([Zstd()]).seal(TEXT, IDENTITY).text == TEXT


def test_an_envelope_names_its_codecs_in_the_order_in_which_they_were_applied() -> None:
    sealed = Payloads(CHAINS["one's own, and all"]).seal(TEXT, IDENTITY)
    assert sealed.text.startswith("~payload:reversed=2,zstd,aes-gcm=key-7:")
    assert sealed.text.isascii()
    assert CANARY not in sealed.text


def test_a_codec_is_given_the_parameter_it_was_written_with() -> None:
    sealed = Payloads([Reversed("reversed=a=1")]).seal(TEXT, IDENTITY)
    later = Reversed("reversed=b")
    assert Payloads([later]).open(*sealed, IDENTITY, PATH) == TEXT
    assert later.parameters == ["a=1"]


def test_a_retired_codec_is_still_read_with() -> None:
    sealed = Payloads([Reversed()]).seal(TEXT, IDENTITY)
    payloads = Payloads([AesGcm(RING)], readers=[Reversed()])
    assert payloads.open(*sealed, IDENTITY, PATH) == TEXT
    assert not payloads.is_current(*sealed)


# --- damage ---


@each_chain
def test_a_payload_cut_anywhere_is_corrupt(codecs: tuple[Codec, ...]) -> None:
    payloads = Payloads(codecs)
    text, digest = payloads.seal(TEXT, IDENTITY)
    for end in range(len(text)):
        cut = text[:end]
        refusal(CorruptPayload, payloads.open, cut, digest, IDENTITY, PATH)
        refusal(CorruptPayload, check_digest, cut, digest, IDENTITY, PATH)


@each_chain
def test_a_payload_with_any_bit_flipped_is_corrupt(codecs: tuple[Codec, ...]) -> None:
    payloads = Payloads(codecs)
    text, digest = payloads.seal(TEXT, IDENTITY)
    for place, character in enumerate(text):
        for bit in range(7):
            damaged = text[:place] + chr(ord(character) ^ 1 << bit) + text[place + 1 :]
            refusal(CorruptPayload, payloads.open, damaged, digest, IDENTITY, PATH)


@each_chain
def test_an_envelope_cut_anywhere_is_refused_without_a_digest_too(codecs: tuple[Codec, ...]) -> None:
    if not codecs:
        codecs = (Reversed(), AesGcm(RING))
    payloads = Payloads(codecs)
    text = payloads.seal(TEXT, IDENTITY).text
    for end in range(len("~payload:"), len(text)):
        with pytest.raises((CorruptPayload, DecryptionFailed)) as refused:
            payloads.open(text[:end], None, IDENTITY, PATH)
        assert_silent(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "~payload:",
        "~payload:reversed=2",
        f"~payload:{CANARY} {CANARY}:e30=",
        "~payload:,:e30=",
        "~payload:reversed=2,:e30=",
        "~payload:reversed=2,reversed=2:e30=",
        "~payload:=2:e30=",
        "~payload:reversed=:e30=",
        "~payload:" + "a" * 129 + ":e30=",
        "~payload:reversed=2:e30",
        "~payload:reversed=2:e30=\n",
        "~payload:reversed=2:e3 0=",
        "~payload:reversed=2:e30=e30=",
        "~payload:reversed=2:é30=",
        f"~payload:reversed=2:{CANARY}",
        "~payload:reversed=2:gICAgA==",  # not UTF-8
        "~payload::gICAgA==",
    ],
)
def test_a_text_that_begins_like_an_envelope_and_is_none_is_corrupt(text: str) -> None:
    payloads = Payloads([Reversed()])
    refusal(CorruptPayload, payloads.open, text, None, IDENTITY, PATH)
    refusal(CorruptPayload, payloads.open, text, digest_of(text, IDENTITY), IDENTITY, PATH)


@each_chain
def test_a_payload_in_the_wrong_row_is_corrupt(codecs: tuple[Codec, ...]) -> None:
    payloads = Payloads(codecs)
    sealed = payloads.seal(TEXT, IDENTITY)
    refusal(CorruptPayload, payloads.open, *sealed, ELSEWHERE, PATH)


def test_an_encrypted_payload_moved_with_a_digest_made_for_its_new_place_does_not_open() -> None:
    payloads = Payloads([AesGcm(RING)])
    text = payloads.seal(TEXT, IDENTITY).text
    refusal(DecryptionFailed, payloads.open, text, digest_of(text, ELSEWHERE), ELSEWHERE, PATH)


def test_identity_and_text_do_not_run_together() -> None:
    assert digest_of("bc", "a") != digest_of("c", "ab") != digest_of("", "abc")
    assert digest_of("", "") != digest_of("a", "")


def test_the_digest_is_the_one_that_stored_rows_carry() -> None:
    assert digest_of('{"a":"é"}', "workflow_states/1/context") == "1d8df62ecc4c1cf80d1ffb55d75d8182"


# --- keys and codecs that are not there ---


def test_an_unknown_codec_is_named() -> None:
    sealed = Payloads([Reversed()]).seal(TEXT, IDENTITY)
    error = refusal(UnknownCodec, Payloads([Zstd()]).open, *sealed, IDENTITY, PATH)
    assert error.about["tag"] == "reversed=2"
    assert "readers" in str(error)


def test_a_wrong_key_and_an_unknown_key_are_told_apart() -> None:
    sealed = Payloads([AesGcm(RING)]).seal(TEXT, IDENTITY)
    wrong = Payloads([AesGcm(KeyRing({"key-7": new_key()}, "key-7"))])
    error = refusal(DecryptionFailed, wrong.open, *sealed, IDENTITY, PATH)
    assert "does not decrypt under the key key-7" in str(error)
    unknown = Payloads([AesGcm(KeyRing({"key-8": new_key()}, "key-8"))])
    error = refusal(DecryptionFailed, unknown.open, *sealed, IDENTITY, PATH)
    assert "'key-7', and the ring has key-8" in str(error)
    assert error.about["key_id"] == "key-7"


# --- rows of older software ---


@each_chain
def test_a_payload_without_digest_is_read_unless_strict(codecs: tuple[Codec, ...]) -> None:
    assert Payloads(codecs).open(TEXT, None, IDENTITY, PATH) == TEXT
    refusal(UnprotectedPayload, Payloads(codecs, strict=True).open, TEXT, None, IDENTITY, PATH)


@each_chain
def test_a_payload_changed_by_software_without_digests_is_read_unless_strict(codecs: tuple[Codec, ...]) -> None:
    digest = Payloads(codecs).seal(TEXT, IDENTITY).digest
    assert Payloads(codecs).open("{}", digest, IDENTITY, PATH, outdated=True) == "{}"
    strict = Payloads(codecs, strict=True)
    refusal(CorruptPayload, strict.open, "{}", digest, IDENTITY, PATH, outdated=True)


def test_an_envelope_keeps_to_its_digest_in_a_row_changed_by_older_software() -> None:
    payloads = Payloads([Reversed()])
    text, digest = payloads.seal(TEXT, IDENTITY)
    assert payloads.open(text, digest, IDENTITY, PATH, outdated=True) == TEXT
    other = payloads.seal("{}", IDENTITY).text
    refusal(CorruptPayload, payloads.open, other, digest, IDENTITY, PATH, outdated=True)


def test_strict_refuses_what_was_written_without_the_encryption() -> None:
    chain = (Zstd(), AesGcm(RING))
    for codecs in ((), (Zstd(threshold=1),)):
        sealed = Payloads(codecs).seal(TEXT, IDENTITY)
        assert Payloads(chain).open(*sealed, IDENTITY, PATH) == TEXT
        error = refusal(UnprotectedPayload, Payloads(chain, strict=True).open, *sealed, IDENTITY, PATH)
        assert "aes-gcm" in str(error)


def test_strict_asks_neither_for_the_compression_nor_for_the_newest_key() -> None:
    old, new = new_key(), new_key()
    sealed = Payloads([AesGcm(KeyRing({"old": old}, "old"))], strict=True).seal(TEXT, IDENTITY)
    payloads = Payloads([Zstd(), AesGcm(KeyRing({"old": old, "new": new}, "new"))], strict=True)
    assert payloads.open(*sealed, IDENTITY, PATH) == TEXT
    assert Payloads([Zstd()], strict=True).open(*Payloads().seal("{}", IDENTITY), IDENTITY, PATH) == "{}"


def test_what_rekeying_has_to_write_again() -> None:
    old, new = new_key(), new_key()
    before = Payloads([Zstd(threshold=1), AesGcm(KeyRing({"old": old}, "old"))])
    after = Payloads([Zstd(threshold=1), AesGcm(KeyRing({"old": old, "new": new}, "new"))])
    assert not after.is_current(*before.seal(TEXT, IDENTITY))
    assert not after.is_current(*Payloads().seal(TEXT, IDENTITY))
    assert not after.is_current(TEXT, None)
    assert not Payloads().is_current(*after.seal(TEXT, IDENTITY))
    assert not Payloads().is_current(TEXT, None)
    # Too short to be compressed: the order of what remains is as `seal` writes it.
    assert after.is_current(*Payloads([AesGcm(KeyRing({"new": new}, "new"))]).seal("{}", IDENTITY))
    assert not Payloads([Zstd(), Reversed()]).is_current(
        *Payloads([Reversed(), Zstd(threshold=1)]).seal(TEXT, IDENTITY)
    )


# --- codecs of one's own that misbehave ---


@pytest.mark.parametrize("answer", [ValueError(CANARY), RecursionError(CANARY), CANARY, None, 7], ids=repr)
def test_a_codec_that_does_not_encode_refuses_the_payload(answer: object) -> None:
    payloads = Payloads([Broken(answer)])
    with pytest.raises(InvalidPayload, match="the codec broken") as refused:
        payloads.seal(TEXT, IDENTITY)
    assert_silent(refused.value)


@pytest.mark.parametrize("answer", [ValueError(CANARY), RecursionError(CANARY), CANARY, None, 7], ids=repr)
def test_a_codec_that_does_not_decode_makes_the_payload_corrupt(answer: object) -> None:
    sealed = Payloads([Reversed("broken")]).seal(TEXT, IDENTITY)
    error = refusal(CorruptPayload, Payloads([Broken(answer)]).open, *sealed, IDENTITY, PATH)
    assert "the codec broken" in str(error)


@pytest.mark.parametrize("tag", ["", "a b", "a,b", "a:b", "=b", "a=", "é", "a\n", "a" * 129, None, 7], ids=repr)
def test_a_tag_that_cannot_be_stored_is_refused(tag: Any) -> None:
    with pytest.raises(ConfigurationError, match="tag of the codec Reversed"):
        Payloads([Reversed(tag)])
    with pytest.raises(ConfigurationError, match="tag of the codec Reversed"):
        Payloads(readers=[Reversed(tag)])


def test_two_codecs_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="two codecs are named reversed"):
        Payloads([Reversed("reversed=1")], readers=[Reversed("reversed=2")])


def test_a_codec_that_fails_on_an_empty_payload_is_refused() -> None:
    class Picky(Reversed):
        def encode(self, data: bytes, identity: bytes) -> bytes | None:
            return bytes([data[0]])

    with pytest.raises(ConfigurationError, match="the codec picky"):
        Payloads([Picky("picky")])


def test_a_lone_surrogate_is_refused_in_silence() -> None:
    for codecs in CHAINS.values():
        with pytest.raises(InvalidPayload) as refused:
            Payloads(codecs).seal(f"{CANARY}\ud800", IDENTITY)
        assert_silent(refused.value)
    refusal(CorruptPayload, Payloads().open, f"{CANARY}\ud800", "0" * 32, IDENTITY, PATH)
