"""An outage at each call that needs the database: it reaches no handler, fails no run, and ends no worker.

A short one is outlasted. One that is longer than anybody's patience lets go of the run, for whoever comes next. On
Postgres all connections are cut and new ones refused; on SQLite another program keeps the file to itself. The calls
come one after the other, on several lanes side by side: a lane has its own store, and outages that the others do not
notice.
"""

import asyncio
import shutil
import sqlite3
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

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
from tests.support.cases import case, gathered
from tests.support.cutting_proxy import CuttingProxy
from tests.support.engines import opened_engine
from tests.support.running import Effect, all_become, row_of, seconds, steps_of

pytestmark = pytest.mark.slow  # an outage at each call


class Outage:
    """Takes the database away from the store at `url`, and gives it back."""

    def __init__(self, url: str, take_away: Callable[[], Awaitable[None]], give_back: Callable[[], object]) -> None:
        self.url = url
        self.lasts = 0.5  # seconds
        self._take_away, self._give_back = take_away, give_back
        self._over = asyncio.Event()

    async def begin(self) -> None:
        self._over.clear()
        await self._take_away()
        asyncio.get_running_loop().call_later(self.lasts, self._end)

    def _end(self) -> None:
        self._give_back()
        self._over.set()

    @asynccontextmanager
    async def at(self, call: str) -> AsyncIterator[None]:
        """One begins in this block, and is over at its end. What fails there is told with the name of the call."""
        with case(call):
            yield
            await self._over.wait()


@asynccontextmanager
async def _of_postgres(url: str) -> AsyncIterator[Outage]:
    with tempfile.TemporaryDirectory(prefix="outage-") as directory:
        async with CuttingProxy(url, Path(directory)).running() as proxy:

            async def take_away() -> None:
                proxy.refusing = True
                proxy.cut_off()

            yield Outage(proxy.url, take_away, lambda: setattr(proxy, "refusing", False))


@asynccontextmanager
async def _of_sqlite(url: str) -> AsyncIterator[Outage]:
    other = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None, timeout=0)

    async def take_away() -> None:
        """Without blocking this thread: who has the file may need it, to come to the end of a transaction."""
        while True:
            with suppress(sqlite3.OperationalError):
                other.execute("BEGIN EXCLUSIVE")
                return
            await asyncio.sleep(0.001)

    yield Outage(url, take_away, lambda: other.execute("ROLLBACK"))
    other.close()


class Patience(NamedTuple):
    retry_timeout: float  # seconds
    outage: float


PATIENCE = {
    "outlasted": Patience(30, 0.25),
    "outlasted on the application's engine": Patience(30, 0.25),
    "longer than anybody's patience": Patience(0.2, 0.5),
}
_IMPATIENT: Any = {"connect_args": {"timeout": 0.1}}


LANES = 6


class Lane(NamedTuple):
    store: StateStore
    near: StateStore
    """A store that no outage touches, to look with."""
    outage: Outage


@pytest.fixture(params=PATIENCE)
async def lanes(
    backend: str, database_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Sequence[Lane]]:
    """On Postgres each has its own namespace, on SQLite its own file: that is locked as a whole."""
    async with AsyncExitStack() as stack:
        lanes = []
        for number in range(LANES):
            if backend == "sqlite":
                url = f"sqlite:///{shutil.copyfile(database_url.removeprefix('sqlite:///'), tmp_path / f'{number}.db')}"
                outage = await stack.enter_async_context(_of_sqlite(url))
            else:
                url = database_url
                outage = await stack.enter_async_context(_of_postgres(url))
            opened = _lane(url, f"lane {number}", outage, request.param)
            lanes.append(await stack.enter_async_context(opened))
        yield lanes


@asynccontextmanager
async def _lane(url: str, namespace: str, outage: Outage, kind: str) -> AsyncIterator[Lane]:
    patience = PATIENCE[kind]
    outage.lasts = patience.outage
    options: dict[str, Any] = {"retry_timeout": seconds(patience.retry_timeout), "lease_term": seconds(6)}
    place: dict[str, Any] = {"database": outage.url, "pool_min": 2}
    async with AsyncExitStack() as stack:
        near = await stack.enter_async_context(StateStore.open(url, namespace=namespace))
        if kind.endswith("engine"):
            impatient = _IMPATIENT if outage.url.startswith("sqlite") else {}
            place = {"engine": await stack.enter_async_context(opened_engine(outage.url, pool_size=5, **impatient))}
        opened = StateStore.open(**place, **options, lock_timeout=seconds(0.1), namespace=namespace)
        yield Lane(await stack.enter_async_context(opened), near, outage)


async def on_lanes(lanes: Sequence[Lane], calls: Iterable[str], meets: Callable[[Lane, str], Awaitable[None]]) -> None:
    """Let each call meet an outage, on the next lane that is free."""
    left = iter(calls)

    async def drive(lane: Lane) -> None:
        for call in left:
            async with lane.outage.at(call):
                await meets(lane, call)

    await gathered(drive(lane) for lane in lanes)


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
    """Does one thing that is paid for, then meets an outage at the call that the run is named after."""

    def __init__(self, outage: Outage) -> None:
        self.paid, self.saw = defaultdict[str, Effect](Effect), list[BaseException]()
        self.signalled = defaultdict[str, asyncio.Event](asyncio.Event)
        self._outage, self._met = outage, set[str]()

    async def __call__(self, run: Run) -> str:
        await self.signalled[run.workflow_id].wait()  # or who has no patience would meet the one that signals
        await run.step("paid", self.paid[run.workflow_id], "answer")
        if run.workflow_id not in self._met:  # whoever tries again later finds the database there
            self._met.add(run.workflow_id)
            await self._outage.begin()
        try:
            await CALLS[run.workflow_id](run)
        except OutcomeUnknown:
            return "done"  # the step's own, which asked for it
        except Exception as error:
            self.saw.append(error)
            raise
        return "done"

    def is_content_with(self, call: str) -> None:
        assert (self.saw, self.paid[call].calls) == ([], ["answer"])


