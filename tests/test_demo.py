"""The demo end to end: real processes, a real SIGKILL, both databases."""

import asyncio
import io
import re
import sqlite3
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator_state import StateStore, StepState, WorkflowState, WorkflowStatus
from orchestrator_state.demo import runner
from orchestrator_state.demo.inspection import finished_steps
from orchestrator_state.demo.pipeline import CORPUS
from orchestrator_state.demo.runner import run_demo

# The negative controls go behind the demo's back between the kill and the recovery.
Sabotage = Callable[[WorkflowState], None]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runner, "WATCHABLE_SECONDS", 0.0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    directory = tmp_path / "input"
    directory.mkdir()
    (directory / "canal.txt").write_text((CORPUS / "canal.txt").read_text())
    (directory / "note.md").write_text("# A note\n\nOne lantern was lit beside the canal.")
    return directory


class Shown:
    """A console whose output can be read afterwards."""

    def __init__(self) -> None:
        self.console = Console(file=io.StringIO(), width=200, force_terminal=False)

    def __str__(self) -> str:
        assert isinstance(self.console.file, io.StringIO)
        return self.console.file.getvalue()


def demo(db: str | None, source: Path | None = None, output: Path | None = None) -> tuple[int, str]:
    shown = Shown()
    status = run_demo(db=db, input_dir=source, llm=None, output=output, console=shown.console)
    return status, str(shown)


def tamper(db: str, workflow_id: str, sabotage: Sabotage) -> None:
    async def main() -> None:
        async with StateStore.open(db) as store:
            state = await store.load_workflow_state_by_workflow_id(workflow_id)
            sabotage(state)
            await store.save_workflow_state(state)

    asyncio.run(main())


def sabotaged(monkeypatch: pytest.MonkeyPatch, sabotage: Sabotage, *, after_the_parent_looked: bool) -> None:
    """Change the database once between the kill and the recovery."""
    done: list[str] = []

    def look_and_tamper(db: str, workflow_id: str) -> dict[str, object]:
        seen = finished_steps(db, workflow_id)
        if not done:
            done.append(workflow_id)
            tamper(db, workflow_id, sabotage)
        return seen if after_the_parent_looked else finished_steps(db, workflow_id)

    monkeypatch.setattr(runner, "finished_steps", look_and_tamper)


def forget(step_id: str) -> Sabotage:
    def sabotage(state: WorkflowState) -> None:
        state.steps[step_id] = StepState(step_id=step_id)

    return sabotage


def test_the_demo_recovers_its_killed_process_and_repeats_nothing(database_url: str, tmp_path: Path) -> None:
    report = tmp_path / "reports" / "report.md"
    status, shown = demo(database_url, output=report)
    assert status == 0, shown
    assert "The promise held" in shown
    assert report.read_text().count("\n## ") == len(list(CORPUS.glob("*.txt")))
    fates = re.findall(r"│ (?:reused|run|interrupted) +│ +(\d) │ +[\d.]+ ms │", shown)
    assert len(fates) == 28
    assert fates.count("2") == 1


def test_the_demo_leaves_finished_workflows_that_an_application_can_read(database_url: str, small: Path) -> None:
    status, shown = demo(database_url, small)
    assert status == 0, shown
    found = re.search(r"workflow (demo-\w+)", shown)
    assert found

    async def main() -> None:
        async with StateStore.open(database_url) as store:
            state = await store.load_workflow_state_by_workflow_id(found[1])
            assert state.status is WorkflowStatus.COMPLETED
            assert [step.retry_count for step in state.steps.values() if step.retry_count] == [1]
            assert not await store.list_active_workflows()
            checkpoint = await store.get_latest_checkpoint(state.id)
            assert checkpoint
            assert checkpoint.step_id == "write"

    asyncio.run(main())


def test_two_demos_at_once_share_one_database(database_url: str, small: Path) -> None:
    outcomes: list[tuple[int, str]] = []
    demos = [threading.Thread(target=lambda: outcomes.append(demo(database_url, small))) for _ in range(2)]
    for thread in demos:
        thread.start()
    for thread in demos:
        thread.join()
    assert [status for status, _ in outcomes] == [0, 0], outcomes


def test_without_a_database_the_demo_makes_a_file_and_says_where(small: Path) -> None:
    status, shown = demo(None, small)
    assert status == 0, shown
    found = re.search(r"Database +(\S+workflows\.db)", shown)
    assert found
    with sqlite3.connect(found[1]) as connection:
        assert connection.execute("SELECT count(*) FROM workflow_states").fetchone() == (2,)
    connection.close()


def test_a_finished_step_that_runs_again_fails_the_demo(
    database_url: str, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotaged(monkeypatch, forget("read canal.txt"), after_the_parent_looked=True)
    status, shown = demo(database_url, small)
    assert status == 1
    assert "fault: 'read canal.txt' ran again although it had finished" in shown
    assert "The promise held" not in shown


def test_work_that_was_acknowledged_and_lost_fails_the_demo(
    database_url: str, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotaged(monkeypatch, forget("split canal.txt"), after_the_parent_looked=False)
    status, shown = demo(database_url, small)
    assert status == 1
    assert "fault: 'split canal.txt' was acknowledged and is not in the database" in shown


def test_a_recorded_output_that_changed_fails_the_demo(
    database_url: str, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sabotage(state: WorkflowState) -> None:
        state.steps["read note.md"].outputs[0]["title"] = "Another title"

    sabotaged(monkeypatch, sabotage, after_the_parent_looked=True)
    status, shown = demo(database_url, small)
    assert status == 1
    assert "fault: the recorded output of 'read note.md' changed" in shown
    assert "fault: the report differs from an uninterrupted run's" in shown


@pytest.mark.parametrize(
    ("db", "complaint"),
    [
        (":memory:", "dies with the process"),
        ("sqlite:///:memory:", "dies with the process"),
        ("mysql://u:s3cret@host/db", "mysql"),
        ("postgresql://u:s3cret@127.0.0.1:1/db", ""),
    ],
)
def test_a_database_that_cannot_be_used_ends_the_demo_with_status_two_and_no_password(
    small: Path, db: str, complaint: str
) -> None:
    status, shown = demo(db, small)
    assert status == 2
    assert shown.startswith("The demo cannot run: ")
    assert complaint in shown
    assert "s3cret" not in shown


def test_an_input_or_output_that_cannot_be_used_ends_the_demo_with_status_two(small: Path, tmp_path: Path) -> None:
    db = str(tmp_path / "w.db")
    for source, output, complaint in [
        (tmp_path / "missing", None, "not a directory"),
        (tmp_path / "reports", None, "no .txt or .md files"),
        (small, tmp_path, "the output is a directory"),
        (small, small / "note.md" / "report.md", "cannot create"),
    ]:
        (tmp_path / "reports").mkdir(exist_ok=True)
        status, shown = demo(db, source, output)
        assert status == 2, shown
        assert complaint in shown
