"""The revision that the page on your own Alembic shows makes the views, and takes them away."""

from pathlib import Path

import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect, make_url
from sqlalchemy.ext.asyncio import create_async_engine

import orchestrator_state
from tests.project.test_docs import BLOCK, ROOT

VIEWS = {"workflow_overview", "step_durations"}


def revise(connection: Connection) -> None:
    page = ROOT / "docs/how-to/own-alembic.md"
    block = BLOCK.search(page.read_text())
    assert block
    revision: dict[str, object] = {}
    exec(compile(block["code"], page, "exec"), revision)
    orchestrator_state.metadata.create_all(connection)
    with Operations.context(MigrationContext.configure(connection)):
        for step, views in (("upgrade", VIEWS), ("downgrade", set[str]())):
            run = revision[step]
            assert callable(run)
            run()
            assert set(inspect(connection).get_view_names()) == views


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
async def test_the_revision_of_the_page_makes_the_views(
    backend: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/own.db"
    if backend == "postgres":
        url = request.getfixturevalue("empty_postgres_url")
    engine = create_async_engine(
        make_url(url).set(drivername="postgresql+asyncpg" if backend == "postgres" else "sqlite+aiosqlite")
    )
    async with engine.connect() as connection:
        await connection.run_sync(revise)
    await engine.dispose()
