"""An export, imported into another database, is the same: of SQLite and of Postgres, whole or cut off."""

import io
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator_state import AlreadyExists, CorruptPayload, InvalidPayload, Run, SchemaOutOfDate, StateStore
from tests.conftest import BACKENDS
from tests.support.postgres_server import Postgres


@pytest.fixture(params=BACKENDS)
async def target(
    request: pytest.FixtureRequest,
    postgres: Postgres,
    postgres_template: str,
    sqlite_template: Path,
    tmp_path: Path,
) -> AsyncIterator[StateStore]:
    """An empty store on each of the databases, whichever the first is on."""
    if request.param == "sqlite":
        async with StateStore.open(shutil.copyfile(sqlite_template, tmp_path / "target.db")) as store:
            yield store
        return
    with postgres.database(postgres_template) as name:
        async with StateStore.open(postgres.url(name)) as store:
            yield store


async def filled(store: StateStore, runs: int = 3) -> None:
    """Runs that have ended, wait and ask, with children, attributes and signals."""

    async def child(run: Run) -> int:
        return await run.step("b", lambda: 2)

    async def handler(run: Run) -> object:
        await run.set_attributes(order=1.5, vip=True)
        first = await run.step("a", lambda: {"text": "ü\u2028\U0001f600", "n": 2**63})
        run.append("seen", first["text"])
        if run.context["n"] == 0:
            return await run.child("c", child)
        if run.context["n"] == 1:
            return await run.ask("sure", "Sure?", returns=bool)
        return await run.wait_for("go")

    for number in range(runs):
        await store.start("h", workflow_id=f"w{number}", context={"n": number, "seen": []}, user_id="u")
    await store.recover({"h": handler, "child": child})
    for run in await store.list_runs(name="h"):
        if run.status == "running":
            await store.signal(run.id, "other", {"x": 1})


async def exported(store: StateStore) -> bytes:
    stream = io.BytesIO()
    report = await store.export_runs(stream)
    assert report.is_complete
    return stream.getvalue()


def rows_of(export: bytes) -> list[bytes]:
    """All lines but the header, which tells the time."""
    return export.splitlines()[1:-1]


async def test_what_is_imported_is_what_was_exported(store: StateStore, target: StateStore) -> None:
    await filled(store)
    whole = await exported(store)
    report = await target.import_runs(io.BytesIO(whole))
    assert (report.imported, report.present, report.conflicting) == (4, 0, 0)
    assert rows_of(await exported(target)) == rows_of(whole)
    again = await target.import_runs(io.BytesIO(whole))
    assert (again.imported, again.present, again.conflicting) == (0, 4, 0)
    assert (await target.verify()).is_sound


async def test_an_imported_run_goes_on_where_it_was(store: StateStore, target: StateStore) -> None:
    calls = 0

    async def handler(run: Run) -> object:
        def paid() -> int:
            nonlocal calls
            calls += 1
            run.record_usage(model="m", input_tokens=3, output_tokens=4, cost=0.01)
            return 7

        return [await run.step("paid", paid), await run.wait_for("go")]

    state = await store.start("h", workflow_id="w")
    await store.recover({"h": handler})
    await target.import_runs(io.BytesIO(await exported(store)))
    await target.signal(state.id, "go", "now")
    await target.recover({"h": handler})
    assert await target.result(state.id) == [7, "now"]
    assert calls == 1
    assert [total.input_tokens for total in await target.usage()] == [3]


async def test_bills_of_runs_that_are_gone_come_along(store: StateStore, target: StateStore) -> None:
    async def handler(run: Run) -> object:
        return await run.step("a", lambda: run.record_usage(model="m", input_tokens=3, output_tokens=4))

    await store.run("h", handler, workflow_id="w")
    (run,) = await store.list_runs()
    await store.delete(run.id)
    whole = await exported(store)
    for _ in range(2):
        assert (await target.import_runs(io.BytesIO(whole))).imported == 0
        assert [total.input_tokens for total in await target.usage()] == [3]


async def test_a_run_that_differs_is_named_and_left(store: StateStore, target: StateStore) -> None:
    await filled(store)
    whole = await exported(store)
    await target.import_runs(io.BytesIO(whole))
    (waiting,) = [run for run in await target.list_runs() if run.workflow_id == "w2"]
    await target.signal(waiting.id, "go", "other")
    await store.cancel(waiting.id)
    report = await target.import_runs(io.BytesIO(await exported(store)))
    assert [run.id for run in report.conflicts] == [waiting.id]
    assert (report.imported, report.present, report.conflicting) == (0, 3, 1)
    assert (await target.get_run(waiting.id)).status == "running"


