"""One text made of another: it leads there, it is short, and what is stored of it harms nobody."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_state import CorruptPayload, PayloadError
from orchestrator_state.records.context.changes.text_edits import Edit, edit_between
from orchestrator_state.records.context.patches import Patch

TEXT = " ".join(f"word {n * 7919 % 10007}," for n in range(3000))
PIECES = st.sampled_from(["a", "b,", "aaaa bbbb ", TEXT[:200], TEXT[100:400], "\u00e9\u4e2d,", "\\u0000"])
TEXTS = st.lists(PIECES, max_size=30).map("".join)


@given(TEXTS, TEXTS)
def test_an_edit_leads_from_the_one_to_the_other_and_is_stored_as_it_is(before: str, after: str) -> None:
    edit = edit_between(before, after)
    if edit is not None:
        stored = Edit.from_json(edit.to_json())
        assert stored == edit
        assert stored.apply(before) == after


@given(st.permutations(range(8)), st.text(max_size=20))
def test_what_has_moved_is_found_wherever_it_is(order: list[int], new: str) -> None:
    parts = [TEXT[n * 3000 : (n + 1) * 3000] for n in range(8)]
    edit = edit_between(TEXT[:24_000], new.join(parts[n] for n in order))
    assert edit is not None
    assert len(edit.to_json()) < 2000


def test_of_a_text_that_is_new_there_is_no_edit() -> None:
    assert edit_between(TEXT, TEXT.upper()) is None
    assert edit_between("", "x" * 1000) is None


def test_an_edit_is_done_to_no_other_text() -> None:
    edit = edit_between(TEXT, TEXT[10:])
    assert edit is not None
    for other in (TEXT + "x", TEXT[:-1] + "x"):
        with pytest.raises(CorruptPayload):
            edit.apply(other)


@pytest.mark.parametrize(
    "stored",
    [
        "[]",
        "{}",
        '["x"]',
        "[10,1,[0,11]]",
        "[10,1,[-1,3]]",
        "[10,1,[4,3]]",
        "[10,[0,3]]",
        "[10,1,3]",
        "[10,1,[0,1,2]]",
        json.dumps([10, 1, *([[0, 10]] * 1000)]),  # a few bytes would make a text of any length
        "[" * 1000,
    ],
)
def test_what_is_no_edit_is_a_damaged_patch(stored: str) -> None:
    with pytest.raises(CorruptPayload):
        Edit.from_json(stored)
    with pytest.raises(PayloadError):
        Patch.from_json('[2,{"change":{"edit":{"a":' + stored + "}}}]")
