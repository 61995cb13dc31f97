"""What an export must not do to whoever writes it, or reads one that somebody else has made."""

import io
import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from orchestrator_state import (
    AesGcm,
    BlobStore,
    ConfigurationError,
    CorruptPayload,
    KeyRing,
    Payloads,
    Run,
    StateStore,
)
from orchestrator_state.encryption import new_key
from orchestrator_state.repositories.moving import TABLES
from tests.support.raw_sql import execute


async def handler(run: Run) -> object:
    return await run.step("a", lambda: "long " * 1000)


def below(directory: Path) -> list[str]:
    return sorted(str(path) for path in directory.rglob("*") if not path.name.startswith("workflows.db"))


def signed(lines: list[bytes]) -> bytes:
    """An export whose end says what is in it, whatever that is."""
    body = b"".join(lines)
    names = [line[2 : line.find(b'"', 2)].decode() for line in lines[1:]]
    rows = {name: names.count(name) for name in TABLES}
    end = {
        "runs": rows["workflow_states"],
        "rows": rows,
        "blobs": names.count("blob"),
        "sha256": sha256(body).hexdigest(),
    }
    return body + json.dumps({"end": end}, separators=(",", ":")).encode() + b"\n"


@pytest.mark.parametrize("name", ["../escaped", "ok", "/tmp/escaped", "default/none"])
async def test_no_blob_is_written_but_where_a_row_says(database_url: str, tmp_path: Path, name: str) -> None:
    (tmp_path / "blobs").mkdir()
    payloads = Payloads(blobs=BlobStore(f"file://{tmp_path}/blobs/inner", above=100))
    async with StateStore.open(database_url, payloads=payloads) as store:
        await store.run("h", handler, workflow_id="w")
        stream = io.BytesIO()
        await store.export_runs(stream)
        first, *lines = stream.getvalue().splitlines(keepends=True)[:-1]
        assert signed([first, *lines]) == stream.getvalue()
        before = below(tmp_path)
        hostile = f'{{"blob":{{"name":"{name}","content":"aGk="}}}}\n'.encode()
        with pytest.raises(CorruptPayload):
            await store.import_runs(io.BytesIO(signed([first, hostile, *lines])))
        assert below(tmp_path) == before


async def test_what_is_encrypted_and_beside_the_database_comes_along_without_a_key(
    database_url: str, fresh_database_urls: Callable[[], str], tmp_path: Path
) -> None:
    keys = KeyRing({"k": new_key()}, primary="k")
    source = Payloads([AesGcm(keys)], blobs=BlobStore(f"file://{tmp_path}/one", above=100))
    async with StateStore.open(database_url, payloads=source) as store:
        await store.run("h", handler, workflow_id="w")
    stream = io.BytesIO()
    async with StateStore.open(database_url) as store:
        with pytest.raises(ConfigurationError, match="blobs"):
            await store.export_runs(io.BytesIO())
    blobs = BlobStore(f"file://{tmp_path}/one", above=100)
    async with StateStore.open(database_url, payloads=Payloads(blobs=blobs)) as store:
        report = await store.export_runs(stream)
    assert report.is_complete
    assert report.blobs > 0
    assert b"long" not in stream.getvalue()
    target = Payloads([AesGcm(keys)], blobs=BlobStore(f"file://{tmp_path}/two", above=100))
    async with StateStore.open(fresh_database_urls(), payloads=target) as store:
        stream.seek(0)
        assert (await store.import_runs(stream)).imported == 1
        assert await store.run("h", handler, workflow_id="w") == "long " * 1000


async def test_a_run_that_cannot_be_moved_is_counted(sqlite_url: str) -> None:
    async with StateStore.open(sqlite_url) as store:
        for name in ("sound", "bad id", "bad time", "bad text"):
            await store.run("h", handler, workflow_id=name)
        of_bad_id = "SELECT id FROM workflow_states WHERE workflow_id = 'bad id'"
        execute(
            sqlite_url,
            "PRAGMA foreign_keys=OFF",
            "UPDATE workflow_states SET started_at = 'yesterday' WHERE workflow_id = 'bad time'",
            "UPDATE workflow_states SET context = CAST(x'ff80' AS TEXT) WHERE workflow_id = 'bad text'",
            f"DELETE FROM step_states WHERE workflow_state_id IN ({of_bad_id})",
            f"DELETE FROM checkpoints WHERE workflow_state_id IN ({of_bad_id})",
            "UPDATE workflow_states SET id = 'none' WHERE workflow_id = 'bad id'",
        )
        stream = io.BytesIO()
        report = await store.export_runs(stream)
        assert (report.runs, report.left, len(report.runs_left), report.is_complete) == (1, 3, 2, False)


async def test_nothing_is_written_over_the_database(sqlite_url: str, tmp_path: Path) -> None:
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    link = tmp_path / "link"
    link.symlink_to(path)
    async with StateStore.open(sqlite_url) as store:
        for target in (path, link):
            with pytest.raises(ConfigurationError, match="the database itself"):
                await store.backup(target, overwrite=True)
            with pytest.raises(ConfigurationError, match="the database itself"):
                await store.export_runs(target, overwrite=True)
        await store.run("h", handler, workflow_id="w")
        for bad in (tmp_path, tmp_path / "none" / "x", "a\0b"):
            with pytest.raises(ConfigurationError):
                await store.export_runs(bad)
            with pytest.raises(ConfigurationError):
                await store.backup(bad)
        assert not [name for name in os.listdir(tmp_path) if name.endswith(".unfinished")]  # noqa: PTH208


async def test_an_end_that_counts_wrong_is_refused(store: StateStore) -> None:
    await store.run("h", handler, workflow_id="w")
    stream = io.BytesIO()
    await store.export_runs(stream)
    whole = stream.getvalue()
    assert b'"runs":1,' in whole
    with pytest.raises(CorruptPayload):
        await store.import_runs(io.BytesIO(whole.replace(b'"runs":1,', b'"runs":9,')))


async def test_a_run_that_is_there_and_damaged_is_said_to_be(sqlite_url: str) -> None:
    async with StateStore.open(sqlite_url) as store:
        await store.run("h", handler, workflow_id="w")
        stream = io.BytesIO()
        await store.export_runs(stream)
        execute(sqlite_url, "UPDATE workflow_states SET started_at = 'yesterday'")
        stream.seek(0)
        (left,) = (await store.import_runs(stream)).conflicts
        assert left.reason == "is there already: workflow_states.started_at holds no value of its type"
