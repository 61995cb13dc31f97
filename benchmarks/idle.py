"""What does a worker with nothing to do ask of the database?"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from sqlalchemy import event

from benchmarks.measure import Bar, Bench, Figure, Question
from orchestrator_state import Run, StateStore, Worker
from tests.support.engines import own_engine

_SECONDS: Final = 15.0


async def _handler(_: Run) -> None:
    pass


async def _measure(bench: Bench) -> list[Figure]:
    """Counted on an engine of the application's, BEGIN and COMMIT aside."""
    seconds = _SECONDS * bench.effort
    sent: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        if not statement.startswith("BEGIN"):
            sent.append(statement)

    rates = []
    with bench.new_database() as url:
        engine = own_engine(url)
        try:
            async with StateStore.open(engine=engine, migrate=True) as store, Worker(store, {"benchmark": _handler}):
                await asyncio.sleep(seconds / 5)  # what it does once, at its start, is not idle
                event.listen(engine.sync_engine, "before_cursor_execute", note)
                for _ in range(bench.rounds):
                    sent.clear()
                    await asyncio.sleep(seconds)
                    rates.append(len(sent) / seconds)
        finally:
            await engine.dispose()
    return [Figure(what="statements of an idle worker", unit="/s", rounds=rates, bar=Bar(2.0))]


IDLE: Final = Question(name="idle", measure=_measure, size=1, quick_size=1, rounds=3)
