"""Payload to text and back: what is accepted loads back equal in value and type, the rest is refused by its place."""

import enum
import math
from collections import OrderedDict, defaultdict, namedtuple
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator_state import CorruptPayload, InvalidPayload, PayloadTooLarge, StepState
from orchestrator_state.payloads import Limits, decode, encode
from tests.support.cases import case
from tests.support.workflows import CORNERS, json_values, nested, unstorable_values


def refusal_of(value: Any) -> InvalidPayload:
    with pytest.raises(InvalidPayload) as refused:
        encode(value, "context")
    return refused.value


# --- what is accepted ---

# By their repr, which tells 1 from 1.0 and True, -0.0 from 0.0, and one order of keys from another.
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 1.0, 0.0, -0.0, 0.1, 1 / 3),
    *(2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 2**200, -(2**200), 10**4299),
    *(1e16, 1e22, 1e23, 1e-320, 5e-324, 1.7976931348623157e308, 123456789012345680.0),
    *("", " ", "text", "é", "😀", "\u2028\u2029", "\x7f\x1f\t\n", "\ufeff", "\ufffd", "</script>", '"\\', "e\u0301"),
    *([], {}, [[]], [{}], {"": {}}, {"a": []}, [None], {"b": 1, "a": 2}),
    [1, 1.0, True, "1", None, [1], {"1": 1}],
    *CORNERS,
]


def test_a_json_value_comes_back_equal_in_value_type_and_order() -> None:
    for value in VALUES:
        with case(ascii(value)[:30]):
            assert repr(decode(encode(value, "context"), "context")) == repr(value)


@settings(max_examples=150, deadline=None)
@given(json_values)
def test_any_json_value_comes_back_equal_in_value_type_and_order(value: Any) -> None:
    assert repr(decode(encode(value, "context"), "context")) == repr(value)


def test_the_text_is_compact_json_in_unicode() -> None:
    assert encode({"b": [1, 2.0, None], "a": "é😀"}, "context") == '{"b":[1,2.0,null],"a":"é😀"}'


def test_a_value_shared_by_two_places_is_written_twice() -> None:
    shared = {"a": 1}
    assert encode([shared, shared], "context") == '[{"a":1},{"a":1}]'


# --- what is refused ---


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 1


@dataclass
class Point:
    x: int


class Text(str):
    __slots__ = ()


class Number(float):
    __slots__ = ()


Pair = namedtuple("Pair", "left right")  # noqa: PYI024 - the old kind, which is a tuple too

STRANGERS: list[tuple[Any, str]] = [
    ((1, 2), "tuple"),
    (Pair(1, 2), "Pair"),
    ({1, 2}, "set"),
    (frozenset({1}), "frozenset"),
    (b"bytes", "bytes"),
    (bytearray(b"bytes"), "bytearray"),
    (memoryview(b"bytes"), "memoryview"),
    (1j, "complex"),
    (Decimal("1.5"), "Decimal"),
    (datetime(2026, 1, 1, tzinfo=UTC), "datetime"),
    (datetime(2026, 1, 1, tzinfo=UTC).date(), "date"),
    (UUID(int=0), "UUID"),
    (PurePosixPath("/"), "PurePosixPath"),
    (Colour.RED, "Colour"),
    (Level.HIGH, "Level"),
    (Text("text"), "Text"),
    (Number(1.5), "Number"),
    (Point(1), "Point"),
    (StepState(step_id="load"), "StepState"),
    (OrderedDict(a=1), "OrderedDict"),
    (defaultdict(list), "defaultdict"),
    ({}.keys(), "dict_keys"),
    (range(3), "range"),
    ((n for n in range(3)), "generator"),
    (object(), "object"),
    (int, "type"),
    (len, "builtin_function_or_method"),
    (..., "ellipsis"),
    (NotImplemented, "NotImplementedType"),
    (ValueError("no"), "ValueError"),
]


def test_a_value_that_json_would_change_is_refused_by_its_type_and_place() -> None:
    for value, kind in STRANGERS:
        with case(kind):
            error = refusal_of({"items": [0, {"inner": value}]})
            assert error.path == "context.items[1].inner"
            assert str(error) == (
                f"context.items[1].inner is of type {kind}, which would not load back equal; "
                "use None, bool, int, float, str, list or dict"
            )


NUMBERS = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_that_json_has_not_is_refused(number: float) -> None:
    error = refusal_of([number])
    assert (error.path, str(error)) == (
        "context[0]",
        "context[0] is not a finite number; JSON has no NaN and no infinity",
    )


@pytest.mark.parametrize("integer", [10**4300, -(10**4299), 10**10_000, -(10**10_000)], ids=int.bit_length)
def test_an_integer_too_long_to_print_or_to_read_back_is_refused(integer: int) -> None:
    message = "context.n is an integer of more than 4300 digits, its sign counted"
    assert str(refusal_of({"n": integer})) == message


