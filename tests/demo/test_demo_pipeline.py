"""The demo's document pipeline by itself: no store, no processes."""

import asyncio
import json
import os
import string
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_state.demo import extraction, pipeline
from orchestrator_state.demo.pipeline import CORPUS, DocumentError, T, Ts
from orchestrator_state.payloads import decode, encode


class Ran:
    """Runs the steps in memory; a result goes through the store's codec and comes back with sorted keys."""

    def __init__(self) -> None:
        self.steps: dict[str, object] = {}

    async def __call__(self, step_id: str, fn: Callable[[*Ts], T], /, *args: *Ts) -> T:
        assert step_id not in self.steps
        assert len(step_id) <= 255
        result = decode(encode(fn(*args), "outputs"), "outputs")
        self.steps[step_id] = result
        return cast("T", json.loads(json.dumps(result, sort_keys=True)))


def run(source: Path, output: Path) -> Ran:
    ran = Ran()
    asyncio.run(pipeline.process(ran, str(source), str(output)))
    return ran


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "input"
    directory.mkdir()
    return directory


def test_the_corpus_takes_at_least_twelve_steps_and_every_output_can_be_stored(tmp_path: Path) -> None:
    ran = run(CORPUS, tmp_path / "report.md")
    assert len(ran.steps) >= 12
    assert [step.split()[0] for step in ran.steps][-2:] == ["combine", "write"]
    assert {step.split()[0] for step in ran.steps} == {
        "discover", "read", "split", "score", "summarise", "combine", "write",
    }  # fmt: skip


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    run(CORPUS, tmp_path / "one.md")
    run(CORPUS, tmp_path / "two.md")
    assert (tmp_path / "one.md").read_bytes() == (tmp_path / "two.md").read_bytes()


