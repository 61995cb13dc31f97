"""Every two requests, one after the other, at every phase of a run, on both databases: the order in which they count.

request   pending or running   paused      failed    completed   cancelled   a cancel is on its way
pause     paused               -           refused   refused     refused     -
resume    -                    pending     pending   refused     refused     -
cancel    cancelled            cancelled   refused   refused     -           -
signal    -                    -           refused   refused     refused     -
rewind    pending              pending     pending   pending     pending     refused: somebody owns the run
"""

import asyncio
import contextlib
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select

from orchestrator_state import (
    Conflict,
    InvalidTransition,
    Run,
    RunCancelled,
    RunPaused,
    StateStore,
    Worker,
)
from orchestrator_state.models import workflow_states
from orchestrator_state.records import Lease
from tests.support.running import LONG_AGO, Effect, Gate, all_steps, change_row, fetch, row_of, seconds

NOBODY = UUID("00000000-0000-4000-8000-000000000000")
GOES_ON: Mapping[str, Mapping[str, str]] = {
    "pause": {"active": "paused"},
    "resume": {"paused": "active", "failed": "active"},
    "cancel": {"active": "cancelled", "paused": "cancelled"},
    "signal": {},
    "rewind": dict.fromkeys(("active", "paused", "failed", "completed", "cancelled"), "active"),
}


class Runs:
    """Runs of one handler, each of which stops where its phase wants it."""

    def __init__(self, store: StateStore) -> None:
        self.store = store
        self.gates: dict[str, Gate] = defaultdict(Gate)
        self.failing: set[str] = set()
        self.tasks: list[asyncio.Task[Any]] = []

    async def __call__(self, run: Run) -> Any:
        await run.step("first", Effect())
        await run.step("work", self._work, run.workflow_id)
        return await run.wait_for("answer")

    async def _work(self, workflow_id: str) -> None:
        await self.gates[workflow_id]()
        if workflow_id in self.failing:
            self.failing.discard(workflow_id)
            raise LookupError

    @property
    def handlers(self) -> dict[str, Any]:
        return {"n": self}

    def open(self, *workflow_ids: str) -> None:
        for workflow_id in workflow_ids:
            self.gates[workflow_id].opened.set()

    # --- phases ---

    async def pending(self, *workflow_ids: str) -> None:
        self.open(*workflow_ids)
        for workflow_id in workflow_ids:
            await self.store.start("n", workflow_id=workflow_id)

    async def in_a_step(self, *workflow_ids: str) -> None:
        self._run(*workflow_ids)
        for workflow_id in workflow_ids:
            await self.gates[workflow_id].reached.wait()

    in_a_step_whose_owner_vanishes = in_a_step

    async def abandoned(self, *workflow_ids: str) -> None:
        await self.in_a_step(*workflow_ids)
        await self.vanish(*workflow_ids)

    async def waiting(self, *workflow_ids: str) -> None:
        self.open(*workflow_ids)
        self._run(*workflow_ids)
        await self._have_worked(*workflow_ids)

    async def lingering(self, *workflow_ids: str) -> None:
        await self.pending(*workflow_ids)
        await self._have_worked(*workflow_ids)

    async def suspended(self, *workflow_ids: str) -> None:
        await self.pending(*workflow_ids)
        assert len((await self.store.recover(self.handlers)).suspended) == len(workflow_ids)

    async def paused(self, *workflow_ids: str) -> None:
        await self.suspended(*workflow_ids)
        for row in await self.rows(*workflow_ids):
            await self.store.pause(row.id)

    async def failed(self, *workflow_ids: str) -> None:
        self.failing.update(workflow_ids)
        await self.pending(*workflow_ids)
        assert len((await self.store.recover(self.handlers)).failed) == len(workflow_ids)

    async def completed(self, *workflow_ids: str) -> None:
        await self.pending(*workflow_ids)
        for row in await self.rows(*workflow_ids):
            await self.store.signal(row.id, "answer", 1)
        assert len((await self.store.recover(self.handlers)).completed) == len(workflow_ids)

    async def cancelled(self, *workflow_ids: str) -> None:
        await self.suspended(*workflow_ids)
        for row in await self.rows(*workflow_ids):
            await self.store.cancel(row.id)

    async def vanish(self, *workflow_ids: str) -> None:
        for row in await self.rows(*workflow_ids):
            await change_row(self.store, row.id, lease_owner=NOBODY, lease_expires_at=LONG_AGO)

    def _run(self, *workflow_ids: str) -> None:
        for workflow_id in workflow_ids:
            self.tasks.append(asyncio.create_task(self.store.run("n", self, workflow_id=workflow_id)))

    async def _have_worked(self, *workflow_ids: str) -> None:
        for workflow_id in workflow_ids:
            await self.gates[workflow_id].reached.wait()
        worked = {(workflow_id, "work") for workflow_id in workflow_ids}
        while not worked <= {*await all_steps(self.store)}:  # noqa: ASYNC110 - a worker's commit
            await asyncio.sleep(0.02)

    # --- requests ---

    async def rows(self, *workflow_ids: str) -> Sequence[Any]:
        return await fetch(self.store, select(workflow_states).where(workflow_states.c.workflow_id.in_(workflow_ids)))

    async def ask(self, request: str, workflow_id: str) -> bool:
        return await self.ask_of((await row_of(self.store, workflow_id)).id, request)

    async def ask_of(self, run_id: UUID, request: str) -> bool:
        """Whether it was not refused."""
        store = self.store
        calls: dict[str, Callable[[UUID], Awaitable[Any]]] = {
            "pause": store.pause,
            "resume": store.resume,
            "cancel": store.cancel,
            "signal": lambda workflow_state_id: store.signal(workflow_state_id, "news", 1),
            "rewind": self._rewind,
        }
        try:
            await calls[request](run_id)
        except Conflict:
            return False
        return True

    async def _rewind(self, workflow_state_id: UUID) -> None:
        checkpoint = await self.store.get_latest_checkpoint(workflow_state_id)
        assert checkpoint is not None
        await self.store.rewind(checkpoint.id)

    async def end(self, *workflow_ids: str) -> dict[str, str]:
        """Let the runs go on where they may, to their ends, and return the status that each has then."""
        answered: set[UUID] = set()
        while going := [row for row in await self.rows(*workflow_ids) if not is_at_its_end(row)]:
            for row in going:
                if row.id not in answered:
                    answered.add(row.id)
                    with contextlib.suppress(InvalidTransition):
                        await self.store.signal(row.id, "answer", 1)
            await self.store.recover(self.handlers)
            await asyncio.sleep(0.05)
        return {row.workflow_id: str(row.status) for row in await self.rows(*workflow_ids)}


