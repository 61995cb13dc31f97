"""What one store has had compiled is there for the next one of its kind, and only for those."""

import gc
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Select, bindparam, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.sql.compiler import SQLCompiler

from orchestrator_state import Run, StateStore, WorkflowState
from orchestrator_state.database.compiled import kind_of
from orchestrator_state.database.direct.driver import DriverStatements
from orchestrator_state.models import WorkflowRow
from orchestrator_state.settings import Options
from tests.support.postgres_server import Postgres

_COMPILING = SQLCompiler.__init__.__code__
# SQLAlchemy 2.0 keeps no INSERT that knows ON CONFLICT, but compiles it each time that it is executed.
_EACH_TIME = () if sqlite.Insert.inherit_cache else ("INSERT INTO",)


@contextmanager
def compilations() -> Iterator[list[str]]:
    """What is compiled in the block, in whichever thread: the first words of each statement."""
    found: list[str] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "return" and frame.f_code is _COMPILING:
            found.append(str(frame.f_locals["self"])[:60])

    before = sys.getprofile()
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(before)
        threading.setprofile(before)


async def _count(run: Run[Any]) -> int:
    return await run.step("count", lambda: 1) + await run.step("count again", lambda: 2)


async def _use(url: str, **options: Any) -> None:
    async with StateStore.open(url, **options) as store:
        workflow_id = str(uuid4())
        assert await store.run("counting", _count, workflow_id=workflow_id) == 3
        assert await store.run("counting", _count, workflow_id=workflow_id) == 3
        state = WorkflowState(workflow_id=str(uuid4()), workflow_name="by hand")
        await store.save_workflow_state(state)
        assert await store.load_workflow_state(state.id) == state


async def test_the_second_store_of_a_process_compiles_nothing(database_url: str) -> None:
    await _use(database_url)
    with compilations() as compiled:
        await _use(database_url, namespace="another")
    assert [statement for statement in compiled if not statement.startswith(_EACH_TIME)] == []


async def test_the_first_one_on_an_engine_of_the_applications_does(database_url: str) -> None:
    """It may compile in ways of its own; and so the test above would see it, if the second one did."""
    await _use(database_url)
    plain = database_url.replace("sqlite:", "sqlite+aiosqlite:").replace("postgresql:", "postgresql+asyncpg:")
    engine = create_async_engine(plain)
    with compilations() as compiled:
        async with StateStore.open(engine=engine) as store:
            await store.run("counting", _count)
    await engine.dispose()
    assert len(compiled) > 3


async def test_two_schemas_of_one_database_are_not_mixed_up(empty_postgres_url: str, postgres: Postgres) -> None:
    name = empty_postgres_url.partition("?")[0].rpartition("/")[2]
    for schema in ("one", "two"):
        async with StateStore.open(empty_postgres_url, db_schema=schema, migrate=True):
            pass
    async with StateStore.open(empty_postgres_url, migrate=True):
        pass
    ways: list[Options] = [{"db_schema": "one"}, {}, {"db_schema": "two"}, {"db_schema": "one"}]
    ways += [{**way, "pgbouncer": True} for way in ways]
    stores = [await StateStore.open(empty_postgres_url, **way) for way in ways]
    for store in stores:
        await store.run("counting", _count)
    for store in stores:
        await store.close()
    table = WorkflowRow.__tablename__
    counts = [
        postgres.execute(f"SELECT count(*) FROM {schema}.{table}", database=name)[0][0]
        for schema in ("one", "two", "public")
    ]
    assert counts == [4, 2, 2]


@pytest.mark.parametrize("url", ["sqlite+aiosqlite://", "postgresql+asyncpg://"])
def test_dialects_are_of_one_kind_if_nothing_tells_them_apart(url: str) -> None:
    first, second = (create_async_engine(url).dialect for _ in range(2))
    assert first != second
    assert kind_of(first) == kind_of(second)
    assert isinstance(second, DefaultDialect)
    select(1).compile(dialect=second)  # after which it remembers more
    assert kind_of(first) == kind_of(second)
    second.server_version_info = (1, 2)
    assert kind_of(first) != kind_of(second)


def test_two_servers_of_different_versions_share_no_statement_of_the_drivers() -> None:
    """Although no dialect knows the version of its server before it has connected, which a store does later."""
    dialects = [create_async_engine("postgresql+asyncpg://").dialect for _ in range(3)]
    stores = [DriverStatements(dialect, schema=None) for dialect in dialects]
    for dialect, version in zip(dialects, (14, 18, 18), strict=True):
        assert isinstance(dialect, DefaultDialect)
        dialect.server_version_info = (version, 0)
    statement: Select[Any] = select(bindparam("a"))
    old, new, new_too = (statements[statement] for statements in stores)
    assert old is not new
    assert new is new_too


def test_two_databases_and_two_ways_to_write_parameters_are_two_kinds() -> None:
    dialects = [
        create_async_engine("sqlite+aiosqlite://").dialect,
        create_async_engine("sqlite+aiosqlite://", paramstyle="named").dialect,
        create_async_engine("postgresql+asyncpg://").dialect,
        create_async_engine("postgresql+asyncpg://", label_length=10).dialect,
    ]
    assert len({kind_of(dialect) for dialect in dialects}) == 4


async def test_what_is_compiled_keeps_no_store_alive(database_url: str) -> None:
    store = await StateStore.open(database_url)
    await store.run("counting", _count)
    await store.close()
    gone = weakref.ref(store._transactions.database)
    del store
    gc.collect()
    assert gone() is None
