"""An application of FastAPI's: what it opens and closes, what its routes get, and what its clients are told."""

import subprocess
import sys
import textwrap
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import UUID, uuid4

import pytest
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from httpx import ASGITransport, AsyncClient
from sqlalchemy import event, insert, text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from orchestrator_state import (
    AccessLost,
    ConfigurationError,
    CorruptPayload,
    InvalidPayload,
    OrchestratorStateError,
    Payloads,
    PayloadTooLarge,
    Run,
    RunFailed,
    SchemaChanged,
    StaleVersion,
    StateStore,
    StoreUnavailable,
    UnitOfWork,
    WorkflowNotFound,
    WorkflowState,
    Zstd,
)
from orchestrator_state.integrations.fastapi import (
    OrchestratorState,
    Session,
    Store,
    Uow,
    get_session,
    get_store,
    get_unit_of_work,
    health_router,
    install_error_handlers,
    provide,
)
from tests.support.command_line import environment
from tests.support.engines import count_orders, create_orders, orders, own_engine
from tests.support.postgres_server import Postgres
from tests.support.raw_sql import execute, fetch

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Using `httpx`")  # it would rather have a successor, which is for nobody else
    from fastapi.testclient import TestClient

SECRET = "canary-4711"


async def fulfil(run: Run) -> str:
    return await run.step("pack", str.upper, run.context["item"])


def shop() -> FastAPI:
    """A shop that takes orders, with none of its wiring."""
    app = FastAPI()
    app.include_router(health_router(), prefix="/health")
    install_error_handlers(app)

    @app.post("/orders/{item}", status_code=201)
    async def order(item: str, session: Session, uow: Uow, then: str = "") -> UUID:
        await session.execute(insert(orders).values(item=item))
        run = await uow.start("fulfil", workflow_id=item, context={"item": item})
        if then == "refuse":
            raise HTTPException(402, "no credit")
        if then == "break":
            raise RuntimeError(SECRET)
        if then == "orphan":
            await session.execute(text("INSERT INTO notes VALUES (1, 4711)"))
        return run.id

    @app.get("/orders/{item}")
    async def result(item: str, store: Store) -> Any:
        state = await store.load_workflow_state_by_workflow_id(item)
        return await store.wait(state.id, timeout=30)

    return app


@asynccontextmanager
async def clients_of(app: FastAPI) -> AsyncIterator[AsyncClient]:
    """Clients that are told what the server makes of an exception, and do not get it themselves."""
    transport = ASGITransport(app, raise_app_exceptions=False)
    async with AsyncClient(transport=transport, base_url="http://shop") as client:
        yield client


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = own_engine(database_url)
    if engine.dialect.name == "sqlite":
        event.listen(engine.sync_engine, "connect", lambda dbapi, _: dbapi.execute("PRAGMA foreign_keys=ON"))
    await create_orders(engine)
    yield engine
    await engine.dispose()


@pytest.fixture
def state(engine: AsyncEngine) -> OrchestratorState:
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    return OrchestratorState(engine=engine, sessionmaker=sessions, handlers={"fulfil": fulfil}, poll=0.05)


async def active_runs(engine: AsyncEngine) -> int:
    async with StateStore.open(engine=engine) as store:
        return len(await store.list_active_workflows())


# --- the transaction of a request ---


async def test_an_order_and_its_run_commit_together_and_the_worker_has_it(
    state: OrchestratorState, engine: AsyncEngine
) -> None:
    app = shop()
    async with state.lifespan(app), clients_of(app) as client:
        assert (await client.post("/orders/book")).status_code == 201
        assert (await client.get("/orders/book")).json() == "BOOK"
    assert await count_orders(engine) == 1


@pytest.mark.parametrize(("then", "status"), [("refuse", 402), ("break", 500)])
async def test_a_route_that_raises_leaves_neither_order_nor_run(engine: AsyncEngine, then: str, status: int) -> None:
    app = shop()
    state = OrchestratorState(engine=engine, sessionmaker=async_sessionmaker(engine))
    async with state.lifespan(app), clients_of(app) as client:
        answer = await client.post("/orders/book", params={"then": then})
        assert answer.status_code == status
        assert SECRET not in answer.text
    assert (await count_orders(engine), await active_runs(engine)) == (0, 0)


