"""Group commit beside locks, shutdowns and forks: what harms one run harms no other."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from orchestrator_state import Event, LeaseLost, Run, StateStore, StoreUnavailable
from orchestrator_state.hooks import StepCommitting
from orchestrator_state.models import checkpoints
from orchestrator_state.records import Ack, RunChange
from orchestrator_state.runs.journal.group_commit import MOST_CHARACTERS_IN_A_BATCH, GroupCommit
from tests.execution.test_fork import end_of, in_a_fork
from tests.runs.test_writer import (  # noqa: F401 - fixtures
    Held,
    a_change,
    batches,
    committed,
    held,
    in_the_way,
    leased,
    recorded,
    the_group_commit,
)
from tests.support.running import Effect, Gate, change_row, row_of, seconds, steps_of


async def test_more_locked_rows_than_connections_do_not_hold_up_their_neighbours(postgres_url: str) -> None:
    patient: dict[str, Any] = {"pool_min": 0, "pool_max": 2, "lock_timeout": seconds(60)}
    async with StateStore.open(postgres_url, **patient) as store, StateStore.open(postgres_url) as other:
        locked, [free] = await leased(store, 4), await leased(store)
        async with other._transactions.begin() as uow:
            for lease in locked:
                await uow.runs.lock(lease.workflow_state_id)
            waiting = [asyncio.ensure_future(committed(store, a_change(lease))) for lease in locked]
            await asyncio.sleep(0.5)
            await asyncio.wait_for(committed(store, a_change(free)), 30)
        assert await asyncio.gather(*waiting) == [Ack(request=None)] * 4


async def test_a_locked_checkpoint_harms_its_own_run_alone(postgres_url: str) -> None:
    """Somebody deletes checkpoints by hand, and takes long over it."""
    async with (
        StateStore.open(postgres_url, lock_timeout=seconds(0.3)) as store,
        StateStore.open(postgres_url) as other,
    ):
        first, second = await leased(store, 2)
        for position in range(2):
            await committed(store, a_change(first, f"s{position}", position=position, keep=1))
        async with other.begin() as uow:
            of_first = select(checkpoints).where(checkpoints.c.workflow_state_id == first.workflow_state_id)
            await uow.session.execute(of_first.with_for_update())
            changes = [a_change(first, "late", position=2, keep=1), a_change(second, "free")]
            late, free = [asyncio.ensure_future(committed(store, change)) for change in changes]
            assert await free == Ack(request=None)
            assert not late.done()
        assert await late == Ack(request=None)


async def test_a_batch_is_bounded_by_what_it_appends_too(
    store: StateStore,
    held: Held,  # noqa: F811
    batches: list[list[RunChange]],  # noqa: F811
) -> None:
    text = "x" * (MOST_CHARACTERS_IN_A_BATCH * 4 // 5)
    changes = []
    for lease in await leased(store, 3):
        change = a_change(lease)
        change.step = replace_patch(change, f'{{"set":{{}},"append":{{"log":["{text}"]}},"drop":[]}}')
        changes.append(change)
    async with in_the_way(store, held):
        waiting = [asyncio.ensure_future(committed(store, change)) for change in changes]
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)
    assert [len(batch) for batch in batches if batch[0].step.step_id == "s"] == [1, 1, 1]


def replace_patch(change: RunChange, patch: str) -> Any:
    return change.step._replace(context_patch=patch)


class ShutsDown:
    """A hook that cancels all tasks, as the end of `asyncio.run` does, while a step's commit is on its way."""

    def __init__(self, step_id: str) -> None:
        self._step_id = step_id
        self.done = False

    def on_event(self, event: Event) -> None:
        if isinstance(event, StepCommitting) and event.step_id == self._step_id and not self.done:
            self.done = True
            for task in asyncio.all_tasks():
                if task.get_name().startswith(("orchestrator_state group", "the run")):
                    task.cancel()


async def test_a_shutdown_in_the_middle_of_a_commit_doubles_nothing(database_url: str) -> None:
    hook = ShutsDown("work")

    async def handler(run: Run) -> Any:
        try:
            run.append("log", "once")
            await run.step("work", lambda: 1)
        finally:
            await run.step("clean up", lambda: 2)
        return run.context["log"]

    async with StateStore.open(database_url, hook=hook) as store:
        await committed(store, a_change((await leased(store))[0]))  # a connection is open
        running = asyncio.create_task(store.run("n", handler, workflow_id="w", context={"log": []}), name="the run")
        await asyncio.wait({running})
        assert hook.done
        positions = [step.position for step in (await steps_of(store, "w")).values()]
        assert len(positions) == len(set(positions))
        assert await store.run("n", handler, workflow_id="w") == ["once"]


