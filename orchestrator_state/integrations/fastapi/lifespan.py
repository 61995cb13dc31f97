"""The store of an application, open from its start to its end, and where its routes find it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Unpack

from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from orchestrator_state.errors import ConfigurationError
from orchestrator_state.hooks import Hook
from orchestrator_state.payloads import Payloads
from orchestrator_state.runs import Duration, Handler
from orchestrator_state.settings import Options
from orchestrator_state.state_schema import StateSchema
from orchestrator_state.store import StateStore
from orchestrator_state.worker import Worker

_PLACE: Final = "orchestrator_state"  # in `app.state`


class StoreOptions(Options, total=False):
    """The further arguments of `StateStore.open`."""

    migrate: bool | None
    hook: Hook | Sequence[Hook] | None
    payloads: Payloads
    schemas: Iterable[StateSchema]


class WorkerOptions(StoreOptions, total=False):
    """These, and the arguments of `Worker`."""

    concurrency: int
    poll: Duration
    grace: Duration


@dataclass(frozen=True, slots=True)
class Provided:
    """What the routes of an application work with."""

    store: StateStore
    worker: Worker | None
    sessionmaker: async_sessionmaker[Any] | None


class OrchestratorState:
    """A store that opens with an application of FastAPI's, and a worker for `handlers`.

        state = OrchestratorState(engine=engine, sessionmaker=sessions, handlers={"fulfil": fulfil})
        app = FastAPI(lifespan=state.lifespan)

    `database`, `engine`, `sessionmaker` and most `options` are those of `StateStore.open`; `concurrency`, `poll` and
    `grace` are the worker's. Without `handlers` there is no worker, and another process has to work. The dependencies
    `Session` and `Uow` take their sessions from `sessionmaker`.

    It holds no connection and no store, so that one may serve several applications, or one application that is started
    several times: each start opens a store of its own.
    """

    def __init__(
        self,
        database: str | os.PathLike[str] | None = None,
        *,
        engine: AsyncEngine | None = None,
        sessionmaker: async_sessionmaker[Any] | None = None,
        handlers: Mapping[str, Handler[Any]] | None = None,
        **options: Unpack[WorkerOptions],
    ) -> None:
        self._database = database
        self._engine = engine
        self._sessionmaker = sessionmaker
        self._handlers = handlers
        self._options: dict[str, Any] = dict(options)
        self._worker_options = {
            name: self._options.pop(name) for name in ("concurrency", "poll", "grace") if name in options
        }
        if handlers is None and self._worker_options:
            raise ConfigurationError(f"{min(self._worker_options)} is a worker's; give handlers too, or leave it out")

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Open the store, start the worker, and let the routes of `app` have them until the end of the block.

        For `FastAPI(lifespan=…)`, or inside of a lifespan of the application's own: `async with state.lifespan(app):`.
        At the end the runs under way go on for the worker's `grace`; then they are stopped and let go of.

        Raises what `StateStore.open` and `Worker` raise. A server does not start then, also if it is only that the
        database cannot be reached: whatever started it tells so, and tries again.
        """
        async with AsyncExitStack() as stack:
            opening = StateStore.open(
                self._database, engine=self._engine, sessionmaker=self._sessionmaker, **self._options
            )
            store = await stack.enter_async_context(opening)
            worker = None
            if self._handlers is not None:
                worker = await stack.enter_async_context(Worker(store, self._handlers, **self._worker_options))
            stack.enter_context(_provided(app, Provided(store, worker, self._sessionmaker)))
            yield


def provide(
    app: FastAPI,
    store: StateStore,
    *,
    worker: Worker | None = None,
    sessionmaker: async_sessionmaker[Any] | None = None,
) -> None:
    """Let the routes of `app` have a store that the application has opened itself, and closes itself.

    Also for an application that is mounted in another one: the routes of each have what that one was provided with.
    """
    setattr(app.state, _PLACE, [Provided(store, worker, sessionmaker)])


@contextmanager
def _provided(app: FastAPI, new: Provided) -> Iterator[None]:
    """Until the end of the block. An application may be started again meanwhile, and each end is of one start."""
    setattr(app.state, _PLACE, [*_all_in(app), new])
    try:
        yield
    finally:
        setattr(app.state, _PLACE, [each for each in _all_in(app) if each is not new])


def _all_in(app: FastAPI) -> list[Provided]:
    """The last one counts."""
    found: list[Provided] = getattr(app.state, _PLACE, [])
    return found


def provided_in(app: FastAPI) -> Provided:
    """Raises `ConfigurationError`, which says what was forgotten."""
    found = _all_in(app)
    if not found:
        raise ConfigurationError(
            "this application has no open store: write FastAPI(lifespan=state.lifespan), enter state.lifespan(app) in "
            "a lifespan of your own, or call provide(app, store); in a test, `with TestClient(app)` runs the lifespan"
        )
    return found[-1]