async def test_nobody_is_told_of_success_if_the_commit_is_refused(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(
            text("CREATE TABLE notes (id INT, of_order INT REFERENCES orders (id) DEFERRABLE INITIALLY DEFERRED)")
        )
    app = shop()
    state = OrchestratorState(engine=engine, sessionmaker=async_sessionmaker(engine))
    async with state.lifespan(app), clients_of(app) as client:
        answer = await client.post("/orders/book", params={"then": "orphan"})
        assert (answer.status_code, answer.json()["error"]) == (409, "Conflict")
    assert (await count_orders(engine), await active_runs(engine)) == (0, 0)


async def test_a_connection_that_is_lost_before_the_commit_is_a_503(postgres_url: str, postgres: Postgres) -> None:
    engine = own_engine(postgres_url)
    await create_orders(engine)
    app = shop()

    @app.post("/cut")
    async def cut(session: Session) -> None:
        await session.execute(insert(orders).values(item="book"))
        postgres.execute("SELECT pg_terminate_backend($1)", await session.scalar(text("SELECT pg_backend_pid()")))

    state = OrchestratorState(engine=engine, sessionmaker=async_sessionmaker(engine))
    async with state.lifespan(app), clients_of(app) as client:
        answer = await client.post("/cut")
        assert answer.status_code == 503
        assert answer.json()["error"] == "StoreUnavailable"
        assert int(answer.headers["Retry-After"]) > 0
    assert await count_orders(engine) == 0
    await engine.dispose()


async def test_one_request_has_one_session_and_another_has_another(state: OrchestratorState) -> None:
    app = FastAPI()

    @app.get("/")
    async def same(first: Session, second: Session, uow: Uow) -> tuple[bool, int]:
        return first is second is uow.session, id(first)

    async with state.lifespan(app), clients_of(app) as client:
        assert [(await client.get("/")).json()[0] for _ in range(2)] == [True, True]


async def test_a_stream_that_is_sent_later_begins_nothing_in_the_session(
    state: OrchestratorState, engine: AsyncEngine
) -> None:
    app = FastAPI()

    @app.get("/")
    async def stream(session: Session) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            yield str(await session.scalar(text("SELECT 1")))

        return StreamingResponse(lines())

    async with state.lifespan(app), AsyncClient(transport=ASGITransport(app), base_url="http://shop") as client:
        with pytest.raises(InvalidRequestError, match="permanently closed"):
            await client.get("/")


async def test_a_session_dependency_of_the_applications_own_is_joined(engine: AsyncEngine, database_url: str) -> None:
    sessions = async_sessionmaker(engine)

    async def own_session() -> AsyncIterator[AsyncSession]:
        async with sessions.begin() as session:
            yield session

    OwnSession = Annotated[AsyncSession, Depends(own_session, scope="function")]  # noqa: N806 - a type

    async def own_uow(store: Store, session: OwnSession) -> UnitOfWork:
        return store.unit_of_work(session)

    app = FastAPI()

    @app.post("/orders")
    async def order(session: OwnSession, uow: Annotated[UnitOfWork, Depends(own_uow)]) -> bool:
        await uow.start("fulfil")
        return uow.session is session

    async with OrchestratorState(engine=engine).lifespan(app), clients_of(app) as client:
        assert (await client.post("/orders")).json() is True
    assert fetch(database_url, "SELECT count(*) FROM workflow_states") == [(1,)]


# --- stores and applications ---


def test_an_application_starts_and_ends_as_often_as_it_is_told_to(sqlite_url: str) -> None:
    state = OrchestratorState(sqlite_url, handlers={"fulfil": fulfil})
    app = FastAPI(lifespan=state.lifespan)
    app.include_router(health_router())
    for _ in range(2):
        with TestClient(app) as client:
            assert client.get("/ready").json() == {"status": "ok", "error": None}
            assert client.get("/worker").json()["is_well"] is True


async def test_an_application_that_is_started_twice_goes_on_until_it_has_ended_twice(state: OrchestratorState) -> None:
    app = FastAPI()
    app.get("/")(store_id)
    async with state.lifespan(app), clients_of(app) as client:
        first = (await client.get("/")).json()
        async with state.lifespan(app):
            assert (await client.get("/")).json() != first
        assert (await client.get("/")).json() == first
    async with clients_of(app) as client:
        assert (await client.get("/")).status_code == 500


async def test_an_end_takes_no_store_away_but_its_own(state: OrchestratorState) -> None:
    app = FastAPI()
    app.get("/")(store_id)
    async with clients_of(app) as client:
        first, second = state.lifespan(app), state.lifespan(app)
        await first.__aenter__()
        await second.__aenter__()
        of_second = (await client.get("/")).json()
        await first.__aexit__(None, None, None)
        assert (await client.get("/")).json() == of_second
        await second.__aexit__(None, None, None)
        assert (await client.get("/")).status_code == 500


async def test_several_applications_have_a_store_each(state: OrchestratorState) -> None:
    apps = [FastAPI(), FastAPI()]
    for app in apps:
        app.get("/")(store_id)
    async with state.lifespan(apps[0]), state.lifespan(apps[1]), clients_of(apps[0]) as one, clients_of(apps[1]) as two:
        assert (await one.get("/")).json() != (await two.get("/")).json()


async def store_id(store: Store) -> int:
    return id(store)


async def test_a_store_of_the_applications_own_is_used_and_left_open(database_url: str) -> None:
    app, inner = FastAPI(), FastAPI()
    app.get("/")(store_id)
    inner.get("/")(store_id)
    app.mount("/inner", inner)
    async with StateStore.open(database_url) as store, clients_of(app) as client:
        provide(app, store)
        provide(inner, store)
        assert (await client.get("/")).json() == (await client.get("/inner/")).json() == id(store)
        await store.health_check()


async def test_a_test_may_give_another_store_session_or_unit(state: OrchestratorState, engine: AsyncEngine) -> None:
    app = shop()

    @app.get("/overridden")
    async def overridden(store: Store, session: Session, uow: Uow) -> list[Any]:
        return [store, session, uow]

    dependencies: list[Callable[..., Any]] = [get_store, get_session, get_unit_of_work]
    for number, dependency in enumerate(dependencies):
        app.dependency_overrides[dependency] = [lambda: 0, lambda: 1, lambda: 2][number]
    async with clients_of(app) as client:  # nothing is open
        assert (await client.get("/overridden")).json() == [0, 1, 2]


async def test_a_database_that_is_not_there_fails_the_start() -> None:
    state = OrchestratorState("postgresql://app@127.0.0.1:1/nowhere", handlers={"fulfil": fulfil})
    with pytest.raises(StoreUnavailable):
        async with state.lifespan(FastAPI()):
            pytest.fail("it started")


async def test_what_was_forgotten_is_named(sqlite_url: str) -> None:
    app = shop()
    with pytest.raises(ConfigurationError, match=r"lifespan=state\.lifespan"):
        await get_store(Request({"type": "http", "app": app}))
    async with OrchestratorState(sqlite_url).lifespan(app), clients_of(app) as client:
        assert (await client.post("/orders/book")).status_code == 500
        assert (await client.get("/health/worker")).status_code == 404
    async with clients_of(app) as client:  # its lifespan is over
        assert (await client.get("/health/ready")).status_code == 500
    with pytest.raises(ConfigurationError, match="concurrency is a worker's"):
        OrchestratorState(sqlite_url, concurrency=3)
    with pytest.raises(ConfigurationError, match="at least one handler"):
        async with OrchestratorState(sqlite_url, handlers={}).lifespan(app):
            pytest.fail("it started")


# --- health ---


async def test_tables_that_are_gone_are_not_ready_and_still_alive(database_url: str) -> None:
    app = shop()
    async with OrchestratorState(database_url).lifespan(app), clients_of(app) as client:
        assert (await client.get("/health/ready")).status_code == 200
        execute(database_url, "ALTER TABLE signals RENAME TO elsewhere")
        try:
            answer = await client.get("/health/ready")
            assert (answer.status_code, answer.json()) == (503, {"status": "unavailable", "error": "SchemaChanged"})
            assert answer.headers["Cache-Control"] == "no-store"
            assert (await client.get("/health/live")).json()["status"] == "ok"
        finally:
            execute(database_url, "ALTER TABLE elsewhere RENAME TO signals")
        assert (await client.get("/health/ready")).status_code == 200


async def test_a_newer_schema_is_ready(database_url: str) -> None:
    """Else the processes of the version before would be taken out of service by the migration before a deploy."""
    app = shop()
    async with OrchestratorState(database_url).lifespan(app), clients_of(app) as client:
        execute(database_url, "ALTER TABLE signals ADD COLUMN of_tomorrow INTEGER")
        try:
            assert (await client.get("/health/ready")).status_code == 200
        finally:
            execute(database_url, "ALTER TABLE signals DROP COLUMN of_tomorrow")


async def test_a_worker_that_stopped_is_not_well(database_url: str) -> None:
    from orchestrator_state import Worker

    app = shop()
    async with StateStore.open(database_url) as store, clients_of(app) as client:
        async with Worker(store, {"fulfil": fulfil}) as worker:
            provide(app, store, worker=worker)
        answer = await client.get("/health/worker")
        assert (answer.status_code, answer.json()["state"]) == (503, "stopped")


# --- errors ---

RUN = uuid4()


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (WorkflowNotFound("no such run", workflow_state_id=RUN), 404, {"workflow_state_id": str(RUN)}),
        (StaleVersion("moved on", workflow_state_id=RUN, expected=1, found=2), 409, {"expected": 1, "found": 2}),
        (RunFailed(f"run failed: {SECRET}", workflow_state_id=RUN, error=SECRET), 409, {"detail": "the run failed"}),
        (InvalidPayload("not that", path="answer.ok"), 422, {"path": "answer.ok"}),
        (InvalidPayload("not \ud800", path="\ud800\u202e"), 422, {"path": "\ud800\u202e"}),
        (PayloadTooLarge("too large", path="context", expected=1, found=2), 413, {"expected": 1}),
        (PayloadTooLarge(SECRET, path="context", expected=1, found=2, is_stored=True), 500, {}),
        (CorruptPayload(SECRET, path=SECRET, workflow_state_id=RUN), 500, {"workflow_state_id": str(RUN)}),
        (ConfigurationError(SECRET), 500, {"error": "ConfigurationError"}),
        (StoreUnavailable(SECRET), 503, {"error": "StoreUnavailable"}),
        (StoreUnavailable(SECRET, outcome_unknown=True), 503, {"outcome_unknown": True}),
        (AccessLost(SECRET), 503, {}),
        (SchemaChanged(SECRET, expected=SECRET, found=None), 503, {}),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_an_error_has_a_status_and_a_body_without_secrets(
    error: OrchestratorStateError, status: int, told: dict[str, Any]
) -> None:
    app = FastAPI()
    install_error_handlers(app)

    @app.get("/")
    async def fail() -> None:
        raise error

    async with clients_of(app) as client:
        answer = await client.get("/")
    assert answer.status_code == status
    assert answer.json().items() >= (told | {"error": type(error).__name__}).items()
    assert SECRET not in answer.text
    assert ("Retry-After" in answer.headers) == (status == 503)


async def test_a_stored_payload_that_is_too_large_here_is_not_the_senders_fault(database_url: str) -> None:
    async with StateStore.open(database_url, payloads=Payloads([Zstd()])) as store:
        await store.save_workflow_state(WorkflowState(workflow_id="w", workflow_name="n", context={"long": "x" * 9999}))
    app = shop()
    state = OrchestratorState(database_url, payloads=Payloads([Zstd(max_bytes=999)]))
    async with state.lifespan(app), clients_of(app) as client:
        answer = await client.get("/orders/w")
        assert (answer.status_code, answer.json()["error"]) == (500, "PayloadTooLarge")


async def test_a_handler_of_the_applications_own_goes_before() -> None:
    app = FastAPI()
    install_error_handlers(app)

    @app.exception_handler(WorkflowNotFound)
    async def gone(_: Any, __: Exception) -> Any:
        from fastapi.responses import JSONResponse

        return JSONResponse("gone", 410)

    @app.get("/")
    async def fail() -> None:
        raise WorkflowNotFound("no such run")

    async with clients_of(app) as client:
        assert (await client.get("/")).status_code == 410


@pytest.mark.process
def test_without_fastapi_the_extra_is_named() -> None:
    program = """
    import sys
    sys.modules["fastapi"] = None
    from orchestrator_state import MissingExtra
    try:
        import orchestrator_state.integrations.fastapi
    except MissingExtra as error:
        print(error.extra, error)
    """
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment(), capture_output=True, text=True, check=True
    )
    assert child.stdout.startswith("fastapi ")
    assert "orchestrator-state[fastapi]" in child.stdout