async def test_what_was_returned_is_kept_although_its_branch_is_cancelled_in_line_for_the_commit(
    store: StateStore,
    held: Held,  # noqa: F811
) -> None:
    paid = Effect()

    async def handler(run: Run) -> Any:
        first = asyncio.create_task(run.step("first", Effect()))
        await held.reached.wait()
        branch = asyncio.create_task(run.step("paid", paid, "for"))
        while not paid.calls:  # noqa: ASYNC110 - the next turn of the loop is soon
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        branch.cancel("enough")
        held.opened.set()
        await first
        with pytest.raises(asyncio.CancelledError, match="enough"):
            await branch

    await store.run("n", handler, workflow_id="w")
    assert (await steps_of(store, "w"))["paid"].outputs == '"for"'


async def test_who_is_in_line_behind_a_commit_that_lost_the_lease_does_not_try_too(
    store: StateStore,
    held: Held,  # noqa: F811
    batches: list[list[RunChange]],  # noqa: F811
) -> None:
    async def handler(run: Run) -> None:
        await asyncio.gather(*(run.step(f"s{n}", Effect()) for n in range(5)))

    running = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    await held.reached.wait()
    await change_row(store, (await row_of(store, "w")).id, lease_token=7)
    held.opened.set()
    with pytest.raises(LeaseLost):
        await running
    assert [[change.step.step_id for change in batch] for batch in batches] == [["s0"]]


@pytest.mark.parametrize("name", ["_write", "_write_alone"])
async def test_what_a_shutdown_cuts_off_before_it_begins_is_over_for_whoever_waits_for_it(
    store: StateStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    [lease] = await leased(store)
    group_commit, loop, method = the_group_commit(store), asyncio.get_running_loop(), getattr(GroupCommit, name)

    def cut_off(group_commit: GroupCommit, work: Any) -> Any:
        coroutine = method(group_commit, work)
        loop.call_soon(lambda: [task.cancel() for task in asyncio.all_tasks() if task.get_coro() is coroutine])
        return coroutine

    with monkeypatch.context() as patched:
        patched.setattr(GroupCommit, name, cut_off)
        lost = replace(lease, token=lease.token + 1)  # so it is passed over, and tried alone
        waiting = group_commit.send(a_change(lost))
        await asyncio.wait({waiting}, timeout=10)
    assert waiting.done()
    assert isinstance(waiting.exception(), StoreUnavailable)
    await committed(store, a_change(lease))
    assert await recorded(store) == {lease.workflow_state_id}


async def test_a_fork_closes_its_store_although_its_parent_is_committing(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with StateStore.open(database_url) as store:
        [lease] = await leased(store)
        held = Held(monkeypatch)
        waiting = asyncio.ensure_future(committed(store, a_change(lease)))
        await held.reached.wait()

        async def close() -> None:
            await asyncio.wait_for(the_group_commit(store).close(), 30)

        pid = await asyncio.to_thread(in_a_fork, close)
        held.opened.set()
        await waiting
        assert await asyncio.to_thread(end_of, pid) == 0


async def test_a_fork_closes_its_store_although_its_parent_holds_leases(database_url: str) -> None:
    gate = Gate()
    async with StateStore.open(database_url) as store:
        running = asyncio.create_task(store.run("n", lambda run: run.step("s", gate), workflow_id="w"))
        await gate.reached.wait()

        async def close() -> None:
            await asyncio.wait_for(store.close(), 30)

        pid = await asyncio.to_thread(in_a_fork, close)
        assert await asyncio.to_thread(end_of, pid) == 0
        gate.opened.set()
        await running


async def test_closing_the_store_fails_no_run(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on while the last batch is written is left to whoever recovers it."""
    gate = Gate()
    way = Held(monkeypatch)
    store = await StateStore.open(database_url)
    [lease] = await leased(store)
    running = asyncio.create_task(store.run("n", lambda run: run.step("s", gate), workflow_id="w"))
    await gate.reached.wait()
    waiting = asyncio.ensure_future(committed(store, a_change(lease)))
    await way.reached.wait()
    closing = asyncio.ensure_future(store.close())
    await asyncio.sleep(0.1)
    gate.opened.set()
    await asyncio.wait({running})
    way.opened.set()
    await asyncio.gather(waiting, closing)
    assert running.exception() is not None
    async with StateStore.open(database_url) as again:
        assert (await row_of(again, "w")).status == "running"
