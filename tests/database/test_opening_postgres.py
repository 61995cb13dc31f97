"""Where `StateStore.open` finds a Postgres database, and the schema inside it."""

from urllib.parse import quote, urlsplit

import pytest

from orchestrator_state import (
    ConfigurationError,
    SchemaOutOfDate,
    StateStore,
    StoreUnavailable,
    WorkflowNotFound,
    schema,
)
from orchestrator_state.database import open_database
from orchestrator_state.settings import Settings
from tests.support.cases import case
from tests.support.engines import own_engine
from tests.support.old_databases import FIRST, downgrade, upgrade
from tests.support.postgres_server import Postgres
from tests.support.raw_sql import contents, execute, fetch, tables
from tests.support.tcp_postgres import PASSWORD, TcpPostgres, free_port
from tests.support.workflows import saved


async def save_and_load(url: str) -> None:
    async with StateStore.open(url, migrate=True) as store:
        state = await saved(store, "load")
    async with StateStore.open(url) as store:
        assert await store.load_workflow_state(state.id) == state


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg", "PostgreSQL"])
async def test_every_spelling_of_the_scheme_is_taken(postgres_url: str, scheme: str) -> None:
    await save_and_load(postgres_url.replace("postgresql", scheme, 1))


async def test_a_user_with_a_password_on_a_port(tcp_postgres: TcpPostgres, tcp_database: str) -> None:
    await save_and_load(tcp_postgres.url(tcp_database))


