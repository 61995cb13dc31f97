"""A unit of work for a thread: `with store.begin() as uow`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Concatenate, NoReturn, ParamSpec, Protocol, TypeVar

from sqlalchemy.orm import Session

from orchestrator_state.arguments import as_function
from orchestrator_state.blocking.calls import Call, Errands, blocking
from orchestrator_state.blocking.loops import LoopThread
from orchestrator_state.errors import ConfigurationError
from orchestrator_state.runs import is_async
from orchestrator_state.store import StateStore
from orchestrator_state.unit_of_work import CheckpointRepository, StepRepository, UnitOfWork, WorkflowRepository

_T = TypeVar("_T")
_P = ParamSpec("_P")


class Ask(Protocol):
    """Has something awaited in the task of a unit, and returns what it returns."""

    def __call__(self, work: Callable[[], Awaitable[_T]], /) -> _T: ...


class _TakenBack(Exception):
    """The block has ended by an exception."""


class OpenUnit:
    """A task that is inside `async with store.begin()`, and awaits there what a thread asks for."""

    def __init__(self, loop: LoopThread, store: StateStore) -> None:
        self._loop = loop
        self._store = store
        self._errands = Errands()
        self._unit: UnitOfWork | None = None
        self._is_taken_back = False

    @contextmanager
    def opened(self) -> Iterator[BlockingUnitOfWork]:
        """Begin, and commit at the end of the block; any exception rolls back, also one that interrupts the thread."""
        call = Call(self._serve)
        with self._loop.watching(call, call.begin):
            uow = self._begun()
            if uow is not None:
                try:
                    yield BlockingUnitOfWork(uow, self.ask)
                except BaseException:
                    self._end(is_taken_back=True)
                    call.wait()
                    raise
                self._end(is_taken_back=False)
            call.wait()
        self._loop.result_of(call)

    def ask(self, work: Callable[[], Awaitable[_T]], /) -> _T:
        """In the thread: return `await work()`. Raises `ConfigurationError` if the unit has ended."""
        call = self._asked(work)
        try:
            return call.result()
        except asyncio.CancelledError:
            raise ConfigurationError("this unit of work has ended; begin another") from None

    def _asked(self, work: Callable[[], Awaitable[_T]]) -> Call[_T]:
        call = Call(work)
        with self._loop.watching(call, partial(self._errands.take, call)):
            call.wait()
        return call

    def _begun(self) -> UnitOfWork | None:
        """None if it could not begin."""
        self._asked(_nothing)
        return self._unit

    def _end(self, *, is_taken_back: bool) -> None:
        self._is_taken_back = is_taken_back
        self._loop.post(self._errands.end)

    async def _serve(self) -> None:
        try:
            async with self._store.begin() as self._unit:
                await self._errands.serve()
                self._take_back_if_told()
        except _TakenBack:
            pass
        finally:
            self._errands.refuse()

    def _take_back_if_told(self) -> None:
        if self._is_taken_back:
            raise _TakenBack


async def _nothing() -> None:
    pass


class _Part:
    """Of a unit: its calls are made in the unit's task."""

    def __init__(self, of: Any, ask: Ask) -> None:
        self._of = of
        self._ask = ask

    def _call(self, method: Callable[..., Coroutine[Any, Any, Any]], args: Any, options: Any) -> Any:
        return self._ask(lambda: method(self._of, *args, **options))


class BlockingWorkflows(_Part):
    """Workflows with their steps: `WorkflowRepository`, whose calls block."""

    save = blocking(WorkflowRepository.save)
    find = blocking(WorkflowRepository.find)
    get = blocking(WorkflowRepository.get)
    find_by_workflow_id = blocking(WorkflowRepository.find_by_workflow_id)
    get_by_workflow_id = blocking(WorkflowRepository.get_by_workflow_id)
    list_active = blocking(WorkflowRepository.list_active)
    delete = blocking(WorkflowRepository.delete)
    count_finished = blocking(WorkflowRepository.count_finished)
    delete_finished = blocking(WorkflowRepository.delete_finished)


class BlockingSteps(_Part):
    """Steps by themselves, for reading: `StepRepository`, whose calls block."""

    list = blocking(StepRepository.list)
    find = blocking(StepRepository.find)
    get = blocking(StepRepository.get)


class BlockingCheckpoints(_Part):
    """The checkpoints of workflows: `CheckpointRepository`, whose calls block."""

    add = blocking(CheckpointRepository.add)
    find = blocking(CheckpointRepository.find)
    get = blocking(CheckpointRepository.get)
    find_latest = blocking(CheckpointRepository.find_latest)
    list = blocking(CheckpointRepository.list)
    prune = blocking(CheckpointRepository.prune)


class BlockingUnitOfWork(_Part):
    """What `with store.begin() as uow` yields: three repositories, and what runs are asked, in one transaction."""

    _of: UnitOfWork

    @property
    def workflows(self) -> BlockingWorkflows:
        """Workflows with their steps."""
        return BlockingWorkflows(self._of.workflows, self._ask)

    @property
    def steps(self) -> BlockingSteps:
        """Steps by themselves, for reading."""
        return BlockingSteps(self._of.steps, self._ask)

    @property
    def checkpoints(self) -> BlockingCheckpoints:
        """The checkpoints of workflows."""
        return BlockingCheckpoints(self._of.checkpoints, self._ask)

    def __reduce__(self) -> NoReturn:
        raise ConfigurationError("a unit of work belongs to its block, and does not pickle")

    start = blocking(UnitOfWork.start)
    signal = blocking(UnitOfWork.signal)
    cancel = blocking(UnitOfWork.cancel)

    def run_sync(self, fn: Callable[Concatenate[Session, _P], _T], *args: _P.args, **options: _P.kwargs) -> _T:
        """Return `fn(session, *args, **options)`: rows of your own, in the transaction of the unit.

        `session` is a SQLAlchemy `Session` that lasts as long as the block. `fn` is a plain function, called in the
        thread of the store's event loop, which serves all other threads too: let it do nothing but read and write rows.
        """
        as_function(fn, "the function of uow.run_sync")
        if is_async(fn):
            raise ConfigurationError("the function of uow.run_sync is async; give a plain one, which takes a Session")
        session = self._of.session
        return self._ask(lambda: session.run_sync(fn, *args, **options))
