"""Does what an operator asks stay as quick, however many workflows there are? Of 1 %, of 10 % and of all of them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from statistics import median
from typing import Any, Final

from benchmarks.measure import Bar, Bench, Figure, Question
from benchmarks.raw import RawDriver, connect
from orchestrator_state import RunCondition, StateStore

_CALLS: Final = 20
_COLUMNS: Final = (
    "id, workflow_id, workflow_name, user_id, status, started_at, updated_at, completed_at, context, error_type"
)
# One in a hundred is under way, and another one failed.
_VALUES: Final = """
    {id}, 'w' || n, 'name' || (n % 7), 'u' || (n % 1000),
    CASE n % 100 WHEN 0 THEN 'running' WHEN 1 THEN 'failed' ELSE 'completed' END,
    {moment}, {moment}, CASE WHEN n % 100 = 0 THEN NULL ELSE {moment} END, '{{{{}}}}',
    CASE WHEN n % 100 = 1 THEN 'TimeoutError' END
"""
_POSTGRES: Final = (
    f"INSERT INTO workflow_states ({_COLUMNS}) SELECT"
    + _VALUES.format(id="lpad(to_hex(n), 32, '0')::uuid", moment="to_timestamp(1700000000 + n)")
    + "FROM generate_series({first}, {last}) AS n"
)
_SQLITE: Final = (
    "WITH RECURSIVE numbers(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM numbers WHERE n < {last})"
    f" INSERT INTO workflow_states ({_COLUMNS}) SELECT"
    + _VALUES.format(
        id="printf('%08x-0000-4000-8000-000000000000', n)",
        moment="strftime('%Y-%m-%dT%H:%M:%f', 1700000000 + n, 'unixepoch') || '000+00:00'",
    )
    + "FROM numbers"
)
Ask = Callable[[], Awaitable[object]]


async def _fill(raw: RawDriver, database: str, first: int, last: int) -> None:
    statement = _POSTGRES if database == "postgres" else _SQLITE
    await raw.execute(statement.format(first=first, last=last))
    await raw.fetch("ANALYZE")


def _questions(store: StateStore, some_id: Any) -> Mapping[str, Ask]:
    return {
        "the newest runs": store.list_runs,
        "failed runs of a name": lambda: store.list_runs(status="failed", name="name3"),
        "abandoned runs": lambda: store.list_runs(condition=RunCondition.ABANDONED),
        "a user's runs": lambda: store.list_runs(user_id="u7"),
        "one run": lambda: store.get_run(some_id),
    }


async def _milliseconds(ask: Ask, calls: int) -> float:
    await ask()
    took = []
    for _ in range(calls):
        start = time.perf_counter()
        await ask()
        took.append(time.perf_counter() - start)
    return median(took) * 1000


async def _measure(bench: Bench) -> list[Figure]:
    sizes = [max(100, bench.size // 100), max(200, bench.size // 10), bench.size]
    calls = bench.scaled(_CALLS)
    taken: dict[str, list[float]] = {}
    with bench.new_database() as url:
        async with StateStore.open(url, migrate=True) as store, connect(url) as raw:
            first = 1
            for size in sizes:
                await _fill(raw, bench.database, first, size)
                first = size + 1
                (run,) = await store.list_runs(limit=1)
                for what, ask in _questions(store, run.id).items():
                    taken.setdefault(what, []).append(await _milliseconds(ask, calls))
    return [
        Figure(
            what=f"{what}, of {sizes[-1]:,} workflows",
            unit=f"x of {sizes[0]:,}",
            rounds=[each[-1] / each[0]],
            bar=Bar(2.0),
            beside={f"ms of {size:,}": one for size, one in zip(sizes, each, strict=True)},
        )
        for what, each in taken.items()
    ]


SEEING: Final = Question(name="seeing", measure=_measure, size=1_000_000, quick_size=10_000, rounds=1)