@pytest.mark.parametrize("text", ["\0", "a\0b", "é\0"])
def test_a_nul_character_is_refused(text: str) -> None:
    assert str(refusal_of({"t": text})) == "context.t contains a NUL character; remove it"


@pytest.mark.parametrize("text", ["\ud800", "a\ud83d", "\ude00\ud83d"])
def test_a_lone_surrogate_is_refused(text: str) -> None:
    assert str(refusal_of({"t": text})) == "context.t contains a lone surrogate; it is not valid Unicode text"


@pytest.mark.parametrize("key", [1, 1.5, True, None, b"a", (1,), Colour.RED, Text("a")])
def test_a_key_that_is_not_a_string_is_refused(key: Any) -> None:
    error = refusal_of({"outer": [{key: 1}]})
    assert str(error) == f"context.outer[0] has a key of type {type(key).__name__}; use str"
    assert error.path == "context.outer[0]"


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("a\0", "contains a NUL character; remove it"),
        ("\ud800", "contains a lone surrogate; it is not valid Unicode text"),
    ],
)
def test_a_key_that_cannot_be_stored_is_refused(key: str, reason: str) -> None:
    assert str(refusal_of({"outer": {key: 1}})) == f"a key of context.outer {reason}"


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({1}, "context"),
        ([{1}], "context[0]"),
        ([[], [[], {1}]], "context[1][1]"),
        ({"a": {"b": {"c": {1}}}}, "context.a.b.c"),
        ({"two words": {1}}, "context['two words']"),
        ({"": {1}}, "context['']"),
        ({"é": {1}}, "context.é"),
        ({"it's": [{1}]}, 'context["it\'s"][0]'),
        ({"a.b": {1}}, "context['a.b']"),
        ({"\n": {1}}, "context['\\n']"),
        ({"x" * 500: {1}}, f"context['{'x' * 64}']"),
    ],
)
def test_the_place_is_spelled_as_python_would(value: Any, path: str) -> None:
    assert refusal_of(value).path == path


def test_a_refused_value_is_not_in_the_message() -> None:
    assert "s3cret" not in str(refusal_of({"password": b"s3cret"}))
    assert "s3cret" not in str(refusal_of({"password": "s3cret\0"}))


@pytest.mark.parametrize("key", ["\ud800", "\0", "\x1b[31m", "😀" * 100])
def test_the_message_can_be_printed_whatever_the_keys(key: str) -> None:
    for error in (refusal_of({key: {1}}), refusal_of({"outer": {"inner": {key: b""}}})):
        assert str(error).encode()
        assert "\x1b" not in str(error)
        assert "\0" not in str(error)


# --- values are checked in two ways, which must agree ---

PLACE_BY_PLACE = 8 * 10**99
"""An integer that long, in any place, makes the value one that is checked place by place."""


@settings(max_examples=100, deadline=None)
@given(json_values)
def test_place_by_place_any_json_value_is_accepted_as_it_is_at_once(value: Any) -> None:
    assert encode([value, PLACE_BY_PLACE], "context") == f"[{encode(value, 'context')},{PLACE_BY_PLACE}]"


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(unstorable_values())
def test_place_by_place_any_other_value_is_refused_as_it_is_at_once(value: Any) -> None:
    assert str(refusal_of([value, PLACE_BY_PLACE])) == str(refusal_of([value]))


@pytest.mark.parametrize("levels", [Limits().depth - 1, Limits().depth])
def test_place_by_place_the_depth_is_limited_as_it_is_at_once(levels: int) -> None:
    def outcome(*beside: Any) -> bool:
        try:
            return bool(encode([nested(levels), *beside], "context"))
        except InvalidPayload:
            return False

    assert outcome() is outcome(PLACE_BY_PLACE) is (levels < Limits().depth)


# What is checked place by place is counted before it is written.
@settings(max_examples=100, deadline=None)
@example({"a": [1, ""]}, PLACE_BY_PLACE)
@given(json_values, st.sampled_from([0, PLACE_BY_PLACE]))
def test_the_limit_is_exact_for_any_value(value: Any, integer: int) -> None:
    value = [value, integer]
    size = len(encode(value, "context").encode())
    assert encode(value, "context", Limits(payload_bytes=size))
    with pytest.raises(PayloadTooLarge):
        encode(value, "context", Limits(payload_bytes=size - 1))


# --- depth and size ---


def test_a_value_may_be_a_hundred_levels_deep() -> None:
    value = nested(Limits().depth)
    assert decode(encode(value, "context"), "context") == value


@pytest.mark.parametrize("levels", [Limits().depth + 1, 10_000])
def test_a_deeper_value_is_refused(levels: int) -> None:
    error = refusal_of(nested(levels))
    assert (error.path, str(error)) == ("context", "context is nested deeper than 100 levels, or contains itself")


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: dict[str, Any] = {}
    loop["me"] = [loop]
    assert str(refusal_of(loop)) == "context is nested deeper than 100 levels, or contains itself"


