"""The files of a SQLite database: who may read them, and what happens when they vanish under a running store."""

import asyncio
import concurrent.futures
import os
import resource
import shutil
import sqlite3
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator_state import AccessLost, BlobStore, ConfigurationError, Payloads, Run, StateStore, StoreUnavailable
from tests.support.engines import own_engine
from tests.support.running import fetch
from tests.support.states import a_state
from tests.support.workflows import saved


@pytest.fixture
def path(sqlite_url: str) -> Path:
    return Path(sqlite_url.removeprefix("sqlite:///"))


@pytest.fixture
def _wide_umask() -> Any:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- who may read them --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_wide_umask")
async def test_a_new_file_and_those_beside_it_are_their_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "new 100%?#.db"
    async with StateStore.open(path) as store:
        await store.save_workflow_state(a_state())
        found = {file.name: mode(file) for file in tmp_path.iterdir()}
    assert found == {path.name + end: 0o600 for end in ("", "-wal", "-shm")}


@pytest.mark.usefixtures("_wide_umask")
@pytest.mark.parametrize("umask", [0o277, 0o777])
async def test_its_owner_can_open_it_again_under_whatever_umask(tmp_path: Path, umask: int) -> None:
    path, blobs = tmp_path / "new.db", tmp_path / "blobs" / "of" / "mine"
    payloads = Payloads(blobs=BlobStore(f"file://{blobs}", above=10))
    before = os.umask(umask)
    try:
        async with StateStore.open(path, payloads=payloads) as store:
            await saved(store, context={"page": "x" * 2000})
        async with StateStore.open(":memory:") as store:
            row = (await fetch(store, text("PRAGMA database_list")))[0]
            assert (mode(Path(row.file)), mode(Path(row.file).parent)) == (0o600, 0o700)
    finally:
        os.umask(before)
    modes = {found: mode(found) for found in tmp_path.rglob("*")}
    assert modes == {found: 0o700 if found.is_dir() else 0o600 for found in modes}
    assert len(modes) > 5


async def test_a_file_that_was_there_keeps_its_mode(path: Path) -> None:
    path.chmod(0o640)
    async with StateStore.open(path) as store:
        await store.save_workflow_state(a_state())
        assert {mode(file) for file in path.parent.iterdir()} == {0o640}


