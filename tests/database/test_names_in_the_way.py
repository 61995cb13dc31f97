"""Something of the application's, or of another library's, that has the name of one of our tables."""

import pytest

from orchestrator_state import ConfigurationError, SchemaOutOfDate, StateStore
from tests.support.cases import case
from tests.support.old_databases import FIRST, downgrade
from tests.support.raw_sql import contents, execute
from tests.support.workflows import saved


@pytest.mark.parametrize(
    ("kind", "columns"), [("TABLE", "(thread_id TEXT)"), ("VIEW", "AS SELECT 1 AS thread_id")], ids=["table", "view"]
)
async def test_a_table_or_view_in_the_way_is_named_and_left_alone(
    empty_database_url: str, kind: str, columns: str
) -> None:
    for name in ("workflow_states", "step_states", "checkpoints", "signals", "requests"):
        execute(empty_database_url, f"CREATE {kind} {name} {columns}")
        before = contents(empty_database_url)
        with case(name), pytest.raises(ConfigurationError, match=f"'{name}'.*rename") as refused:
            await StateStore.open(empty_database_url, migrate=True)
        assert not isinstance(refused.value, SchemaOutOfDate)
        assert contents(empty_database_url) == before
        execute(empty_database_url, f"DROP {kind} {name}")


async def test_a_table_in_the_way_of_an_upgrade_is_named(database_url: str) -> None:
    await downgrade(database_url, FIRST)
    execute(database_url, "CREATE TABLE signals (mine INTEGER)")
    with pytest.raises(ConfigurationError, match=r"'signals'.*rename"):
        await StateStore.open(database_url, migrate=True)


async def test_a_type_in_the_way_is_named(empty_postgres_url: str) -> None:
    execute(empty_postgres_url, "CREATE TYPE checkpoints AS ENUM ('a')")
    with pytest.raises(ConfigurationError, match=r"'checkpoints'.*db_schema"):
        await StateStore.open(empty_postgres_url, migrate=True)
    async with StateStore.open(empty_postgres_url, db_schema="ours", migrate=True) as store:
        await saved(store)
