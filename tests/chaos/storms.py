"""Workers at work, customers who send requests, and a fault that is made over and over; then the reckoning."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeVar

from orchestrator_state import InvalidTransition, StateStore, StoreUnavailable, WorkflowNotFound, WorkflowStatus
from tests.chaos.reckoning import Notes, Order, reckon
from tests.chaos.report import Report
from tests.chaos.witness import create_ledger
from tests.chaos.workload import LAST, NAME, Job, work_as
from tests.support.children import FORKS

_T = TypeVar("_T")
_CUSTOMERS: Final = 6


class DoesNotStart(Exception):
    """A worker ended before it could work."""


class WorkerProcess:
    """A worker, started again whenever it has been killed.

    As other children it is forked from a server that has imported everything, which takes most of a start. Under a
    command of its own, or in another environment, it is a Python started anew.
    """

    def __init__(self, job: Job, wrapper: list[str], environment: dict[str, str]) -> None:
        self.job = job
        self.wrapper = wrapper
        """A command before the worker's own."""
        self._environment = environment
        self._process: BaseProcess | None = None

    async def start(self) -> None:
        """Returns once it works."""
        if await asyncio.to_thread(self._started) != b"ready":
            self._running.join()
            raise DoesNotStart(f"a worker does not start: exit status {self.exit_code}")

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.send(signal.SIGKILL)
        self._running.kill()  # if it has no group of its own yet
        self._running.join()

    def send(self, number: signal.Signals) -> None:
        """To the worker, and to what it was started under."""
        assert self._running.pid is not None
        os.killpg(self._running.pid, number)

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._running.exitcode

    def close(self) -> None:
        if self._process is not None:
            self.kill()
            self._process.close()
            self._process = None

    @property
    def _running(self) -> BaseProcess:
        assert self._process is not None
        return self._process

    def _started(self) -> bytes:
        """Start it, and return the first that it says; nothing if it ended."""
        self.close()
        ours, theirs = FORKS.Pipe(duplex=False)
        with ours:
            with theirs:
                self._process = FORKS.Process(
                    target=work_as, args=(self.job, self.wrapper, self._environment, theirs), daemon=True
                )
                self._process.start()
            return os.read(ours.fileno(), len(b"ready"))