async def test_a_run_whose_idempotency_key_is_taken_is_named_and_left(store: StateStore, target: StateStore) -> None:
    mine = await store.start("h", workflow_id="w", idempotency_key="k")
    theirs = await target.start("h", workflow_id="other", idempotency_key="k")
    report = await target.import_runs(io.BytesIO(await exported(store)))
    assert [run.id for run in report.conflicts] == [mine.id]
    assert [run.id for run in await target.list_runs()] == [theirs.id]


async def test_a_file_that_is_cut_or_changed_anywhere_brings_nothing_in(store: StateStore, target: StateStore) -> None:
    await filled(store, 2)
    whole = await exported(store)
    lines = whole.splitlines(keepends=True)
    cuts = [b"".join(lines[:number]) for number in range(1, len(lines))]
    cuts += [whole[:number] for number in range(1, len(whole) - 1, max(1, len(whole) // 50))]
    changed = [whole.replace(b'"u"', b'"v"'), b"".join([*lines[:3], *lines[4:]]), whole + b"{}\n", whole + lines[-1]]
    for broken in [*cuts, *changed]:
        with pytest.raises((CorruptPayload, InvalidPayload)):
            await target.import_runs(io.BytesIO(broken))
    assert await target.list_runs(limit=5) == await store.list_runs(name="none")


class Stream(io.BytesIO):
    """What comes through a pipe: it cannot be read twice."""

    def seekable(self) -> bool:
        return False

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(1000 if size is None or size < 0 else min(size, 1000))


async def test_a_stream_that_is_cut_off_brings_whole_runs_and_repeating_finishes(
    store: StateStore, target: StateStore
) -> None:
    await filled(store)
    whole = await exported(store)
    lines = whole.splitlines(keepends=True)
    for number in range(len(lines)):
        with pytest.raises((CorruptPayload, InvalidPayload)):
            await target.import_runs(Stream(b"".join(lines[:number])))
        for run in await target.list_runs():
            assert (await target.get_run(run.id)).steps == (await store.get_run(run.id)).steps
    await target.import_runs(Stream(whole))
    assert rows_of(await exported(target)) == rows_of(whole)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"{}\n",
        b"[1]\n",
        b"\x1f\x8b\x08",
        b"SQLite format 3\x00" * 100,
        b"x" * 200_000,
        b"\xff\xfe\n",
        b"null\n",
    ],
)
async def test_what_is_no_export_is_refused(store: StateStore, content: bytes) -> None:
    for stream in (io.BytesIO(content), Stream(content)):
        with pytest.raises(InvalidPayload, match="no export"):
            await store.import_runs(stream)


async def test_an_export_of_another_schema_format_or_namespace_is_refused(
    store: StateStore, target: StateStore
) -> None:
    whole = await exported(store)
    header, rest = whole.split(b"\n", 1)
    for old, new, said in (
        (b'"version":1', b'"version":2', "upgrade orchestrator_state"),
        (b'"schema":"2', b'"schema":"3', "upgrade orchestrator_state"),
        (b'"schema":"2', b'"schema":"1', "export it anew"),
        (b'"namespace":"default"', b'"namespace":"a\\u001b[2J"', "open the store with that namespace"),
    ):
        assert old in header
        with pytest.raises((InvalidPayload, SchemaOutOfDate), match=said) as refused:
            await target.import_runs(io.BytesIO(header.replace(old, new) + b"\n" + rest))
        assert "\x1b" not in str(refused.value)


async def test_a_path_is_written_whole_or_not_at_all(store: StateStore, target: StateStore, tmp_path: Path) -> None:
    await filled(store)
    for name in ("runs.ndjson", "runs.ndjson.zst"):
        path = tmp_path / name
        await store.export_runs(path)
        with pytest.raises(AlreadyExists):
            await store.export_runs(str(path))
        await store.export_runs(path, overwrite=True)
        assert path.stat().st_mode & 0o777 == 0o600
        await target.import_runs(path)
        assert not [each for each in os.listdir(tmp_path) if each.endswith(".unfinished")]  # noqa: PTH208
    assert rows_of((tmp_path / "runs.ndjson").read_bytes()) == rows_of(await exported(target))
    content = (tmp_path / "runs.ndjson.zst").read_bytes()
    with pytest.raises((CorruptPayload, InvalidPayload)):
        await target.import_runs(io.BytesIO(content[:-20]))
    with pytest.raises(InvalidPayload, match="no file"):
        await target.import_runs(tmp_path)


async def test_progress_ends_with_the_total(store: StateStore, target: StateStore) -> None:
    await filled(store)
    stream, told = io.BytesIO(), list[tuple[int, int]]()
    await store.export_runs(stream, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (4, 4)
    stream.seek(0)
    await target.import_runs(stream, progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1]
