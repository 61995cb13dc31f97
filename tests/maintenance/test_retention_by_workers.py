"""Workers with a policy apply it in the background, one of a fleet at a time, and say how that went."""

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from orchestrator_state import ConfigurationError, Retention, Run, StateStore, StoreUnavailable, Worker
from orchestrator_state.maintenance import apply_retention, duty
from orchestrator_state.models import requests
from orchestrator_state.repositories import RETENTION_SUCCESS, RETENTION_TURN
from tests.support.running import LONG_AGO, count_rows, fetch
from tests.support.workflows import saved

DAY = timedelta(days=1)
POLICY = Retention(completed=DAY)


async def handler(run: Run) -> int:
    return await run.step("load", lambda: 1)


async def eventually(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not await holds():  # noqa: ASYNC110 - of another process's database there is no event
            await asyncio.sleep(0.02)


async def old(store: StateStore, number: int = 1) -> None:
    for _ in range(number):
        await saved(store, "load", status="completed", updated_at=LONG_AGO)


async def test_a_worker_applies_its_policy_beside_its_runs_and_says_when(store: StateStore) -> None:
    await old(store, 3)
    await store.start("n", workflow_id="w")
    worker = Worker(store, {"n": handler}, retention=POLICY)
    assert worker.health().retained_at is None

    async def is_done() -> bool:
        return worker.health().retained_at is not None

    async with worker:
        await eventually(is_done)
        assert await store.wait(await run_id(store)) == 1
    assert await count_rows(store, "workflow_states") == 1
    assert await store.last_retention() is not None
    assert worker.health().retention_error is None


async def run_id(store: StateStore) -> Any:
    (page,) = [await store.list_runs(workflow_id="w")]
    return page.runs[0].id


async def test_of_a_fleet_one_applies_it_in_an_interval(
    store: StateStore, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[Any] = []

    async def counted(*args: Any, **options: Any) -> Any:
        passes.append(args[0])
        return await apply_retention(*args, **options)

    monkeypatch.setattr(duty, "apply_retention", counted)
    async with StateStore.open(database_url) as other:
        duties = [each.retention_duty(POLICY) for each in (store, other, store, other)]
        tasks = [asyncio.create_task(each.run()) for each in duties]

        # Who comes too late for the pass learns of it at its next look, which a new one takes at once.
        await eventually(lambda: _is(bool(passes)))
        await eventually(lambda: _has(store))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        late = other.retention_duty(POLICY)
        task = asyncio.create_task(late.run())
        await eventually(lambda: _is(late.succeeded_at is not None))
        task.cancel()
        await asyncio.wait({task})
    assert len(passes) == 1


async def _is(value: bool) -> bool:
    return value


async def _has(store: StateStore) -> bool:
    return await store.last_retention() is not None


async def test_turns_are_taken_once_in_an_interval_by_the_databases_clock(store: StateStore) -> None:
    async def take(every: timedelta) -> bool:
        return await store._transactions.write(lambda uow: uow.policies.take_turn(every))

    async def made_at(moment: Any) -> None:
        async with store.begin() as uow:
            await uow.session.execute(requests.update().values(made_at=moment))

    assert await take(DAY)
    assert not await take(DAY)
    (row,) = await fetch(store, select(requests.c.made_at))
    await made_at(row.made_at - 2 * DAY)
    assert await take(DAY)
    await made_at(row.made_at + 3 * DAY)
    assert await take(DAY), "the clock was put back"
    assert not await take(DAY)


async def test_the_ids_of_turns_and_successes_are_not_forgotten_with_those_of_old_calls(store: StateStore) -> None:
    await store._transactions.write(lambda uow: uow.policies.take_turn(DAY))
    await store.apply_retention(POLICY)
    async with store.begin() as uow:
        await uow.session.execute(requests.update().values(made_at=LONG_AGO))
    await store._transactions.forget_old_calls()
    kinds = {row.kind for row in await fetch(store, select(requests.c.kind))}
    assert kinds == {RETENTION_TURN, RETENTION_SUCCESS}


async def test_a_pass_that_fails_is_logged_and_tried_again_and_harms_no_run(
    store: StateStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="orchestrator_state")
    attempts: list[int] = []
    monkeypatch.setattr(duty, "_AFTER_A_FAULT", 0.01)

    async def failing(*args: Any, **options: Any) -> Any:
        attempts.append(1)
        if len(attempts) == 1:
            raise StoreUnavailable("the database is away")
        return await apply_retention(*args, **options)

    monkeypatch.setattr(duty, "apply_retention", failing)
    worker = Worker(store, {"n": handler}, retention=Retention(completed=DAY, every=1))
    await store.start("n", workflow_id="w")
    async with worker:
        await eventually(lambda: _is(worker.health().retention_error == "StoreUnavailable"))
        assert worker.health().is_well
        assert await store.wait(await run_id(store)) == 1
        await eventually(lambda: _is(worker.health().retained_at is not None))
    assert worker.health().retention_error is None
    assert "retention failed (the database is away)" in caplog.text


async def test_a_worker_that_stops_ends_its_pass(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = asyncio.Event()

    async def for_ever(*_: Any, **__: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(duty, "apply_retention", for_ever)
    async with asyncio.timeout(30):
        async with Worker(store, {"n": handler}, retention=POLICY):
            await begun.wait()
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "orchestrator_state retention"]


async def test_a_long_pass_keeps_its_turn(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    async def long_ago_begun(_: Any, __: Any, *, between: Any, **___: Any) -> None:
        async with store.begin() as uow:
            await uow.session.execute(requests.update().values(made_at=LONG_AGO))
        mine._renewed_at -= 4000
        await between()

    monkeypatch.setattr(duty, "apply_retention", long_ago_begun)
    mine = store.retention_duty(POLICY)
    assert await mine._look() > 3000
    assert not await store._transactions.write(lambda uow: uow.policies.take_turn(timedelta(hours=1)))


async def test_what_is_no_policy_is_refused(store: StateStore) -> None:
    with pytest.raises(ConfigurationError, match="retention must be a Retention"):
        Worker(store, {"n": handler}, retention=30)  # type: ignore[arg-type]