async def started(near: StateStore, handler: Handler, call: str) -> None:
    """There is the signal that it may wait for before it comes to the call."""
    state = await near.start("w", workflow_id=call)
    await near.signal(state.id, "go")
    handler.signalled[call].set()


async def test_an_outage_at_a_call_of_a_run_is_none_of_its_handlers_business(lanes: Sequence[Lane]) -> None:
    async def meets(lane: Lane, call: str) -> None:
        handler = Handler(lane.outage)
        await started(lane.near, handler, call)
        for _ in range(60):
            with suppress(StoreUnavailable):
                assert await lane.store.run("w", handler, workflow_id=call, wait=30) == "done"
                break
            await asyncio.sleep(0.1)
        handler.is_content_with(call)
        row = await row_of(lane.near, call)
        assert (row.status, row.error) == (WorkflowStatus.COMPLETED, None)
        steps = await steps_of(lane.near, call)
        assert all(step.status != "running" or call.startswith("step") for step in steps.values())

    await on_lanes(lanes, CALLS, meets)


async def test_nor_does_it_end_the_worker_or_fail_what_it_has_under_way(lanes: Sequence[Lane]) -> None:
    async with AsyncExitStack() as workers:
        working = {lane: await workers.enter_async_context(at_work(lane)) for lane in lanes}

        async def meets(lane: Lane, call: str) -> None:
            handler, worker = working[lane]
            await started(lane.near, handler, call)
            await all_become("completed", lane.near, [call])
            await lane.near.start("n", workflow_id=f"after {call}")
            await all_become("completed", lane.near, [f"after {call}"])
            assert worker.health().state == "working"
            handler.is_content_with(call)

        await on_lanes(lanes, CALLS, meets)


@asynccontextmanager
async def at_work(lane: Lane) -> AsyncIterator[tuple[Handler, Worker]]:
    handler, neighbour = Handler(lane.outage), Effect()
    handlers: dict[str, Any] = {"w": handler, "n": lambda run: run.step("s", neighbour)}
    async with Worker(lane.store, handlers, poll=0.1, handle_signals=False) as worker:
        yield handler, worker


# --- the calls of the store -------------------------------------------------------------------------------------------


class Place:
    """Runs in all the conditions that a call may be about."""

    def __init__(self, store: StateStore, call: str) -> None:
        self.store, self.call = store, call

    async def furnish(self) -> "Place":
        for name in ("completed", "failed"):
            with suppress(LookupError):
                await self.store.run("w", self.work, workflow_id=self.called(name))
        self.pending = (await self.store.start("w", workflow_id=self.called("pending"))).id
        self.completed = (await self.store.load_workflow_state_by_workflow_id(self.called("completed"))).id
        self.failed = (await self.store.load_workflow_state_by_workflow_id(self.called("failed"))).id
        newest = await self.store.get_latest_checkpoint(self.completed)
        assert newest is not None
        self.checkpoint = newest.id
        return self

    def called(self, name: str) -> str:
        return f"{self.call}: {name}"

    async def work(self, run: Run) -> Any:
        await run.step("s", Effect())
        if run.workflow_id == self.called("failed"):
            await run.step("declined", declined)
        return "done"


def saved(at: Place) -> WorkflowState:
    return WorkflowState(workflow_id=at.called("saved"), workflow_name="by hand")


CONTROLS: dict[str, Callable[[StateStore, Place], Awaitable[Any]]] = {
    "start": lambda store, at: store.start("w", workflow_id=at.called("another")),
    "run": lambda store, at: store.run("w", at.work, workflow_id=at.called("another")),
    "run of a completed one": lambda store, at: store.run("w", at.work, workflow_id=at.called("completed")),
    "recover": lambda store, at: store.recover({"w": at.work}),
    "signal": lambda store, at: store.signal(at.pending, "go"),
    "pause": lambda store, at: store.pause(at.pending),
    "resume": lambda store, at: store.resume(at.failed),
    "cancel": lambda store, at: store.cancel(at.pending),
    "fork": lambda store, at: store.fork(at.checkpoint, workflow_id=at.called("fork")),
    "rewind": lambda store, at: store.rewind(at.checkpoint),
    "save": lambda store, at: store.save_workflow_state(saved(at)),
    "load": lambda store, at: store.load_workflow_state(at.completed),
    "load by name": lambda store, at: store.load_workflow_state_by_workflow_id(at.called("completed")),
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


async def test_an_outage_at_a_call_of_the_store_is_outlasted_or_a_typed_error(
    lanes: Sequence[Lane], request: pytest.FixtureRequest
) -> None:
    is_short = "outlasted" in request.node.callspec.id

    async def meets(lane: Lane, call: str) -> None:
        place = await Place(lane.near, call).furnish()
        await lane.outage.begin()
        try:
            await CONTROLS[call](lane.store, place)
        except StoreUnavailable:
            assert not is_short
        for name in ("pending", "completed"):
            assert (await row_of(lane.near, place.called(name))).status != WorkflowStatus.FAILED

    await on_lanes(lanes, CONTROLS, meets)
