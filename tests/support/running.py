"""Runs for the tests: workers that vanish, step functions that remember, and a look behind the public door."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, TypeVar
from uuid import UUID

import pytest
from sqlalchemy import Executable, select, text, update

from orchestrator_state import Checkpoint, Event, StateStore, hooks
from orchestrator_state.execution.attempts import Attempt
from orchestrator_state.models import step_states, workflow_states
from orchestrator_state.transactions import StoreUnit

_T = TypeVar("_T")

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


# --- workers that vanish ---


_drivers: ContextVar[tuple[asyncio.Task[Any], ...]] = ContextVar("drivers", default=())


def vanish() -> NoReturn:
    """End the attempt as a cancelled worker ends it: nothing is written about it, and its lease is released.

    Whoever drives the run is cancelled, and its parents'. A `CancelledError` alone would be the handler's own failure.
    """
    drivers = _drivers.get()
    assert drivers, "vanish() is for a handler, or what it calls"
    for driver in drivers:
        if _runs_here(driver.get_loop()):
            driver.cancel()
        else:
            driver.get_loop().call_soon_threadsafe(driver.cancel)  # a step's function may run in a thread
    raise asyncio.CancelledError


def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def let_workers_vanish(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remember, in the context of each handler, the tasks that `vanish` has to cancel; let a hook call it."""
    drive, tell = Attempt.drive, hooks.tell

    async def noted(self: Attempt, *args: Any, **options: Any) -> Any:
        driver = asyncio.current_task()
        assert driver is not None
        requests = driver.cancelling()
        outer = _drivers.set((*_drivers.get(), driver))
        try:
            return await drive(self, *args, **options)
        finally:
            _drivers.reset(outer)
            while driver.cancelling() > requests:
                driver.uncancel()  # the test goes on in it

    def tell_or_vanish(hook: hooks.Hook | None, kind: type[Event], **fields: Any) -> None:
        if isinstance(hook, VanishesEverywhere):
            hook.on_event(kind(**fields))
        else:
            tell(hook, kind, **fields)

    monkeypatch.setattr(Attempt, "drive", noted)
    monkeypatch.setattr(hooks, "tell", tell_or_vanish)


class VanishesEverywhere:
    """A hook that lets the worker vanish once at each event, before and after each commit among them.

    So every attempt comes one event further than the one before.
    """

    def __init__(self) -> None:
        self.moments: list[tuple[type[Event], str | None]] = []

    def on_event(self, event: Event) -> None:
        moment = (type(event), getattr(event, "step_id", None))
        if moment not in self.moments:
            self.moments.append(moment)
            vanish()


async def until_done(start: Callable[[], Awaitable[_T]], *, attempts: int = 100) -> _T:
    """Start again whenever the worker vanished."""
    for _ in range(attempts):
        with contextlib.suppress(asyncio.CancelledError):
            return await start()
    raise AssertionError(f"not done after {attempts} attempts")


async def expire_lease(store: StateStore, workflow_state_id: UUID) -> None:
    """Leave the lease as `kill -9` leaves it, once its term is over."""
    await change_row(store, workflow_state_id, lease_expires_at=LONG_AGO)


# --- step functions ---


class Effect:
    """A step function that remembers what it was called with, and returns it."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    async def __call__(self, value: Any = None) -> Any:
        self.calls.append(value)
        return value


class Stubborn:
    """A step function that ignores cancellation until it is let go, and then returns."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.refused = asyncio.Event()
        self.let_go = asyncio.Event()

    async def __call__(self) -> str:
        self.reached.set()
        while not self.let_go.is_set():
            try:
                await self.let_go.wait()
            except asyncio.CancelledError:
                self.refused.set()
        return "late"


class Gate:
    """A step function that says when it is reached, and waits until it is opened."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()
        self.cancelled = False

    async def __call__(self, value: Any = None) -> Any:
        self.reached.set()
        try:
            await self.opened.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return value


class Failing:
    """A step function that raises `errors` one after the other, then returns "done"."""

    def __init__(self, *errors: Exception) -> None:
        self.left = list(errors)
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.left:
            raise self.left.pop(0)
        return "done"


@dataclass
class Log:
    """A hook that remembers what it is told."""

    events: list[Event] = field(default_factory=list)

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[_T]) -> list[_T]:
        return [event for event in self.events if isinstance(event, kind)]


# --- what is stored ---


async def fetch(store: StateStore, query: Executable) -> Sequence[Any]:
    async def read(uow: StoreUnit) -> Sequence[Any]:
        return (await uow.session.execute(query)).all()

    return await store._transactions.read(read)


async def row_of(store: StateStore, workflow_id: str) -> Any:
    """All columns of the one workflow of that `workflow_id`."""
    [row] = await fetch(store, select(workflow_states).where(workflow_states.c.workflow_id == workflow_id))
    return row


async def becomes(wanted: Callable[[Any], bool], store: StateStore, workflow_id: str) -> None:
    """Wait until the workflow's row is as wanted; not until pytest's time limit, which does not say who waits."""
    async with asyncio.timeout(60):
        while not wanted(await row_of(store, workflow_id)):  # noqa: ASYNC110 - what changes it is another worker
            await asyncio.sleep(0.05)


async def all_become(status: str, store: StateStore, workflow_ids: Collection[str]) -> None:
    """Wait until all of these workflows have that status; not for ever, and then say which have not."""
    w = workflow_states.c
    others = select(w.workflow_id).where(w.workflow_id.in_(workflow_ids), w.status != status)
    left: Sequence[Any] = []
    try:
        async with asyncio.timeout(60):
            while left := await fetch(store, others):  # noqa: ASYNC110 - what changes it is another worker
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not {status}: {sorted(row.workflow_id for row in left)}") from None


async def steps_of(store: StateStore, workflow_id: str) -> dict[str, Any]:
    """All columns of its steps, by step id, in the order of their commits."""
    row = await row_of(store, workflow_id)
    query = select(step_states).where(step_states.c.workflow_state_id == row.id).order_by(step_states.c.position)
    return {step.step_id: step for step in await fetch(store, query)}


async def all_steps(store: StateStore) -> dict[tuple[str, str], Any]:
    """All columns of all steps there are, by workflow id and step id."""
    query = select(step_states, workflow_states.c.workflow_id).join(
        workflow_states, workflow_states.c.id == step_states.c.workflow_state_id
    )
    return {(step.workflow_id, step.step_id): step for step in await fetch(store, query)}


async def checkpoints_of(store: StateStore, workflow_id: str) -> list[Checkpoint]:
    """Oldest first."""
    row = await row_of(store, workflow_id)
    return (await store._transactions.read(lambda uow: uow.checkpoints.list(row.id)))[::-1]


async def count_rows(store: StateStore, table: str) -> int:
    [(count,)] = await fetch(store, text(f'SELECT count(*) FROM "{table}"'))
    return int(count)


async def change_row(store: StateStore, workflow_state_id: UUID, **columns: Any) -> None:
    """Change columns of a workflow's row past the package."""
    async with store.begin() as uow:
        await uow.session.execute(
            update(workflow_states).where(workflow_states.c.id == workflow_state_id).values(columns)
        )


async def change_step(store: StateStore, workflow_state_id: UUID, step_id: str, **columns: Any) -> None:
    """Change columns of a step's row past the package."""
    async with store.begin() as uow:
        await uow.session.execute(
            update(step_states)
            .where(step_states.c.workflow_state_id == workflow_state_id, step_states.c.step_id == step_id)
            .values(columns)
        )


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)
