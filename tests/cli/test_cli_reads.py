"""What commands show: to people in any width, to programs as JSON, of encrypted and damaged databases too."""

import asyncio
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer

from orchestrator_state import Payloads, Run, StateStore, Zstd
from orchestrator_state.cli.app import app
from orchestrator_state.cli.checkpoints import differences
from orchestrator_state.cli.endings import ExitCode
from orchestrator_state.payloads import PLAIN
from tests.support.cases import case
from tests.support.command_line import Command
from tests.support.payload_samples import CANARY, encrypted, fill
from tests.support.raw_sql import execute, fetch

HOSTILE = "\x1b[2J\u202eevil\r\n[red]"

RUN = {
    *("id", "workflow_id", "name", "user_id", "status", "condition", "error_type", "attributes", "current_steps"),
    *("waits_for_signals", "waits_for_children", "wakes_at", "unread_signals", "owner", "attempts", "steps"),
    *("finished_steps", "stored_bytes", "parent_id", "forked_from", "started_at", "updated_at", "finished_at"),
    "damaged",
}
STEP = {
    *("id", "kind", "status", "position", "started_at", "ended_at", "until", "retry_count", "has_error"),
    *("stored_bytes", "damaged"),
}
CHECKPOINT = {"id", "workflow_state_id", "step_id", "seq", "created_at", "stored_bytes", "damaged"}
QUESTION = {
    *("id", "workflow_state_id", "workflow_id", "workflow_name", "user_id", "step_id", "name", "prompt"),
    *("answer_schema", "choices", "status", "is_withdrawn", "asked_at", "expires_at", "closed_at", "answered_by"),
    *("refused", "unreadable"),
}

USAGE = {
    *("workflow_state_id", "workflow_id", "name", "user_id", "model", "day", "calls", "input_tokens", "output_tokens"),
    *("cost", "unpriced", "failed_calls", "failed_input_tokens", "failed_output_tokens", "failed_cost"),
}

REFERENCE = (Path(__file__).parents[2] / "docs/reference/command-line.md").read_text()


@pytest.fixture
def shell(database_url: str, monkeypatch: pytest.MonkeyPatch, command: Command) -> Command:
    monkeypatch.setenv("DATABASE_URL", database_url)
    return command


async def counts(run: Run) -> Any:
    run.context["seen"] = [1]
    await run.step("one", lambda: 1)
    await run.checkpoint("first")
    run.context["seen"] = [1, 2]
    run.context["more"] = True
    await run.checkpoint("second")
    return {"counted": 2}


async def asks(run: Run) -> Any:
    return await run.ask("approve", {"sum": 42}, choices=["yes", "no"])


async def _fill(url: str, payloads: Payloads = PLAIN) -> None:
    async with StateStore.open(url, payloads=payloads) as store:
        await fill(store)
        await store.start("counts", workflow_id="counted", user_id="ann")
        await store.start("asks", workflow_id="asked")
        await store.recover({"counts": counts, "asks": asks})


@pytest.fixture
def filled(database_url: str) -> str:
    asyncio.run(_fill(database_url))
    return database_url


def document(shell: Command, *arguments: str) -> Any:
    status, out, err = shell(*arguments, "--json")
    assert (status, err) == (0, ""), arguments
    assert out.isascii()
    return json.loads(out)


