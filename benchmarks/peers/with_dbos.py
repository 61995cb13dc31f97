"""DBOS: a workflow's steps, each recorded as it completes. Its SQLite file is put into WAL mode first, as ours is."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

from dbos import DBOS

from benchmarks.contest import STEPS_PER_RUN, Contestant, Together, answer
from benchmarks.measure import Bench
from benchmarks.raw import sqlite_file


@asynccontextmanager
async def enter(bench: Bench) -> AsyncIterator[Contestant]:
    with bench.new_database() as url:
        if bench.database == "sqlite":
            with closing(sqlite3.connect(sqlite_file(url))) as file:
                file.execute("PRAGMA journal_mode=WAL")
        DBOS(config={"name": "benchmark", "system_database_url": url, "log_level": "ERROR"})
        step = DBOS.step()(answer)
        now: list[Together] = []

        async def workflow() -> None:
            async with now[-1].run():
                for number in range(STEPS_PER_RUN):
                    await step(number)

        durable_workflow = DBOS.workflow()(workflow)

        async def runs_at_once(runs: int) -> float:
            together = Together(runs)
            now.append(together)
            await asyncio.gather(*(durable_workflow() for _ in range(runs)))
            return together.steps_per_second

        DBOS.launch()
        try:
            yield runs_at_once
        finally:
            DBOS.destroy(destroy_registry=True)
