"""`orchestrator-state runs`: what an operator sees of runs, and does to them, from a shell."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from orchestrator_state import Run, RunPaused, StateStore, WorkflowState
from tests.support.absences import absence_of
from tests.support.cases import case
from tests.support.command_line import Command

_T = TypeVar("_T")


@pytest.fixture
def shell(database_url: str, monkeypatch: pytest.MonkeyPatch, command: Command) -> Command:
    """Runs `runs` on the database; returns its exit status, standard output and standard error."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    return partial(command, "runs")


def with_store(database_url: str, work: Callable[[StateStore], Awaitable[_T]], **options: Any) -> _T:
    async def run() -> _T:
        async with StateStore.open(database_url, **options) as store:
            return await work(store)

    return asyncio.run(run())


def started(database_url: str, workflow_id: str, **options: Any) -> WorkflowState:
    return with_store(database_url, lambda store: store.start("reports", workflow_id=workflow_id), **options)


def broken() -> None:
    raise RuntimeError("no paper left")


async def reports(run: Run) -> Any:
    await run.step("load", lambda: "a secret")
    await run.step("print", broken)


async def approval(run: Run) -> Any:
    return await run.wait_for("approved")


def test_the_list_holds_the_runs_that_are_not_finished_of_one_namespace(database_url: str, shell: Command) -> None:
    with_store(database_url, lambda store: store.run("done", _nothing, workflow_id="finished"))
    first, second = started(database_url, "w-1"), started(database_url, "w-2")
    started(database_url, "elsewhere", namespace="other")
    status, out, _ = shell("list")
    assert status == 0
    assert re.findall(r"(\S+) +(\S+) +reports +pending +runnable +0/0 +\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", out) == [
        (str(second.id), "w-2"),
        (str(first.id), "w-1"),
    ]
    assert "finished" not in out
    assert "elsewhere" not in out
    assert "elsewhere" in shell("list", "--namespace", "other")[1]


def test_names_are_shown_as_they_are_and_cannot_play_with_the_terminal(database_url: str, shell: Command) -> None:
    started(database_url, "[bold]a[/bold]")
    started(database_url, "b\x1b[31m\n")
    out = shell("list")[1]
    assert "[bold]a[/bold]" in out
    assert r"'b\x1b[31m\n'" in out
    assert r"workflow id  'b\x1b[31m\n'" in shell("show", "b\x1b[31m\n")[1]


def test_a_run_is_shown_by_its_id_or_its_workflow_id_with_its_steps_and_without_payloads(
    database_url: str, shell: Command
) -> None:
    with pytest.raises(RuntimeError, match="no paper left"):
        with_store(database_url, lambda store: store.run("reports", reports, workflow_id="w-1"))
    state = with_store(database_url, lambda store: store.load_workflow_state_by_workflow_id("w-1"))
    status, out, _ = shell("show", "w-1")
    assert status == 0
    assert re.search(f"^id +{state.id}$", out, re.MULTILINE)
    assert re.search(r"^error +RuntimeError$", out, re.MULTILINE)
    assert re.search(r"^load +completed +\S+ \S+ +\d+\.\d{3} +0$", out, re.MULTILINE)
    assert re.search(r"^print +failed +\S+ \S+ +\d+\.\d{3} +1 +yes$", out, re.MULTILINE)
    assert "a secret" not in out
    assert "no paper left" not in out
    assert shell("show", str(state.id))[1] == out


def test_a_workflow_id_that_looks_like_an_id_finds_its_run(database_url: str, shell: Command) -> None:
    workflow_id = "11111111-2222-3333-4444-555555555555"
    state = started(database_url, workflow_id)
    assert re.match(rf"id +{state.id}\nworkflow id +{workflow_id}\n", shell("show", workflow_id)[1])


def test_a_signal_reaches_the_run_that_waits_for_it(database_url: str, shell: Command) -> None:
    handlers = {"approval": approval}
    with_store(database_url, lambda store: store.start("approval", workflow_id="w-1"))
    assert with_store(database_url, lambda store: store.recover(handlers)).suspended
    assert shell("signal", "w-1", "approved", '{"by": "Ada"}')[0] == 0
    assert with_store(database_url, lambda store: store.recover(handlers)).completed
    assert with_store(database_url, lambda store: store.run("approval", approval, workflow_id="w-1")) == {"by": "Ada"}


