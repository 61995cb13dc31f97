"""All that a test works with, on one database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator_state.testing.clock import Clock
from orchestrator_state.testing.databases import Databases
from orchestrator_state.testing.faults import Faults
from orchestrator_state.testing.store import StoreUnderTest
from orchestrator_state.testing.workers import Workers


@dataclass(frozen=True, slots=True)
class Bench:
    """A store, its clock, its workers and what goes wrong with them."""

    store: StoreUnderTest
    clock: Clock
    worker: Workers
    faults: Faults


@asynccontextmanager
async def bench(databases: Databases, directory: Path, options: dict[str, Any]) -> AsyncIterator[Bench]:
    """One on an empty database, for the time of the block. `options` are for `StateStore.open`."""
    async with AsyncExitStack() as stack:
        place = await stack.enter_async_context(databases.lent(directory))
        store = await StoreUnderTest.open(place.url, **(place.options | options))
        stack.push_async_callback(store.close)
        clock = await store.clock(place.time)
        workers = Workers(store, clock)
        stack.push_async_callback(workers.end)
        yield Bench(store, clock, workers, store.faults)
