"""The application's own kind of session, as its `async_sessionmaker` makes it, where its code gets a session from us.

Its class, its `info`, its options and its listeners are the application's. What it writes goes to the connection of our
transaction, and the commit is ours: so nothing may lead it elsewhere, or take the commit in two parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import sessionmaker as sync_sessionmaker

from orchestrator_state import hooks
from orchestrator_state.database.errors import database_errors, fault_in, fault_in_statement
from orchestrator_state.database.internals import begun_connections, has_committed, has_prepared
from orchestrator_state.database.sessions.lent import lend
from orchestrator_state.database.sessions.session import settle
from orchestrator_state.errors import ConfigurationError
from orchestrator_state.models import WorkflowRow

Maker = async_sessionmaker[Any]

_ELSEWHERE = (
    "the sessionmaker's sessions have a get_bind of their own that leads elsewhere than to the connection they are "
    "given; give one whose rows can commit with the step"
)


def require_fit_maker(maker: object, engine: AsyncEngine | None) -> None:
    """Raise `ConfigurationError` for a sessionmaker whose sessions cannot write in our transaction."""
    if not isinstance(maker, async_sessionmaker):
        hint = (
            "make it with async_sessionmaker" if isinstance(maker, sync_sessionmaker) else "give an async_sessionmaker"
        )
        raise ConfigurationError(f"sessionmaker is a {type(maker).__name__}; {hint}")
    bound_to = [bind for bind in (maker.kw.get("bind"), *_binds(maker)) if bind is not None]
    if engine is None and bound_to:
        raise ConfigurationError("the sessionmaker has an engine of its own; open the store on it, with engine=")
    if any(_sync(bind) is not _sync(engine) for bind in bound_to):
        raise ConfigurationError(
            "the sessionmaker's bind, or one of its binds, is another engine than the store's: what is written there "
            "cannot commit with a step"
        )
    if maker.kw.get("twophase"):
        raise ConfigurationError("the sessionmaker has twophase=True, and a step commits in one; leave it out")


def session_of(maker: Maker, engine: AsyncEngine) -> AsyncSession:
    """A session that writes through `engine`, and is closed for good. Raises `ConfigurationError` if it does not."""
    try:
        # A session used after its block would begin a transaction that nobody ends.
        session = maker(bind=engine, binds=None, close_resets_only=False)
    except TypeError:
        raise ConfigurationError("the sessionmaker's class does not take the arguments of an AsyncSession") from None
    if not isinstance(session, AsyncSession):
        raise ConfigurationError(f"the sessionmaker makes a {type(session).__name__}, which is no AsyncSession")
    if session.sync_session.twophase:
        raise ConfigurationError("the sessionmaker's sessions have twophase=True, and a step commits in one")
    if any(bind is not engine.sync_engine for bind in (session.get_bind(), session.get_bind(WorkflowRow.__mapper__))):
        raise ConfigurationError(_ELSEWHERE)
    return session


@contextmanager
def beginning(session: AsyncSession) -> Iterator[None]:
    """Around what begins the transaction of a session of the application's, which may listen to that.

    What a listener raises is its own, unless it comes of the database or the network: a listener to this is there to
    send statements.
    """
    try:
        yield
    except Exception as error:
        if begun_connections(session.sync_session):  # so it has begun, and a listener has been told
            lend(session)  # what that has set before it raised
            raise fault_in_statement(error) or error from None
        with database_errors():
            raise


async def commit_callers(session: AsyncSession, *, through_one: bool = False) -> None:
    """Commit a session of the application's, which may listen to that; only `through_one` connection, if asked to.

    What a listener raises before the commit is its own, unless it comes of the database. What one raises once the
    database has committed is logged: what it wrote is there, whatever the listener makes of it.
    """
    begun = session.sync_session.get_transaction()
    try:
        await session.flush()
        if through_one:
            _require_one_connection(session)
        await session.commit()
    except Exception as error:
        if begun is not None and has_committed(begun):
            settle(session)
            hooks.logger.error("a listener to a session raised after the commit (%s)", type(error).__qualname__)
        elif begun is not None and has_prepared(begun):
            with database_errors(committing=True):
                raise
        else:
            raise fault_in(error) or error from None


def _require_one_connection(session: AsyncSession) -> None:
    if len(set(begun_connections(session.sync_session))) > 1:
        raise ConfigurationError(
            "a session that the sessionmaker made has written through a second connection, which could not commit "
            "together with the first; let its get_bind return the engine that it was given"
        )


def _binds(maker: Maker) -> list[object]:
    binds: object = maker.kw.get("binds") or {}
    return list(binds.values()) if isinstance(binds, Mapping) else [binds]


def _sync(engine: object) -> object:
    return engine.sync_engine if isinstance(engine, AsyncEngine) else engine