async def test_stores_that_make_one_file_at_once_keep_their_locks_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To close a file takes away all locks of the process on it, and then another process deletes the -wal file."""
    path, opening = tmp_path / "new.db", list[concurrent.futures.Future[StateStore]]()
    loop, change_mode = asyncio.get_running_loop(), os.fchmod

    def open_another(descriptor: int, mode: int) -> None:
        if not opening:
            opening.append(asyncio.run_coroutine_threadsafe(open_store(), loop))
            concurrent.futures.wait(opening, timeout=0.5)
        change_mode(descriptor, mode)

    async def open_store() -> StateStore:
        return await StateStore.open(path)

    monkeypatch.setattr(os, "fchmod", open_another)
    async with await open_store() as first, await asyncio.wrap_future(opening[0]) as second:
        look = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('SELECT * FROM checkpoints').close()"
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", look, path)
        assert await process.wait() == 0
        for store in (first, second):
            await store.save_workflow_state(a_state())


async def test_a_process_that_has_too_many_files_open_is_told_so_and_may_try_again(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = [os.dup(0)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened[0] + 10, limit[1]))
    try:
        with suppress(OSError):
            while True:
                opened.append(os.dup(0))
        with pytest.raises(StoreUnavailable, match="files open") as refused:
            await StateStore.open(tmp_path / "new.db")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        for descriptor in opened:
            os.close(descriptor)
    assert refused.value.transient
    async with StateStore.open(tmp_path / "new.db") as store:
        await store.save_workflow_state(a_state())


# --- files that vanish --------------------------------------------------------------------------------------------


def delete(path: Path) -> None:
    path.unlink()


def delete_wal(path: Path) -> None:
    Path(f"{path}-wal").unlink()


def delete_shm(path: Path) -> None:
    Path(f"{path}-shm").unlink()


def delete_all(path: Path) -> None:
    for end in ("", "-wal", "-shm"):
        Path(f"{path}{end}").unlink()


def move(path: Path) -> None:
    path.rename(path.with_suffix(".old"))


def replace_by_a_copy(path: Path) -> None:
    copy = shutil.copyfile(path, path.with_suffix(".copy"))
    copy.rename(path)


def replace_by_an_empty_file(path: Path) -> None:
    path.unlink()
    path.touch()


def truncate(path: Path) -> None:
    os.truncate(path, 0)


def move_directory(path: Path) -> None:
    path.parent.rename(path.parent.with_name(f"{path.parent.name} moved away"))


HARMS = [
    delete,
    delete_wal,
    delete_shm,
    delete_all,
    move,
    replace_by_a_copy,
    replace_by_an_empty_file,
    truncate,
    move_directory,
]


@pytest.fixture(params=["own", "engine"])
async def opened(request: pytest.FixtureRequest, path: Path) -> AsyncIterator[StateStore]:
    engine: AsyncEngine | None = own_engine(f"sqlite:///{path}") if request.param == "engine" else None
    try:
        async with StateStore.open(path) if engine is None else StateStore.open(engine=engine) as store:
            yield store
    finally:
        if engine is not None:
            await engine.dispose()


def rows(path: Path) -> int:
    """How many finished steps a newcomer would find."""
    if not path.is_file():
        return 0
    connection = sqlite3.connect(path)
    try:
        count = connection.execute("SELECT count(*) FROM step_states WHERE status = 'completed'").fetchone()
        return int(count[0])
    finally:
        connection.close()


@pytest.mark.parametrize("harm", HARMS)
async def test_no_step_is_acknowledged_into_files_that_are_gone(path: Path, harm: Callable[[Path], None]) -> None:
    acknowledged = 0

    async def handler(run: Run) -> None:
        nonlocal acknowledged
        for number in range(6):
            if number == 3:
                harm(path)
            await run.step("load", lambda n: n, number)
            acknowledged += 1

    async with StateStore.open(path) as store:
        with pytest.raises(StoreUnavailable, match="SQLite file") as stopped:
            async with asyncio.timeout(20):
                await store.run("n", handler, workflow_id="w")
        assert not stopped.value.transient
        assert acknowledged == 3
        for call in (
            store.save_workflow_state(a_state()),
            store.list_active_workflows(),
            store.health_check(),
            store.start("n", workflow_id="late"),
        ):
            with pytest.raises(StoreUnavailable):
                await call
        assert not (path.exists() and harm in (delete, delete_all, move, move_directory)), "nobody made an empty one"


@pytest.mark.parametrize("harm", [delete, move, replace_by_an_empty_file, move_directory])
async def test_no_unit_is_acknowledged_into_a_file_that_is_gone(
    opened: StateStore, path: Path, harm: Callable[[Path], None]
) -> None:
    async def save() -> None:
        async with opened.begin() as uow:
            await uow.workflows.save(a_state())
            harm(path)

    with pytest.raises(StoreUnavailable):
        await save()


async def test_a_store_goes_on_once_the_file_is_back(path: Path) -> None:
    kept = path.with_suffix(".kept")

    async def handler(run: Run) -> int:
        return await run.step("load", lambda: 1)

    async with StateStore.open(path) as store:
        path.rename(kept)
        with pytest.raises(AccessLost):
            await store.run("n", handler, workflow_id="w")
        kept.rename(path)
        assert await store.run("n", handler, workflow_id="w") == 1
    assert rows(path) == 1


async def test_a_store_opened_anew_works_on_what_is_there(path: Path) -> None:
    async with StateStore.open(path) as store:
        await store.save_workflow_state(a_state())
        for end in ("", "-wal", "-shm"):
            Path(f"{path}{end}").unlink()
        with pytest.raises(AccessLost, match="open another"):
            await store.save_workflow_state(a_state("late"))
    async with StateStore.open(path) as store:
        assert await store.list_active_workflows() == []


async def test_a_store_stays_with_its_file_when_the_process_changes_its_directory(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(path.parent)
    async with StateStore.open(path.name) as store:
        monkeypatch.chdir(tmp_path / "elsewhere")
        await asyncio.gather(*(store.save_workflow_state(a_state(str(number))) for number in range(4)))
        assert len(await store.list_active_workflows()) == 4
    assert list((tmp_path / "elsewhere").iterdir()) == []


# --- where they are -----------------------------------------------------------------------------------------------


async def test_a_link_that_leads_to_no_file_yet_has_it_made_where_it_leads(tmp_path: Path) -> None:
    link, target = tmp_path / "link.db", tmp_path / "elsewhere" / "target.db"
    target.parent.mkdir()
    link.symlink_to(target)
    async with StateStore.open(link) as store:
        await store.save_workflow_state(a_state())
    assert mode(target) == 0o600
    assert [file.name for file in tmp_path.iterdir() if file.is_file() and not file.is_symlink()] == []


def a_pipe(path: Path) -> object:
    os.mkfifo(path)
    return path


def a_loop_of_links(path: Path) -> object:
    path.symlink_to(path)
    return path


def in_a_file(path: Path) -> object:
    path.write_text("notes")
    return path / "x.db"


NO_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (a_pipe, "pipe"),
    "a loop": (a_loop_of_links, "cannot be opened"),
    "in a file": (in_a_file, "does not exist; create it"),
    "too long": (lambda path: path.with_name("x" * 300), "check its path"),
    "a directory": (lambda path: path.parent, "is a directory"),
    "bytes": (os.fsencode, "bytes; give a URL or a path"),
    "a number": (lambda _: 5, "int; give a URL or a path"),
}


@pytest.mark.parametrize("case", NO_FILES)
async def test_what_can_be_no_file_of_a_database_is_refused_with_a_reason(tmp_path: Path, case: str) -> None:
    place, reason = NO_FILES[case]
    database: Any = place(tmp_path / "w.db")
    with pytest.raises(ConfigurationError, match=reason):
        await StateStore.open(database)


async def test_a_relative_path_means_the_directory_at_the_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here := tmp_path / "here").mkdir()
    (there := tmp_path / "there").mkdir()
    monkeypatch.chdir(here)
    async with StateStore.open("w.db") as store:
        monkeypatch.chdir(there)
        await asyncio.gather(*(store.save_workflow_state(a_state(f"w-{number}")) for number in range(20)))
    assert {file.name for file in here.iterdir()} == {"w.db"}
    assert list(there.iterdir()) == []
    there.rmdir()
    with pytest.raises(ConfigurationError, match="absolute path"):
        await StateStore.open("w.db")


async def test_a_database_in_memory_says_where_it_wanted_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(ConfigurationError, match="TMPDIR"):
        await StateStore.open(":memory:")