def test_the_report_has_a_chapter_and_a_summary_for_every_document(tmp_path: Path) -> None:
    ran = run(CORPUS, tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert text.count("\n## ") == len(list(CORPUS.glob("*.txt")))
    assert "## The Hive in Winter" in text
    for step, output in ran.steps.items():
        if step.startswith("summarise"):
            assert all(summary in text for summary in cast("list[str]", output))


def test_a_report_that_is_already_there_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    report.write_text("old")
    pipeline.write(str(report), "new\n")
    assert report.read_text() == "new\n"
    assert list(tmp_path.iterdir()) == [report]


@pytest.mark.parametrize("output", ["missing/report.md", "."])
def test_an_output_that_cannot_be_written_is_named_and_leaves_no_temporary_file(tmp_path: Path, output: str) -> None:
    with pytest.raises(DocumentError, match="cannot write"):
        pipeline.write(str(tmp_path / output), "text")
    assert list(tmp_path.iterdir()) == []


words = st.text(string.ascii_letters + ".!\n é", min_size=1, max_size=30)


@given(st.lists(words, max_size=60), st.integers(1, 40))
def test_the_parts_of_a_text_hold_every_word_once_and_in_order(pieces: list[str], repeat: int) -> None:
    text = " ".join(pieces * repeat)
    spans = extraction.split(text)
    parts = [text[start:end].split() for start, end in spans]
    assert [word for part in parts for word in part] == text.split()
    assert all(0 < len(part) <= extraction.PART_WORDS for part in parts)


def test_a_part_ends_at_a_paragraph_once_it_is_long_enough() -> None:
    paragraph = "word " * (extraction.PARAGRAPH_WORDS // 2 + 1)
    text = "\n\n".join([paragraph] * 4)
    assert len(extraction.split(text)) == 2


def test_a_term_of_one_document_weighs_more_than_one_that_is_everywhere() -> None:
    texts = ["common lighthouse", "common beehive", "common canal"]
    weights = extraction.score(texts, [[[0, len(text)]] for text in texts])
    assert weights[0]["lighthouse"] > weights[0]["common"]
    assert list(weights[1]) == ["beehive", "common"]


def test_a_summary_keeps_the_weightiest_sentences_in_the_order_of_the_text() -> None:
    text = (
        "Lock Lock Lock\n\nThe keeper fills the lock with water. Nothing at all happens in this one here. "
        "Then the upper gates of the lock open."
    )
    summary = extraction.summarise(text, {"lock": 9.0, "water": 3.0, "gates": 3.0})
    assert summary == "The keeper fills the lock with water. Then the upper gates of the lock open."


def test_a_text_without_sentences_is_cut_to_a_bounded_summary() -> None:
    assert len(extraction.summarise("x" * 100_000, {})) <= extraction.SENTENCE_CHARACTERS


@pytest.mark.parametrize("name", ["missing", "file.txt"])
def test_an_input_that_is_no_directory_is_named(source: Path, name: str) -> None:
    (source / "file.txt").write_text("text")
    with pytest.raises(DocumentError, match=f"not a directory.*{name}"):
        pipeline.discover(str(source / name))


def test_a_directory_without_text_files_says_which_it_looked_for(source: Path) -> None:
    (source / "picture.png").write_bytes(b"\x89PNG")
    (source / ".hidden.txt").write_text("not this one")
    (source / ".git").mkdir()
    (source / ".git" / "note.md").write_text("nor this one")
    with pytest.raises(DocumentError, match=r"no \.txt or \.md files"):
        pipeline.discover(str(source))


def test_files_are_found_in_folders_and_sorted(source: Path) -> None:
    (source / "b.txt").write_text("b")
    (source / "a").mkdir()
    (source / "a" / "C.MD").write_text("c")
    assert pipeline.discover(str(source)) == ["a/C.MD", "b.txt"]


def test_too_many_files_and_too_many_bytes_are_refused_with_the_limit(source: Path) -> None:
    (source / "big.txt").write_bytes(b"x" * (pipeline.MAX_BYTES + 1))
    with pytest.raises(DocumentError, match=f"up to {pipeline.MAX_BYTES:,}"):
        pipeline.discover(str(source))
    (source / "big.txt").unlink()
    for number in range(pipeline.MAX_FILES + 1):
        (source / f"{number}.txt").touch()
    with pytest.raises(DocumentError, match=f"up to {pipeline.MAX_FILES}"):
        pipeline.discover(str(source))


def test_as_many_files_as_are_taken_go_through(source: Path, tmp_path: Path) -> None:
    for number in range(pipeline.MAX_FILES):
        (source / f"{number:04}.txt").write_text(f"A short note about subject {number} and a lantern.")
    ran = run(source, tmp_path / "report.md")
    # The number of steps, and with it the cost of each, is bounded: many files share a step.
    assert len(ran.steps) <= 3 * pipeline.STEPS_PER_STAGE + 4
    assert "read 1 to 67 of 2000" in ran.steps
    report = (tmp_path / "report.md").read_text()
    assert report.count("\n## ") == pipeline.MAX_FILES
    assert (
        "## 1234.txt\n\n1234.txt, 9 words. Key terms: lantern, note, short, subject.\n\n1. A short note about "
        "subject 1234 and a lantern.\n" in report
    )


def test_bytes_that_are_not_utf8_are_counted_and_reported(source: Path, tmp_path: Path) -> None:
    (source / "latin.txt").write_bytes("Un café près de la gare, où l'on attend.".encode("latin-1"))
    run(source, tmp_path / "report.md")
    assert "3 characters of this file are not UTF-8 text." in (tmp_path / "report.md").read_text()


def test_a_binary_file_with_nul_bytes_still_gives_a_storable_text(source: Path, tmp_path: Path) -> None:
    (source / "binary.txt").write_bytes(bytes(range(256)) * 20)
    run(source, tmp_path / "report.md")
    assert "\0" not in (tmp_path / "report.md").read_text()


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(source: Path) -> None:
    (source / "plain.txt").write_bytes(b"Title\n\nText.")
    (source / "windows.txt").write_bytes(b"\xef\xbb\xbfTitle\r\n\r\nText.")
    plain, windows = (pipeline.read(str(source), name) for name in ("plain.txt", "windows.txt"))
    assert (windows["text"], windows["title"]) == (plain["text"], plain["title"]) == ("Title\n\nText.", "Title")


def test_empty_files_are_in_the_report_without_a_summary(source: Path, tmp_path: Path) -> None:
    (source / "empty.txt").touch()
    (source / "blank.md").write_text(" \n\n\t\n")
    ran = run(source, tmp_path / "report.md")
    assert not any(step.startswith("summarise") for step in ran.steps)
    assert "## empty.txt\n\nempty.txt, 0 words. Key terms: none." in (tmp_path / "report.md").read_text()


def test_names_with_markup_and_long_paths_are_plain_data(source: Path, tmp_path: Path) -> None:
    deep = source / ("d" * 200) / ("e" * 200)
    deep.mkdir(parents=True)
    for name in ("x'; DROP TABLE step_states; --.txt", "[bold]<b>*.txt", "😀.txt"):
        (deep / name).write_text("A few words in a file with a strange name.")
    ran = run(source, tmp_path / "report.md")
    assert len(ran.steps) == 13
    assert r"\[bold\]\<b\>\*.txt" in (tmp_path / "report.md").read_text()


def test_a_file_name_that_is_not_text_is_refused_and_spelled_out(source: Path) -> None:
    (source / os.fsdecode(b"caf\xe9.txt")).touch()
    with pytest.raises(DocumentError, match=r"not text: caf\\udce9\.txt"):
        pipeline.discover(str(source))


def test_a_file_that_vanished_is_named(source: Path) -> None:
    with pytest.raises(DocumentError, match=r"cannot read gone\.txt: No such file"):
        pipeline.read(str(source), "gone.txt")
