"""Runs of a database of the original software, a Rust crate, are taken over into a store, which only reads it."""

import json
import os
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from orchestrator_state import AesGcm, ConfigurationError, KeyRing, Payloads, StateStore, StepStatus, WorkflowStatus
from orchestrator_state.payloads import new_key
from tests.support.cases import case
from tests.support.old_databases import FINISHED, LONELY, ORIGINAL_TABLES, ROWS_OF_THE_FIRST_REVISION, RUNNING
from tests.support.raw_sql import SQLITE, contents, execute

RUN = UUID("6f1e8a52-ABCD-4000-8000-00000000000a")
AT = datetime(2026, 11, 22, 21, 37, 53, 123_456, tzinfo=UTC)


@pytest.fixture
def crates(tmp_path: Path) -> Path:
    """A file as the crate makes it, without rows."""
    path = tmp_path / "crates.db"
    execute(f"{SQLITE}{path}", *ORIGINAL_TABLES)
    return path


def insert(path: Path, table: str, **cells: object) -> None:
    """A row with any cells whatever: past foreign keys."""
    with closing(sqlite3.connect(path)) as connection, connection:
        marks = ", ".join("?" * len(cells))
        connection.execute(f"INSERT INTO {table} ({', '.join(cells)}) VALUES ({marks})", [*cells.values()])


def a_run(path: Path, **cells: object) -> None:
    time = "2026-11-22T21:37:53.123456789+00:00"
    row = {"id": str(RUN), "workflow_id": "wf", "workflow_name": "Pipeline", "status": "running"}
    insert(path, "workflow_states", **{**row, "started_at": time, "updated_at": time, "context": '{"a":1}', **cells})


def a_step(path: Path, **cells: object) -> None:
    row: dict[str, object] = {"workflow_state_id": str(RUN), "step_id": "load", "status": "completed", "outputs": "[1]"}
    insert(path, "step_states", **{**row, **cells})


def a_checkpoint(path: Path, number: int, **cells: object) -> None:
    row: dict[str, object] = {"id": str(UUID(int=number)), "workflow_state_id": str(RUN), "step_id": "load"}
    time = f"2026-11-22T21:37:{number:02d}+00:00"
    insert(path, "checkpoints", **{**row, "timestamp": time, "snapshot": f"{number}", **cells})


@pytest.fixture(params=["from a file", "from a server"])
def filled(request: pytest.FixtureRequest, crates: Path) -> str:
    """A database of the crate's with three runs, on either database."""
    source = f"{SQLITE}{crates}"
    if request.param == "from a server":
        source = str(request.getfixturevalue("empty_postgres_url"))
        execute(source, *ORIGINAL_TABLES)
    execute(source, *ROWS_OF_THE_FIRST_REVISION)
    return source


async def test_runs_come_with_their_steps_and_checkpoints(store: StateStore, filled: str) -> None:
    before = contents(filled)
    report = await store.import_original(filled)
    assert (report.imported, report.steps, report.checkpoints, report.is_complete) == (3, 4, 4, True)
    running = await store.load_workflow_state(RUNNING)
    assert (running.workflow_name, running.status, running.context) == ("Größe 🚀", "running", {"a": [1, 2.5, None]})
    assert running.updated_at == datetime(2026, 1, 1, 9, 0, 0, 1, tzinfo=UTC)
    assert {name: step.status for name, step in running.steps.items()} == {
        "load": StepStatus.COMPLETED,
        "score": StepStatus.RUNNING,
        "write": StepStatus.PENDING,
    }
    assert running.steps["load"].outputs == {"rows": 3}
    assert (await store.load_workflow_state(FINISHED)).status is WorkflowStatus.COMPLETED
    assert (await store.load_workflow_state(LONELY)).error == "it broke"
    async with store.begin() as uow:
        kept = await uow.checkpoints.list(RUNNING)
    assert [(each.step_id, each.seq, each.snapshot) for each in kept] == [
        ("third", 3, 3),
        ("second", 2, 2),
        ("first", 1, 1),
    ]
    assert (await store.verify(load=True)).is_sound
    assert contents(filled) == before


