"""Does a run's last step cost more than its tenth? In time, and in bytes written to the log of the database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.contest import OUTPUT_SIZE
from benchmarks.measure import Bar, Bench, Figure, Question
from benchmarks.pairs import milliseconds
from benchmarks.raw import RawDriver, connect, sqlite_file
from benchmarks.samples import incompressible
from orchestrator_state import Run, StateStore

_WINDOW: Final = 10
_EARLY: Final = 5
"""Where the first window begins: the tenth step is in its middle."""
_BAR: Final = Bar(1.2)
_CONTEXT: Final = {"inputs": {"document": "reports/1.txt", "language": "en"}}


async def _answer(number: int) -> Any:
    return incompressible(OUTPUT_SIZE, number)


@asynccontextmanager
async def _log_meter(raw: RawDriver, url: str) -> AsyncIterator[Callable[[], Any]]:
    """Yield a function that tells how many bytes the write-ahead log took since the block began."""
    if url.startswith("postgresql:"):

        async def position() -> int:
            [(bytes_so_far,)] = await raw.fetch("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint")
            return int(bytes_so_far)

        start = await position()

        async def written() -> int:
            return await position() - start

        yield written
    else:
        log = Path(sqlite_file(url) + "-wal")
        await raw.fetch("PRAGMA wal_checkpoint(TRUNCATE)")
        await raw.fetch("BEGIN")
        await raw.fetch("SELECT count(*) FROM workflow_states")  # while somebody reads, the log cannot start anew

        async def size() -> int:
            return _size(log)

        try:
            yield size
        finally:
            await raw.fetch("ROLLBACK")


def _size(file: Path) -> int:
    return file.stat().st_size


async def _window(run: Run, raw: RawDriver, url: str, first: int) -> tuple[float, float]:
    """Take the steps of a window: the median milliseconds, and the mean bytes, of one."""
    async with _log_meter(raw, url) as written:
        times = [
            await milliseconds(partial(run.step, f"step-{number}", _answer, number))
            for number in range(first, first + _WINDOW)
        ]
        return median(times), await written() / _WINDOW


async def _round(store: StateStore, raw: RawDriver, url: str, last: int) -> list[tuple[float, float]]:
    windows: list[tuple[float, float]] = []

    async def handler(run: Run) -> None:
        number = 0
        while number < last:
            if number in (_EARLY, last - _WINDOW):
                windows.append(await _window(run, raw, url, number))
                number += _WINDOW
            else:
                await run.step(f"step-{number}", _answer, number)
                number += 1

    await store.run("benchmark", handler, context=_CONTEXT)
    return windows


async def _measure(bench: Bench) -> list[Figure]:
    with bench.new_database() as url:
        async with StateStore.open(url, migrate=True) as store, connect(url) as raw:
            rounds = [await _round(store, raw, url, bench.size) for _ in range(bench.rounds)]
    return [
        Figure(
            what=f"step {bench.size:,} of a run against step 10: {what}",
            unit="x",
            rounds=[late[column] / early[column] for early, late in rounds],
            bar=_BAR,
            beside={
                f"step 10 {unit}": median(early[column] for early, _ in rounds) / scale,
                f"step {bench.size:,} {unit}": median(late[column] for _, late in rounds) / scale,
            },
        )
        for column, what, unit, scale in ((0, "time", "ms", 1), (1, "bytes written", "KB", 1000))
    ]


GROWTH: Final = Question(name="growth", measure=_measure, size=1_000, quick_size=200, rounds=3)
