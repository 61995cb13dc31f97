"""A blob store that does not answer is waited for once by a call, however many blobs the call is about."""

import logging
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator_state import AesGcm, BlobStore, KeyRing, Payloads, StateStore, StoreUnavailable
from orchestrator_state.encryption import new_key
from tests.support.workflows import a_workflow

AT_A_TIME = 8
MANY = 3 * AT_A_TIME
KEYS = {"old": new_key(), "new": new_key()}


class Place(BlobStore):
    """Some of its calls hang once it `hangs`, or fail for one blob."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"file://{path}", above=1_000)
        self.asked: list[str] = []
        self.hangs = False
        self.stubborn: set[str] = set()
        self.over = threading.Event()

    def hang(self) -> None:
        self.asked.clear()
        self._timeout = 0.3
        self.hangs = True

    def _get(self, name: str, max_bytes: int | None) -> bytes | None:
        self._wait(name)
        return super()._get(name, max_bytes)

    def _put(self, name: str, content: bytes) -> None:
        self._wait(name)
        super()._put(name, content)

    def _remove(self, name: str) -> None:
        self._wait(name)
        if name in self.stubborn:
            Path(self._path(name)).unlink()
            Path(self._path(name)).mkdir()
        super()._remove(name)

    def _wait(self, name: str) -> None:
        self.asked.append(name)
        if self.hangs:
            self.over.wait()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path / "blobs")
    yield place
    place.over.set()


def payloads(place: Place, key: str) -> Payloads:
    return Payloads([AesGcm(KeyRing(KEYS, primary=key))], blobs=place)


@pytest.fixture
async def store(database_url: str, place: Place) -> AsyncIterator[StateStore]:
    async with StateStore.open(
        database_url, payloads=payloads(place, "old"), retry_timeout=timedelta(milliseconds=1)
    ) as store:
        for number in range(MANY):
            await store.save_workflow_state(a_workflow(f"w{number}", context={"text": "x" * 3_000}))
        place.asked.clear()
        yield store


async def test_who_goes_through_many_runs_is_told_once_that_the_place_does_not_answer(
    store: StateStore, place: Place
) -> None:
    for ask in (store.list_active_workflows, store.verify, partial(store.verify, load=True), store.rekey):
        place.hang()
        with pytest.raises(StoreUnavailable, match="took longer than"):
            await ask()
        assert 0 < len(place.asked) <= AT_A_TIME


async def test_what_answers_is_asked_for_all_that_is_wanted(database_url: str, store: StateStore, place: Place) -> None:
    assert len(await store.list_active_workflows()) == MANY
    assert len(place.asked) == MANY
    async with StateStore.open(database_url, payloads=payloads(place, "new")) as renewed:
        assert (await renewed.rekey()).failed == 0
        assert not (await renewed.rekey()).resealed


async def test_a_place_that_does_not_answer_holds_no_deletion_up_for_each_blob(
    store: StateStore, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    await finish_all(store)
    place.hang()
    with caplog.at_level(logging.WARNING, "orchestrator_state"):
        assert await store.delete_old_states(timedelta()) == MANY
    assert 0 < len(place.asked) <= AT_A_TIME
    assert "garbage" in caplog.text


async def test_a_blob_that_cannot_be_removed_keeps_no_other(
    store: StateStore, place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await finish_all(store)
    place.stubborn = {min(await place.find("default"))}
    with caplog.at_level(logging.WARNING, "orchestrator_state"):
        await store.delete_old_states(timedelta())
    assert "a blob cannot be removed" in caplog.text
    assert await place.find("default") == []
    assert [path.name for path in (tmp_path / "blobs").rglob("*") if path.is_dir() and len(path.name) == 32] == [
        name.rpartition("/")[2] for name in place.stubborn
    ]


async def finish_all(store: StateStore) -> None:
    state: Any
    for state in await store.list_active_workflows():
        state.mark_running()
        state.mark_completed()
        await store.save_workflow_state(state)
