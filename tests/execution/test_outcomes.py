"""`store.result` and `store.wait`: what came of a run, for who has not its handler."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel

from orchestrator_state import (
    AesGcm,
    ConfigurationError,
    CorruptPayload,
    InvalidPayload,
    KeyRing,
    Payloads,
    Run,
    RunCancelled,
    RunFailed,
    RunUnfinished,
    StateMismatch,
    StateSchema,
    StateStore,
    StoreUnavailable,
    Worker,
    WorkflowNotFound,
    WorkflowState,
)
from orchestrator_state.execution.outcomes import ends
from tests.support.held import checked_out, comes_true
from tests.support.running import Gate, change_row, row_of
from tests.support.statements import traffic_of


class Total(BaseModel):
    """What a handler returns."""

    pages: int


class OutOfStock(Exception):
    """Of an application's."""


async def ends_with(store: StateStore, result: Any, workflow_id: str = "w") -> UUID:
    async def handler(run: Run) -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    with contextlib.suppress(OutOfStock):
        await store.run("n", handler, workflow_id=workflow_id)
    run_id: UUID = (await row_of(store, workflow_id)).id
    return run_id


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[StateStore]:
    """Another store of the same database, as another process has one."""
    async with StateStore.open(database_url) as store:
        yield store


def waiters_of(store: StateStore) -> int:
    return len(store._executor.outcomes.watch._waiters)


async def waits(store: StateStore, *run_ids: UUID, **options: Any) -> list[asyncio.Task[Any]]:
    """Tasks that wait, each of which has looked once."""
    tasks = [asyncio.create_task(store.wait(run_id, **options)) for run_id in run_ids]
    assert await comes_true(lambda: waiters_of(store) >= len(run_ids))
    await asyncio.sleep(0.05)
    return tasks


# --- result ---


async def test_the_result_of_a_completed_run_is_returned_without_its_handler(store: StateStore) -> None:
    run_id = await ends_with(store, {"pages": 3})
    assert await store.result(run_id) == {"pages": 3}
    assert await store.result(str(run_id)) == {"pages": 3}
    assert await store.result(run_id, returns=Total) == Total(pages=3)
    with pytest.raises(StateMismatch):
        await store.result(run_id, returns=int)


async def test_the_result_is_of_the_type_that_the_schema_says(database_url: str) -> None:
    async with StateStore.open(database_url, schemas=[StateSchema("n", result=Total)]) as store:
        assert await store.result(await ends_with(store, Total(pages=3))) == Total(pages=3)


async def test_a_failed_run_raises_what_is_recorded_of_its_error(store: StateStore) -> None:
    run_id = await ends_with(store, OutOfStock("no cards"))
    for call in (store.result, store.wait):
        with pytest.raises(RunFailed, match="no cards") as failed:
            await call(run_id)
        assert failed.value.error == "OutOfStock: no cards"


@pytest.mark.parametrize("status", ["pending", "running", "paused"])
async def test_an_unfinished_run_has_no_result(store: StateStore, status: str) -> None:
    run_id = (await store.start("n", workflow_id="w")).id
    await change_row(store, run_id, status=status)
    with pytest.raises(RunUnfinished) as unfinished:
        await store.result(run_id)
    assert (unfinished.value.workflow_state_id, unfinished.value.status) == (run_id, status)
    with pytest.raises(TimeoutError):
        await store.wait(run_id, timeout=0.01)


async def test_what_is_not_there_is_not_found_at_once(store: StateStore) -> None:
    for call in (store.result, store.wait):
        with pytest.raises(WorkflowNotFound):
            await call(uuid4())
        with pytest.raises(InvalidPayload):
            await call("no id")
        with pytest.raises(ConfigurationError):
            await call(uuid4(), returns=object())


async def test_of_another_namespace_nothing_is_found(store: StateStore, database_url: str) -> None:
    run_id = await ends_with(store, 1)
    async with StateStore.open(database_url, namespace="other") as other:
        with pytest.raises(WorkflowNotFound):
            await other.result(run_id)


async def test_a_damaged_result_is_named(store: StateStore) -> None:
    run_id = await ends_with(store, {"pages": 3})
    await change_row(store, run_id, result='{"pages": 4}')
    with pytest.raises(CorruptPayload) as corrupt:
        await store.result(run_id)
    assert corrupt.value.about["workflow_state_id"] == run_id


async def test_a_state_that_was_completed_by_hand_has_no_result(store: StateStore) -> None:
    state = WorkflowState(workflow_id="w", workflow_name="n")
    await store.save_workflow_state(state)
    [waiting] = await waits(store, state.id)
    state.mark_completed()
    await store.save_workflow_state(state)
    assert await store.result(state.id) is None
    async with asyncio.timeout(60):
        assert await waiting is None


# --- wait ---


async def test_a_wait_ends_with_the_run_and_returns_its_result(store: StateStore) -> None:
    gate = Gate()

    async def handler(run: Run) -> Any:
        return await run.step("a", gate, {"pages": 3})

    run_id = (await store.start("n", workflow_id="w")).id
    async with Worker(store, {"n": handler}), asyncio.timeout(60):
        plain, typed = *(await waits(store, run_id)), *(await waits(store, run_id, returns=Total))
        await gate.reached.wait()
        assert not plain.done()
        gate.opened.set()
        assert (await plain, await typed) == ({"pages": 3}, Total(pages=3))
    assert waiters_of(store) == 0
    assert not ends._hearers


