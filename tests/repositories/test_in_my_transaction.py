"""Runs that are started, signalled and cancelled in the caller's transaction: with its rows, or not at all."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel
from sqlalchemy import event, insert, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from orchestrator_state import (
    AlreadyExists,
    BlobStore,
    ConfigurationError,
    Conflict,
    Event,
    InvalidPayload,
    InvalidTransition,
    LeaseLost,
    Payloads,
    Run,
    RunCancelled,
    StateStore,
    StoreUnavailable,
    UnitOfWork,
    Worker,
    WorkflowNotFound,
    WorkflowState,
)
from orchestrator_state.database.sessions.session import _KEY
from orchestrator_state.hooks import RunEnded
from tests.support.engines import count_orders, create_orders, orders, own_engine
from tests.support.postgres_server import PrivatePostgres

Ask = Callable[[UnitOfWork], Awaitable[object]]


class Regretted(Exception):
    """Raised in a block so that it rolls back."""


class Cart(BaseModel):
    items: list[str]


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = own_engine(database_url)
    try:
        await create_orders(engine)
        yield engine
    finally:
        await engine.dispose()


@pytest.fixture(params=["on the engine", "beside it"])
async def store(request: pytest.FixtureRequest, engine: AsyncEngine, database_url: str) -> AsyncIterator[StateStore]:
    place: dict[str, Any] = {"engine": engine} if request.param == "on the engine" else {"database": database_url}
    async with StateStore.open(**place) as store:
        yield store


@pytest.fixture
async def session(engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(engine) as session:
        yield session


async def waits_for_go(run: Run) -> Any:
    return await run.wait_for("go")


# --- with the caller's rows, or not at all ---


async def test_a_start_commits_with_the_callers_rows(
    store: StateStore, engine: AsyncEngine, session: AsyncSession
) -> None:
    async with session.begin():
        await session.execute(insert(orders).values(item="book"))
        state = await store.unit_of_work(session).start(
            "Fulfil", workflow_id="order-1", context={"item": "book"}, user_id="u-1"
        )
    assert await count_orders(engine) == 1
    assert (state.workflow_id, state.status, state.user_id, state.version) == ("order-1", "pending", "u-1", 1)
    assert (await store.load_workflow_state(state.id)) == state
    assert (await store.start("Fulfil", workflow_id="order-1")).id == state.id


async def end_by_exception(session: AsyncSession) -> None:
    with suppress(Regretted):
        async with session.begin_nested():
            raise Regretted
    await session.rollback()


@pytest.mark.parametrize("end", [AsyncSession.rollback, AsyncSession.close, end_by_exception])
async def test_what_is_rolled_back_was_never_there(
    store: StateStore, engine: AsyncEngine, session: AsyncSession, end: Callable[[AsyncSession], Awaitable[None]]
) -> None:
    waiting = await store.start("waits")
    await session.execute(insert(orders).values(item="book"))
    uow = store.unit_of_work(session)
    started = await uow.start("Fulfil", workflow_id="order-1")
    await uow.signal(waiting.id, "go")
    await uow.cancel(waiting.id)
    await end(session)
    assert await count_orders(engine) == 0
    with pytest.raises(WorkflowNotFound):
        await store.load_workflow_state(started.id)
    assert (await store.load_workflow_state(waiting.id)).status == "pending"
    assert (await store.recover({"waits": waits_for_go})).suspended


async def test_a_savepoint_takes_back_what_was_started_in_it_and_no_more(
    store: StateStore, session: AsyncSession
) -> None:
    uow = store.unit_of_work(session)
    async with session.begin():
        kept = await uow.start("Fulfil", workflow_id="kept")
        with suppress(Regretted):
            async with session.begin_nested():
                lost = await uow.start("Fulfil", workflow_id="lost")
                raise Regretted
        async with session.begin_nested():
            also = await uow.start("Fulfil", workflow_id="also")
    assert {state.id for state in await store.list_active_workflows()} == {kept.id, also.id}
    assert lost.workflow_id == "lost"


async def test_it_is_started_once_in_one_transaction_and_in_several(store: StateStore, session: AsyncSession) -> None:
    uow, ids = store.unit_of_work(session), set()
    for _ in range(2):
        async with session.begin():
            for _ in range(2):
                ids.add((await uow.start("Fulfil", idempotency_key="k-1")).id)
                ids.add((await uow.start("Fulfil", workflow_id="w-1", idempotency_key="k-1")).id)
    ids.add((await store.start("Fulfil", idempotency_key="k-1")).id)
    assert len(ids) == 1
    async with session.begin():
        with pytest.raises(Conflict, match="not of 'Other'"):
            await uow.start("Other", idempotency_key="k-1")
        await session.execute(insert(orders).values(item="the transaction is as good as before"))
        assert (await uow.start("Fulfil", workflow_id="w-2")).workflow_id == "w-2"
    assert len(await store.list_active_workflows()) == 2


async def test_a_run_is_started_signalled_and_cancelled_in_one_transaction(
    store: StateStore, session: AsyncSession
) -> None:
    async with session.begin():
        uow = store.unit_of_work(session)
        signalled, cancelled = await uow.start("waits"), await uow.start("waits")
        await uow.signal(signalled.id, "go", {"by": "ann"})
        with pytest.raises(AlreadyExists):
            await uow.signal(signalled.id, "go", once=True)
        await uow.cancel(str(cancelled.id))
        await uow.cancel(cancelled.id)
        with pytest.raises(InvalidTransition, match="cannot be signalled"):
            await uow.signal(cancelled.id, "go")
    assert [run.workflow_state_id for run in (await store.recover({"waits": waits_for_go})).completed] == [signalled.id]
    assert (await store.load_workflow_state(cancelled.id)).status == "cancelled"
    assert await store.run("waits", waits_for_go, workflow_id=signalled.workflow_id) == {"by": "ann"}


async def test_the_state_has_the_type_that_is_said(store: StateStore, session: AsyncSession) -> None:
    async with session.begin():
        uow = store.unit_of_work(session)
        state = await uow.start("cart", context=Cart(items=["book"]), state=Cart)
        with pytest.raises(InvalidPayload, match="Cart"):
            await uow.start("cart", context={"items": 5}, state=Cart)
    assert (await store.load_workflow_state(state.id)).context == {"items": ["book"]}


async def test_one_made_by_hand_can_do_it_too(engine: AsyncEngine, store: StateStore, session: AsyncSession) -> None:
    async with session.begin():
        uow = UnitOfWork(session)
        state = await uow.start("waits", context={"long": "x" * 400_000})
        await uow.signal(state.id, "go", 5)
        await UnitOfWork(session, namespace="other").start("waits", workflow_id=state.workflow_id)
    assert len((await store.recover({"waits": waits_for_go})).completed) == 1


async def test_the_stores_own_unit_can_do_it_too(store: StateStore) -> None:
    with suppress(Regretted):
        async with store.begin() as uow:
            await uow.start("waits", workflow_id="w-1")
            raise Regretted
    assert await store.list_active_workflows() == []
    async with store.begin() as uow:
        state = await uow.start("waits", workflow_id="w-1")
        await uow.signal(state.id, "go")
    assert len((await store.recover({"waits": waits_for_go})).completed) == 1


async def test_a_run_starts_another_in_the_commit_of_its_own_step(store: StateStore) -> None:
    async def start_another(session: AsyncSession) -> str:
        return str((await store.unit_of_work(session).start("waits", workflow_id="other")).id)

    async def handler(run: Run) -> Any:
        return await run.transact("start", start_another)

    started = await store.run("starts", handler)
    assert str((await store.load_workflow_state_by_workflow_id("other")).id) == started


async def test_what_is_too_long_for_a_row_is_uploaded_before_the_commit_and_left_as_garbage_after_a_rollback(
    engine: AsyncEngine, database_url: str, session: AsyncSession, tmp_path: Path
) -> None:
    blobs = tmp_path / "blobs"
    long = "x" * 1000

    async with StateStore.open(database_url, payloads=Payloads(blobs=BlobStore(blobs.as_uri(), above=100))) as store:
        for uploaded, end in ((2, session.rollback), (4, session.commit)):
            uow = store.unit_of_work(session)
            state = await uow.start("waits", workflow_id="w-1", context={"page": long})
            await uow.signal(state.id, "go", long)
            await end()
            assert len([file for file in blobs.rglob("*") if file.is_file() and file.suffix != ".txt"]) == uploaded
        found = await store.load_workflow_state_by_workflow_id("w-1")
        assert found.context == {"page": long}
        assert await store.run("waits", waits_for_go, workflow_id="w-1") == long


# --- two transactions at a time ---


async def test_a_start_waits_for_one_that_has_not_ended_and_finds_its_run(
    postgres_url: str, fresh_session: Callable[[], AsyncSession]
) -> None:
    async with (
        StateStore.open(postgres_url) as store,
        fresh_session() as one,
        fresh_session() as two,
        fresh_session() as three,
    ):
        pid = (await two.execute(text("SELECT pg_backend_pid()"))).scalar_one()
        first = await store.unit_of_work(one).start("Fulfil", idempotency_key="k-1")
        starting = asyncio.create_task(store.unit_of_work(two).start("Fulfil", idempotency_key="k-1"))
        waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = :pid")
        while not (await three.execute(waits, {"pid": pid})).scalar():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await one.commit()
        assert (await starting).id == first.id
        await two.execute(text("SELECT 1"))  # its transaction has seen no failure
        await two.commit()


async def test_many_transactions_at_a_time_start_each_run_once_and_keep_their_rows(
    store: StateStore, engine: AsyncEngine
) -> None:
    ids: set[Any] = set()

    async def place_order(number: int) -> None:
        async with AsyncSession(engine) as session, session.begin():
            await session.execute(insert(orders).values(item="book"))
            ids.add((await store.unit_of_work(session).start("n", idempotency_key=f"k-{number % 3}")).id)

    await asyncio.gather(*map(place_order, range(12)))
    assert len(ids) == len(await store.list_active_workflows()) == 3
    assert await count_orders(engine) == 12


async def test_a_transaction_of_two_phases_starts_a_run(private_postgres: Callable[..., PrivatePostgres]) -> None:
    """Postgres refuses a NOTIFY in it."""
    server = private_postgres(max_prepared_transactions="5")
    with server.database() as name:
        engine = own_engine(server.url(name))
        async with StateStore.open(server.url(name), migrate=True) as store:
            async with AsyncSession(engine, twophase=True) as session, session.begin():
                started = await store.unit_of_work(session).start("n")
            assert [state.id for state in await store.list_active_workflows()] == [started.id]
        await engine.dispose()


@pytest.fixture
async def fresh_session(postgres_url: str) -> AsyncIterator[async_sessionmaker[AsyncSession]]:
    engine = own_engine(postgres_url)
    yield async_sessionmaker(engine)
    await engine.dispose()


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_a_transaction_that_sees_an_older_state_is_told_to_repeat_itself(
    postgres_url: str, fresh_session: async_sessionmaker[AsyncSession], level: str
) -> None:
    async with StateStore.open(postgres_url) as store, fresh_session() as session:
        await session.connection(execution_options={"isolation_level": level})
        await session.execute(text("SELECT 1 FROM workflow_states"))
        meanwhile = await store.start("Fulfil", workflow_id="w-1")
        with pytest.raises(StoreUnavailable, match=r"roll it back, and do it again") as refused:
            await store.unit_of_work(session).start("Fulfil", workflow_id="w-1")
        assert refused.value.transient
        await session.rollback()
        await session.connection(execution_options={"isolation_level": level})
        assert (await store.unit_of_work(session).start("Fulfil", workflow_id="w-1")).id == meanwhile.id
        await session.commit()


async def test_a_transaction_of_sqlite_that_sees_an_older_state_is_told_to_repeat_itself(sqlite_url: str) -> None:
    engine = own_engine(sqlite_url)
    event.listen(engine.sync_engine, "connect", lambda raw, _: setattr(raw, "isolation_level", None))
    event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    async with StateStore.open(sqlite_url) as store, AsyncSession(engine) as session:
        await session.execute(text("SELECT 1 FROM workflow_states"))
        meanwhile = await store.start("Fulfil", workflow_id="w-1")
        with pytest.raises(StoreUnavailable, match=r"roll it back, and do it again") as refused:
            await store.unit_of_work(session).start("Fulfil", workflow_id="w-2")
        assert refused.value.transient
        await session.rollback()
        assert (await store.unit_of_work(session).start("Fulfil", workflow_id="w-1")).id == meanwhile.id
        await session.commit()
    await engine.dispose()


# --- workers learn of it with the commit, and not before ---


class Ends:
    """A hook that knows when a run was completed."""

    def __init__(self) -> None:
        self.completed = asyncio.Event()

    def on_event(self, event: Event) -> None:
        if isinstance(event, RunEnded) and event.outcome == "completed":
            self.completed.set()


class IdleWorker(Worker):
    """Knows how often it has looked for work, and when it waits for news."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.idle = asyncio.Event()
        self.looks = 0

    async def _wait_for_news(self) -> None:
        self.looks += 1
        self.idle.set()
        await super()._wait_for_news()