async def test_a_repetition_imports_nothing_and_names_what_differs(store: StateStore, filled: str) -> None:
    await store.import_original(filled)
    again = await store.import_original(filled)
    assert (again.imported, again.present, again.is_complete) == (0, 3, True)
    state = await store.load_workflow_state(RUNNING)
    state.mark_paused()
    await store.save_workflow_state(state)
    report = await store.import_original(filled)
    assert (report.imported, report.present, report.conflicting) == (0, 2, 1)
    assert [(flaw.id, flaw.reason) for flaw in report.conflicts] == [(RUNNING, "is there already, and differs")]
    assert (await store.load_workflow_state(RUNNING)).status is WorkflowStatus.PAUSED


async def test_a_dry_run_counts_and_writes_nothing(store: StateStore, filled: str, database_url: str) -> None:
    before = contents(database_url)
    report = await store.import_original(filled, dry_run=True)
    assert (report.imported, report.steps, report.checkpoints) == (3, 4, 4)
    assert contents(database_url) == before
    await store.import_original(filled)
    assert (await store.import_original(filled, dry_run=True)).present == 3


async def test_progress_is_told_of_runs(store: StateStore, filled: str) -> None:
    told: list[tuple[int, int]] = []
    await store.import_original(filled, progress=lambda done, total: told.append((done, total)))
    assert told == [(3, 3)]


@pytest.mark.parametrize(
    "spelled",
    [
        str(RUN),
        str(RUN).upper(),
        "6f1e8a52-ABCD-4000-8000-00000000000A",
        RUN.hex,
        RUN.hex.upper(),
        RUN.bytes,
        f"{{{RUN}}}",
        f"urn:uuid:{RUN}",
    ],
    ids=["hyphenated", "upper", "mixed", "simple", "simple upper", "blob", "braces", "urn"],
)
async def test_an_id_in_any_form_is_the_same_run(store: StateStore, crates: Path, spelled: str | bytes) -> None:
    a_run(crates, id=spelled)
    a_step(crates, workflow_state_id=spelled)
    a_checkpoint(crates, 1, workflow_state_id=spelled, id=spelled)
    assert (await store.import_original(crates)).is_complete
    state = await store.load_workflow_state(RUN)
    assert state.steps["load"].outputs == [1]
    assert (await store.get_checkpoint(RUN)).snapshot == 1


async def test_a_step_is_found_that_spells_its_run_in_another_form(store: StateStore, crates: Path) -> None:
    a_run(crates, id=RUN.bytes)
    for name, spelled in (("a", str(RUN)), ("b", str(RUN).upper()), ("c", RUN.bytes), ("d", RUN.hex)):
        a_step(crates, step_id=name, workflow_state_id=spelled)
    report = await store.import_original(crates)
    assert (report.imported, report.steps, report.is_complete) == (1, 4, True)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-22T21:37:53.123456789+00:00", AT),
        ("2026-11-22 21:37:53.123456789 UTC", AT),
        ("2026-11-22T21:37:53.123456Z", AT),
        ("2026-11-22T23:07:53.123456999+01:30", AT),
        ("2026-11-22T16:37:53.123456-0500", AT),
        ("2026-11-22 21:37:53.123456", AT),
        ("2026-11-22 21:37:53 UTC", AT.replace(microsecond=0)),
        ("2026-11-22T21:37:53.5+00:00", AT.replace(microsecond=500_000)),
        ("1969-12-31T23:59:59.999999999Z", datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
    ],
)
async def test_a_time_in_any_form_is_the_same_moment(
    store: StateStore, crates: Path, text: str, moment: datetime
) -> None:
    a_run(crates, started_at=text, updated_at=text, completed_at=text)
    assert (await store.import_original(crates)).is_complete
    state = await store.load_workflow_state(RUN)
    assert (state.started_at, state.updated_at, state.completed_at) == (moment, moment, moment)