@dataclass(kw_only=True)
class World:
    """What a fault can be made in."""

    store: StateStore
    """The customers' and the auditor's."""
    workers: list[WorkerProcess]
    chance: random.Random
    report: Report
    orders: list[Order] = field(default_factory=list)
    impatience: float = 0.0
    """How likely a customer is to give up a call while it is under way."""
    jumps_to_conclusions: bool = False
    _call_takes: float = 0.02

    async def call(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """A customer's call. Raises `StoreUnavailable` of unknown outcome if the customer gave it up."""
        began = monotonic()
        if self.chance.random() >= self.impatience:
            answer = await call()
            self._call_takes = monotonic() - began
            return answer
        task = asyncio.ensure_future(call())
        await asyncio.wait({task}, timeout=self.chance.uniform(0, 1.5 * self._call_takes))
        for _ in range(self.chance.randrange(1, 3)):  # the second hits the clean-up after the first
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.wait({task})
        if not task.cancelled():
            return task.result()
        self.report.rounds += 1
        raise StoreUnavailable("the customer gave it up", outcome_unknown=not self.jumps_to_conclusions)

    async def pause(self, shortest: float, longest: float) -> None:
        await asyncio.sleep(self.chance.uniform(shortest, longest))


Storm = Callable[[World], Awaitable[None]]
"""Makes a fault over and over, and counts the rounds in the report. When it returns, the world is sound again."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Where a storm takes place."""

    url: str
    """The auditor's."""
    directory: Path
    seed: int
    workers: int = 2
    workers_url: str | None = None
    customers_url: str | None = None
    term: float = 3.0
    patience: float = 5.0
    """Seconds beyond the lease term, after the last fault, until a run that is not finished never will be."""
    jumps_to_conclusions: bool = False
    """Whether a customer takes a call that it gave up for one that did nothing."""
    are_timers_checked: bool = False
    """Whether the database's clock goes right and its answers are not delayed, so that no timer may end early."""
    wrapper: tuple[str, ...] = ()
    """A command that starts the worker's."""
    environment: dict[str, str] = field(default_factory=dict)
    """More of the workers' environment."""
    job: dict[str, Any] = field(default_factory=dict)
    """More of the workers' `Job`."""


async def weather(scene: Scene, name: str, storm: Storm) -> Report:
    """Let workers and customers go through `storm`, and look at what became of what they were told."""
    report = Report(name=name, seed=scene.seed)
    try:
        await _weather(scene, storm, report)
    except DoesNotStart as error:
        report.find("other", str(error))
    return report


async def _weather(scene: Scene, storm: Storm, report: Report) -> None:
    async with (
        StateStore.open(scene.url, migrate=False, pool_min=1) as auditor,
        StateStore.open(scene.customers_url or scene.url, migrate=False, pool_min=1) as customers,
    ):
        await create_ledger(auditor)
        async with _workers(scene) as workers:
            world = World(
                store=customers,
                workers=workers,
                chance=random.Random(scene.seed),
                report=report,
                jumps_to_conclusions=scene.jumps_to_conclusions,
            )
            is_over = asyncio.Event()
            crowd = [asyncio.create_task(_buy(world, number, is_over)) for number in range(_CUSTOMERS)]
            try:
                await storm(world)
            finally:
                is_over.set()
            healed_at = monotonic()
            report.find(
                "other", *(f"a worker ended by itself: {w.exit_code}" for w in workers if w.exit_code is not None)
            )
            await asyncio.gather(*crowd)
            await _all_finished(auditor, world, healed_at, scene.term + scene.patience)
        notes = Notes.of(scene.directory, are_timers_checked=scene.are_timers_checked)
        await reckon(auditor, world.orders, notes, report)


@asynccontextmanager
async def _workers(scene: Scene) -> AsyncIterator[list[WorkerProcess]]:
    job = Job(url=scene.workers_url or scene.url, journal="", term=scene.term, **scene.job)
    workers = []
    for number in range(scene.workers):
        own = replace(job, journal=str(scene.directory / f"{number}.diary"))
        workers.append(WorkerProcess(own, list(scene.wrapper), scene.environment))
    try:
        for worker in workers:
            await worker.start()
        yield workers
    finally:
        for worker in workers:
            worker.close()


async def _all_finished(auditor: StateStore, world: World, healed_at: float, patience: float) -> None:
    """Wait for every run; how long that took since the fault's end is in the report."""
    finished_at = healed_at
    while monotonic() < healed_at + patience:
        active = {state.id for state in await auditor.list_active_workflows()}
        if not active:
            break
        finished_at = monotonic()
        await asyncio.sleep(0.1)
    world.report.recovered_after(finished_at - healed_at)


# --- customers ---------------------------------------------------------------------------------------------------


async def _buy(world: World, number: int, is_over: asyncio.Event) -> None:
    """One order after the other, until the storm is over."""
    chance = random.Random(f"{world.report.seed} {number}")
    count = 0
    while not is_over.is_set():
        order = Order(workflow_id=f"order {number}.{count}")
        count += 1
        world.orders.append(order)
        try:
            await _order(world, order, chance)
            await _wait_for(world.store, order, is_over)
        except WorkflowNotFound:
            world.report.find("lost", f"{order.workflow_id}: its start was acknowledged, and there is no run")
        except InvalidTransition as error:
            world.report.find("other", f"{order.workflow_id}: {error}")


async def _order(world: World, order: Order, chance: random.Random) -> None:
    store = world.store
    order.id = (await _insist(world, order, lambda: store.start(NAME, workflow_id=order.workflow_id))).id
    run_id = order.id
    is_cancelled = chance.random() < 0.2
    for serial in range(1, LAST + 1):
        await asyncio.sleep(chance.uniform(0, 0.3))
        if is_cancelled and serial == LAST:
            await _insist(world, order, lambda: store.cancel(run_id))
            order.is_cancelled = True
            return
        if chance.random() < 0.2:
            await _insist(world, order, lambda: store.pause(run_id))
            await asyncio.sleep(chance.uniform(0, 0.1))
            await _insist(world, order, lambda: store.resume(run_id))
        await _signal(world, order, serial)


async def _signal(world: World, order: Order, serial: int) -> None:
    """Send a signal until one was acknowledged, each try with a payload of its own."""
    attempt = 0
    while True:
        sent = (serial, attempt)
        payload = {"serial": serial, "attempt": attempt}
        try:
            await world.call(partial(world.store.signal, order.id, "go", payload))
        except StoreUnavailable as error:
            order.signals[sent] = "maybe" if error.outcome_unknown else "refused"
            attempt += 1
            await asyncio.sleep(0.1)
        except InvalidTransition:
            if not any(told == "maybe" for told in order.signals.values()):
                raise
            return  # a try of unknown outcome was it
        else:
            order.signals[sent] = "acknowledged"
            return


async def _insist(world: World, order: Order, call: Callable[[], Awaitable[Any]]) -> Any:
    """Call again until it is acknowledged."""
    while True:
        try:
            answer = await world.call(call)
        except StoreUnavailable:
            await asyncio.sleep(0.1)
        else:
            order.acknowledged += 1
            return answer


async def _wait_for(store: StateStore, order: Order, is_over: asyncio.Event) -> None:
    """Until the order is finished, so that few are under way at a time; at the end nobody waits here."""
    while not is_over.is_set():
        with contextlib.suppress(StoreUnavailable):
            state = await store.load_workflow_state(order.id)
            if state.status in (WorkflowStatus.COMPLETED, WorkflowStatus.FAILED, WorkflowStatus.CANCELLED):
                return
        await asyncio.sleep(0.1)