async def nothing(_: Run) -> None: ...


@pytest.mark.parametrize("how", ["plain", "in a savepoint", "by hand", "the store's"])
async def test_a_worker_that_polls_once_an_hour_hears_of_it_at_once(
    engine: AsyncEngine, database_url: str, session: AsyncSession, how: str
) -> None:
    ends = Ends()
    async with StateStore.open(database_url, hook=ends) as store:
        waiting = await store.start("waits")
        await store.recover({"waits": waits_for_go})
        handlers = {"nothing": nothing, "waits": waits_for_go}
        worker = IdleWorker(store, handlers, poll=timedelta(hours=1), handle_signals=False)
        acts: list[Ask] = [lambda uow: uow.start("nothing"), lambda uow: uow.signal(waiting.id, "go")]
        async with worker, asyncio.timeout(60):
            for act in acts:
                await worker.idle.wait()
                ends.completed.clear()
                match how:
                    case "plain":
                        await act(store.unit_of_work(session))
                        await session.commit()
                    case "in a savepoint":
                        async with session.begin(), session.begin_nested(), session.begin_nested():
                            await act(store.unit_of_work(session))
                    case "by hand":
                        async with session.begin():
                            await act(UnitOfWork(session))
                    case _:
                        async with store.begin() as uow:
                            await act(uow)
                await ends.completed.wait()