async def test_a_status_in_any_case_is_the_same(store: StateStore, crates: Path) -> None:
    a_run(crates, status="PAUSED")
    a_step(crates, status="Skipped", outputs=None, retry_count=None)
    assert (await store.import_original(crates)).is_complete
    state = await store.load_workflow_state(RUN)
    assert (state.status, state.steps["load"].status, state.steps["load"].retry_count) == ("paused", "skipped", 0)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"id": "no uuid\x1b[2J"}, "id: is no UUID"),
        ({"id": b"\xff\x00"}, "id: is no UUID"),
        ({"id": 7}, "id: is no UUID"),
        ({"started_at": "yesterday"}, "started_at: is no time"),
        ({"updated_at": "2026-11-22T21:37:61+00:00"}, "updated_at: is no time"),
        ({"completed_at": 1_700_000_000}, "completed_at: is no time"),
        ({"started_at": "0001-01-01T00:00:00+14:00"}, "started_at: is no time"),
        ({"status": "exploded"}, "status: is none of pending, running"),
        ({"status": None}, "status: is none of pending, running"),
        ({"context": "{no json"}, "the stored context is not valid JSON"),
        ({"context": b"\xff"}, "the stored context is no text"),
        ({"workflow_id": ""}, "workflow_id"),
        ({"workflow_name": "x" * 256}, "workflow_name"),
    ],
)
async def test_a_run_that_cannot_be_read_is_named_and_the_others_are_imported(
    store: StateStore, crates: Path, cells: dict[str, object], reason: str
) -> None:
    with closing(sqlite3.connect(crates)) as connection, connection:
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, 'NOT NULL', '') WHERE name = 'workflow_states'")
    a_run(crates, **cells)
    a_run(crates, id=LONELY)
    for dry_run in (True, False):
        report = await store.import_original(crates, dry_run=dry_run)
        assert (report.imported, report.unreadable, report.is_complete) == (1, 1, False)
        [flaw] = report.flaws
        assert flaw.table == "workflow_states"
        assert reason in flaw.reason
        assert flaw.id.isprintable()
    assert (await store.load_workflow_state(LONELY)).context == {"a": 1}


async def test_a_run_with_a_step_that_cannot_be_read_is_left_as_a_whole(store: StateStore, crates: Path) -> None:
    a_run(crates)
    a_step(crates, step_id="load")
    a_step(crates, step_id="odd", status="retrying")
    report = await store.import_original(crates)
    assert (report.imported, [(flaw.table, flaw.id) for flaw in report.flaws]) == (0, [("step_states", f"{RUN} odd")])


async def test_a_checkpoint_that_cannot_be_read_is_left_out(store: StateStore, crates: Path) -> None:
    a_run(crates)
    a_checkpoint(crates, 1)
    a_checkpoint(crates, 2, snapshot="{")
    for imported, present in ((1, 0), (0, 1)):
        report = await store.import_original(crates)
        assert (report.imported, report.present) == (imported, present)
        assert [(flaw.table, flaw.id) for flaw in report.flaws] == [("checkpoints", str(UUID(int=2)))]


async def test_steps_and_checkpoints_without_a_run_are_named(store: StateStore, crates: Path) -> None:
    a_run(crates)
    a_step(crates, workflow_state_id=str(UUID(int=5)))
    a_checkpoint(crates, 1, workflow_state_id=UUID(int=6).bytes)
    a_run(crates, id=None)
    report = await store.import_original(crates)
    assert report.imported == 1
    assert [(flaw.table, flaw.id) for flaw in report.flaws] == [
        ("workflow_states", "NULL"),
        ("step_states", str(UUID(int=5))),
        ("checkpoints", UUID(int=6).hex),
    ]


async def test_two_rows_of_one_id_are_a_conflict(store: StateStore, crates: Path) -> None:
    a_run(crates, workflow_id="first")
    a_run(crates, id=RUN.bytes, workflow_id="second")
    report = await store.import_original(crates)
    assert (report.imported, report.conflicting) == (1, 1)


