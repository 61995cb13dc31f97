"""URLs as vendors, libpq and other drivers write them: understood, or refused by the name of the option."""

import asyncio
import datetime as dt
import ipaddress
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy import text

from orchestrator_state import ConfigurationError, OrchestratorStateError, Run, StateStore, StoreUnavailable
from orchestrator_state.database.postgres.database import _asyncpg_arguments
from orchestrator_state.database.urls import PostgresLocation, SqliteLocation, locate
from orchestrator_state.settings import Settings
from tests.support.engines import opened_engine
from tests.support.tcp_postgres import PASSWORD, TcpPostgres
from tests.support.tls_proxy import TlsProxy
from tests.support.workflows import saved

pytestmark = pytest.mark.process

CANARY = "value-canary-4711"


def options_of(url: str) -> PostgresLocation:
    location = locate(url)
    assert isinstance(location, PostgresLocation)
    return location


@pytest.mark.parametrize(
    "url",
    [
        "postgres://u:p@ec2-1-2-3-4.compute-1.amazonaws.com:5432/d1abc",  # Heroku
        "postgres://u:p@host:5432/db?ssl=true&sslmode=no-verify",  # Heroku with node-postgres
        "postgresql://u:p@ep-x-1.eu-central-1.aws.neon.tech/neondb?sslmode=require&channel_binding=prefer",
        "postgresql://u:p@ep-x-1.neon.tech/neondb?sslmode=require&options=endpoint%3Dep-x-1",
        "postgresql://postgres.abc:p@aws-0-eu.pooler.supabase.com:6543/postgres?application_name=x",
        "postgresql://u%40server:p@server.postgres.database.azure.com:5432/postgres?sslmode=require",
        "postgresql://u:p@/db?host=/cloudsql/project:region:instance",
        "postgresql://u:p@a:26257,b:26257/defaultdb?target_session_attrs=read-write&connect_timeout=10",
        "postgresql://u@h/db?keepalives=1&keepalives_idle=30&keepalives_interval=10&keepalives_count=3",
        "postgresql://u@h/db?tcp_user_timeout=5000&gssencmode=disable&sslsni=1&sslcompression=0&client_encoding=utf8",
        "postgresql://u@h/db?min_protocol_version=3.0&max_protocol_version=latest&load_balance_hosts=disable",
        "postgresql://u@h/db?sslmode=verify-full&sslrootcert=system",
        "postgresql://u@h/db?sslrootcert=system",
        "postgresql://u@h/db?sslmode=&connect_timeout=",
    ],
)
def test_a_vendors_url_is_understood_whole(url: str) -> None:
    location = options_of(url)
    assert set(location.options.settings) <= {"options", "application_name"}


@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        ("channel_binding=require", "verify-full"),
        ("gssencmode=require", "sslmode"),
        ("require_auth=scram-sha-256", "take it out"),
        ("requirepeer=postgres", "take it out"),
        ("hostaddr=10.0.0.1", "host"),
        ("load_balance_hosts=random", "order"),
        ("sslcertmode=require", "take it out"),
        ("sslsni=0", "take it out"),
        ("replication=database", "take it out"),
        ("client_encoding=latin1", "take it out"),
        ("min_protocol_version=3.2", "take it out"),
        ("schema=public", "db_schema"),
        ("pgbouncer=true", "pgbouncer=True"),
        ("connection_limit=5", "pool_max"),
        ("currentSchema=x", "db_schema"),
        ("sslmode=perhaps", "verify-full"),
        ("sslmode=require&sslrootcert=system", "verify-full"),
        ("connect_timeout=soon", "whole number"),
        ("keepalives_idle=soon", "whole number"),
        ("sslmode=require&sslrootcert=/no/such/file", "does not exist"),
        ("sslmode=require&sslcert=/no/such/file", "does not exist"),
        ("sslmode=require&sslkey=/no/such/file", "does not exist"),
        ("sslmode=require&sslcrl=/no/such/file", "does not exist"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name_with_a_remedy(option: str, remedy: str) -> None:
    name = option.rpartition("&")[2].partition("=")[0]
    with pytest.raises(ConfigurationError, match=remedy) as refused:
        locate(f"postgresql://u:{CANARY}@h/db?{option}")
    assert name in str(refused.value)
    assert CANARY not in repr(refused.value)


@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
def test_whom_to_trust_must_be_said(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"sslrootcert=system"):
        locate(f"postgresql://u@h/db?sslmode={mode}")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PGCHANNELBINDING", "require"),
        ("PGCONNECT_TIMEOUT", "soon"),
        ("PGGSSENCMODE", "require"),
        ("PGPORT", "99999999"),
        ("PGPORT", "soon"),
        ("PGREQUIREAUTH", "scram-sha-256"),
        ("PGSSLMODE", "perhaps"),
        ("PGTARGETSESSIONATTRS", "the-best"),
    ],
)
def test_what_a_variable_of_libpqs_asks_for_in_vain_is_refused_by_its_name(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=variable):
        locate("postgresql://u@h/db")


