"""The demo's verdict: each way to break the promise is seen, so a green verdict means something."""

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator_state.demo.evidence import Evidence, faults, rows
from orchestrator_state.demo.witness import Entry, Event, append, read

FIRST, SECOND = 101, 102
KILLED_AT = 100.0


def entries(pid: int, *lines: tuple[Event, str]) -> list[Entry]:
    begun = 0 if pid == FIRST else KILLED_AT + 2
    return [Entry(event=event, pid=pid, step=step, at=begun + at) for at, (event, step) in enumerate(lines)]


def whole(pid: int, step: str) -> list[Entry]:
    return entries(pid, ("start", step), ("end", step), ("returned", step))


JOURNAL = [
    *whole(FIRST, "read"),
    *whole(FIRST, "split"),
    *entries(FIRST, ("start", "score"), ("midway", "score")),
    *entries(SECOND, ("returned", "read"), ("returned", "split")),
    *whole(SECOND, "score"),
    *whole(SECOND, "write"),
]
KEPT = Evidence(
    plan=["read", "split", "score", "write"],
    interrupted="score",
    killed_pid=FIRST,
    killed_at=KILLED_AT,
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
    "'split' was acknowledged and is not in the database": replace(KEPT, finished=without(KEPT.finished, "split")),
    "the recorded output of 'read' changed": replace(KEPT, final={**KEPT.final, "read": "another"}),
    "'write' never finished": replace(KEPT, final=without(KEPT.final, "write")),
    "'write' is recorded as finished and never ran": replace(KEPT, journal=JOURNAL[:-3]),
    "the report differs from an uninterrupted run's": replace(KEPT, report=b"Report"),
    "the first worker was not killed in the middle of 'score'": replace(
        KEPT, journal=[*JOURNAL, *entries(FIRST, ("end", "score"))]
    ),
    "the first worker was not killed in the middle of 'write'": replace(KEPT, interrupted="write"),
    "a second worker had the run while the first one owned it": replace(KEPT, killed_at=KILLED_AT + 3),
}


def test_a_promise_that_was_kept_has_no_faults() -> None:
    assert faults(KEPT) == []


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_promise_is_named(fault: str) -> None:
    assert fault in faults(BROKEN[fault])


def test_the_table_says_which_steps_were_reused_and_which_worker_ran_each() -> None:
    table = [(row.step, row.fate, row.pids) for row in rows(KEPT)]
    assert table == [
        ("read", "reused", [FIRST]),
        ("split", "reused", [FIRST]),
        ("score", "interrupted", [FIRST, SECOND]),
        ("write", "run", [SECOND]),
    ]


def test_the_take_over_is_timed_from_the_kill_to_the_first_result_in_the_other_workers_hand() -> None:
    assert KEPT.take_over_seconds == 2.0


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
    assert read(path) == []
    written = entries(FIRST, ("start", "read ü"), ("end", "read ü"))
    for entry in written:
        append(path, entry)
    path.write_bytes(path.read_bytes() + b'{"event": "sta')
    assert read(path) == written