async def test_a_workflow_id_that_several_runs_have_is_no_conflict(store: StateStore, crates: Path) -> None:
    a_run(crates)
    a_run(crates, id=LONELY)
    assert (await store.import_original(crates)).imported == 2


async def test_a_checkpoint_whose_id_is_taken_leaves_its_run(store: StateStore, crates: Path) -> None:
    a_run(crates)
    a_run(crates, id=LONELY)
    a_checkpoint(crates, 1)
    a_checkpoint(crates, 2, id=UUID(int=1).bytes, workflow_state_id=LONELY)
    report = await store.import_original(crates)
    assert (report.imported, report.conflicting, len(report.conflicts)) == (1, 1, 1)


async def test_more_runs_than_a_page(store: StateStore, crates: Path) -> None:
    with closing(sqlite3.connect(crates)) as connection, connection:
        time = "2026-11-22T21:37:53+00:00"
        connection.executemany(
            "INSERT INTO workflow_states VALUES (?, 'wf', 'Pipeline', 'completed', NULL, ?, ?, ?, '{}', NULL)",
            [(str(UUID(int=n)) if n % 2 else UUID(int=n).bytes, time, time, time) for n in range(1, 451)],
        )
    report = await store.import_original(crates)
    assert (report.imported, report.is_complete) == (450, True)


@pytest.mark.parametrize("left", ["by a writer that is there", "by one that crashed"])
async def test_what_is_in_the_wal_beside_the_file_is_imported(
    store: StateStore, crates: Path, tmp_path: Path, left: str
) -> None:
    with closing(sqlite3.connect(crates)) as writer:
        writer.execute("PRAGMA journal_mode=WAL")
        writer.execute("SELECT * FROM checkpoints")
        a_run(crates)
        if left == "by one that crashed":
            (tmp_path / "copy").mkdir()
            for end in ("", "-wal"):
                shutil.copy(f"{crates}{end}", tmp_path / "copy" / f"crates.db{end}")
            crates = tmp_path / "copy" / "crates.db"
        assert (await store.import_original(crates)).imported == 1


async def test_it_is_encrypted_with_the_keys_of_the_store(database_url: str, crates: Path) -> None:
    a_run(crates, context='{"key":"s3cret"}')
    a_checkpoint(crates, 1, snapshot='"s3cret"')
    payloads = Payloads([AesGcm(KeyRing({"k": new_key()}, "k"))])
    async with StateStore.open(database_url, payloads=payloads) as store:
        await store.import_original(crates)
        assert (await store.load_workflow_state(RUN)).context == {"key": "s3cret"}
        assert (await store.import_original(crates)).present == 1
    assert "s3cret" not in json.dumps(contents(database_url), default=str)


async def test_what_is_no_database_of_the_crate_is_refused(
    store: StateStore, database_url: str, tmp_path: Path
) -> None:
    notes, strange, empty = tmp_path / "notes.txt", tmp_path / "strange.db", tmp_path / "empty.db"
    notes.write_text("x" * 5000)
    execute(f"{SQLITE}{strange}", "CREATE TABLE checkpoints (thread_id TEXT)")
    empty.touch()
    for source, words in (
        (notes, "not a SQLite database"),
        (strange, "not one of the original"),
        (empty, "not one of the original"),
        (database_url, "own"),
        (":memory:", "in memory"),
        (tmp_path / "none.db", "there is no SQLite file"),
        (tmp_path, "directory"),
    ):
        with case(str(source)), pytest.raises(ConfigurationError, match=words):
            await store.import_original(source)
    assert not (tmp_path / "none.db").exists()


async def test_a_truncated_file_says_so(store: StateStore, crates: Path) -> None:
    for number in range(1, 200):
        a_run(crates, id=str(UUID(int=number)), context=json.dumps("x" * 900))
    os.truncate(crates, 4096 * 14)
    with pytest.raises(ConfigurationError, match="damaged"):
        await store.import_original(crates)
