"""Runs that crash, answers that are lost and steps that fail, where a test wants it; and what that shows."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state import (
    ConfigurationError,
    LeaseLost,
    OutcomeUnknown,
    Retry,
    Run,
    StoreUnavailable,
    WorkflowStatus,
)
from orchestrator_state.repositories.runs import LeaseRepository
from orchestrator_state.testing import Crashed, FaultNotMet
from orchestrator_state.testing.bench import Bench
from tests.support.running import Effect, row_of, steps_of

POINTS = {"crash_before": 1, "crash_before_commit": 2, "crash_after": 1, "lose_answer_of": 1}


@pytest.mark.parametrize(("point", "calls"), POINTS.items())
async def test_how_often_a_step_is_called(bench: Bench, point: str, calls: int) -> None:
    charge = Effect()

    async def order(run: Run[Any]) -> Any:
        return await run.step("charge", charge, 7)

    bench.worker({"order": order})
    with getattr(bench.faults, point)("charge"):
        await bench.store.start("order", workflow_id="a")
        await bench.worker.until_idle()
    row = await row_of(bench.store, "a")
    assert row.status == WorkflowStatus.COMPLETED
    assert row.lease_token == (1 if point == "lose_answer_of" else 2)
    assert len(charge.calls) == bench.faults.calls("charge") == calls


@pytest.mark.parametrize("point", POINTS)
async def test_a_transact_takes_effect_once(bench: Bench, point: str) -> None:
    async def charge(session: AsyncSession) -> int:
        await session.execute(text("INSERT INTO charges VALUES (7)"))
        return 7

    async def order(run: Run[Any]) -> Any:
        return await run.transact("charge", charge)

    async with bench.store.begin() as uow:
        await uow.session.execute(text("CREATE TABLE charges (amount integer)"))
    bench.worker({"order": order})
    with getattr(bench.faults, point)("charge"):
        await bench.store.start("order", workflow_id="a")
        await bench.worker.until_idle()
    assert (await row_of(bench.store, "a")).status == WorkflowStatus.COMPLETED
    async with bench.store.begin() as uow:
        assert (await uow.session.execute(text("SELECT count(*) FROM charges"))).scalar_one() == 1


@pytest.mark.parametrize(("point", "tokens"), [("crash_before", 1), ("crash_before_commit", 1), ("crash_after", 1)])
async def test_nothing_is_written_after_a_crash(bench: Bench, point: str, tokens: int) -> None:
    charge, after = Effect(), Effect()

    async def order(run: Run[Any]) -> None:
        try:
            await run.step("charge", charge)
            await after()
        finally:
            await run.step("clean up", after)

    with getattr(bench.faults, point)("charge"), pytest.raises(Crashed):
        await bench.store.run("order", order, workflow_id="a")
    row = await row_of(bench.store, "a")
    assert (row.status, row.lease_token, row.error) == (WorkflowStatus.RUNNING, tokens, None)
    assert row.lease_expires_at is not None, "a dead worker releases nothing"
    assert list(await steps_of(bench.store, "a")) == (["charge"] if point == "crash_after" else [])
    assert not after.calls


async def test_a_crash_counts_as_a_worker_that_vanished(bench: Bench) -> None:
    async def order(run: Run[Any]) -> None:
        await run.step("charge", Effect())

    with bench.faults.crash_before("charge", times=2):
        for _ in range(2):
            with pytest.raises(Crashed):
                await bench.store.run("order", order, workflow_id="a")
    report = await bench.store.recover({"order": order})
    assert [run.outcome for run in report.runs] == ["completed"]
    assert (await row_of(bench.store, "a")).attempts == 2


async def test_the_lease_of_a_crashed_run_is_not_prolonged_by_who_kept_all_from_writing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def order(run: Run[Any]) -> None:
        await run.step("charge", Effect())

    bench.worker({"order": order})
    database = bench.store._transactions.database
    prolong = LeaseRepository.prolong

    async def prolong_for_long(self: LeaseRepository, held: timedelta) -> None:
        await prolong(self, held + timedelta(seconds=20))

    monkeypatch.setattr(LeaseRepository, "prolong", prolong_for_long)
    monkeypatch.setattr(database, "held_up_renewals", lambda _: True, raising=False)
    with bench.faults.crash_after("charge"):
        await bench.store.start("order", workflow_id="a")
        await bench.worker.until_idle()
    assert (await row_of(bench.store, "a")).status == WorkflowStatus.COMPLETED


async def test_a_report_says_that_a_crashed_run_was_lost(bench: Bench) -> None:
    async def order(run: Run[Any]) -> None:
        await run.step("charge", Effect())

    await bench.store.start("order", workflow_id="a")
    with bench.faults.crash_after("charge"):
        report = await bench.store.recover({"order": order})
    assert [run.outcome for run in report.runs] == ["lost", "completed"]


async def test_an_intent_is_seen_by_who_comes_next(bench: Bench) -> None:
    charge = Effect()

    async def order(run: Run[Any]) -> None:
        await run.step("charge", charge, on_unknown="raise")

    with bench.faults.crash_before_commit("charge"), pytest.raises(Crashed):
        await bench.store.run("order", order, workflow_id="a")
    assert len(charge.calls) == 1
    with pytest.raises(OutcomeUnknown):
        await bench.store.run("order", order, workflow_id="a")
    assert len(charge.calls) == 1


async def test_a_wait_crashes_when_it_is_over_and_not_when_it_begins(bench: Bench) -> None:
    async def waits(run: Run[Any]) -> None:
        await run.sleep(timedelta(days=1))

    bench.worker({"waits": waits})
    await bench.store.start("waits", workflow_id="a")
    await bench.worker.until_idle()
    [step_id] = await steps_of(bench.store, "a")
    with bench.faults.crash_before_commit(step_id):
        await bench.clock.advance(days=1)
        await bench.worker.until_idle()
    assert (await row_of(bench.store, "a")).status == WorkflowStatus.COMPLETED


async def test_a_child_that_crashes_is_gone_on_with(bench: Bench) -> None:
    charge = Effect()

    async def child(run: Run[Any]) -> Any:
        return await run.step("charge", charge, 7)

    async def parent(run: Run[Any]) -> Any:
        return await run.child("child", child)

    bench.worker({"parent": parent, "child": child})
    with bench.faults.crash_after("charge"):
        await bench.store.start("parent", workflow_id="a")
        await bench.worker.until_idle()
    assert (await row_of(bench.store, "a")).status == WorkflowStatus.COMPLETED
    assert charge.calls == [7]


@pytest.mark.parametrize("works_in", ["a task", "a thread"])
async def test_a_step_fails_as_if_its_function_had(bench: Bench, works_in: str) -> None:
    charge = Effect()

    def in_a_thread() -> None:
        charge.calls.append(None)

    async def order(run: Run[Any]) -> None:
        await run.step(
            "charge", charge if works_in == "a task" else in_a_thread, retry=Retry(attempts=3, wait_initial=0)
        )

    with bench.faults.fail_step("charge", ValueError("declined"), times=2):
        await bench.store.run("order", order, workflow_id="a")
    assert len(charge.calls) == bench.faults.calls("charge") == 1
    assert (await steps_of(bench.store, "a"))["charge"].retry_count == 2


@pytest.mark.parametrize("error", [StoreUnavailable("not ours"), LeaseLost("not ours"), TimeoutError("late")])
async def test_an_error_of_any_class_is_the_steps_own(bench: Bench, error: Exception) -> None:
    async def order(run: Run[Any]) -> str:
        try:
            await run.step("charge", Effect())
        except type(error):
            return "caught"
        return "not raised"

    with bench.faults.fail_step("charge", error):
        assert await bench.store.run("order", order, workflow_id="a") == "caught"


async def test_a_transact_fails_as_if_its_function_had(bench: Bench) -> None:
    async def charge(session: AsyncSession) -> None:
        raise AssertionError("not called")

    async def order(run: Run[Any]) -> None:
        await run.transact("charge", charge)

    with bench.faults.fail_step("charge", ValueError("declined")), pytest.raises(ValueError, match="declined"):
        await bench.store.run("order", order, workflow_id="a")
    assert (await row_of(bench.store, "a")).status == WorkflowStatus.FAILED


async def test_a_fault_that_is_not_met_fails_the_test(bench: Bench) -> None:
    async def order(run: Run[Any]) -> None:
        await run.step("charge", Effect())

    with pytest.raises(FaultNotMet, match=r"'chrage'.*'charge'"), bench.faults.crash_after("chrage"):
        await bench.store.run("order", order, workflow_id="a")


async def test_what_the_block_raises_is_not_hidden(bench: Bench) -> None:
    with pytest.raises(KeyError, match="own"), bench.faults.crash_after("charge"):
        raise KeyError("own")


@pytest.mark.parametrize("wrong", ["", 3, None])
async def test_a_step_id_is_a_name(bench: Bench, wrong: Any) -> None:
    with pytest.raises(ConfigurationError), bench.faults.crash_after(wrong):
        pass


async def test_an_error_is_an_exception(bench: Bench) -> None:
    wrong: Any = "declined"
    with pytest.raises(ConfigurationError, match="Exception"), bench.faults.fail_step("charge", wrong):
        pass
