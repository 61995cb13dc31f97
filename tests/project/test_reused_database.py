"""What one test does to its Postgres database, the next one does not find."""

import asyncio
from collections.abc import Iterator

import asyncpg
import pytest

from orchestrator_state import StateStore
from tests.support.postgres_server import Postgres
from tests.support.reused_database import ReusedDatabase
from tests.support.states import a_state

LEFT_BEHIND = {
    "a table": "CREATE TABLE mine (n int)",
    "a schema": "CREATE SCHEMA mine",
    "a sequence": "CREATE SEQUENCE mine",
    "a function": "CREATE FUNCTION mine() RETURNS int LANGUAGE sql RETURN 1",
    "an index": "CREATE INDEX ON workflow_states (status, user_id)",
    "a column": "ALTER TABLE signals ADD mine int",
    "another type": "ALTER TABLE step_states ALTER error TYPE varchar(9000)",
    "no constraint": "ALTER TABLE step_states DROP CONSTRAINT step_states_pkey",
    "NULL": "ALTER TABLE workflow_states ALTER workflow_name DROP NOT NULL",
    "a trigger": (
        "CREATE TRIGGER mine BEFORE UPDATE ON signals FOR EACH ROW "
        "EXECUTE FUNCTION suppress_redundant_updates_trigger()"
    ),
    "a rule": "CREATE RULE mine AS ON DELETE TO requests DO INSTEAD NOTHING",
    "no right": "REVOKE ALL ON signals FROM CURRENT_USER",
    "no table": "DROP TABLE requests",
    "statistics": "ANALYZE workflow_states",
    "estimates": "VACUUM workflow_states",
    "another revision": "UPDATE orchestrator_state_version SET version_num = '1'",
    "no revision": "DELETE FROM orchestrator_state_version",
    "an option": "ALTER DATABASE {} SET statement_timeout = '1ms'",
    "an option of a role": "ALTER ROLE CURRENT_USER IN DATABASE {} SET statement_timeout = '1ms'",
    "a limit": "ALTER DATABASE {} CONNECTION LIMIT 0",
    "a right": "GRANT CREATE ON DATABASE {} TO PUBLIC",
    "a large object": "SELECT lo_create(0)",
    "many rows": (
        "INSERT INTO requests (id, namespace, kind, made_at) "
        "SELECT gen_random_uuid(), '', 'x', now() FROM generate_series(1, 3000)"
    ),
}


@pytest.fixture
def reused(postgres: Postgres, postgres_template: str) -> Iterator[ReusedDatabase]:
    database = ReusedDatabase(postgres, postgres_template)
    yield database
    database.close()


def original(postgres: Postgres, name: str) -> int:
    """Another one for each copy."""
    [(oid,)] = postgres.execute("SELECT oid FROM pg_database WHERE datname = $1", name)
    return int(oid)


@pytest.mark.parametrize("left", LEFT_BEHIND)
def test_a_database_that_is_not_what_it_was_is_replaced(reused: ReusedDatabase, postgres: Postgres, left: str) -> None:
    with reused.lent() as name:
        first = original(postgres, name)
        postgres.execute(LEFT_BEHIND[left].format(f'"{name}"'), database=name)
    with reused.lent() as name:
        assert original(postgres, name) != first
        assert postgres.execute("SELECT count(*) FROM requests", database=name) == [(0,)]
    assert not postgres.execute("SELECT 1 FROM pg_database WHERE oid = $1", first)


async def test_rows_are_gone_and_the_database_is_the_same(reused: ReusedDatabase, postgres: Postgres) -> None:
    originals = set()
    for _ in range(3):
        with reused.lent() as name:
            originals.add(original(postgres, name))
            async with StateStore.open(postgres.url(name)) as store:
                assert await store.list_active_workflows() == []
                await store.save_workflow_state(a_state())
    assert len(originals) == 1


async def test_a_session_that_was_left_open_is_ended_and_finds_nothing_by_the_old_name(
    reused: ReusedDatabase, postgres: Postgres
) -> None:
    with reused.lent() as name:
        left = await asyncpg.connect(postgres.url(name))
        await left.execute("BEGIN; LOCK TABLE workflow_states")
    with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError)):
        await left.fetch("SELECT 1")
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await asyncpg.connect(postgres.url(name))
    with reused.lent() as name:
        assert not await asyncio.to_thread(postgres.execute, "SELECT 1 FROM workflow_states", database=name)
