"""A commit that reaches the database late, after its repetition and what followed it, changes nothing any more."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state import LeaseLost, Run, StateStore, StoreUnavailable
from orchestrator_state.records import Ack, Lease
from tests.runs.test_writer import a_change, committed, leased
from tests.support.cutting_proxy import CuttingProxy, Fault
from tests.support.held import comes_true
from tests.support.lost_answers import answer_lost
from tests.support.postgres_proxy import opened_impatient
from tests.support.running import Effect, Gate, checkpoints_of, count_rows, row_of, seconds, steps_of, vanish
from tests.support.statements import rewritten

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("soon_given_up")]  # a commit is late after seconds


@pytest.fixture
async def proxy(postgres_url: str) -> AsyncIterator[CuttingProxy]:
    with tempfile.TemporaryDirectory(prefix="cut-") as directory:
        async with CuttingProxy(postgres_url, Path(directory)).running() as proxy:
            yield proxy


@pytest.fixture
async def distant(proxy: CuttingProxy) -> AsyncIterator[StateStore]:
    """A store whose connections go through the proxy."""
    async with opened_impatient(proxy.url, pool_min=2) as store:
        yield store


@pytest.fixture
async def near(database_url: str) -> AsyncIterator[StateStore]:
    """Another process's store on the same database, whose answers arrive."""
    async with StateStore.open(database_url) as store:
        yield store


# --- on the wire -------------------------------------------------------------------------------------------------


async def test_the_late_intent_of_a_wait_does_not_undo_its_timeout(distant: StateStore, proxy: CuttingProxy) -> None:
    fallback = Effect()

    async def handler(run: Run) -> str:
        try:
            await run.wait_for("go", timeout=1)
            return "approved"
        except TimeoutError:
            await run.step("fallback", fallback)
        if proxy.faults and not resumed:
            resumed.append(True)
            await proxy.deliver()
            vanish()
        return "fallback"

    resumed: list[bool] = []
    proxy.fail_next_commit(Fault.HELD, marker=b"signal:go")
    with pytest.raises(asyncio.CancelledError):
        await distant.run("n", handler, workflow_id="w")
    assert (await steps_of(distant, "w"))["signal:go"].status == "skipped"
    await distant.signal((await row_of(distant, "w")).id, "go")
    assert await distant.run("n", handler, workflow_id="w") == "fallback"
    assert len(fallback.calls) == 1


async def test_a_late_checkpoint_is_not_the_newest(distant: StateStore, proxy: CuttingProxy) -> None:
    async def handler(run: Run) -> None:
        run.context["k"] = 1
        await run.step("precious", Effect(), "v")
        for number in range(12):
            await run.step(f"s{number}", Effect(), number)
        await proxy.deliver()

    proxy.fail_next_commit(Fault.HELD, marker=b"precious")
    await distant.run("n", handler, workflow_id="w")
    assert (proxy.faults, (await checkpoints_of(distant, "w"))[-1].step_id) == (1, "s11")


async def test_a_late_context_does_not_overwrite_the_final_one(distant: StateStore, proxy: CuttingProxy) -> None:
    async def handler(run: Run) -> None:
        run.context["n"] = 1
        await run.step("precious", Effect(), "v")
        run.context.update(n=2, total="final")

    proxy.fail_next_commit(Fault.HELD, marker=b"precious")
    await distant.run("n", handler, workflow_id="w")
    before = await row_of(distant, "w")
    await proxy.deliver()
    assert await row_of(distant, "w") == before


@pytest.mark.parametrize("is_alone", [True, False])
@pytest.mark.parametrize("is_unique", [True, False])
async def test_the_context_is_that_of_the_try_whose_late_commit_was_found(
    distant: StateStore, proxy: CuttingProxy, is_unique: bool, is_alone: bool
) -> None:
    """The function is being called again when it arrives; what it does then, perhaps only a part, is not on record."""
    calls: list[int] = []
    changed = asyncio.Event()

    async def handler(run: Run) -> Any:
        async def place(session: AsyncSession) -> int:
            calls.append(len(calls) + 1)
            if calls == [1]:
                proxy.fail_next_commit(Fault.HELD)
            run.context["token"] = calls[-1]
            run.append("log", calls[-1])
            if calls != [1]:
                changed.set()
                await asyncio.sleep(0)
                await proxy.deliver()
            if is_unique:
                await session.execute(text("INSERT INTO places VALUES (7)"))
            run.append("log", "end")
            return calls[-1]

        async def beside() -> None:
            if not resumed:
                await changed.wait()
            run.append("log", "beside")

        await asyncio.gather(run.transact("place", place), *([] if is_alone else [beside()]))
        await run.step("after", Effect())
        if not resumed:
            resumed.append(True)
            vanish()
        return run.context

    resumed: list[bool] = []
    async with distant.begin() as uow:
        await uow.session.execute(text("CREATE TABLE places (id INTEGER PRIMARY KEY)"))
    with pytest.raises(asyncio.CancelledError):
        await distant.run("n", handler, workflow_id="w", context={"log": []})
    assert calls == [1, 2]
    for found in (
        (await distant.load_workflow_state_by_workflow_id("w")).context,
        await distant.run("n", handler, workflow_id="w"),
    ):
        assert found["token"] == 1
        assert sorted(found["log"], key=str) == [1, *([] if is_alone else ["beside"]), "end"]


# --- the fence itself, on both databases -------------------------------------------------------------------------