# The work must not grow with the 2**60 values that the lists stand for. The mark turns a hang into a failure.
@pytest.mark.timeout(30)
@pytest.mark.parametrize("join", [lambda a: [a, a], lambda a: {"l": a, "r": a}, lambda a: [[], a, "x", a]])
def test_lists_shared_sixty_levels_deep_are_refused_before_they_unfold(join: Any) -> None:
    bomb: Any = [1]
    for _ in range(60):
        bomb = join(bomb)
    with pytest.raises(PayloadTooLarge) as refused:
        encode(bomb, "context")
    assert refused.value.path == "context"


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "bomb",
    [["x" * 1_000_000] * 1000, ["é" * 1_000_000] * 1000, [{"x" * 1_000_000: 1}] * 1000, [10**4299] * 100_000],
    ids=["text", "unicode", "key", "integer"],
)
def test_a_long_value_shared_by_many_places_is_refused_before_it_is_written_out(bomb: Any) -> None:
    with pytest.raises(PayloadTooLarge) as refused:
        encode(bomb, "context")
    assert refused.value.found < 2 * Limits().payload_bytes, "counted, and only until it was too much"


def test_a_value_of_exactly_the_limit_is_accepted_and_one_byte_more_is_refused() -> None:
    assert len(encode("x" * 98, "context", Limits(payload_bytes=100))) == 100
    with pytest.raises(PayloadTooLarge) as refused:
        encode("x" * 99, "context", Limits(payload_bytes=100))
    error = refused.value
    assert (error.path, error.expected, error.found) == ("context", 100, 101)
    assert str(error) == (
        "context is 101 bytes or more as JSON, over the limit of 100; store a reference to it instead"
    )


def test_the_size_is_counted_in_bytes_not_characters() -> None:
    with pytest.raises(PayloadTooLarge):
        encode("é" * 60, "context", Limits(payload_bytes=100))


def test_the_limit_is_sixteen_mebibytes() -> None:
    assert Limits().payload_bytes == 16 * 1024 * 1024
    with pytest.raises(PayloadTooLarge):
        encode("x" * Limits().payload_bytes, "context")


# --- what is stored may be damaged ---


@pytest.mark.parametrize("text", ["", "{", "[1,]", "nul", "s3cret", '"\ud800"', "1 2", "'a'", "NaN", "[" * 100_000])
def test_stored_text_that_is_not_json_is_corrupt(text: str) -> None:
    with pytest.raises(CorruptPayload) as refused:
        decode(text, "steps['load'].outputs")
    assert refused.value.path == "steps['load'].outputs"
    assert str(refused.value) == "the stored steps['load'].outputs is not valid JSON"
    assert refused.value.__cause__ is None


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(json_values, min_size=1) | st.dictionaries(st.text("ab"), json_values) | st.text("aé😀\n"))
def test_text_cut_at_any_byte_is_corrupt(value: Any) -> None:
    whole = encode(value, "context").encode()
    for length in range(min(len(whole), 2000)):
        assert is_corrupt(whole[:length])


def is_corrupt(text: bytes) -> bool:
    try:
        decode(text, "context")
    except CorruptPayload:
        return True
    return False


@settings(max_examples=100, deadline=None)
@given(json_values, st.data())
def test_text_with_any_byte_changed_is_read_as_json_or_corrupt(value: Any, data: st.DataObject) -> None:
    damaged = bytearray(encode(value, "context").encode())
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with suppress(CorruptPayload):
        decode(bytes(damaged), "context")


BOMBS: dict[str, Any] = {
    "depth": "[" * 1_000_000,
    "closed depth": "[" * 100_000 + "]" * 100_000,
    "objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "digits": "1" * 1_000_000,
    "negative digits": "[-" + "1" * 4301 + "]",
    "fraction": "1" * 400 + ".5",
    "exponent": "1e999999999",
    "open text": '"' + "x" * 1_000_000,
    "open escape": '"\\ud800"',
    "not UTF-8": b'"\xff"',
    "no text": None,
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_a_bomb_in_the_database_is_corrupt(text: Any) -> None:
    with pytest.raises(CorruptPayload):
        decode(text, "context")


@pytest.mark.parametrize(
    ("text", "value"), [('{"a" : 1 }', {"a": 1}), ("1E5", 1e5), ('"\\u00e9"', "é"), ("null", None)]
)
def test_json_that_another_software_wrote_is_read(text: str, value: Any) -> None:
    assert decode(text, "context") == value


# --- canonical text ---


@settings(max_examples=100, deadline=None)
@given(json_values)
def test_what_was_read_is_written_as_it_was(value: Any) -> None:
    text = encode(value, "context")
    assert encode(decode(text, "context"), "context") == text


def test_a_snapshot_may_have_more_levels() -> None:
    snapshot = nested(104)
    assert decode(encode(snapshot, "snapshot", Limits(depth=104)), "snapshot") == snapshot