def test_a_run_without_an_owner_is_paused_resumed_and_cancelled_at_once(database_url: str, shell: Command) -> None:
    state = started(database_url, "w-1")
    assert shell("pause", "w-1") == (0, f"run {state.id} is paused\n", "")
    assert shell("resume", "w-1") == (0, f"run {state.id} is pending\n", "")
    assert shell("cancel", "w-1") == (0, f"run {state.id} is cancelled\n", "")


def test_a_live_run_is_asked_and_obeys_at_its_next_step(database_url: str, shell: Command) -> None:
    told: list[str] = []

    async def two_steps(run: Run) -> None:
        await run.step("one", lambda: told.append(shell("pause", "w-1")[1]))
        await run.step("two", lambda: told.append("went on"))

    with pytest.raises(RunPaused):
        with_store(database_url, lambda store: store.run("reports", two_steps, workflow_id="w-1"))
    assert len(told) == 1
    assert told[0].endswith("is running; it is paused at its worker's next step\n")
    assert re.search(r"^status +paused$", shell("show", "w-1")[1], re.MULTILINE)


@pytest.mark.parametrize("arguments", [["pause", "w-1"], ["cancel", "w-1"], ["signal", "w-1", "approved"]])
def test_a_command_that_may_have_taken_effect_says_so(
    database_url: str, shell: Command, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    started(database_url, "w-1")
    monkeypatch.setenv("ORCHESTRATOR_STATE_RETRY_TIMEOUT", "0.1")
    with absence_of(None) as absence:
        absence.begins_at_a_commit = True
        status, out, err = shell(*arguments)
    assert (status, out) == (5, "")
    assert re.fullmatch("error: the server is away; the command may have taken effect.*\n", err)


IMPOSSIBLE: list[tuple[list[str], int, str]] = [
    (["show", "w-2"], 3, "error: "),
    (["cancel", "11111111-2222-3333-4444-555555555555"], 3, "error: "),
    (["pause", "w-1"], 4, "error: "),
    (["signal", "w-1", "approved"], 4, "error: "),
    (["signal", "w-1", "approved", "yes"], 2, "not JSON"),
    (["signal", "w-1", "approved", "[" * 100_000], 2, "not JSON"),
    (["signal", "w-1", "", "1"], 2, "error: "),
    (["show", ""], 3, "error: "),
    (["delete", "w-1"], 2, "--yes"),
    (["fork", "w-1"], 2, "no id"),
    (["rewind", "11111111-2222-3333-4444-555555555555", "--yes"], 3, "error: "),
    (["list", "--status", "hung"], 2, "status must be one of"),
    (["list", "--cursor", "x"], 2, "cursor"),
    (["list", "--limit", "0"], 2, "--limit"),
    (["list", "--started-since", "soon"], 2, "no age"),
    (["list", "--attribute", "a"], 2, "NAME=VALUE"),
    (["list", "--parent", "w-1"], 2, "parent"),
]


def test_what_cannot_be_done_is_said_in_one_line_and_changes_nothing(database_url: str, shell: Command) -> None:
    with_store(database_url, lambda store: store.run("done", _nothing, workflow_id="w-1"))
    before = shell("show", "w-1")
    for arguments, status, complaint in IMPOSSIBLE:
        ended, out, err = shell(*arguments)
        with case([argument[:50] for argument in arguments]):
            assert (ended, out) == (status, "")
            assert complaint in err
            assert "Traceback" not in err
            assert shell("show", "w-1") == before


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path, shell: Command) -> None:
    missing = tmp_path / "missing.db"
    status, _, err = shell("list", "--url", str(missing))
    assert (status, err) == (1, f"error: there is no SQLite file {missing}\n")
    assert not missing.exists()


def test_a_database_without_the_schema_names_the_command_to_run(empty_database_url: str, shell: Command) -> None:
    if empty_database_url.startswith("sqlite"):
        Path(empty_database_url.removeprefix("sqlite:///")).touch()
    status, _, err = shell("list", "--url", empty_database_url)
    assert status == 1
    assert "orchestrator-state db upgrade" in err


async def _nothing(_: Run) -> None:
    return None