def test_libpqs_variables_hold_for_what_the_url_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in {"PGSSLROOTCERT": "system", "PGCONNECT_TIMEOUT": "7", "PGTARGETSESSIONATTRS": "any"}.items():
        monkeypatch.setenv(variable, value)
    found = options_of("postgresql://u@h/db?sslmode=verify-full&target_session_attrs=primary").options
    assert found.system_roots
    assert found.connect_timeout == 7
    assert found.kept == {"target_session_attrs": "primary"}


@pytest.mark.parametrize(
    "database",
    [
        "host=db port=5432 user=app password=value-canary-4711",
        "dbname = app",
        "postgresql:app",
        "sqlite:workflows.db",
        "postgresql:/app:value-canary-4711@db/app",
        "app:value-canary-4711@db",
        "app:value-canary-4711@db:5432/app",
    ],
)
def test_a_connection_string_is_not_taken_for_the_name_of_a_file(database: str) -> None:
    with pytest.raises(ConfigurationError, match="neither a URL nor") as refused:
        locate(database)
    assert CANARY not in repr(refused.value)
    assert isinstance(locate(f"./{database}"), SqliteLocation)  # so it can be one


@pytest.mark.parametrize("url", ["postgresql://u:a%00b@h/db", "postgresql://\ud800@h/db", "postgresql://u@h/a\udcff"])
def test_what_postgres_cannot_be_sent_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="NUL or half"):
        locate(url)


def test_a_location_has_no_repr_of_what_it_holds() -> None:
    assert CANARY not in repr(options_of(f"postgresql://u:{CANARY}@h/db?password={CANARY}&x.y={CANARY}"))


# --- on a server --------------------------------------------------------------------------------------------------


@pytest.fixture
def database(tcp_postgres: TcpPostgres, postgres_template: str) -> Iterator[str]:
    with tcp_postgres.admin.database() as name:
        yield name


async def setting(store: StateStore, name: str) -> Any:
    async with store.begin() as uow:
        return (await uow.session.execute(text("SELECT current_setting(:name)"), {"name": name})).scalar_one()


@pytest.mark.parametrize(
    ("option", "name", "value"),
    [
        ("application_name=mine", "application_name", "mine"),
        ("fallback_application_name=mine", "application_name", "mine"),
        ("", "application_name", "orchestrator_state"),
        ("statement_timeout=4321", "statement_timeout", "4321ms"),
        ("options=-c%20geqo%3Doff", "geqo", "off"),
        ("options=-c+geqo%3Doff", "geqo", "off"),
        ("search_path=pg_temp,public", "search_path", "pg_temp,public"),
    ],
)
async def test_a_setting_in_the_url_holds(
    tcp_postgres: TcpPostgres, database: str, option: str, name: str, value: str
) -> None:
    async with StateStore.open(f"{tcp_postgres.url(database)}?{option}", db_schema="mine", migrate=True) as store:
        assert await setting(store, name) == value
        await saved(store)


async def test_what_is_neither_an_option_nor_a_setting_is_named(tcp_postgres: TcpPostgres, database: str) -> None:
    with pytest.raises(ConfigurationError, match="no_such_option"):
        await StateStore.open(f"{tcp_postgres.url(database)}?no_such_option={CANARY}")