def is_at_its_end(row: Any) -> bool:
    return row.lease_expires_at is None and row.status not in ("pending", "running")


@pytest.fixture
async def runs(database_url: str) -> AsyncIterator[Runs]:
    async with StateStore.open(database_url, lease_term=seconds(10)) as store:
        runs = Runs(store)
        yield runs
        for task in runs.tasks:
            task.cancel()
        await asyncio.gather(*runs.tasks, return_exceptions=True)


def expected(phase: str, requests: tuple[str, ...]) -> str:
    status = phase if phase in ("paused", "failed", "completed", "cancelled") else "active"
    for request in requests:
        status = GOES_ON[request].get(status, status)
    return "completed" if status == "active" else status


OWNED = ("in_a_step", "in_a_step_whose_owner_vanishes", "waiting", "lingering")
NOT_OWNED = ("pending", "abandoned", "suspended", "paused", "failed", "completed", "cancelled")


@pytest.mark.parametrize("phase", [*OWNED, *NOT_OWNED])
async def test_two_requests_count_in_their_order_and_nothing_takes_back_a_cancel(runs: Runs, phase: str) -> None:
    allowed = sorted({*GOES_ON} - ({"rewind"} if phase in (*OWNED, "pending") else set()))
    pairs = {" then ".join(pair): pair for pair in itertools.product(allowed, repeat=2)}
    async with contextlib.AsyncExitStack() as stack:
        if phase == "lingering":
            await stack.enter_async_context(
                Worker(runs.store, runs.handlers, poll=0.1, concurrency=len(pairs), handle_signals=False)
            )
        await getattr(runs, phase)(*pairs)
        for row in await runs.rows(*pairs):
            for request in pairs[row.workflow_id]:
                await runs.ask_of(row.id, request)
        if phase == "in_a_step_whose_owner_vanishes":
            await runs.vanish(*pairs)
        runs.open(*pairs)
        ends = await runs.end(*pairs)
    assert ends == {workflow_id: expected(phase, pair) for workflow_id, pair in pairs.items()}
    [(left,)] = await fetch(runs.store, select(func.count()).where(workflow_states.c.request.is_not(None)))
    assert left == 0


