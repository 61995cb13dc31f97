"""The environment of that application; what it says about our tables is the test's to choose."""

import asyncio

from alembic import context
from sqlalchemy import Connection

from tests.support.engines import own_engine

attributes = context.config.attributes


def run(connection: Connection) -> None:
    context.configure(connection=connection, **attributes["options"])
    with context.begin_transaction():
        context.run_migrations()


async def main() -> None:
    engine = own_engine(attributes["url"])
    try:
        async with engine.begin() as connection:
            await connection.run_sync(run)
    finally:
        await engine.dispose()


asyncio.run(main())
