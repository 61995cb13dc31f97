"""`BlockingStore`: a `StateStore` in an event loop of its own, for threads that block."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar, Unpack, overload

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from orchestrator_state import hooks
from orchestrator_state.arguments import as_handlers
from orchestrator_state.blocking.calls import blocking
from orchestrator_state.blocking.opened import Opened
from orchestrator_state.blocking.runs import BlockingRun, in_a_thread
from orchestrator_state.blocking.units import BlockingUnitOfWork, OpenUnit
from orchestrator_state.blocking.workers import BlockingWorker
from orchestrator_state.concurrency import ProcessLock
from orchestrator_state.database import SqliteLocation, locate
from orchestrator_state.errors import ConfigurationError
from orchestrator_state.execution import RecoveryReport
from orchestrator_state.maintenance import Retention
from orchestrator_state.payloads import PLAIN, Payloads
from orchestrator_state.records.overview import Attribute
from orchestrator_state.runs import Budget, Duration, Handler, Run
from orchestrator_state.settings import Options, Settings
from orchestrator_state.state_schema import StateSchema
from orchestrator_state.store import Opening, RunOptions, StateStore
from orchestrator_state.worker import Worker

_T = TypeVar("_T")
_R = TypeVar("_R")
_State = TypeVar("_State", bound=BaseModel)
BlockingHandler = Callable[[BlockingRun[Any]], Any]


class BlockingStore:
    """A `StateStore` for code that is not async. Open it with `BlockingStore.open`.

    Its calls have the names, arguments, results and errors of `StateStore`'s, and block the thread that makes them. One
    event loop in a thread of its own does the work, for any number of threads. What interrupts a thread that waits, as
    Ctrl-C does, cancels its call.

    A forked child, as of gunicorn or Celery, opens its own connections when it first uses the store, and leaves its
    parent's alone. A store that was left open is closed when the process ends.
    """

    def __init__(self, opening: Opening[StateStore], *, is_for_children: bool) -> None:
        self._opening = opening
        self._is_for_children = is_for_children
        self._lock = ProcessLock()
        self._is_closed = False
        self._left_behind: list[Opened] = []  # kept, since to collect them would touch what the parent uses
        self._opened = Opened(opening)
        self._watch()

    @classmethod
    def open(
        cls,
        database: str | os.PathLike[str] | None = None,
        *,
        engine: AsyncEngine | None = None,
        sessionmaker: async_sessionmaker[Any] | None = None,
        migrate: bool | None = None,
        hook: hooks.Hook | Sequence[hooks.Hook] | None = None,
        payloads: Payloads = PLAIN,
        schemas: Iterable[StateSchema] = (),
        **options: Unpack[Options],
    ) -> Self:
        """Open a store: `store = BlockingStore.open(url)`, or `with BlockingStore.open(url) as store`.

        The arguments are those of `StateStore.open`. `hook`, and functions that are told of progress, are called in the
        thread of the event loop. An `engine` is used there alone; a store on one, or in memory, is of no use in a
        forked child.
        """
        is_lasting = False
        if engine is None:
            database, is_lasting = _located(database, options)
        opening = StateStore.open(
            database,
            engine=engine,
            sessionmaker=sessionmaker,
            migrate=migrate,
            hook=hook,
            payloads=payloads,
            schemas=schemas,
            **options,
        )
        return cls(opening, is_for_children=is_lasting)

    def __reduce__(self) -> NoReturn:
        raise ConfigurationError("a store belongs to its process, and does not pickle: open another one there")

    @property
    def namespace(self) -> str:
        """See `StateStore.namespace`."""
        return self._opened.store.namespace

    @property
    def payloads(self) -> Payloads:
        """See `StateStore.payloads`."""
        return self._opened.store.payloads

    def close(self) -> None:
        """Close the store's connections and end its thread. Closing twice is harmless; any other call then raises.

        Runs under way are stopped where they are, and let go of for whoever comes next. Calls of other threads that are
        under way raise `StoreUnavailable`.
        """
        if self._opened.loop.is_here:
            self._opened.close()
        self._is_closed = True

    def __enter__(self) -> Self:
        self._here()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # --- runs --------------------------------------------------------------------------------------------------------

    @overload
    def run(
        self,
        name: str,
        handler: Callable[[Run[_State]], Awaitable[_T]],
        *,
        returns: None = None,
        **options: Unpack[RunOptions[_State]],
    ) -> _T: ...

    @overload
    def run(
        self,
        name: str,
        handler: Callable[[BlockingRun[_State]], _T],
        *,
        returns: None = None,
        **options: Unpack[RunOptions[_State]],
    ) -> _T: ...

    @overload
    def run(
        self,
        name: str,
        handler: Callable[[Run[_State]], Awaitable[object]] | Callable[[BlockingRun[_State]], object],
        *,
        returns: type[_R],
        **options: Unpack[RunOptions[_State]],
    ) -> _R: ...

    @overload
    def run(
        self,
        name: str,
        handler: Callable[[Run[_State]], Awaitable[object]] | Callable[[BlockingRun[_State]], object],
        *,
        returns: Any,
        **options: Unpack[RunOptions[_State]],
    ) -> Any: ...

    def run(  # noqa: PLR0913 - as StateStore.run
        self,
        name: str,
        handler: Callable[..., Any],
        *,
        workflow_id: str | None = None,
        context: dict[str, Any] | BaseModel | None = None,
        state: type[BaseModel] | None = None,
        returns: Any = None,
        user_id: str | None = None,
        idempotency_key: str | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        budget: Budget | Decimal | float | None = None,
        wait: Duration | None = None,
        strict: bool = False,
    ) -> Any:
        """Start the run of `workflow_id`, resume it if it is unfinished, or return its recorded result.

        See `StateStore.run`. The handler is an async function of a `Run`, called in the event loop, or a plain one of a
        `BlockingRun`, called in a thread of its own with this thread's context variables.
        """
        options: dict[str, Any] = {"workflow_id": workflow_id, "context": context, "state": state, "returns": returns}
        options |= {"user_id": user_id, "idempotency_key": idempotency_key, "attributes": attributes}
        options |= {"budget": budget, "wait": wait, "strict": strict}
        return self._execute(lambda store: store.run(name, self._as_async(handler), **options))

    def recover(
        self, handlers: Mapping[str, Handler[Any] | BlockingHandler], *, concurrency: int = 10
    ) -> RecoveryReport:
        """Claim every abandoned run that has a handler here, and resume it: see `StateStore.recover`.

        Handlers are as in `run`.
        """
        return self._execute(lambda store: store.recover(self._all_async(handlers), concurrency=concurrency))

    def worker(
        self,
        handlers: Mapping[str, Handler[Any] | BlockingHandler],
        *,
        concurrency: int = 10,
        poll: Duration = timedelta(seconds=1),
        grace: Duration = timedelta(seconds=10),
        retention: Retention | None = None,
    ) -> BlockingWorker:
        """Make a `Worker` that claims and resumes runs for ever: `store.worker(handlers).run()`, or a `with` block.

        Handlers are as in `run`, the rest as in `Worker`.
        """
        opened = self._here()

        async def make() -> Worker:
            known = self._all_async(handlers)
            return Worker(
                opened.store,
                known,
                concurrency=concurrency,
                poll=poll,
                grace=grace,
                handle_signals=False,
                retention=retention,
            )

        return BlockingWorker(opened, make)

    start = blocking(StateStore.start)
    list_runs = blocking(StateStore.list_runs)
    get_run = blocking(StateStore.get_run)
    stats = blocking(StateStore.stats)
    list_checkpoints = blocking(StateStore.list_checkpoints)
    set_attributes = blocking(StateStore.set_attributes)
    result = blocking(StateStore.result)
    wait = blocking(StateStore.wait)
    signal = blocking(StateStore.signal)
    usage = blocking(StateStore.usage)
    list_questions = blocking(StateStore.list_questions)
    get_question = blocking(StateStore.get_question)
    answer = blocking(StateStore.answer)
    pause = blocking(StateStore.pause)
    resume = blocking(StateStore.resume)
    cancel = blocking(StateStore.cancel)
    fork = blocking(StateStore.fork)
    rewind = blocking(StateStore.rewind)

    # --- state by hand -----------------------------------------------------------------------------------------------

    def begin(self) -> AbstractContextManager[BlockingUnitOfWork]:
        """Open a unit of work: `with store.begin() as uow`. It commits at the end of the block.

        Any exception rolls it back, one that interrupts the thread included: see `StateStore.begin`. It belongs to the
        thread that opened it.
        """
        return self._unit()

    save_workflow_state = blocking(StateStore.save_workflow_state)
    load_workflow_state = blocking(StateStore.load_workflow_state)
    load_workflow_state_by_workflow_id = blocking(StateStore.load_workflow_state_by_workflow_id)
    list_active_workflows = blocking(StateStore.list_active_workflows)
    create_checkpoint = blocking(StateStore.create_checkpoint)
    get_checkpoint = blocking(StateStore.get_checkpoint)
    get_latest_checkpoint = blocking(StateStore.get_latest_checkpoint)
    restore_from_checkpoint = blocking(StateStore.restore_from_checkpoint)

    # --- upkeep ------------------------------------------------------------------------------------------------------

    delete = blocking(StateStore.delete)
    erase = blocking(StateStore.erase)
    apply_retention = blocking(StateStore.apply_retention)
    last_retention = blocking(StateStore.last_retention)
    delete_old_states = blocking(StateStore.delete_old_states)
    prune_checkpoints = blocking(StateStore.prune_checkpoints)
    cleanup_old_checkpoints = blocking(StateStore.cleanup_old_checkpoints)
    collect_garbage = blocking(StateStore.collect_garbage)
    verify = blocking(StateStore.verify)
    rekey = blocking(StateStore.rekey)
    export_runs = blocking(StateStore.export_runs)
    import_runs = blocking(StateStore.import_runs)
    backup = blocking(StateStore.backup)
    import_original = blocking(StateStore.import_original)
    health_check = blocking(StateStore.health_check)

    # --- where it is done --------------------------------------------------------------------------------------------

    def _call(self, method: Callable[..., Coroutine[Any, Any, Any]], args: Any, options: Any) -> Any:
        return self._execute(lambda store: method(store, *args, **options))

    def _execute(self, work: Callable[[StateStore], Awaitable[_T]]) -> _T:
        """In the task of the unit that this thread is inside, if any, so that it is told what it cannot do in there."""
        opened = self._here()
        unit = opened.units.get(threading.get_ident())
        call = opened.loop.call if unit is None else unit.ask
        return call(partial(work, opened.store))

    @contextmanager
    def _unit(self) -> Iterator[BlockingUnitOfWork]:
        opened, thread = self._here(), threading.get_ident()
        if thread in opened.units:
            raise ConfigurationError("this thread is inside `with store.begin() as uow` already; use that uow")
        unit = OpenUnit(opened.loop, opened.store)
        with unit.opened() as uow:
            opened.units[thread] = unit
            try:
                yield uow
            finally:
                del opened.units[thread]

    def _as_async(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        return in_a_thread(self._opened.loop, handler)

    def _all_async(self, handlers: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
        return {name: self._as_async(handler) for name, handler in as_handlers(handlers).items()}

    def _here(self) -> Opened:
        """What this process has of it. Raises `ConfigurationError` if it is closed."""
        if self._is_closed:
            raise ConfigurationError("the store is closed; open another")
        return self._opened if self._opened.loop.is_here else self._opened_anew()

    def _opened_anew(self) -> Opened:
        """In a forked child."""
        with self._lock.own:
            if not self._opened.loop.is_here:
                if not self._is_for_children:
                    raise ConfigurationError(
                        "a store in memory, or on the application's engine, belongs to the process that opened it; "
                        "open another one in this"
                    )
                opened = Opened(self._opening)
                self._left_behind.append(self._opened)
                self._opened = opened
                self._watch()
            return self._opened

    def _watch(self) -> None:
        """If this object is dropped without being closed, end its thread."""
        weakref.finalize(self, _let_go, self._opened).atexit = False


def _let_go(opened: Opened) -> None:
    if opened.loop.is_here:
        opened.close_soon()


def _located(database: Any, options: Mapping[str, Any]) -> tuple[Any, bool]:
    """Where the database is, for a forked child too, which may have changed its directory; and whether it lasts."""
    if not isinstance(database, str | os.PathLike | None):
        return database, False  # and will be refused
    given = None if database is None else os.fspath(database)
    url = Settings.load(database_url=given, **options).database_url
    location = locate(url)
    if not isinstance(location, SqliteLocation) or location.path is None:
        return url, location.is_lasting
    with contextlib.suppress(FileNotFoundError):  # the directory is gone, and opening will say so
        return Path.cwd() / location.path, True
    return location.path, True