async def test_nobody_is_woken_by_what_was_rolled_back(sqlite_url: str, tmp_path: Any) -> None:
    engine = own_engine(sqlite_url)
    async with (
        StateStore.open(sqlite_url) as store,
        StateStore.open(tmp_path / "other.db") as elsewhere,
        StateStore.open(sqlite_url, namespace="other") as other,
        AsyncSession(engine) as session,
    ):
        heard: list[str] = []
        async with (
            store.listening(lambda: heard.append("store")),
            elsewhere.listening(lambda: heard.append("elsewhere")),
            other.listening(lambda: heard.append("other")),
        ):
            uow = store.unit_of_work(session)
            await uow.start("nothing")
            await session.rollback()
            async with session.begin():
                with suppress(Regretted):
                    async with session.begin_nested():
                        await uow.start("nothing")
                        raise Regretted
            with suppress(Regretted):
                async with session.begin():
                    async with session.begin_nested():
                        await uow.start("nothing")
                    raise Regretted
            async with engine.connect() as connection, connection.begin() as around:
                async with AsyncSession(connection, join_transaction_mode="create_savepoint") as joined:
                    await store.unit_of_work(joined).start("nothing")
                    await joined.commit()
                await around.rollback()
            await asyncio.sleep(0)
            assert heard == []
            async with session.begin():
                for _ in range(3):
                    await uow.start("nothing")
            await asyncio.sleep(0)
            assert heard == ["store"]
        assert session.sync_session.info[_KEY] == {}
    await engine.dispose()


