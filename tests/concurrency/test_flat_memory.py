"""What looks through all data holds a page of it, however much there is. On both databases."""

import tracemalloc
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator_state import AesGcm, BlobStore, KeyRing, Payloads, StateStore, StepState, WorkflowState, Zstd
from orchestrator_state.encryption import new_key
from tests.support.workflows import LONG_AGO

pytestmark = pytest.mark.slow

FEW, MANY = 1, 100
PAGE = 2 * 1024 * 1024
KEYS = {"old": new_key(), "new": new_key()}
TASKS: dict[str, Callable[[StateStore], Awaitable[Any]]] = {
    "verify": lambda store: store.verify(),
    "rekey": lambda store: store.rekey(),
    "prune": lambda store: store.prune_checkpoints(keep=0),
    "collect garbage": lambda store: store.collect_garbage(older_than=timedelta(hours=1)),
    "delete": lambda store: store.delete_old_states(LONG_AGO + timedelta(days=1)),
}


def sealed_under(key: str, directory: str) -> Payloads:
    blobs = BlobStore(f"file://{directory}", above=20_000)
    return Payloads([Zstd(), AesGcm(KeyRing(KEYS, primary=key))], blobs=blobs)


async def fill(store: StateStore, count: int) -> None:
    """Some 240 KB each, half of it in blobs."""
    for _ in range(count):
        state = WorkflowState(workflow_id="w", workflow_name="n", context={"text": new_key().hex() * 1600})
        state.steps["a"] = StepState(step_id="a", outputs=[new_key().hex() for _ in range(2000)])
        state.mark_failed("x" * 1000)
        state.updated_at = LONG_AGO
        await store.save_workflow_state(state)


async def test_a_hundred_times_the_data_needs_no_more_memory(database_url: str, tmp_path: Path) -> None:
    """Each task finds all that was filled in: the last of them is the one that deletes it."""
    peaks: dict[str, list[int]] = {name: [] for name in TASKS}
    for count in (FEW, MANY - FEW):
        async with StateStore.open(database_url, migrate=True, payloads=sealed_under("old", str(tmp_path))) as store:
            await fill(store, count)
        for name, task in TASKS.items():
            async with StateStore.open(database_url, payloads=sealed_under("new", str(tmp_path))) as store:
                tracemalloc.start()
                try:
                    await task(store)
                    peaks[name].append(tracemalloc.get_traced_memory()[1])
                finally:
                    tracemalloc.stop()
    assert {name: many - few for name, (few, many) in peaks.items() if many - few >= 4 * PAGE} == {}
