"""The application's own `async_sessionmaker`: its sessions are those of `run.transact` and `store.begin()`."""

import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import Connection, event, insert, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, registry, sessionmaker

from orchestrator_state import ConfigurationError, Run, StateStore
from tests.support.engines import business, count_orders, create_orders, orders, own_engine
from tests.support.fated_commits import FatedCommits


class Order:
    def __init__(self, item: str) -> None:
        self.item = item


registry(metadata=business).map_imperatively(Order, orders)


class TenantSession(Session):
    """The application's kind of session."""


class OwnSession(AsyncSession):
    sync_session_class = TenantSession

    async def place(self, item: str) -> None:
        self.add(Order(item))
        await self.flush()


class Elsewhere(Session):
    other: Any = None

    def get_bind(self, mapper: Any = None, **options: Any) -> Any:
        is_theirs = mapper is not None and mapper.class_ is Order
        return self.other if is_theirs else super().get_bind(mapper, **options)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = own_engine(database_url)
    await create_orders(engine)
    yield engine
    await engine.dispose()


@pytest.fixture(params=["on the engine", "on a URL"])
def place(request: pytest.FixtureRequest, engine: AsyncEngine, database_url: str) -> dict[str, Any]:
    return {"engine": engine} if request.param == "on the engine" else {"database": database_url}


def of_the_place(place: dict[str, Any], **options: Any) -> Any:
    """As an application has it: with its engine, or with none yet."""
    return async_sessionmaker(place.get("engine"), class_=OwnSession, **options)


OPTIONS: list[dict[str, Any]] = [{}, {"expire_on_commit": False}, {"autoflush": False}, {"autobegin": False}]


@pytest.mark.parametrize("options", OPTIONS)
async def test_the_function_is_given_a_session_of_that_kind(
    engine: AsyncEngine, place: dict[str, Any], options: dict[str, Any]
) -> None:
    seen: list[Any] = []

    async def order(session: OwnSession, item: str) -> str:
        await session.place(item)
        async with session.begin_nested():
            await session.place(item)
        session.add(Order(item))
        seen.extend([type(session), type(session.sync_session), session.info["tenant"]])
        seen.extend(getattr(session.sync_session, name) for name in options if name != "autobegin")
        return item

    async def handler(run: Run) -> Any:
        return await run.transact("order", order, "book")

    maker = of_the_place(place, info={"tenant": 7}, **options)
    async with StateStore.open(sessionmaker=maker, **place) as store:
        assert await store.run("n", handler, workflow_id="w-1") == "book"
        assert await store.run("n", handler, workflow_id="w-1") == "book"
    assert seen == [OwnSession, TenantSession, 7, *(value for name, value in options.items() if name != "autobegin")]
    assert await count_orders(engine) == 3


async def test_its_listeners_hear_of_the_one_commit_and_what_they_add_is_in_it(
    engine: AsyncEngine, place: dict[str, Any]
) -> None:
    class Listening(Session): ...

    heard: list[str] = []

    def audit(session: Session) -> None:
        heard.append("before")
        session.add(Order("audit"))

    event.listen(Listening, "before_commit", audit)
    event.listen(Listening, "after_commit", lambda _: heard.append("after"))
    event.listen(Listening, "after_rollback", lambda _: heard.append("rollback"))

    async def order(session: AsyncSession, *, fails: bool) -> None:
        session.add(Order("book"))
        if fails:
            raise ValueError("out of stock")

    async def handler(run: Run) -> None:
        with pytest.raises(ValueError, match="out of stock"):
            await run.transact("fails", lambda session: order(session, fails=True))
        await run.transact("order", lambda session: order(session, fails=False))

    maker = async_sessionmaker(place.get("engine"), sync_session_class=Listening)
    async with StateStore.open(sessionmaker=maker, **place) as store:
        await store.run("n", handler)
        async with store.begin() as uow:
            uow.session.add(Order("lamp"))
    assert heard == ["rollback", "before", "after", "before", "after"]
    assert await count_orders(engine) == 4


