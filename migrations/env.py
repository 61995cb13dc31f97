"""Alembic's environment: `alembic upgrade head` from the checkout, and `orchestrator-state db` from the package.

The database is `DATABASE_URL`, or the SQLite file that the store uses by default. The transaction, the lock
against other migrations and SQLite's foreign key pragma are `Database.migrating`'s.
"""

import asyncio

from alembic import context
from sqlalchemy import Connection

from orchestrator_state import schema

config = context.config


def run(connection: Connection) -> None:
    context.configure(connection=connection, **schema.CONTEXT_OPTIONS)
    context.run_migrations()


def run_offline() -> None:
    """Print the SQL for somebody else to run: `alembic upgrade head --sql`, for Postgres."""
    context.configure(dialect_name="postgresql", literal_binds=True, **schema.CONTEXT_OPTIONS)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    run_offline()
elif (given := config.attributes.get("connection")) is not None:
    run(given)
else:
    asyncio.run(schema.run_in_migration(run))