def test_documents_have_the_fields_that_the_reference_names(shell: Command, filled: str) -> None:
    runs = document(shell, "runs", "list", "--all")
    assert [set(run) for run in runs] == [RUN] * 6
    assert set(document(shell, "runs", "show", "counted")) == RUN | {"timeline", "earlier"}
    assert [set(step) for step in document(shell, "runs", "steps", "counted")] == [STEP] * 3
    stats = document(shell, "runs", "stats")
    assert set(stats) == {"unfinished", "finished"}
    assert set(stats["unfinished"][0]) == {"status", "condition", "runs", "updated_at"}
    assert set(stats["finished"][0]) == {"status", "last_hour", "last_day"}
    checkpoints = document(shell, "checkpoints", "list", "counted")
    assert [set(each) for each in checkpoints] == [CHECKPOINT] * 3
    assert [set(each) for each in document(shell, "runs", "questions")] == [QUESTION] * 2
    changes = document(shell, "checkpoints", "diff", checkpoints[-1]["id"], checkpoints[0]["id"])
    assert {frozenset(change) for change in changes} == {frozenset({"path", "before", "after"})}
    status, out, _ = shell("checkpoints", "show", checkpoints[0]["id"])
    assert (status, set(json.loads(out))) == (
        0,
        {"id", "workflow_state_id", "step_id", "seq", "created_at", "snapshot"},
    )
    assert set(document(shell, "erase", "ann", "--dry-run")) == {
        *("workflows", "steps", "checkpoints", "signals", "blobs", "usage", "owned")
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", runs[0]["started_at"])
    unnamed = {
        *RUN,
        *STEP,
        *CHECKPOINT,
        *QUESTION,
        *USAGE,
        *("timeline", "earlier", "unfinished", "finished", "last_hour", "last_day", "path", "before", "after"),
    } - set(re.findall(r"`(\w+)`", REFERENCE))
    assert not unnamed


def test_the_reference_lists_the_exit_codes_and_the_commands() -> None:
    codes = {
        name.upper().replace(" ", "_"): int(code)
        for code, name in re.findall(r"^\| (\d+) \| ([\w -]+) ", REFERENCE, re.MULTILINE)
    }
    assert codes == {code.name: code.value for code in ExitCode}
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        for inner in getattr(command, "commands", {"": None}):
            assert re.search(rf"`[^`]*{name}[^`]*{inner}", REFERENCE), (name, inner)


FILTERS: list[tuple[str, set[str]]] = [
    ("", {"waiting", "asking", "asked"}),
    ("--all", {"ended", "failed", "waiting", "asking", "counted", "asked"}),
    ("--all --limit 2", {"counted", "asked"}),
    ("--status failed", {"failed"}),
    ("--status failed --status completed", {"ended", "failed", "counted"}),
    ("--condition runnable", {"waiting"}),
    ("--condition waiting", {"asking", "asked"}),
    ("--name counts --all", {"counted"}),
    ("--workflow-id counted", {"counted"}),
    ("--user ann --all", {"counted"}),
    ("--user bob --all", set()),
    ("--finished-since 1h", {"ended", "failed", "counted"}),
    ("--started-since 2999-01-01", set()),
    ("--updated-since 2020-01-01T00:00+02:00", {"waiting", "asking", "asked"}),
    ("--error-contains canary", {"failed"}),
    ("--attribute a=1 --all", set()),
    ("--parent 11111111-2222-3333-4444-555555555555", set()),
]


def test_filters_choose_the_runs(shell: Command, filled: str) -> None:
    for arguments, names in FILTERS:
        with case(arguments):
            status, out, _ = shell("runs", "list", "--json", *arguments.split())
            assert status == 0
            assert {run["workflow_id"] for run in json.loads(out)} == names


def test_a_list_goes_on_where_it_ended(shell: Command, filled: str) -> None:
    _, out, err = shell("runs", "list", "--all", "--limit", "4", "--json")
    cursor = err.split()[-1]
    rest = document(shell, "runs", "list", "--all", "--cursor", cursor)
    assert len({run["id"] for run in [*json.loads(out), *rest]}) == 6


def test_what_is_encrypted_is_seen_without_keys_and_opened_with_them(
    shell: Command, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(_fill(database_url, encrypted("k1")))
    source = "from tests.support.payload_samples import encrypted\noptions = {'payloads': encrypted('k1')}"
    (tmp_path / "with_keys.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    (question,) = (each for each in document(shell, "runs", "questions") if each["workflow_id"] == "asked")
    assert (question["prompt"], bool(question["unreadable"])) == (None, True)
    newest, *_, oldest = (each["id"] for each in document(shell, "checkpoints", "list", "counted"))
    for command in ("list --all", "show failed", "steps failed", "stats", "questions", "watch counted"):
        status, out, err = shell("runs", *command.split())
        assert (status, CANARY in out + err) == (0, False), command
    need_keys = {
        "runs result counted": '{\n  "counted": 2\n}\n',
        f"checkpoints show {newest}": '"more": true',
        f"checkpoints diff {oldest} {newest}": "+ snapshot.context.more: true",
        f'runs answer {question["id"]} "yes"': "is answered",
    }
    for command, said in need_keys.items():
        with case(command):
            status, out, err = shell(*command.split())
            assert (status, out) == (6, "")
            assert re.fullmatch("error: .*--app.*\n", err)
            status, out, err = shell(*command.split(), "--app", "with_keys:options")
            assert (status, err) == (0, "")
            assert said in out
    assert shell("runs", "result", "failed")[0] == 1, "which it says without its text"


def test_a_database_with_blobs_and_compression_is_seen_without_them(shell: Command, database_url: str) -> None:
    asyncio.run(_fill(database_url, Payloads([Zstd()])))
    assert len(document(shell, "runs", "list", "--all")) == 6
    execute(database_url, "UPDATE checkpoints SET snapshot = '{'", "UPDATE workflow_states SET context = '{'")
    for command in ("runs list", "runs show counted", "runs stats", "checkpoints list counted", "runs questions"):
        assert shell(*command.split())[0] == 0, command


async def uses(run: Run) -> None:
    await run.step("a", lambda: run.record_usage(model=HOSTILE, input_tokens=3, cost=0.25))
    await run.step("b", lambda: run.record_usage(model="m", output_tokens=2, cost=0.125))


def test_usage_is_added_up_by_what_is_asked_for(shell: Command, database_url: str) -> None:
    async def work() -> None:
        async with StateStore.open(database_url) as store:
            await store.run("n", uses, workflow_id="w", user_id=HOSTILE)

    asyncio.run(work())
    (total,) = document(shell, "runs", "usage")
    assert set(total) == USAGE
    assert (total["calls"], total["cost"], total["day"]) == (2, "0.375000000", None)
    by_model = document(shell, "runs", "usage", "--by", "model", "--by", "user", "--run", "w", "--since", "1d")
    assert [(each["model"], each["user_id"], each["cost"]) for each in by_model] == [
        (HOSTILE, HOSTILE, "0.250000000"),
        ("m", HOSTILE, "0.125000000"),
    ]
    assert document(shell, "runs", "usage", "--by", "day", "--until", "1d") == []
    for arguments in ((), ("--by", "model", "--by", "user", "--by", "run"), ("--by", "day", "--json")):
        status, out, err = shell("runs", "usage", *arguments)
        assert (status, err) == (0, "")
        assert not {*"\x1b\u202e\r"} & {*out}
    assert shell("runs", "usage", "--by", "hour")[0] == 2
    assert shell("runs", "usage", "--run", "nobody")[0] == 3


def test_a_result_is_printed_or_says_why_there_is_none(shell: Command, filled: str) -> None:
    assert shell("runs", "result", "counted") == (0, '{\n  "counted": 2\n}\n', "")
    assert shell("runs", "result", "failed") == (1, "", f"ValueError: {CANARY}\n")
    assert shell("runs", "result", "asked")[:2] == (4, "")
    assert shell("runs", "result", "asked", "--wait", "0s")[:2] == (4, "")
    assert shell("runs", "cancel", "asked")[0] == 0
    assert shell("runs", "result", "asked")[:2] == (1, "")


def test_a_question_is_answered_once(shell: Command, filled: str) -> None:
    (question,) = (each for each in document(shell, "runs", "questions", "--run", "asked"))
    assert shell("runs", "answer", question["id"], '"perhaps"')[0] == 2
    assert shell("runs", "answer", question["id"], "perhaps")[0] == 2
    assert shell("runs", "answer", question["id"], '"yes"', "--by", "Ada")[0] == 0
    assert shell("runs", "answer", question["id"], '"no"')[0] == 4
    assert shell("runs", "answer", "11111111-2222-3333-4444-555555555555", '"no"')[0] == 3
    assert [each["answered_by"] for each in document(shell, "runs", "questions", "--all", "--run", "asked")] == ["Ada"]
    assert document(shell, "runs", "questions", "--run", "asked") == []


def test_a_run_is_forked_rewound_and_deleted(shell: Command, filled: str) -> None:
    *_, first = (each["id"] for each in document(shell, "checkpoints", "list", "counted"))
    assert shell("checkpoints", "show", first)[0] == 0
    assert shell("runs", "fork", first, "--workflow-id", "again")[0] == 0
    assert document(shell, "runs", "show", "again")["forked_from"] == document(shell, "runs", "show", "counted")["id"]
    assert shell("runs", "rewind", first)[0] == 2, "nobody was asked"
    assert shell("runs", "rewind", first, "--yes")[0] == 0
    assert [each["id"] for each in document(shell, "checkpoints", "list", "counted")] == [first]
    assert shell("runs", "delete", "counted", "--yes") == (0, "deleted 1 run\n", "")
    assert shell("runs", "show", "counted")[0] == 3
    before = len(fetch(filled, "SELECT id FROM workflow_states"))
    assert shell("erase", "ann", "--dry-run")[0] == 0
    assert len(fetch(filled, "SELECT id FROM workflow_states")) == before


def test_of_several_with_one_workflow_id_the_last_is_meant_and_that_is_said(shell: Command, filled: str) -> None:
    (run,) = document(shell, "runs", "list", "--workflow-id", "ended")
    execute(
        filled,
        "UPDATE workflow_states SET workflow_id = 'ended', started_at = '2020-01-01T00:00:00.000000+00:00' "
        "WHERE workflow_id = 'counted'",
    )
    status, out, err = shell("runs", "show", "ended")
    assert (status, run["id"] in out) == (0, True)
    assert "several runs" in err


def test_a_narrow_terminal_shows_each_row_in_lines_that_fit(
    shell: Command, filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = document(shell, "runs", "show", "counted")
    monkeypatch.setenv("COLUMNS", "40")
    for command in ("runs list --all", "runs show counted", "runs steps counted", "runs stats", "runs questions"):
        status, out, _ = shell(*command.split())
        assert status == 0
        assert max(map(len, out.splitlines())) <= 40, command
    lines = shell("runs", "list", "--all", "--name", "counts")[1].splitlines()
    joined = "".join(line[13:] for line in lines[:2])
    assert joined == run["id"]


def test_no_name_reaches_the_terminal_as_it_is(shell: Command, database_url: str) -> None:
    async def work() -> None:
        async with StateStore.open(database_url) as store:
            await store.start(HOSTILE, workflow_id=HOSTILE, user_id=HOSTILE, attributes={HOSTILE: HOSTILE})
            state = await store.load_workflow_state_by_workflow_id(HOSTILE)
            await store.signal(state.id, HOSTILE)

    asyncio.run(work())
    for command in (
        *(("list",), ("list", "--json"), ("show", HOSTILE), ("show", HOSTILE, "--json"), ("show", f"{HOSTILE}?")),
        *(("result", HOSTILE), ("delete", HOSTILE), ("pause", HOSTILE), ("signal", HOSTILE, HOSTILE)),
    ):
        _, out, err = shell("runs", *command)
        with case(command):
            assert not {*"\x1b\u202e\r"} & {*(out + err)}


DIFFERENCES: list[tuple[Any, Any, list[tuple[str, list[Any], list[Any]]]]] = [
    (1, 1, []),
    (1, True, [("s", [1], [True])]),
    (1, 1.0, [("s", [1], [1.0])]),
    ({"a": 1}, {"a": 2}, [("s.a", [1], [2])]),
    ({"a": 1}, {"b": None}, [("s.a", [1], []), ("s.b", [], [None])]),
    ([1, [2]], [1, [3], 4], [("s[1][0]", [2], [3]), ("s[2]", [], [4])]),
    ([1], {"0": 1}, [("s", [[1]], [{"0": 1}])]),
]


def test_differences_are_at_the_smallest_places_that_differ() -> None:
    for before, after, found in DIFFERENCES:
        assert [tuple(change) for change in differences(before, after, "s")] == found


def test_watching_a_run_ends_with_it_and_says_how_it_ended(shell: Command, filled: str) -> None:
    status, out, err = shell("runs", "watch", "counted")
    assert (status, err) == (0, "")
    assert re.fullmatch(r"\S+ \S+  \S+  counted  counts  completed  finished  3/3\n", out)
    assert shell("runs", "watch", "failed")[0] == 1
    status, out, _ = shell("runs", "watch", "counted", "--json")
    assert set(json.loads(out)) == RUN
    assert shell("runs", "watch", "nobody's")[0] == 3


def test_a_watched_run_is_shown_at_each_change(shell: Command, filled: str) -> None:
    told: list[tuple[int, str, str]] = []

    async def changes(store: StateStore, run: Any) -> None:
        await asyncio.sleep(0.3)
        await store.pause(run)
        await asyncio.sleep(0.3)
        await store.cancel(run)

    async def work() -> None:
        async with StateStore.open(filled) as store:
            run = (await store.load_workflow_state_by_workflow_id("asked")).id
            watching = asyncio.to_thread(shell, "runs", "watch", "asked", "--interval", "0.05")
            told.append((await asyncio.gather(watching, changes(store, run)))[0])

    asyncio.run(work())
    assert told[0][0] == 1
    assert "cancelled  finished" in told[0][1].splitlines()[-1]


def test_the_health_of_a_database_is_an_exit_status(shell: Command, tmp_path: Path) -> None:
    assert shell("health") == (0, "the database answers\n", "")
    assert shell("health", "--url", "postgresql://nobody@127.0.0.1:1/none")[0] == 5
    assert shell("health", "--url", str(tmp_path / "none.db"))[0] == 1


def test_a_dry_run_of_prune_says_what_it_would_delete(shell: Command, filled: str) -> None:
    tables = ("workflow_states", "checkpoints")
    before = [len(fetch(filled, f"SELECT id FROM {table}")) for table in tables]
    prune = partial(shell, "prune", "--keep-checkpoints", "1", "--older-than", "0s")
    assert prune("--dry-run") == (0, "would delete 3 workflows\nwould delete 3 checkpoints\n", "")
    assert [len(fetch(filled, f"SELECT id FROM {table}")) for table in tables] == before
    assert prune()[:2] == (0, "deleted 3 workflows\ndeleted 0 checkpoints\n")
