"""However many workflows there are, a page is found by an index: as both databases say of 100,000."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import ClauseElement, Executable, Select, select, text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from orchestrator_state import RunCondition, StateStore
from orchestrator_state.records.overview import RunFilters, RunQuery
from orchestrator_state.repositories.overview.pages import page_of
from orchestrator_state.repositories.overview.timelines import timeline
from orchestrator_state.transactions import StoreUnit
from tests.support.raw_sql import SQLITE, execute

pytestmark = pytest.mark.slow

NUMBER = 100_000
NOW = datetime(2026, 6, 1, tzinfo=UTC)
_VALUES = """
    SELECT {id}, 'w' || n, 'name' || (n % 7), 'u' || (n % 1000),
      CASE WHEN n % 100 = 0 THEN 'failed' WHEN n % 100 = 1 THEN 'running' WHEN n % 100 = 2 THEN 'paused'
        WHEN n % 200 = 3 THEN 'pending' ELSE 'completed' END,
      {moment}, {moment}, CASE WHEN n % 100 IN (1, 2, 3) THEN NULL ELSE {moment} END,
      '{{}}', CASE WHEN n % 50 = 0 THEN {attributes} END, CASE WHEN n % 1000 = 999 THEN {parent} END
"""
_INSERT = """INSERT INTO workflow_states (id, workflow_id, workflow_name, user_id, status, started_at, updated_at,
    completed_at, context, attributes, parent_id)"""
_ID = "printf('%08x-0000-4000-8000-000000000000', {})"
SQLITE_ROWS = f"""WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {NUMBER})
    {_INSERT} {
    _VALUES.format(
        id=_ID.format("n"),
        moment="strftime('%Y-%m-%dT%H:%M:%f', 1700000000 + n, 'unixepoch') || '000+00:00'",
        attributes="json_object('order', n)",
        parent=_ID.format("n - 1"),
    )
} FROM numbers"""
POSTGRES_ROWS = f"""{_INSERT} {
    _VALUES.format(
        id="lpad(to_hex(n), 32, '0')::uuid",
        moment="to_timestamp(1700000000 + n)",
        attributes="jsonb_build_object('order', n)",
        parent="lpad(to_hex(n - 1), 32, '0')::uuid",
    )
} FROM generate_series(1, {NUMBER}) AS n"""

_STEPS = "INSERT INTO step_states (workflow_state_id, step_id, status, position)"
_STEP = "SELECT (SELECT id FROM workflow_states ORDER BY id LIMIT 1), 's' || n, 'completed', n"
SQLITE_STEPS = f"""WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {NUMBER})
    {_STEPS} {_STEP} FROM numbers"""
POSTGRES_STEPS = f"{_STEPS} {_STEP} FROM generate_series(1, {NUMBER}) AS n"

EVERY: list[RunFilters] = [
    {},
    {"status": "completed"},
    {"status": "failed"},
    {"status": ["failed", "running", "paused"]},
    *[RunFilters(condition=each) for each in RunCondition],
    {"name": "name3"},
    {"name": "name3", "status": "failed"},
    {"name": "nobody's"},
    {"user_id": "u7"},
    {"user_id": "u7", "status": ["completed", "failed"]},
    {"workflow_id": "w77"},
    {"parent": uuid4()},
    {"started": (NOW, None)},
    {"started": (NOW - timedelta(days=3000), NOW - timedelta(days=2999))},
    {"status": "running", "started": (None, NOW)},
    {"updated": (NOW, None)},
    {"finished": (NOW, None)},
    {"attributes": {"order": 50}},
    {"attributes": {"order": 50}, "status": "failed"},
    {"error_contains": "nothing like it", "status": "failed"},
]


class Explain(Executable, ClauseElement):
    inherit_cache = False

    def __init__(self, query: Select[Any]) -> None:
        self.query = query


@compiles(Explain)
def _explain(element: Explain, compiler: SQLCompiler, **kw: Any) -> str:
    return f"EXPLAIN {compiler.process(element.query, **kw)}"


@compiles(Explain, "sqlite")
def _explain_on_sqlite(element: Explain, compiler: SQLCompiler, **kw: Any) -> str:
    return f"EXPLAIN QUERY PLAN {compiler.process(element.query, **kw)}"


async def plan_of(store: StateStore, query: Select[Any]) -> str:
    async def explain(uow: StoreUnit) -> str:
        return "\n".join(str(row[-1]) for row in (await uow.session.execute(Explain(query))).all())

    return await store._transactions.read(explain)


async def analyze(store: StateStore) -> None:
    async with store.begin() as uow:
        await uow.session.execute(text("ANALYZE"))


async def test_no_filter_reads_the_whole_table(store: StateStore, database_url: str) -> None:
    is_sqlite = database_url.startswith(SQLITE)
    execute(database_url, SQLITE_ROWS if is_sqlite else POSTGRES_ROWS)
    await analyze(store)
    moment = "2026-01-01T00:00:00.000000+00:00"
    read: dict[str, str] = {}
    for filters in EVERY:
        for after in (None, (moment, str(uuid4()) if is_sqlite else uuid4())):
            plan = await plan_of(store, select(page_of(RunQuery.of(filters), "default", after, 51)))
            if "SCAN workflow_states" in plan or "Seq Scan on workflow_states" in plan:
                read[f"{filters} {after}"] = plan
    assert not read, "\n\n".join(f"{filters}\n{plan}" for filters, plan in read.items())


async def test_a_timeline_is_read_by_its_index(store: StateStore, database_url: str) -> None:
    is_sqlite = database_url.startswith(SQLITE)
    execute(database_url, SQLITE_ROWS if is_sqlite else POSTGRES_ROWS)
    execute(database_url, SQLITE_STEPS if is_sqlite else POSTGRES_STEPS)
    await analyze(store)
    run = (await store.list_runs(started=(None, datetime(2023, 11, 14, 22, 13, 22, tzinfo=UTC)))).runs[-1].id
    details = await store.get_run(run)
    assert details.steps == NUMBER
    assert [details.timeline[0].id, details.timeline[-1].id] == [f"s{NUMBER - 99}", f"s{NUMBER}"]
    assert details.earlier is not None
    for before in (None, ("500", "s500")):
        plan = await plan_of(store, timeline(run, before, 101, on_sqlite=is_sqlite))
        assert "idx_step_workflow_state" in plan, plan