async def test_a_session_is_listened_to_once_however_often_it_is_used(store: StateStore, session: AsyncSession) -> None:
    counts = []
    for _ in range(3):
        async with session.begin():
            await store.unit_of_work(session).start("nothing")
        dispatch: Any = session.sync_session.dispatch
        counts.append([len(list(getattr(dispatch, name))) for name in ("after_commit", "after_transaction_end")])
    assert counts[0] == counts[1] == counts[2]


async def test_a_commit_in_another_thread_wakes_the_worker_in_its_own_loop(sqlite_url: str) -> None:
    async def start_one() -> None:
        engine = own_engine(sqlite_url)
        async with AsyncSession(engine) as session, session.begin():
            await UnitOfWork(session).start("nothing")
        await engine.dispose()

    ends = Ends()
    async with StateStore.open(sqlite_url, hook=ends) as store:
        worker = IdleWorker(store, {"nothing": nothing}, poll=timedelta(hours=1), handle_signals=False)
        async with worker, asyncio.timeout(60):
            await worker.idle.wait()
            await asyncio.to_thread(asyncio.run, start_one())
            await ends.completed.wait()


async def test_a_forced_cancel_stops_a_run_that_hangs_here_with_the_commit_and_not_before(
    store: StateStore, session: AsyncSession
) -> None:
    under_way, stopped = asyncio.Event(), asyncio.Event()

    async def hangs(_: Run) -> None:
        under_way.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    running = asyncio.create_task(store.run("hangs", hangs, workflow_id="w-1"))
    await under_way.wait()
    state = await store.load_workflow_state_by_workflow_id("w-1")
    uow = store.unit_of_work(session)
    await uow.cancel(state.id, force=True)
    await session.rollback()
    assert not stopped.is_set()
    await uow.cancel(state.id, force=True)
    await session.commit()
    async with asyncio.timeout(60):
        await stopped.wait()
    with pytest.raises((RunCancelled, LeaseLost)):
        await running
    assert (await store.load_workflow_state(state.id)).status == "cancelled"