async def test_keepalives_are_set_on_the_socket(tcp_postgres: TcpPostgres, database: str) -> None:
    url = f"{tcp_postgres.url(database)}?keepalives=1&keepalives_idle=31&keepalives_interval=7&keepalives_count=2"
    async with StateStore.open(url, migrate=True) as store, store.begin() as uow:
        raw = await (await uow.session.connection()).get_raw_connection()
        opened = raw.driver_connection._transport.get_extra_info("socket")  # type: ignore[union-attr]
        assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        found = [opened.getsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{o}")) for o in ("KEEPIDLE", "KEEPINTVL")]
        assert found == [31, 7]


async def test_the_connect_timeout_of_the_url_holds_unless_an_argument_says_otherwise() -> None:
    url = "postgresql://u@h/db?connect_timeout=7"
    for given, expected in (({}, 7.0), ({"connect_timeout": dt.timedelta(seconds=2)}, 2.0)):
        settings = Settings.load(database_url=url, **given)
        assert _asyncpg_arguments(options_of(url), settings, for_migration=False)["timeout"] == expected


# --- passwords that change ----------------------------------------------------------------------------------------


def right() -> str:
    return PASSWORD


async def right_later() -> str:
    await asyncio.sleep(0)
    return PASSWORD


@pytest.mark.parametrize("password", [PASSWORD, right, right_later])
async def test_a_password_may_be_given_beside_the_url(tcp_postgres: TcpPostgres, database: str, password: Any) -> None:
    url = f"postgresql://app@127.0.0.1:{tcp_postgres.port}/{database}"
    async with StateStore.open(url, password=password, migrate=True) as store:
        await saved(store)
        assert PASSWORD not in repr(vars(store)) + repr(store._transactions.settings)
        assert PASSWORD not in str(store._transactions.settings.model_dump())


async def test_each_new_connection_asks_for_the_password_that_holds_then(
    tcp_postgres: TcpPostgres, database: str
) -> None:
    current = PASSWORD
    tcp_postgres.admin.execute(f"CREATE USER rotating SUPERUSER PASSWORD '{PASSWORD.replace(chr(39), '')}'")
    url = f"postgresql://rotating@127.0.0.1:{tcp_postgres.port}/{database}"
    async with StateStore.open(url, password=lambda: current, migrate=True, pool_min=1) as store:
        await saved(store)
        current = "another"
        tcp_postgres.admin.execute("ALTER USER rotating PASSWORD 'another'")
        tcp_postgres.admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'rotating'")
        await saved(store)
    tcp_postgres.admin.execute("DROP OWNED BY rotating CASCADE", database=database)
    tcp_postgres.admin.execute("DROP USER rotating")


async def test_a_password_that_cannot_be_asked_for_is_no_secret_told(tcp_postgres: TcpPostgres, database: str) -> None:
    def fail() -> str:
        raise LookupError(CANARY)

    def cancel() -> str:
        raise asyncio.CancelledError(CANARY)

    def leave() -> str:
        raise SystemExit(CANARY)

    def misuse() -> Any:
        return CANARY.encode()

    def cut_short() -> str:
        return f"{CANARY}\ud800"

    url = f"postgresql://app@127.0.0.1:{tcp_postgres.port}/{database}"
    kinds: list[tuple[Callable[[], Any], type[OrchestratorStateError]]] = [
        (fail, StoreUnavailable),
        (cancel, StoreUnavailable),
        (leave, StoreUnavailable),
        (misuse, ConfigurationError),
        (cut_short, ConfigurationError),
    ]
    for password, kind in kinds:
        with pytest.raises(kind, match="password") as refused:
            await StateStore.open(url, password=password)
        assert CANARY not in repr(refused.value)


async def test_a_password_that_an_open_store_cannot_use_fails_no_run(tcp_postgres: TcpPostgres, database: str) -> None:
    answers: list[Any] = [PASSWORD]

    async def step() -> int:
        answers[:] = [None]
        tcp_postgres.admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND usename = 'app'", database
        )
        return 1

    async def handler(run: Run) -> int:
        return await run.step("step", step)

    url = f"postgresql://app@127.0.0.1:{tcp_postgres.port}/{database}"
    patience = timedelta(seconds=3)
    async with StateStore.open(
        url, password=lambda: answers[0], migrate=True, pool_min=1, retry_timeout=patience
    ) as store:
        with pytest.raises(StoreUnavailable):
            await store.run("handler", handler, workflow_id="doc-42")
        answers[:] = [PASSWORD]
        assert (await store.load_workflow_state_by_workflow_id("doc-42")).status == "running"


async def test_a_sqlite_file_and_an_engine_take_no_password(sqlite_url: str) -> None:
    async with opened_engine(sqlite_url) as engine:
        for opening in (StateStore.open(sqlite_url, password="x"), StateStore.open(engine=engine, password="x")):
            with pytest.raises(ConfigurationError, match="password"):
                await opening