@pytest.mark.parametrize("how", ["here", "in another store of this process"])
async def test_an_end_in_this_process_is_heard_of_without_a_look(
    store: StateStore, other: StateStore, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Whoever polls would wait for an hour."""
    monkeypatch.setattr("orchestrator_state.execution.outcomes.watch._PAUSE", 3600)
    monkeypatch.setattr("orchestrator_state.execution.outcomes.watch._PAUSE_WHEN_TOLD", 3600)
    monkeypatch.setattr("orchestrator_state.execution.outcomes.ends._GATHER", 3600)
    monkeypatch.setattr("orchestrator_state.execution.outcomes.ends._TO_TELL", 0)
    run_id = (await store.start("n", workflow_id="w")).id
    [waiting] = await waits(store if how == "here" else other, run_id)
    await ends_with(store, 7)
    async with asyncio.timeout(60):
        assert await waiting == 7


@pytest.mark.parametrize("backend", ["postgres"])
async def test_an_end_in_another_process_is_notified(
    store: StateStore, other: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator_state.execution.outcomes.watch._PAUSE_WHEN_TOLD", 3600)
    monkeypatch.setattr("orchestrator_state.execution.outcomes.ends._tell_here", lambda _: None)
    run_id = (await store.start("n", workflow_id="w")).id
    [waiting] = await waits(other, run_id)
    listener = other._transactions.database.listener
    assert listener is not None
    assert await comes_true(lambda: listener._task is not None)
    await ends_with(store, 7)
    async with asyncio.timeout(60):
        assert await waiting == 7
    assert await comes_true(lambda: listener._task is None), "nobody listens any more"


async def test_an_end_that_nobody_tells_of_is_found(
    store: StateStore, other: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator_state.execution.outcomes.ends.Ends.tell", lambda *_: None)
    run_id = (await store.start("n", workflow_id="w")).id
    [waiting] = await waits(other, run_id)
    await ends_with(store, 7)
    async with asyncio.timeout(60):
        assert await waiting == 7


async def test_a_paused_run_is_waited_for_and_a_cancelled_one_is_over(store: StateStore, other: StateStore) -> None:
    run_id = (await store.start("n", workflow_id="w")).id
    [waiting] = await waits(other, run_id)
    await store.pause(run_id)
    await asyncio.sleep(0.6)
    assert not waiting.done()
    await store.cancel(run_id)
    async with asyncio.timeout(60):
        with pytest.raises(RunCancelled):
            await waiting


async def test_a_run_that_is_deleted_while_it_is_waited_for_is_not_found(store: StateStore) -> None:
    run_id = (await store.start("n", workflow_id="w")).id
    [waiting] = await waits(store, run_id)
    async with store.begin() as uow:
        connection = await uow.session.connection()
        await connection.exec_driver_sql("DELETE FROM workflow_states")
    async with asyncio.timeout(60):
        with pytest.raises(WorkflowNotFound):
            await waiting


async def test_closing_the_store_ends_the_waits(database_url: str) -> None:
    async with StateStore.open(database_url) as store:
        run_id = (await store.start("n", workflow_id="w")).id
        [waiting] = await waits(store, run_id)
    with pytest.raises(ConfigurationError, match="closed"):
        await waiting
    with pytest.raises(ConfigurationError, match="closed"):
        await store.wait(run_id)


async def test_a_wait_that_is_cancelled_leaves_nothing_behind(store: StateStore) -> None:
    run_id = (await store.start("n", workflow_id="w")).id
    before = asyncio.all_tasks()
    for pause in (0, 0, 0.001, 0.01, 0.3):
        task = asyncio.create_task(store.wait(run_id))
        for _ in range(3):
            await asyncio.sleep(pause)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await comes_true(lambda: asyncio.all_tasks() == before)
    assert waiters_of(store) == 0
    assert not ends._hearers
    assert await comes_true(lambda: checked_out(store) == 0)


async def test_many_waits_are_one_query_at_a_time(store: StateStore) -> None:
    ids = [(await store.start("n", workflow_id=f"w{number}")).id for number in range(20)]
    with traffic_of(store) as first:
        tasks = await waits(store, *(ids * 10))
        assert await comes_true(lambda: sum("LIMIT" in statement for statement in first.statements) >= len(tasks))
    with traffic_of(store) as traffic:
        assert await comes_true(lambda: len(traffic.statements) >= 3)
    assert all("LIMIT" not in statement and " IN (" in statement for statement in traffic.statements)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_database_that_stays_away_ends_the_wait(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: Any) -> Any:
        raise StoreUnavailable("the server is away")

    run_id = (await store.start("n", workflow_id="w")).id
    tasks = await waits(store, run_id, run_id)
    monkeypatch.setattr("orchestrator_state.repositories.runs.waits.WaitRepository.list_statuses", away)
    async with asyncio.timeout(60):
        for task in tasks:
            with pytest.raises(StoreUnavailable):
                await task


async def test_an_encrypted_result_needs_the_key(database_url: str) -> None:
    payloads = Payloads([AesGcm(KeyRing({"k": b"k" * 32}, primary="k"))])
    async with StateStore.open(database_url, payloads=payloads) as store:
        run_id = await ends_with(store, {"pages": 3})
        assert await store.result(run_id) == {"pages": 3}
    async with StateStore.open(database_url) as keyless:
        with pytest.raises(Exception, match="codec"):
            await keyless.result(run_id)
