"""From the arguments of `StateStore.open` to a database that is open and verified."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from orchestrator_state import hooks, schema
from orchestrator_state.arguments import as_flag
from orchestrator_state.concurrency import Aside, running_loop
from orchestrator_state.database import adopt_engine, open_database, require_fit_maker
from orchestrator_state.errors import ConfigurationError
from orchestrator_state.payloads import Limits, Payloads
from orchestrator_state.settings import Settings
from orchestrator_state.state_schema import Schemas
from orchestrator_state.transactions import Transactions

if TYPE_CHECKING:
    from orchestrator_state.store.state_store import StateStore

_Store = TypeVar("_Store", bound="StateStore")


class Opening(Generic[_Store]):
    """What `StateStore.open` returns: await it, or enter it with `async with`."""

    def __init__(self, kind: type[_Store], open_store: Callable[[], Awaitable[_Store]]) -> None:
        self._kind = kind
        self._open_store = open_store
        self._store: _Store | None = None

    if not TYPE_CHECKING:  # a type checker says it better

        def __getattr__(self, name: str) -> NoReturn:
            """Say what was forgotten to who takes this for the store."""
            if hasattr(self._kind, name):
                raise ConfigurationError(
                    "the store is not open yet: write `store = await StateStore.open(...)`, or "
                    "`async with StateStore.open(...) as store`"
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    def __await__(self) -> Generator[Any, None, _Store]:
        return self._open_store().__await__()

    async def __aenter__(self) -> _Store:
        self._store = await self._open_store()
        return self._store

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._store is not None:
            await self._store.close()


def settings_for(
    database: str | os.PathLike[str] | None,
    engine: AsyncEngine | None,
    sessionmaker: async_sessionmaker[Any] | None,
    payloads: Payloads,
    options: dict[str, Any],
) -> Settings:
    """Check what `StateStore.open` was given, and return the settings it makes. Raises `ConfigurationError`."""
    if engine is not None and database is not None:
        raise ConfigurationError("give a database or an engine, not both")
    if sessionmaker is not None:
        require_fit_maker(sessionmaker, engine)
    given = None if database is None else path_or_url(database)
    settings = Settings.load(database_url=given, **options)
    if not isinstance(payloads, Payloads):
        raise ConfigurationError(f"payloads is a {type(payloads).__name__}; give Payloads([...])")
    return settings


async def open_transactions(
    settings: Settings,
    engine: AsyncEngine | None,
    sessionmaker: async_sessionmaker[Any] | None,
    schemas: Schemas,
    payloads: Payloads,
    hook: hooks.Hook | None,
    *,
    migrate: bool | None,
) -> Transactions:
    """Connect, see that the schema is today's, and return the way to the database. See `StateStore.open`."""
    running_loop()
    if migrate is not None:
        as_flag(migrate, "migrate")
    database = await adopt_engine(engine, settings) if engine is not None else open_database(settings, hook)
    database.enter()
    try:
        if sessionmaker is not None:
            database.make_sessions_with(sessionmaker)
        if migrate is None:
            migrate = database.is_migrated_on_opening
        if migrate:
            await schema.ensure(database, settings)
        else:
            await schema.verify(database)
        await database.warm_up(settings.pool_min)
        if payloads.protects:
            await database.note_protected(settings.namespace)
    except BaseException:
        await database.close()
        raise
    limited = payloads.within(_limits(settings), Aside())
    return Transactions(database, settings, limited, schemas, hook)


def path_or_url(database: str | os.PathLike[str]) -> str:
    given: object = os.fspath(database) if isinstance(database, os.PathLike) else database
    if isinstance(given, str):
        return given
    raise ConfigurationError(f"the database is a {type(given).__name__}; give a URL or a path, as a str or a Path")


def _limits(settings: Settings) -> Limits:
    return Limits(
        payload_bytes=settings.max_payload_bytes,
        workflow_bytes=settings.max_workflow_bytes,
        depth=settings.max_depth,
        values=settings.max_values,
        steps=settings.max_steps,
    )