async def test_a_cancel_survives_a_pause_a_resume_and_the_owner(runs: Runs) -> None:
    await runs.in_a_step("w")
    for request in ("cancel", "pause", "resume", "pause", "resume"):
        assert await runs.ask(request, "w")
    runs.open("w")
    with pytest.raises(RunCancelled):
        await runs.tasks[0]
    assert (await row_of(runs.store, "w")).status == "cancelled"


async def test_a_fork_has_nothing_to_do_with_what_was_asked_of_its_source(runs: Runs) -> None:
    await runs.in_a_step("w")
    row = await row_of(runs.store, "w")
    await runs.store.cancel(row.id)
    checkpoint = await runs.store.get_latest_checkpoint(row.id)
    assert checkpoint is not None
    await runs.store.fork(checkpoint.id, workflow_id="fork")
    runs.open("w", "fork")
    assert await runs.end("w", "fork") == {"w": "cancelled", "fork": "completed"}


# --- the moment in which a worker lets go ---


async def owned(runs: Runs, request: str) -> tuple[Any, Lease]:
    await runs.in_a_step("w")
    row = await row_of(runs.store, "w")
    await runs.ask(request, "w")
    return row, Lease.of(row)


AS_ASKED = pytest.mark.parametrize(("request_", "status"), [("cancel", "cancelled"), ("pause", "paused")])


@AS_ASKED
async def test_a_run_that_is_suspended_becomes_what_was_asked_of_it(runs: Runs, request_: str, status: str) -> None:
    row, lease = await owned(runs, request_)
    async with runs.store._transactions.begin() as uow:
        assert await uow.runs.suspend(lease, wake_at=LONG_AGO, signals={"answer"}, children=()) == status
    row = await row_of(runs.store, "w")
    assert (row.status, row.request, row.lease_expires_at) == (status, None, None)
    assert (row.completed_at is not None) == (status == "cancelled")


@AS_ASKED
async def test_a_run_that_is_released_becomes_what_was_asked_of_it(runs: Runs, request_: str, status: str) -> None:
    await owned(runs, request_)
    runs.tasks[0].cancel()
    await asyncio.wait(runs.tasks)
    assert (await row_of(runs.store, "w")).status == status


@AS_ASKED
async def test_a_run_without_steps_is_not_called_after_its_owner_vanished(
    runs: Runs, request_: str, status: str
) -> None:
    called = Effect()
    await owned(runs, request_)
    await runs.vanish("w")
    with pytest.raises(RunCancelled if status == "cancelled" else RunPaused):
        await runs.store.run("n", called, workflow_id="w")
    assert called.calls == []
    assert (await row_of(runs.store, "w")).status == status


@AS_ASKED
async def test_a_run_that_nobody_has_a_handler_for_becomes_what_was_asked_of_it(
    runs: Runs, request_: str, status: str
) -> None:
    await owned(runs, request_)
    await runs.vanish("w")
    await runs.store.recover({})
    assert (await row_of(runs.store, "w")).status == status