async def test_a_password_may_come_from_the_query_or_the_environment(
    tcp_postgres: TcpPostgres, tcp_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"127.0.0.1:{tcp_postgres.port}/{tcp_database}"
    await save_and_load(f"postgresql://{address}?user=app&password={quote(PASSWORD, safe='')}")
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    await save_and_load(f"postgresql://app@{address}")


@pytest.mark.parametrize("sslmode", ["disable", "allow", "prefer"])
async def test_an_sslmode_that_does_without_is_content_with_a_server_without(
    tcp_postgres: TcpPostgres, tcp_database: str, sslmode: str
) -> None:
    await save_and_load(f"{tcp_postgres.url(tcp_database)}?sslmode={sslmode}")


@pytest.mark.parametrize("sslmode", ["require", "verify-full"])
async def test_an_sslmode_that_insists_is_refused_by_a_server_without(
    tcp_postgres: TcpPostgres, tcp_database: str, sslmode: str
) -> None:
    with pytest.raises((StoreUnavailable, ConfigurationError)):
        await StateStore.open(f"{tcp_postgres.url(tcp_database)}?sslmode={sslmode}", migrate=True)
    assert (
        tcp_postgres.admin.execute("SELECT 1 FROM pg_tables WHERE tablename = 'checkpoints'", database=tcp_database)
        == []
    )


async def test_of_several_hosts_the_first_that_lives_is_used(tcp_postgres: TcpPostgres, tcp_database: str) -> None:
    hosts = f"127.0.0.1:{free_port()},127.0.0.1:{tcp_postgres.port}"
    await save_and_load(tcp_postgres.url(tcp_database).replace(f"127.0.0.1:{tcp_postgres.port}", hosts))


async def test_when_none_of_several_hosts_lives_it_is_an_error(tcp_postgres: TcpPostgres, tcp_database: str) -> None:
    hosts = f"127.0.0.1:{free_port()},127.0.0.1:{free_port()}"
    with pytest.raises(StoreUnavailable):
        await StateStore.open(tcp_postgres.url(tcp_database).replace(f"127.0.0.1:{tcp_postgres.port}", hosts))


async def test_a_socket_directory_is_a_host(tcp_postgres: TcpPostgres, tcp_database: str) -> None:
    directory = str(tcp_postgres.sockets)
    await save_and_load(f"postgresql://postgres@/{tcp_database}?host={quote(directory)}&port={tcp_postgres.port}")
    await save_and_load(f"postgresql://postgres@{quote(directory, safe='')}:{tcp_postgres.port}/{tcp_database}")


async def test_an_sslmode_that_does_not_exist_is_refused(postgres_url: str) -> None:
    separator = "&" if urlsplit(postgres_url).query else "?"
    with pytest.raises(ConfigurationError):
        await StateStore.open(f"{postgres_url}{separator}sslmode=perhaps")


async def test_two_schemas_of_one_database_do_not_see_each_other(empty_postgres_url: str) -> None:
    async with (
        StateStore.open(empty_postgres_url, db_schema="one", migrate=True) as one,
        StateStore.open(empty_postgres_url, db_schema="other", migrate=True) as other,
    ):
        state = await saved(one, "load")
        assert await one.load_workflow_state(state.id) == state
        assert await other.list_active_workflows() == []
        with pytest.raises(WorkflowNotFound):
            await other.load_workflow_state(state.id)
        twin = await saved(other, id=state.id, user_id="twin")
        async with one.begin() as uow:
            assert (await uow.workflows.get(state.id)).user_id is None
        assert await other.delete_old_states(twin.updated_at.replace(year=2999)) == 0
        assert (await one.load_workflow_state(state.id)).steps.keys() == {"load"}
    assert tables(empty_postgres_url) == [], "the schema `public` is left as it was"
    with pytest.raises(SchemaOutOfDate):
        await StateStore.open(empty_postgres_url)


async def test_migrating_one_schema_leaves_the_other_alone(postgres_url: str) -> None:
    async with StateStore.open(postgres_url) as store:
        await saved(store, "load")
    before = contents(postgres_url)
    mine = Settings.load(database_url=postgres_url, db_schema="mine")
    database = open_database(mine, for_migration=True)
    try:
        for move, revision in (
            (schema.upgrade, FIRST),
            (schema.upgrade, "head"),
            (schema.downgrade, FIRST),
            (schema.downgrade, "base"),
        ):
            await move(database, revision)
            assert contents(postgres_url) == before
    finally:
        await database.close()


async def test_without_a_schema_the_search_path_says_where_the_tables_are(empty_postgres_url: str) -> None:
    execute(empty_postgres_url, "CREATE SCHEMA app")
    separator = "&" if urlsplit(empty_postgres_url).query else "?"
    url = f"{empty_postgres_url}{separator}search_path=app"
    await save_and_load(url)
    await upgrade(url)
    await downgrade(url, FIRST)
    await save_and_load(url)
    assert tables(empty_postgres_url) == []
    assert fetch(empty_postgres_url, "SELECT count(*) FROM app.workflow_states") == [(2,)]


@pytest.mark.parametrize("name", ["user", "Select", "CamelCase", "_x$1", "x" * 63])
async def test_a_schema_may_have_any_name_that_is_an_identifier(empty_postgres_url: str, name: str) -> None:
    async with StateStore.open(empty_postgres_url, db_schema=name, migrate=True) as store:
        await saved(store)
    async with StateStore.open(empty_postgres_url, db_schema=name) as store:
        assert len(await store.list_active_workflows()) == 1
    assert fetch(empty_postgres_url, f'SELECT count(*) FROM "{name}".workflow_states') == [(1,)]


async def test_a_schema_name_that_is_no_identifier_is_refused(empty_postgres_url: str) -> None:
    for name in ("", " ", "a b", "1a", 'a"b', "a;DROP SCHEMA public", "a.b", "é", "a\0", "x" * 64):
        with case(repr(name)), pytest.raises(ConfigurationError, match="db_schema"):
            await StateStore.open(empty_postgres_url, db_schema=name, migrate=True)


async def test_a_schema_name_that_the_server_reserves_is_refused(empty_postgres_url: str) -> None:
    with pytest.raises(ConfigurationError):
        await StateStore.open(empty_postgres_url, db_schema="pg_mine", migrate=True)


async def test_a_schema_that_does_not_exist_is_not_made_unless_asked(empty_postgres_url: str) -> None:
    with pytest.raises(SchemaOutOfDate, match="db upgrade"):
        await StateStore.open(empty_postgres_url, db_schema="missing")
    assert fetch(empty_postgres_url, "SELECT 1 FROM pg_namespace WHERE nspname = 'missing'") == []


async def test_sqlite_has_no_schemas(sqlite_url: str) -> None:
    with pytest.raises(ConfigurationError, match="db_schema"):
        await StateStore.open(sqlite_url, db_schema="one")


@pytest.mark.parametrize("encoding", ["LATIN1", "EUC_JP"])
async def test_a_database_that_cannot_hold_every_text_is_refused_before_anything_is_written_to_it(
    postgres: Postgres, encoding: str
) -> None:
    with postgres.database(encoding=encoding) as name:
        url = postgres.url(name)
        with pytest.raises(ConfigurationError, match=f"encoding is {encoding}.*UTF8"):
            await StateStore.open(url, migrate=True)
        assert tables(url) == []
        engine = own_engine(url)
        try:
            with pytest.raises(ConfigurationError, match=f"encoding is {encoding}"):
                await StateStore.open(engine=engine)
        finally:
            await engine.dispose()


async def test_a_database_without_an_encoding_holds_every_text(postgres: Postgres) -> None:
    with postgres.database(encoding="SQL_ASCII") as name:
        async with StateStore.open(postgres.url(name), migrate=True) as store:
            state = await saved(store, "日本 🙂")
            assert await store.load_workflow_state(state.id) == state