@pytest.mark.parametrize("when", ["before_commit", "after_commit"])
async def test_a_listener_that_raises_keeps_the_step_and_its_rows_together(
    engine: AsyncEngine, place: dict[str, Any], when: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Raising(Session): ...

    def fail(_: Session) -> None:
        raise OSError("CANARY")

    event.listen(Raising, when, fail)
    calls: list[str] = []

    async def order(session: AsyncSession) -> str:
        calls.append("called")
        session.add(Order("book"))
        return "done"

    async def handler(run: Run) -> Any:
        return await run.transact("order", order)

    maker = async_sessionmaker(place.get("engine"), sync_session_class=Raising)
    with caplog.at_level(logging.ERROR, "orchestrator_state"):
        async with StateStore.open(sessionmaker=maker, **place) as store:
            if when == "after_commit":
                assert await store.run("n", handler) == "done"
                state = await saved_in_a_block(store)
                assert (await store.load_workflow_state(state.id)).version == state.version
                assert "after the commit" in caplog.text
            else:
                with pytest.raises(OSError, match="CANARY"):
                    await store.run("n", handler)
    assert calls == ["called"]
    assert "CANARY" not in caplog.text
    assert await count_orders(engine) == (when == "after_commit")


async def saved_in_a_block(store: StateStore) -> Any:
    async with store.begin() as uow:
        return await uow.start("other")


async def test_a_listener_that_raises_as_the_transaction_begins_fails_the_step(
    engine: AsyncEngine, place: dict[str, Any]
) -> None:
    class Raising(Session): ...

    @event.listens_for(Raising, "after_begin")
    def name_the_tenant(*_: object) -> None:
        if is_lost:
            raise LookupError("which tenant?")

    async def order(session: AsyncSession) -> str:
        session.add(Order("book"))
        return "done"

    async def handler(run: Run) -> Any:
        return await run.transact("order", order)

    maker, is_lost = async_sessionmaker(place.get("engine"), sync_session_class=Raising), True
    async with StateStore.open(sessionmaker=maker, **place) as store:
        with pytest.raises(LookupError, match="which tenant"):
            await store.run("n", handler, workflow_id="w-1")
        with pytest.raises(LookupError, match="which tenant"):
            async with store.begin():
                pass
        assert await count_orders(engine) == 0
        is_lost = False
        assert await store.run("n", handler, workflow_id="w-1") == "done"
    assert await count_orders(engine) == 1


async def test_a_lost_answer_is_found_out_and_nothing_is_doubled(engine: AsyncEngine, place: dict[str, Any]) -> None:
    calls: list[str] = []

    async def order(session: OwnSession) -> str:
        calls.append("called")
        await session.place("book")
        return "done"

    async def handler(run: Run) -> Any:
        return await run.transact("order", order)

    async with StateStore.open(sessionmaker=of_the_place(place), **place) as store:
        fates = FatedCommits(store)
        fates.fates.extend(["sound", "answer lost"])
        assert await store.run("n", handler) == "done"
        assert fates.faults == 1
    assert calls == ["called"]
    assert await count_orders(engine) == 1


@pytest.mark.parametrize("end", [AsyncSession.commit, AsyncSession.rollback])
async def test_the_function_still_must_not_end_the_transaction(
    engine: AsyncEngine, place: dict[str, Any], end: Any
) -> None:
    async def order(session: OwnSession) -> None:
        await session.place("book")
        await end(session)

    async def handler(run: Run) -> None:
        await run.transact("order", order)

    async with StateStore.open(sessionmaker=of_the_place(place), **place) as store:
        with pytest.raises(ConfigurationError, match="neither commit nor roll back"):
            await store.run("n", handler)
    assert await count_orders(engine) == 0


async def test_a_session_that_writes_elsewhere_too_commits_nothing(
    engine: AsyncEngine, place: dict[str, Any], database_url: str
) -> None:
    other = own_engine(database_url)

    class Routed(Elsewhere): ...

    Routed.other = other.sync_engine

    async def order(session: AsyncSession) -> None:
        await session.scalars(text("SELECT 1"))
        await session.get(Order, 1)

    async def handler(run: Run) -> None:
        await run.transact("order", order)

    maker = async_sessionmaker(sync_session_class=Routed)
    async with StateStore.open(sessionmaker=maker, **place) as store:
        with pytest.raises(ConfigurationError, match="second connection"):
            await store.run("n", handler)
    await other.dispose()


async def test_what_a_session_sets_on_a_connection_of_ours_is_not_the_next_ones(database_url: str) -> None:
    async def meddle(session: AsyncSession) -> None:
        is_postgres = session.get_bind().dialect.name == "postgresql"
        await session.execute(text("SET search_path TO nowhere" if is_postgres else "PRAGMA cache_size=77"))

    async def handler(run: Run) -> None:
        await run.transact("meddle", meddle)
        await run.transact("insert", lambda session: session.execute(insert(orders).values(item="book")))

    engine = own_engine(database_url)
    await create_orders(engine)
    async with StateStore.open(database_url, pool_max=2, sessionmaker=async_sessionmaker()) as store:
        async with store.begin() as uow:
            await meddle(uow.session)
        async with store.begin() as uow:
            await uow.session.execute(insert(orders).values(item="book"))
    assert await count_orders(engine) == 1
    await engine.dispose()


async def test_what_a_listener_sets_before_it_raises_is_not_the_next_ones(database_url: str) -> None:
    class Setting(Session): ...

    @event.listens_for(Setting, "after_begin")
    def meddle(_session: object, _transaction: object, connection: Connection) -> None:
        if is_lost:
            connection.exec_driver_sql("COMMIT")
            is_postgres = connection.dialect.name == "postgresql"
            connection.exec_driver_sql("SET search_path TO nowhere" if is_postgres else "PRAGMA query_only=ON")
            raise LookupError("which tenant?")

    engine, is_lost = own_engine(database_url), True
    await create_orders(engine)
    maker = async_sessionmaker(sync_session_class=Setting)
    async with StateStore.open(database_url, pool_max=1, sessionmaker=maker) as store:
        with pytest.raises(LookupError, match="which tenant"):
            async with store.begin():
                pass
        is_lost = False
        async with store.begin() as uow:
            await uow.session.execute(insert(orders).values(item="book"))
    assert await count_orders(engine) == 1
    await engine.dispose()


def misfits(engine: AsyncEngine, other: AsyncEngine) -> dict[str, Any]:
    class Routed(Session):
        def get_bind(self, *_: Any, **__: Any) -> Any:
            return other.sync_engine

    class NoSession:
        def __init__(self, **_: Any) -> None: ...

    class Narrow(AsyncSession):
        def __init__(self) -> None:
            super().__init__()

    class TwoPhased(Session):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | {"twophase": True})

    return {
        "5": (5, "give an async_sessionmaker"),
        "a session": (AsyncSession(engine), "give an async_sessionmaker"),
        "synchronous": (sessionmaker(engine.sync_engine), "make it with async_sessionmaker"),
        "another engine": (async_sessionmaker(other), "another engine"),
        "another for one table": (async_sessionmaker(engine, binds={Order: other}), "another engine"),
        "two phases": (async_sessionmaker(engine, twophase=True), "twophase"),
        "two phases by class": (async_sessionmaker(engine, sync_session_class=TwoPhased), "twophase"),
        "its own way": (async_sessionmaker(engine, sync_session_class=Routed), "get_bind"),
        "no session": (async_sessionmaker(engine, class_=NoSession), "no AsyncSession"),
        "narrow": (async_sessionmaker(engine, class_=Narrow), "arguments"),
    }


async def test_one_that_cannot_be_ours_is_refused_when_the_store_is_opened(
    engine: AsyncEngine, database_url: str
) -> None:
    other = own_engine(database_url)
    for name, (maker, why) in misfits(engine, other).items():
        with pytest.raises(ConfigurationError, match=why):
            await StateStore.open(engine=engine, sessionmaker=maker)
        if "another" not in name:
            continue
        with pytest.raises(ConfigurationError, match="engine="):
            await StateStore.open(database_url, sessionmaker=maker)
    maker = async_sessionmaker(binds={Order: engine})
    async with StateStore.open(engine=engine, sessionmaker=maker) as store, store.begin() as uow:
        uow.session.add(Order("book"))
    assert await count_orders(engine) == 1
    await other.dispose()