async def test_a_run_that_is_created_after_its_caller_was_cancelled_is_let_go_of(
    postgres_url: str, distant: StateStore, proxy: CuttingProxy
) -> None:
    proxy.fail_next_commit(Fault.HELD)
    task = asyncio.create_task(distant.run("n", lambda run: run.step("s", Effect()), workflow_id="late"))
    assert await comes_true(lambda: proxy.faults == 1)
    task.cancel()
    await proxy.given_up.wait()
    await asyncio.wait({task}, timeout=0.5)
    await proxy.deliver()
    await asyncio.wait({task})
    assert task.cancelled()
    async with StateStore.open(postgres_url) as near:
        assert (await row_of(near, "late")).lease_expires_at is None


async def test_a_commit_is_for_one_place_in_the_order(store: StateStore) -> None:
    [lease] = await leased(store)
    late = a_change(replace(lease), "s", outputs='"late"')
    await committed(store, a_change(lease, "s", outputs='"first"'))
    await committed(store, a_change(lease, "t"))
    with pytest.raises(LeaseLost):
        await committed(store, late)
    assert await count_rows(store, "checkpoints") == 2
    assert await count_rows(store, "step_states") == 2


async def test_a_repetition_knows_itself_by_its_place(store: StateStore) -> None:
    [lease] = await leased(store)
    change = a_change(lease, "s")
    again = replace(change, lease=replace(lease))
    await committed(store, change)
    assert await committed(store, again) == Ack(request=None, already_recorded=True)
    assert await count_rows(store, "checkpoints") == 1


# --- what lets go of a run, and what loads it --------------------------------------------------------------------


async def test_what_ends_late_does_not_end_what_came_after(store: StateStore) -> None:
    """`finish`, `suspend`, `let_go` and `release` are repeated under a lease that was let go of already."""

    async def handler(run: Run) -> None:
        leases.append(replace(run._steps.journal.lease))

    leases: list[Lease] = []
    await store.run("n", handler, workflow_id="w")
    before = await row_of(store, "w")
    async with store._transactions.begin() as uow:
        assert await uow.runs.finish(leases[0], {"status": "failed"}) == "completed"
        assert await uow.runs.let_go(leases[0]) == "completed"
        await uow.runs.release(leases[0], seconds(60))
    assert await row_of(store, "w") == before


async def test_who_has_let_go_of_a_run_writes_nothing_more(store: StateStore) -> None:
    """Letting go moves the row on, too: that is no sign that an earlier attempt took effect."""
    [lease] = await leased(store)
    async with store._transactions.begin() as uow:
        assert await uow.runs.release(lease)
    with pytest.raises(LeaseLost):
        await committed(store, a_change(lease, "s"))
    with pytest.raises(LeaseLost):
        async with store._transactions.begin() as uow:
            await uow.commits.commit(a_change(lease, "s"))
    with pytest.raises(LeaseLost):
        async with store._transactions.begin() as uow:
            await uow.runs.hold_owned(lease)
    assert await count_rows(store, "step_states") == 0


@pytest.mark.parametrize("end", ["stopped", "returned"])
async def test_a_branch_that_outlives_its_handler_is_acknowledged_nothing(store: StateStore, end: str) -> None:
    gate, acknowledged = Gate(), Effect()
    branches: list[asyncio.Task[None]] = []

    async def branch(run: Run) -> None:
        await acknowledged(await run.step("paid", gate, 1))

    async def handler(run: Run) -> None:
        branches.append(asyncio.create_task(branch(run)))
        await gate.reached.wait()
        if end == "stopped":
            vanish()

    with suppress(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    before = await row_of(store, "w")
    gate.opened.set()
    await asyncio.wait(branches)
    assert acknowledged.calls == []
    assert (await row_of(store, "w"), await count_rows(store, "step_states")) == (before, 0)


async def test_the_end_of_a_run_settles_by_itself(store: StateStore) -> None:
    async def handler(run: Run) -> str:
        await run.step("a", Effect())
        lost.enter_context(answer_lost(store))
        return "done"

    with ExitStack() as lost:
        assert await store.run("n", handler, workflow_id="w") == "done"
    row = await row_of(store, "w")
    assert (row.status, row.lease_expires_at) == ("completed", None)


async def test_a_run_that_failed_and_was_resumed_at_once_is_not_failed_again(
    store: StateStore, near: StateStore
) -> None:
    async def fails(run: Run) -> None:
        lost.enter_context(answer_lost(store, resume))
        raise LookupError

    async def resume() -> None:
        await near.resume((await row_of(near, "w")).id)

    with ExitStack() as lost, pytest.raises(StoreUnavailable) as raised:
        await store.run("n", fails, workflow_id="w")
    assert raised.value.outcome_unknown
    assert (await row_of(near, "w")).status == "pending"


async def test_a_transaction_refused_for_what_its_first_try_wrote_is_done(store: StateStore) -> None:
    """The first try commits at the last moment: too late for the second to see it, in time to stand in its way."""
    look = r"(step_id = \S+ AND step_states\.status) = "
    async with store.begin() as uow:
        await uow.session.execute(text("CREATE TABLE payments (id INTEGER PRIMARY KEY)"))

    async def pay(session: Any) -> str:
        await session.execute(text("INSERT INTO payments VALUES (1)"))
        return "paid"

    async def handler(run: Run) -> list[str]:
        with answer_lost(store), rewritten(store, look, r"\1 <> ", times=2):
            paid = await run.transact("pay", pay)
        return [paid, await run.step("after", Effect(), "after")]

    assert await store.run("n", handler, workflow_id="w") == ["paid", "after"]
    assert (await steps_of(store, "w"))["pay"].status == "completed"
