"""The worker process by itself: what it leaves in the database when it cannot finish, and how it goes on."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from orchestrator_state import StateStore, StepStatus, WorkflowState, WorkflowStatus
from orchestrator_state.demo.journal import read_journal
from orchestrator_state.demo.pipeline import CORPUS

NOBODY_LISTENS = "http://127.0.0.1:1/v1"


def work(db: str, directory: Path, *options: str, source: Path = CORPUS) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "orchestrator_state.demo.worker",
        "--workflow-id=w-1",
        f"--input={source}",
    ]
    command += [f"--output={directory / 'report.md'}", f"--journal={directory / 'journal.jsonl'}", *options]
    environment = {**os.environ, "DATABASE_URL": db}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def load(db: str) -> WorkflowState:
    async def main() -> WorkflowState:
        async with StateStore.open(db) as store:
            return await store.load_workflow_state_by_workflow_id("w-1")

    return asyncio.run(main())


def test_a_step_that_fails_is_recorded_and_only_it_and_its_followers_run_when_started_again(
    database_url: str, tmp_path: Path
) -> None:
    failed = work(database_url, tmp_path, f"--llm={NOBODY_LISTENS}")
    assert failed.returncode == 2
    assert failed.stderr.splitlines() == ["127.0.0.1 cannot be reached: ConnectError"]
    state = load(database_url)
    assert (state.status, state.error) == (WorkflowStatus.FAILED, failed.stderr.strip())
    assert [step.step_id for step in state.steps.values() if step.status is StepStatus.FAILED] == [
        "summarise beehive.txt part 1"
    ]

    resumed = work(database_url, tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert load(database_url).status is WorkflowStatus.COMPLETED
    starts = [entry.step for entry in read_journal(tmp_path / "journal.jsonl") if entry.event == "start"]
    assert sorted(starts) == sorted([*set(starts), "summarise beehive.txt part 1"])


def test_a_finished_workflow_is_not_run_again(database_url: str, tmp_path: Path) -> None:
    assert work(database_url, tmp_path).returncode == 0
    journal = (tmp_path / "journal.jsonl").read_bytes()
    again = work(database_url, tmp_path)
    assert again.returncode == 2
    assert "'w-1' is completed" in again.stderr
    assert (tmp_path / "journal.jsonl").read_bytes() == journal


def test_a_resumed_workflow_goes_on_with_the_input_it_was_started_with(database_url: str, tmp_path: Path) -> None:
    assert work(database_url, tmp_path, f"--llm={NOBODY_LISTENS}").returncode == 2
    assert work(database_url, tmp_path, source=tmp_path / "another").returncode == 0
    assert "The Hive in Winter" in (tmp_path / "report.md").read_text()


def test_an_input_that_cannot_be_read_is_one_line_on_stderr(database_url: str, tmp_path: Path) -> None:
    ended = work(database_url, tmp_path, source=tmp_path / "missing")
    assert ended.returncode == 2
    assert ended.stderr == f"the input is not a directory: {tmp_path / 'missing'}\n"
    assert load(database_url).status is WorkflowStatus.FAILED