# --- what is wrong is said before anything is written ---

WRONG: dict[str, tuple[type[Exception], Ask]] = {
    "unknown signal": (WorkflowNotFound, lambda uow: uow.signal(uuid4(), "go")),
    "unknown cancel": (WorkflowNotFound, lambda uow: uow.cancel(uuid4())),
    "id to signal": (ConfigurationError, lambda uow: uow.signal("1'; DROP TABLE orders--", "go")),
    "id to cancel": (ConfigurationError, lambda uow: uow.cancel("\x1b[2J\n")),
    "name": (ConfigurationError, lambda uow: uow.start("")),
    "workflow_id": (ConfigurationError, lambda uow: uow.start("n", workflow_id="a\0b")),
    "key": (ConfigurationError, lambda uow: uow.start("n", idempotency_key="x" * 300)),
    "user": (ConfigurationError, lambda uow: uow.start("n", user_id=5)),  # type: ignore[arg-type]
    "context": (InvalidPayload, lambda uow: uow.start("n", context={"a": "\ud800"})),
    "no dict": (InvalidPayload, lambda uow: uow.start("n", context=[1])),  # type: ignore[arg-type]
    "state": (ConfigurationError, lambda uow: uow.start("n", state=dict)),  # type: ignore[arg-type]
    "signal's name": (ConfigurationError, lambda uow: uow.signal(uuid4(), "")),
    "payload": (InvalidPayload, lambda uow: uow.signal(uuid4(), "go", float("nan"))),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_what_is_wrong_leaves_the_transaction_as_it_was(
    store: StateStore, engine: AsyncEngine, session: AsyncSession, wrong: str
) -> None:
    kind, ask = WRONG[wrong]
    async with session.begin():
        await session.execute(insert(orders).values(item="book"))
        with pytest.raises((kind, InvalidPayload, ConfigurationError)) as refused:
            await ask(store.unit_of_work(session))
        assert "\x1b" not in str(refused.value)
    assert await count_orders(engine) == 1
    assert await store.list_active_workflows() == []


async def test_a_closed_store_acts_on_no_run(engine: AsyncEngine, database_url: str, session: AsyncSession) -> None:
    async with StateStore.open(database_url) as store:
        uow = store.unit_of_work(session)
    for ask in (uow.start("n"), uow.signal(uuid4(), "go"), uow.cancel(uuid4())):
        with pytest.raises(ConfigurationError, match="closed"):
            await ask
    with pytest.raises(ConfigurationError, match="closed"):
        store.unit_of_work(session)


async def test_a_store_of_another_loop_lends_nothing(store: StateStore, session: AsyncSession) -> None:
    uow = store.unit_of_work(session)

    async def elsewhere() -> None:
        for ask in (lambda: uow.start("n"), lambda: uow.cancel(uuid4())):
            with pytest.raises(ConfigurationError, match="event loop"):
                await ask()

    await asyncio.to_thread(asyncio.run, elsewhere())


async def test_a_session_that_is_broken_says_so(store: StateStore, session: AsyncSession) -> None:
    await session.execute(insert(orders).values(id=1, item="book"))
    with suppress(Exception):
        await session.execute(insert(orders).values(id=1, item="again"))
    if session.get_bind().dialect.name == "postgresql":
        with pytest.raises(StoreUnavailable, match="roll it back"):
            await store.unit_of_work(session).start("n")
    await session.rollback()
    await store.unit_of_work(session).start("n", workflow_id="w-1")
    await session.commit()
    assert len(await store.list_active_workflows()) == 1


async def test_a_session_that_commits_each_statement_is_refused(store: StateStore, database_url: str) -> None:
    engine = own_engine(database_url, isolation_level="AUTOCOMMIT")
    async with AsyncSession(engine) as session:
        with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            await store.unit_of_work(session).start("n")
    await engine.dispose()
    assert await store.list_active_workflows() == []


async def test_the_answer_to_the_callers_commit_is_lost_and_it_starts_the_run_again(
    store: StateStore, engine: AsyncEngine
) -> None:
    async def place_order(then: type[Exception] | None = None) -> WorkflowState:
        async with AsyncSession(engine) as session:
            state = await store.unit_of_work(session).start("Fulfil", idempotency_key="order-1")
            await session.commit()
            if then is not None:
                raise then
            return state

    with pytest.raises(Regretted):
        await place_order(then=Regretted)
    [first] = await store.list_active_workflows()
    assert (await place_order()).id == first.id  # as it does when it has not heard of the first
    assert len(await store.list_active_workflows()) == 1
