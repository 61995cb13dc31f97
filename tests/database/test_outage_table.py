"""An outage at each call that needs the database: it reaches no handler, fails no run, and ends no worker.

A short one is outlasted. One that is longer than anybody's patience lets go of the run, for whoever comes next. On
Postgres all connections are cut and new ones refused; on SQLite another program keeps the file to itself.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from orchestrator_state import (
    Checkpoint,
    Happened,
    OutcomeUnknown,
    Run,
    StateStore,
    StoreUnavailable,
    Worker,
    WorkflowState,
    WorkflowStatus,
)
from tests.support.cutting_proxy import CuttingProxy
from tests.support.engines import opened_engine
from tests.support.running import Effect, becomes, row_of, seconds, steps_of

AWAY = 0.5  # seconds


class Outage:
    """Takes the database away from the store at `url`, and gives it back."""

    def __init__(self, url: str, take_away: Callable[[], object], give_back: Callable[[], object]) -> None:
        self.url = url
        self._take_away, self._give_back = take_away, give_back
        self.times = 0

    def begin(self) -> None:
        """For `AWAY` seconds, once: whoever tries again later finds the database there."""
        self.times += 1
        if self.times == 1:
            self._take_away()
            asyncio.get_running_loop().call_later(AWAY, self._give_back)


@pytest.fixture
async def outage(backend: str, database_url: str, tmp_path: Path) -> AsyncIterator[Outage]:
    async with _of_sqlite(database_url) if backend == "sqlite" else _of_postgres(database_url, tmp_path) as outage:
        yield outage


@asynccontextmanager
async def _of_postgres(url: str, directory: Path) -> AsyncIterator[Outage]:
    async with CuttingProxy(url, directory).running() as proxy:

        def take_away() -> None:
            proxy.refusing = True
            proxy.cut_off()

        yield Outage(proxy.url, take_away, lambda: setattr(proxy, "refusing", False))


@asynccontextmanager
async def _of_sqlite(url: str) -> AsyncIterator[Outage]:
    other = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None, timeout=10)
    yield Outage(url, lambda: other.execute("BEGIN EXCLUSIVE"), lambda: other.execute("ROLLBACK"))
    other.close()


PATIENCE: dict[str, dict[str, Any]] = {
    "outlasted": {"retry_timeout": seconds(30)},
    "outlasted on the application's engine": {"retry_timeout": seconds(30)},
    "longer than anybody's patience": {"retry_timeout": seconds(0.2)},
}


_IMPATIENT: Any = {"connect_args": {"timeout": 0.1}}


@pytest.fixture(params=PATIENCE)
async def store(outage: Outage, request: pytest.FixtureRequest) -> AsyncIterator[StateStore]:
    options: dict[str, Any] = {"pool_min": 2, "lock_timeout": seconds(0.1), "lease_term": seconds(6)}
    place: dict[str, Any] = {"database": outage.url}
    async with AsyncExitStack() as stack:
        if request.param.endswith("engine"):
            impatient = _IMPATIENT if outage.url.startswith("sqlite") else {}
            place = {"engine": await stack.enter_async_context(opened_engine(outage.url, pool_size=5, **impatient))}
        yield await stack.enter_async_context(StateStore.open(**place, **options, **PATIENCE[request.param]))


@pytest.fixture
async def near(database_url: str) -> AsyncIterator[StateStore]:
    """A store that no outage touches, to look with."""
    async with StateStore.open(database_url) as near:
        yield near


# --- the calls of a run -----------------------------------------------------------------------------------------------


async def rows(session: Any) -> str:
    return str(await session.scalar(text("SELECT 'written'")))


async def fails(run: Run) -> None:
    with suppress(LookupError):
        await run.step("declined", declined)


async def declined() -> None:
    raise LookupError("declined")


async def appends(run: Run) -> None:
    run.append("log", "item")
    await run.step("s", Effect())


async def times_out(run: Run) -> None:
    with suppress(TimeoutError):
        await run.wait_for("never", timeout=0.1)


async def gathers(run: Run) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(run.step("s", Effect()))
        group.create_task(run.sleep(0.1))
        group.create_task(run.wait_for("go"))


CALLS: dict[str, Callable[[Run], Awaitable[Any]]] = {
    "step": lambda run: run.step("s", Effect()),
    "step with an intent": lambda run: run.step("s", Effect(), on_unknown="raise"),
    "step that asks": lambda run: run.step("s", Effect(), on_unknown=lambda key: Happened("found")),
    "step that fails": fails,
    "append": appends,
    "transact": lambda run: run.transact("t", rows),
    "checkpoint": lambda run: run.checkpoint("here"),
    "sleep": lambda run: run.sleep(0.1),
    "wait_for": lambda run: run.wait_for("go"),
    "wait_for that ends": times_out,
    "child": lambda run: run.child("kid", lambda kid: kid.step("s", Effect())),
    "group": gathers,
    "the end": lambda _: asyncio.sleep(0),
}


class Handler:
    """Does one thing that is paid for, then meets the outage at `call`; what it sees of that it undoes."""

    def __init__(self, outage: Outage, call: str) -> None:
        self.paid, self.saw = Effect(), list[BaseException]()
        self._outage, self._call = outage, CALLS[call]

    async def __call__(self, run: Run) -> str:
        await run.step("paid", self.paid, "answer")
        self._outage.begin()
        try:
            await self._call(run)
        except OutcomeUnknown:
            return "done"  # the step's own, which asked for it
        except Exception as error:
            self.saw.append(error)
            raise
        return "done"


@pytest.mark.parametrize("call", CALLS)
async def test_an_outage_at_a_call_of_a_run_is_none_of_its_handlers_business(
    store: StateStore, near: StateStore, outage: Outage, call: str
) -> None:
    handler = Handler(outage, call)
    started = await store.start("w", workflow_id="w")
    await store.signal(started.id, "go")
    for _ in range(20):
        with suppress(StoreUnavailable):
            assert await store.run("w", handler, workflow_id="w", wait=30) == "done"
            break
        await asyncio.sleep(0.2)
    assert (handler.saw, handler.paid.calls) == ([], ["answer"])
    row = await row_of(near, "w")
    assert (row.status, row.error) == (WorkflowStatus.COMPLETED, None)
    assert all(step.status != "running" or call.startswith("step") for step in (await steps_of(near, "w")).values())


@pytest.mark.parametrize("call", CALLS)
async def test_nor_does_it_end_the_worker_or_fail_what_it_has_under_way(
    store: StateStore, near: StateStore, outage: Outage, call: str
) -> None:
    handler, neighbour = Handler(outage, call), Effect()
    started = await store.start("w", workflow_id="w")
    await store.signal(started.id, "go")
    async with Worker(
        store, {"w": handler, "n": lambda run: run.step("s", neighbour)}, poll=0.1, handle_signals=False
    ) as worker:
        await becomes(lambda row: row.status == WorkflowStatus.COMPLETED, near, "w")
        await near.start("n", workflow_id="n")
        await becomes(lambda row: row.status == WorkflowStatus.COMPLETED, near, "n")
        assert worker.health().state == "working"
    assert (handler.saw, handler.paid.calls) == ([], ["answer"])


# --- the calls of the store -------------------------------------------------------------------------------------------


class Place:
    """Runs in all the conditions that a call may be about."""

    def __init__(self, store: StateStore) -> None:
        self.store = store

    async def furnish(self) -> "Place":
        async def work(run: Run) -> Any:
            await run.step("s", Effect())
            if run.workflow_id == "failed":
                await run.step("declined", declined)
            return "done"

        self.work = work
        for name in ("completed", "failed"):
            with suppress(LookupError):
                await self.store.run("w", work, workflow_id=name)
        self.pending = (await self.store.start("w", workflow_id="pending")).id
        self.completed = (await self.store.load_workflow_state_by_workflow_id("completed")).id
        self.failed = (await self.store.load_workflow_state_by_workflow_id("failed")).id
        newest = await self.store.get_latest_checkpoint(self.completed)
        assert newest is not None
        self.checkpoint = newest.id
        return self


def saved(_: Place) -> WorkflowState:
    return WorkflowState(workflow_id="saved", workflow_name="by hand")


CONTROLS: dict[str, Callable[[StateStore, Place], Awaitable[Any]]] = {
    "start": lambda store, _: store.start("w", workflow_id="another"),
    "run": lambda store, at: store.run("w", at.work, workflow_id="another"),
    "run of a completed one": lambda store, at: store.run("w", at.work, workflow_id="completed"),
    "recover": lambda store, at: store.recover({"w": at.work}),
    "signal": lambda store, at: store.signal(at.pending, "go"),
    "pause": lambda store, at: store.pause(at.pending),
    "resume": lambda store, at: store.resume(at.failed),
    "cancel": lambda store, at: store.cancel(at.pending),
    "fork": lambda store, at: store.fork(at.checkpoint, workflow_id="fork"),
    "rewind": lambda store, at: store.rewind(at.checkpoint),
    "save": lambda store, at: store.save_workflow_state(saved(at)),
    "load": lambda store, at: store.load_workflow_state(at.completed),
    "load by name": lambda store, _: store.load_workflow_state_by_workflow_id("completed"),
    "list": lambda store, _: store.list_active_workflows(),
    "create_checkpoint": lambda store, at: store.create_checkpoint(
        Checkpoint(workflow_state_id=at.completed, step_id="s", snapshot={})
    ),
    "get_latest_checkpoint": lambda store, at: store.get_latest_checkpoint(at.completed),
    "restore": lambda store, at: store.restore_from_checkpoint(at.checkpoint),
    "delete": lambda store, _: store.delete_old_states(datetime.now(UTC) - timedelta(days=1)),
    "prune": lambda store, _: store.prune_checkpoints(keep=1),
    "verify": lambda store, _: store.verify(load=True),
    "health_check": lambda store, _: store.health_check(timeout=30),
}


@pytest.mark.parametrize("call", CONTROLS)
async def test_an_outage_at_a_call_of_the_store_is_outlasted_or_a_typed_error(
    store: StateStore, near: StateStore, outage: Outage, call: str, request: pytest.FixtureRequest
) -> None:
    place = await Place(store).furnish()
    outage.begin()
    is_short = "outlasted" in request.node.callspec.id
    try:
        await CONTROLS[call](store, place)
    except StoreUnavailable:
        assert not is_short
    for name in ("pending", "completed"):
        assert (await row_of(near, name)).status != WorkflowStatus.FAILED