async def test_a_run_that_fails_although_it_was_to_be_cancelled_cannot_be_resumed(store: StateStore) -> None:
    gate = Gate()

    async def handler(run: Run) -> None:
        await run.step("work", gate)
        raise LookupError

    task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    await gate.reached.wait()
    row = await row_of(store, "w")
    await store.cancel(row.id)
    gate.opened.set()
    with pytest.raises(RunCancelled) as raised:
        await task
    assert isinstance(raised.value.__cause__, LookupError)
    assert (await store.load_workflow_state(row.id)).status == "cancelled"
    with pytest.raises(InvalidTransition):
        await store.resume(row.id)


async def test_a_run_that_was_resumed_while_it_stopped_to_be_paused_goes_on(store: StateStore) -> None:
    gate, cleaning, effect = Gate(), Gate(), Effect()

    async def handler(run: Run) -> Any:
        await run.step("work", gate)
        try:
            return await run.step("next", effect, 7)
        except asyncio.CancelledError:
            await cleaning()
            raise

    task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    await gate.reached.wait()
    row = await row_of(store, "w")
    await store.pause(row.id)
    gate.opened.set()
    await cleaning.reached.wait()
    await store.resume(row.id)
    cleaning.opened.set()
    assert await task == 7


# --- families ---


async def test_a_child_is_not_started_once_its_parent_is_to_be_cancelled(store: StateStore) -> None:
    gate, inside = Gate(), Effect()

    async def parent(run: Run) -> Any:
        await gate()  # plain code: no step in which the cancel would be noticed
        return await run.child("part", lambda run: run.step("inside", inside))

    task = asyncio.create_task(store.run("n", parent, workflow_id="w"))
    await gate.reached.wait()
    await store.cancel((await row_of(store, "w")).id)
    gate.opened.set()
    with pytest.raises(RunCancelled):
        await task
    assert inside.calls == []
    assert [row.status for row in await fetch(store, select(workflow_states.c.status))] == ["cancelled"]


async def test_a_child_that_is_started_beside_a_cancel_is_cancelled_or_never_there(database_url: str) -> None:
    async with StateStore.open(database_url) as store, StateStore.open(database_url) as other:

        async def waits(run: Run) -> Any:
            return await run.wait_for("answer")

        async def parent(run: Run) -> Any:
            return await asyncio.gather(*(run.child("part", waits) for _ in range(20)))

        task = asyncio.create_task(store.recover({"n": parent, "part": waits}))
        state = await other.start("n", workflow_id="w")
        await asyncio.sleep(0.05)
        await other.cancel(state.id)
        await asyncio.wait({task})
        await store.recover({"n": parent, "part": waits})
        async with asyncio.timeout(20):
            # A child whose row came to be while its caller was cancelled is let go of a moment later.
            statuses = select(workflow_states.c.status).distinct()
            while await fetch(store, statuses) != [("cancelled",)]:  # noqa: ASYNC110 - rows tell nobody
                await asyncio.sleep(0.01)


async def test_a_worker_that_lost_a_run_starts_no_child_of_it(store: StateStore) -> None:
    gate = Gate()

    async def parent(run: Run) -> Any:
        await gate()
        return await run.child("part", Effect())

    task = asyncio.create_task(store.run("n", parent, workflow_id="w"))
    await gate.reached.wait()
    await change_row(store, (await row_of(store, "w")).id, lease_token=99)
    gate.opened.set()
    with pytest.raises(Conflict):
        await task
    assert len(await fetch(store, select(workflow_states.c.id))) == 1


async def test_a_cancel_reaches_a_run_whose_own_parent_has_ended(store: StateStore) -> None:
    async def waits(run: Run) -> Any:
        return await run.wait_for("answer")

    async def child(run: Run) -> Any:
        return await run.child("grandchild", waits)

    async def parent(run: Run) -> Any:
        return await run.child("child", child)

    state = await store.start("n", workflow_id="w")
    await store.recover({"n": parent, "child": child, "grandchild": waits})
    [(child_id,)] = await fetch(store, select(workflow_states.c.id).where(workflow_states.c.parent_id == state.id))
    await change_row(store, child_id, status="failed")
    await store.cancel(state.id)
    await store.cancel(state.id)
    assert sorted(row.status for row in await fetch(store, select(workflow_states.c.status))) == [
        "cancelled",
        "cancelled",
        "failed",
    ]