async def test_what_the_environment_of_a_fleet_says_of_other_stores_is_left_alone(
    database_url: str, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_STATE_PASSWORD", CANARY)
    async with opened_engine(database_url) as engine, StateStore.open(engine=engine) as store:
        await store.health_check()
    monkeypatch.setenv("ORCHESTRATOR_STATE_DB_SCHEMA", "workflows")
    monkeypatch.setenv("ORCHESTRATOR_STATE_PGBOUNCER", "1")
    for place in (sqlite_url, ":memory:"):
        async with StateStore.open(place) as store:
            assert await store.run("n", lambda run: run.step("s", lambda: "done"), workflow_id="w") == "done"
            await store.verify()
    with pytest.raises(ConfigurationError, match="db_schema"):
        await StateStore.open(sqlite_url, db_schema="workflows")


# --- TLS ----------------------------------------------------------------------------------------------------------


def a_certificate(directory: Path, name: str, host: str) -> tuple[Path, Path]:
    """A self-signed certificate for `host`, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = dt.datetime.now(dt.UTC)
    try:
        other: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        other = x509.DNSName(host)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([other]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = directory / f"{name}.crt", directory / f"{name}.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    unencrypted = serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, unencrypted))
    return paths


SERVICES = f"""
[mine]
host = 127.0.0.1
[half]
password = {CANARY}%of what it is
"""


def test_a_service_of_libpqs_is_looked_up_before_it_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver says nothing of one that it does not find, and connects to whatever is the default."""
    file = tmp_path / "services"
    file.write_text(SERVICES)
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    assert options_of("postgresql://?service=mine").options.kept["service"] == "mine"
    for name, hint in (("yours", "not in the service file"), ("half", "write it twice")):
        with pytest.raises(ConfigurationError, match=hint) as refused:
            locate(f"postgresql://?service={name}")
        assert CANARY not in repr(refused.value)
        monkeypatch.setenv("PGSERVICE", name)
        with pytest.raises(ConfigurationError, match=hint):
            locate("postgresql://")
    monkeypatch.setenv("PGSERVICE", "mine")
    for content in (None, b"\xff\xfe", b"no section"):
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises(ConfigurationError, match="PGSERVICEFILE"):
            locate("postgresql://")


@pytest.mark.parametrize("variable", ["PGSSLMODE", "PGTARGETSESSIONATTRS", "PGSERVICE", "PGOPTIONS", "PGPORT"])
async def test_a_variable_that_is_set_to_nothing_means_nothing(
    tcp_postgres: TcpPostgres, database: str, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    with monkeypatch.context() as here:
        here.setenv(variable, "")
        async with StateStore.open(tcp_postgres.url(database), migrate=True) as store:
            await store.health_check()


@pytest.mark.parametrize(
    "rest", [f"127.0.0.1,/{CANARY}", f"127.0.0.1:-1/{CANARY}", f"/x?host=a,b&port=1,2,3&application_name={CANARY}"]
)
async def test_a_list_of_hosts_that_cannot_be_read_is_the_callers_to_mend(rest: str) -> None:
    with pytest.raises(ConfigurationError, match="Postgres URL") as refused:
        await StateStore.open(f"postgresql://app:{CANARY}@{rest}")
    assert CANARY not in repr(refused.value)


@pytest.fixture
async def tls(tcp_postgres: TcpPostgres, tmp_path: Path) -> AsyncIterator[TlsProxy]:
    """A server with a certificate for 127.0.0.1, which lies beside as server.crt."""
    certificate, key = a_certificate(tmp_path, "server", "127.0.0.1")
    async with TlsProxy(certificate, key, tcp_postgres.port).listening() as proxy:
        yield proxy


@pytest.fixture
def tls_url(tcp_postgres: TcpPostgres, tls: TlsProxy, database: str) -> str:
    return tcp_postgres.url(database, port=tls.port)


@pytest.mark.parametrize("mode", ["prefer", "require", "verify-ca", "verify-full"])
async def test_a_server_with_tls_is_spoken_to_in_tls(tls: TlsProxy, tls_url: str, tmp_path: Path, mode: str) -> None:
    trust = f"&sslrootcert={tmp_path / 'server.crt'}" if mode.startswith("verify") else ""
    async with StateStore.open(f"{tls_url}?sslmode={mode}{trust}", migrate=True) as store:
        await saved(store)
    assert tls.encrypted > 0


async def test_a_certificate_of_somebody_else_is_said_to_be_the_reason(tls_url: str, tmp_path: Path) -> None:
    other, _ = a_certificate(tmp_path, "other", "127.0.0.1")
    for trust in (f"sslmode=verify-full&sslrootcert={other}", "sslrootcert=system"):
        with pytest.raises(ConfigurationError, match="certificate is not to be trusted"):
            await StateStore.open(f"{tls_url}?{trust}", migrate=True)


async def test_a_certificate_for_another_host_is_said_to_be_the_reason(tls_url: str, tmp_path: Path) -> None:
    url = tls_url.replace("127.0.0.1", "localhost")
    with pytest.raises(ConfigurationError, match=r"certificate is not to be trusted .*localhost"):
        await StateStore.open(f"{url}?sslmode=verify-full&sslrootcert={tmp_path / 'server.crt'}", migrate=True)


async def test_a_file_that_holds_no_certificate_is_said_to_be_the_reason(tls_url: str, tmp_path: Path) -> None:
    junk = tmp_path / "junk.crt"
    junk.write_text("not a certificate")
    with pytest.raises(ConfigurationError, match="certificates and keys"):
        await StateStore.open(f"{tls_url}?sslmode=verify-ca&sslrootcert={junk}", migrate=True)
