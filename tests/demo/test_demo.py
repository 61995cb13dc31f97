"""The demo end to end: real processes, a real SIGKILL, both databases."""

import asyncio
import io
import re
import tempfile
import threading
from pathlib import Path
from uuid import UUID

import pytest
from rich.console import Console
from sqlalchemy import delete, update

from orchestrator_state import StateStore, WorkflowStatus
from orchestrator_state.demo import runner
from orchestrator_state.demo.pipeline import CORPUS, NAME
from orchestrator_state.demo.runner import finished_steps, run_demo
from orchestrator_state.models import step_states
from orchestrator_state.payloads import encode

pytestmark = pytest.mark.process


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


def demo(db: str | None, source: Path | None = None, output: Path | None = None) -> tuple[int, str]:
    shown = io.StringIO()
    console = Console(file=shown, width=200, force_terminal=False)
    status = run_demo(db=db, input_dir=source, llm=None, output=output, console=console)
    return status, shown.getvalue()


@pytest.fixture
def workers(request: pytest.FixtureRequest, backend: str, _fork_server: None) -> None:
    """Interpreters of their own on SQLite, forks on Postgres: the test of the worker by itself starts one there."""
    if backend == "postgres":
        request.getfixturevalue("forked_workers")


@pytest.mark.usefixtures("workers")
def test_two_demos_at_once_on_one_database_each_recover_their_killed_worker_and_repeat_nothing(
    database_url: str, tmp_path: Path
) -> None:
    outcomes: dict[Path, tuple[int, str]] = {}

    def run(report: Path) -> None:
        outcomes[report] = demo(database_url, output=report)

    reports = [tmp_path / "one" / "report.md", tmp_path / "two" / "report.md"]
    demos = [threading.Thread(target=run, args=[report]) for report in reports]
    for thread in demos:
        thread.start()
    for thread in demos:
        thread.join()
    for report, (status, shown) in outcomes.items():
        assert status == 0, shown
        assert "The promise held" in shown
        assert report.read_text().count("\n## ") == len(list(CORPUS.glob("*.txt")))
        lines = re.findall(r"│ (reused|run|interrupted) +│ (1|2|1, 2) +│ +(\d) │ +[\d.]+ ms │", shown)
        assert lines == [("reused", "1", "1")] * 14 + [("interrupted", "1, 2", "2")] + [("run", "2", "1")] * 13
        asyncio.run(find_the_finished_run(database_url, re.findall(r"namespace (demo-\w+)", shown)[0]))


async def find_the_finished_run(database_url: str, namespace: str) -> None:
    """What the demo leaves can be read by an application."""
    async with StateStore.open(database_url, namespace=namespace) as store:
        state = await store.load_workflow_state_by_workflow_id(NAME)
        assert state.status is WorkflowStatus.COMPLETED
        assert not await store.list_active_workflows()
        checkpoint = await store.get_latest_checkpoint(state.id)
        assert checkpoint
        assert checkpoint.step_id == "write"


@pytest.mark.usefixtures("forked_workers")
def test_steps_that_are_lost_or_changed_at_the_kill_fail_the_demo(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the database is changed behind the demo's back just before it looks, and just after."""
    looks: list[UUID] = []

    async def look_and_tamper(store: StateStore, run_id: UUID) -> dict[str, object]:
        looks.append(run_id)
        if len(looks) > 1:
            return await finished_steps(store, run_id)
        changed = encode([{"name": "note.md", "title": "?", "text": "?", "words": 1, "undecodable": 0}], "outputs")
        step_id = step_states.c.step_id
        async with store.begin() as uow:
            await uow.session.execute(delete(step_states).where(step_id == "split canal.txt"))
        seen = await finished_steps(store, run_id)
        async with store.begin() as uow:
            await uow.session.execute(delete(step_states).where(step_id == "read canal.txt"))
            tamper = update(step_states).where(step_id == "read note.md")
            await uow.session.execute(tamper.values(outputs=changed, outputs_digest=None))
        return seen

    monkeypatch.setattr(runner, "finished_steps", look_and_tamper)
    status, shown = demo(None, small)
    assert status == 1, shown
    assert "fault: 'split canal.txt' was acknowledged and is not in the database" in shown
    assert "fault: 'read canal.txt' ran again although it had finished" in shown
    assert "fault: the recorded output of 'read note.md' changed" in shown
    assert "fault: the report differs from an uninterrupted run's" in shown
    assert "The promise held" not in shown
    # Without --db the demo makes a file, and says where.
    assert Path(re.findall(r"Database +(\S+workflows\.db)", shown)[0]).is_file()


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


def test_an_input_or_output_that_cannot_be_used_ends_the_demo_with_status_two_and_leaves_nothing(
    small: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.iterdir())
    for source, output, complaint in [
        (tmp_path / "missing", None, "not a directory"),
        (tmp_path / "empty", None, "no .txt or .md files"),
        (small, tmp_path, "the output is a directory"),
        (small, small / "note.md" / "report.md", "cannot create"),
    ]:
        status, shown = demo(None, source, output)
        assert status == 2, shown
        assert complaint in shown
    assert sorted(tmp_path.iterdir()) == before
