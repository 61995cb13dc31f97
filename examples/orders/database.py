"""One database, which the shop shares with its runs: where it is, and two histories of migrations."""

import os
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, make_url
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from orchestrator_state import StateStore

DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}

url = make_url(os.environ.get("DATABASE_URL", "sqlite:///orders.db"))
engine = create_async_engine(url.set(drivername=DRIVERS[url.get_backend_name()]), hide_parameters=True)
sessions = async_sessionmaker(engine, expire_on_commit=False)


async def migrate() -> None:
    """Bring both up to date: the shop's tables, and those of the runs. Part of a deploy, where there is one."""
    async with engine.begin() as connection:
        await connection.run_sync(_upgrade)
    async with StateStore.open(engine=engine, migrate=True):
        pass
    await engine.dispose()


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
