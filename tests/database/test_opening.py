"""Where `StateStore.open` puts an SQLite database, for every form of path and URL, and when there is none."""

import asyncio
import os
import shutil
import tempfile
from pathlib import Path
from urllib.parse import quote

import pytest

from orchestrator_state import ConfigurationError, SchemaOutOfDate, StateStore, WorkflowNotFound
from tests.support.cases import case
from tests.support.workflows import a_workflow, saved

AWKWARD = ["a b.db", "100%.db", "%20.db", "what?.db", "#1.db", "größe🚀.db", 'it\'s "quoted".db', "semi;colon&x=1.db"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    directory = tmp_path / "here"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


async def save_and_load(database: str | os.PathLike[str] | None = None) -> None:
    """Save through one store and load through another, so that both meant the same place."""
    async with StateStore.open(database) as store:
        state = await saved(store, "load")
    async with StateStore.open(database) as store:
        assert await store.load_workflow_state(state.id) == state


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


FORMS: list[str | Path] = [
    "flows.db",
    "./flows.db",
    "../here/flows.db",
    Path("flows.db"),
    "sqlite:///flows.db",
    "sqlite:///./flows.db",
    "SQLite:///flows.db",
    "sqlite+aiosqlite:///flows.db",
]


async def test_a_relative_path_is_relative_to_the_working_directory(here: Path) -> None:
    for database in FORMS:
        with case(database):
            await save_and_load(database)
            assert files(here) == ["flows.db"]


async def test_an_absolute_path_means_that_file(here: Path, tmp_path: Path) -> None:
    for form in ("{}", "sqlite:///{}", "sqlite+aiosqlite:///{}"):
        with case(form):
            await save_and_load(form.format(tmp_path / "flows.db"))
            assert files(tmp_path) == ["flows.db"]


async def test_a_path_is_taken_as_it_is_written_and_a_url_is_percent_decoded(here: Path, sqlite_template: Path) -> None:
    for name in AWKWARD:
        shutil.copyfile(sqlite_template, here / name)  # a migration takes longer than all of them
        for database in (name, here / name, f"sqlite:///{quote(name)}"):
            with case(database):
                await save_and_load(database)
                assert files(here) == [name]
        (here / name).unlink()


async def test_without_a_database_it_is_workflows_db(here: Path) -> None:
    await save_and_load()
    assert files(here) == ["workflows.db"]


async def test_without_a_database_the_environment_names_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:///named.db")
    await save_and_load()
    await save_and_load("given.db")
    assert files(here) == ["given.db", "named.db"]


@pytest.mark.parametrize("database", ["sqlite:///named.db\n", " sqlite:///named.db\r\n"])
async def test_white_space_around_a_url_is_none_of_the_files_name(here: Path, database: str) -> None:
    await save_and_load(database)
    assert files(here) == ["named.db"]


@pytest.mark.parametrize(
    ("database", "hint"),
    [
        ("", "empty"),
        ("a\0b", "NUL"),
        ("file:flows.db?mode=ro", "file: URIs"),
        ("FILE:flows.db", "file: URIs"),
        (" \n", "is empty"),
        ("sqlite://flows.db", "three slashes"),
        ("sqlite:///flows.db?mode=ro", "options in a SQLite URL"),
    ],
)
async def test_a_form_that_would_mean_something_else_is_refused(here: Path, database: str, hint: str) -> None:
    with pytest.raises(ConfigurationError, match=hint):
        await StateStore.open(database)
    assert files(here) == []


in_memory = pytest.mark.parametrize("database", [":memory:", "sqlite://", "sqlite:///", "sqlite:///:memory:"])


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory for temporary files, empty."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


@in_memory
async def test_two_stores_in_memory_are_two_databases_and_leave_nothing(
    here: Path, temporary: Path, database: str
) -> None:
    async with StateStore.open(database) as one, StateStore.open(database) as other:
        state = await saved(one, "load")
        assert await one.load_workflow_state(state.id) == state
        with pytest.raises(WorkflowNotFound):
            await other.load_workflow_state(state.id)
        assert files(here) == []
    assert files(temporary) == []


async def test_a_rollback_in_memory_does_not_erase_what_another_task_wrote() -> None:
    async with StateStore.open(":memory:") as store:
        lost, kept, reached = a_workflow(), a_workflow(), asyncio.Event()

        async def write_and_fail() -> None:
            async with store.begin() as uow:
                await uow.workflows.save(lost)
                reached.set()
                await asyncio.sleep(0.05)
                raise KeyError

        async def write() -> None:
            await reached.wait()
            await store.save_workflow_state(kept)

        results = await asyncio.gather(write_and_fail(), write(), return_exceptions=True)
        assert [type(result) for result in results] == [KeyError, type(None)]
        assert [state.id for state in await store.list_active_workflows()] == [kept.id]


async def test_a_store_in_memory_that_fails_to_open_leaves_nothing(temporary: Path) -> None:
    with pytest.raises(SchemaOutOfDate):
        await StateStore.open(":memory:", migrate=False)
    assert files(temporary) == []
