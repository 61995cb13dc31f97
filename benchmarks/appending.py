"""What does a loop leave on the disk that appends 1 KB to its context with each step, all checkpoints kept?

Beside the list lies a document of 100 KB that never changes. Then every checkpoint is restored, and has to be right.
Both are random text: what Postgres can compress would hardly count.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any, Final
from uuid import UUID

from benchmarks.at_rest import Footprint, footprint
from benchmarks.measure import Bar, Bench, Figure, Question
from benchmarks.peers import has_langgraph
from benchmarks.raw import connect
from benchmarks.samples import incompressible
from orchestrator_state import Run, StateStore

_DOCUMENT_SIZE: Final = 100_000
_ITEM_SIZE: Final = 1_000
_MOST_MEGABYTES: Final = 4.0


def _item(number: int) -> str:
    return incompressible(_ITEM_SIZE, number)


def _document() -> str:
    return incompressible(_DOCUMENT_SIZE, -1)


async def _nothing() -> None:
    pass


async def _append(store: StateStore, steps: int) -> UUID:
    ids: list[UUID] = []

    async def handler(run: Run) -> None:
        ids.append(run.id)
        for number in range(steps):
            run.append("log", _item(number))
            await run.step(f"step-{number}", _nothing)

    await store.run("benchmark", handler, context={"document": _document(), "log": []})
    return ids[0]


async def _restore_all(store: StateStore, workflow_state_id: UUID, steps: int) -> list[float]:
    """Milliseconds for each checkpoint's state, oldest first. Raises unless all are there and right."""
    async with store.begin() as uow:
        ids = [checkpoint.id for checkpoint in await uow.checkpoints.list(workflow_state_id)][::-1]
    if len(ids) != steps:
        raise RuntimeError(f"of {steps} checkpoints there are {len(ids)}")
    document, items, times = _document(), [_item(number) for number in range(steps)], []
    for count, checkpoint_id in enumerate(ids, start=1):
        begun = time.perf_counter()
        state = await store.restore_from_checkpoint(checkpoint_id)
        times.append((time.perf_counter() - begun) * 1000)
        expected: dict[str, Any] = {"document": document, "log": items[:count]}
        if state.context != expected or len(state.steps) != count:
            raise RuntimeError(f"checkpoint {count} is not the state after step {count}")
    return times


async def _of_langgraph(bench: Bench) -> Footprint:
    from benchmarks.peers.with_langgraph import append_in_a_loop

    with bench.new_database() as url:
        await append_in_a_loop(url, _document(), _item, bench.size)
        async with connect(url) as raw:
            return await footprint(raw, url)


async def _measure(bench: Bench) -> list[Figure]:
    """Once, however many rounds: the bytes are the same each time."""
    with bench.new_database() as url:
        async with StateStore.open(url, migrate=True, keep_checkpoints=max(1_000, bench.size)) as store:
            async with connect(url) as raw:
                empty = await footprint(raw, url)
            key = await _append(store, bench.size)
            times = await _restore_all(store, key, bench.size)
        async with connect(url) as raw:
            ours = await footprint(raw, url)
    beside = {"payloads MB": ours.payload_megabytes, "empty MB": empty.megabytes, "restore ms": median(times)}
    if has_langgraph():
        theirs = await _of_langgraph(bench)
        beside |= {"LangGraph MB": theirs.megabytes, "its payloads MB": theirs.payload_megabytes}
    return [
        Figure(
            what=f"{bench.size} steps that append 1 KB beside 100 KB, at rest",
            unit="MB",
            rounds=[ours.megabytes],
            bar=Bar(_MOST_MEGABYTES),
            beside=beside,
        )
    ]


APPENDING: Final = Question(name="appending", measure=_measure, size=400, quick_size=400, rounds=1)
