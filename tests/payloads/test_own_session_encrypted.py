"""A session of the application's on a store that encrypts: nothing is written in plain text without a word."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session

from orchestrator_state import (
    AesGcm,
    Checkpoint,
    ConfigurationError,
    KeyRing,
    Payloads,
    Run,
    StateSchema,
    StateStore,
    UnitOfWork,
    WorkflowState,
    Zstd,
)
from orchestrator_state.encryption import new_key
from tests.support.engines import own_engine
from tests.support.workflows import a_workflow, saved

CANARY = "CANARY-4711"


def encrypting(**options: Any) -> Payloads:
    return Payloads([Zstd(), AesGcm(KeyRing({"k": new_key()}, primary="k"))], **options)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = own_engine(database_url)
    yield engine
    await engine.dispose()


async def stored(engine: AsyncEngine) -> str:
    """All payloads of all rows."""
    async with engine.connect() as connection:
        found = [
            str((await connection.execute(text(query))).all())
            for query in (
                "SELECT context FROM workflow_states",
                "SELECT outputs FROM step_states",
                "SELECT snapshot FROM checkpoints",
                "SELECT payload FROM signals",
            )
        ]
    return "".join(found)


async def test_the_store_hands_out_a_unit_of_work_that_encrypts(engine: AsyncEngine, database_url: str) -> None:
    schema = StateSchema("Pipeline", version=3)
    async with StateStore.open(
        database_url, payloads=encrypting(strict=True), namespace="tenant-7", schemas=[schema]
    ) as store:
        state = a_workflow("load", context={"secret": CANARY})
        async with AsyncSession(engine) as session, session.begin():
            uow = store.unit_of_work(session)
            await uow.workflows.save(state)
            assert (await uow.workflows.get(state.id)).context == {"secret": CANARY}
        assert (await store.load_workflow_state(state.id)).context == {"secret": CANARY}
    assert CANARY not in await stored(engine)


async def test_it_commits_and_rolls_back_with_the_session(engine: AsyncEngine, database_url: str) -> None:
    async with StateStore.open(database_url) as store:
        state = a_workflow()
        async with AsyncSession(engine) as session:
            await store.unit_of_work(session).workflows.save(state)
            await session.rollback()
        assert await store.list_active_workflows() == []
        async with AsyncSession(engine) as session, session.begin():
            await store.unit_of_work(session).workflows.save(state)
        assert [found.id for found in await store.list_active_workflows()] == [state.id]


LONG_CANARY = CANARY * 100_000
WRITES: list[Callable[[UnitOfWork, WorkflowState], Awaitable[object]]] = [
    lambda uow, _: uow.workflows.save(a_workflow(context={"secret": LONG_CANARY})),
    lambda uow, _: uow.start("n", context={"secret": CANARY}),
    lambda uow, _: uow.start("n", context={"secret": LONG_CANARY}),
    lambda uow, state: uow.signal(state.id, "go", CANARY),
    lambda uow, state: uow.signal(state.id, "go", LONG_CANARY),
]


@pytest.mark.parametrize("opened", ["on the engine", "beside it"])
async def test_made_by_hand_it_refuses_to_write_plain_text_beside_encrypted_rows(
    engine: AsyncEngine, database_url: str, opened: str
) -> None:
    place: dict[str, Any] = {"engine": engine} if opened == "on the engine" else {"database": database_url}
    async with StateStore.open(payloads=encrypting(), **place) as store:
        state = await saved(store, "load", context={"secret": "x"})
        async with AsyncSession(engine) as session, session.begin():
            again = UnitOfWork(session)
            for work in (
                again.workflows.save(a_workflow(context={"secret": CANARY})),
                again.workflows.save(a_workflow("load", workflow_id="w-2", context={"secret": CANARY})),
                *(write(UnitOfWork(session), state) for write in WRITES),
            ):
                with pytest.raises(ConfigurationError, match=r"store\.unit_of_work\(session\)"):
                    await work
        async with store.begin() as mine:
            with pytest.raises(ConfigurationError, match="unit_of_work"):
                await checkpointed_by(UnitOfWork(mine.session), state, CANARY)
    assert CANARY not in await stored(engine)


async def checkpointed_by(uow: UnitOfWork, state: Any, snapshot: str) -> None:
    await uow.checkpoints.add(Checkpoint(workflow_state_id=state.id, step_id="load", snapshot=snapshot))


@pytest.mark.parametrize("opened", ["on the engine", "beside it"])
async def test_while_an_encrypting_store_is_open_here_it_refuses_from_the_first_row(
    engine: AsyncEngine, database_url: str, opened: str, tmp_path: Path
) -> None:
    place: dict[str, Any] = {"engine": engine} if opened == "on the engine" else {"database": database_url}
    async with (
        StateStore.open(payloads=encrypting(), **place),
        StateStore.open(tmp_path / "another.db", payloads=encrypting(), namespace="elsewhere"),
        AsyncSession(engine) as session,
        session.begin(),
    ):
        with pytest.raises(ConfigurationError, match="encrypts"):
            await UnitOfWork(session).workflows.save(a_workflow(context={"secret": CANARY}))
        with pytest.raises(ConfigurationError, match="encrypts"):
            await UnitOfWork(session).start("n", context={"secret": LONG_CANARY})
        await UnitOfWork(session, namespace="elsewhere").start("n", context={"public": "x"})
        await UnitOfWork(session, namespace="plain").start("n", context={"public": "x"})
    assert CANARY not in await stored(engine)
    async with AsyncSession(engine) as session, session.begin():  # nobody says so any more, and no row does
        await UnitOfWork(session).start("n", context={"public": "x"})


async def test_inside_a_transact_it_is_refused_too(database_url: str) -> None:
    async def write(session: AsyncSession) -> None:
        await UnitOfWork(session).workflows.save(a_workflow(context={"secret": CANARY}))

    async def handler(run: Run) -> None:
        await run.transact("rows", write)

    async with StateStore.open(database_url, payloads=encrypting()) as store:
        with pytest.raises(ConfigurationError, match="unit_of_work"):
            await store.run("n", handler)


async def test_what_is_said_counts(engine: AsyncEngine, database_url: str) -> None:
    """Plain text on purpose; and nothing to refuse in a namespace, or a store, that has nothing encrypted."""
    async with StateStore.open(database_url, payloads=encrypting(), namespace="hidden") as store:
        await saved(store, context={"secret": "x"})
    async with StateStore.open(engine=engine, payloads=Payloads([Zstd(threshold=1)])) as store:
        await saved(store, context={"page": "x" * 2000})
        async with AsyncSession(engine) as session, session.begin():
            await UnitOfWork(session).workflows.save(a_workflow(workflow_id="beside"))
            with pytest.raises(ConfigurationError, match="hidden"):
                await UnitOfWork(session, namespace="hidden").workflows.save(a_workflow(workflow_id="q"))
            said = UnitOfWork(session, namespace="hidden", payloads=Payloads())
            await said.workflows.save(a_workflow(workflow_id="p"))


async def test_a_session_that_is_none_is_refused(engine: AsyncEngine, database_url: str) -> None:
    scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=lambda: 1)
    async with StateStore.open(database_url) as store:
        for wrong in (None, "session", engine, Session(engine.sync_engine), scoped):
            with pytest.raises(ConfigurationError, match="give an AsyncSession"):
                UnitOfWork(wrong)  # type: ignore[arg-type]
            with pytest.raises(ConfigurationError, match="give an AsyncSession"):
                store.unit_of_work(wrong)  # type: ignore[arg-type]
