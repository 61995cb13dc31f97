"""The demo's verdict: each way to break the promise is seen, so a green verdict means something."""

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator_state.demo.evidence import Evidence, faults, rows
from orchestrator_state.demo.journal import Entry, Event, Journal, read_journal

FIRST, SECOND = 101, 102


def entries(pid: int, *lines: tuple[Event, str], attempt: int = 1) -> list[Entry]:
    return [
        Entry(event=event, pid=pid, step=step, attempt=attempt, at=float(at)) for at, (event, step) in enumerate(lines)
    ]


def whole(pid: int, step: str, attempt: int = 1) -> list[Entry]:
    return entries(pid, ("start", step), ("end", step), ("saved", step), attempt=attempt)


JOURNAL = [
    *whole(FIRST, "read"),
    *whole(FIRST, "split"),
    *entries(FIRST, ("start", "score")),
    *whole(SECOND, "score", attempt=2),
    *whole(SECOND, "write"),
]
KEPT = Evidence(
    plan=["read", "split", "score", "write"],
    interrupted="score",
    killed_pid=FIRST,
    journal=JOURNAL,
    finished={"read": "text", "split": [1]},
    final={"read": "text", "split": [1], "score": {}, "write": 7},
    report=b"report",
    reference=b"report",
)


def without(mapping: object, step: str) -> dict[str, object]:
    assert isinstance(mapping, dict)
    return {key: value for key, value in mapping.items() if key != step}


BROKEN = {
    "'read' ran again although it had finished": replace(KEPT, journal=[*JOURNAL, *whole(SECOND, "read")]),
    "'write' ran 2 times": replace(KEPT, journal=[*JOURNAL, *whole(SECOND, "write")]),
    "'score' ran 3 times": replace(KEPT, journal=[*JOURNAL, *entries(SECOND, ("start", "score"))]),
    "'split' was acknowledged and is not in the database after the kill": replace(
        KEPT, finished=without(KEPT.finished, "split")
    ),
    "the recorded output of 'read' changed": replace(KEPT, final={**KEPT.final, "read": "another"}),
    "'write' never finished": replace(KEPT, final=without(KEPT.final, "write")),
    "'write' is recorded as finished and never ran": replace(KEPT, journal=JOURNAL[:-3]),
    "the report differs from an uninterrupted run's": replace(KEPT, report=b"Report"),
    "the first process was not killed in the middle of 'score'": replace(
        KEPT, journal=[*JOURNAL, *entries(FIRST, ("end", "score"))]
    ),
    "the first process was not killed in the middle of 'write'": replace(KEPT, interrupted="write"),
}


def test_a_promise_that_was_kept_has_no_faults() -> None:
    assert faults(KEPT) == []


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_promise_is_named(fault: str) -> None:
    assert fault in faults(BROKEN[fault])


def test_the_table_says_which_steps_were_reused_and_which_ran() -> None:
    table = [(row.step, row.fate, row.attempts) for row in rows(KEPT)]
    assert table == [
        ("read", "reused", 1),
        ("split", "reused", 1),
        ("score", "interrupted", 2),
        ("write", "run", 1),
    ]


def test_the_table_shows_a_finished_step_that_ran_again() -> None:
    assert rows(BROKEN["'read' ran again although it had finished"])[0].fate == "run again"


def test_the_table_shows_a_missing_step_and_one_that_nobody_planned() -> None:
    evidence = replace(KEPT, final={**without(KEPT.final, "write"), "extra": 1})
    assert [(row.step, row.fate) for row in rows(evidence)][-2:] == [("write", "missing"), ("extra", "run")]


def test_a_duration_is_that_of_the_execution_whose_result_stands() -> None:
    score = rows(KEPT)[2]
    assert score.seconds == 1.0


def test_the_journal_is_read_back_without_the_line_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert read_journal(path) == []
    with Journal(path) as journal:
        journal.add("start", "read ü", 1)
        journal.add("end", "read ü", 1)
    path.write_bytes(path.read_bytes() + b'{"event": "sta')
    assert [(entry.event, entry.step) for entry in read_journal(path)] == [
        ("start", "read ü"),
        ("end", "read ü"),
    ]


def test_two_writers_of_one_journal_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as one, Journal(path) as two:
        for number in range(20):
            (one if number % 2 else two).add("start", str(number), 1)
    assert [entry.step for entry in read_journal(path)] == [str(number) for number in range(20)]
