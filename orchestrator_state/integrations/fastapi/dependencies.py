"""What a route may ask for."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends
from fastapi.requests import HTTPConnection
from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state.database import commit_callers
from orchestrator_state.errors import ConfigurationError
from orchestrator_state.integrations.fastapi.lifespan import provided_in
from orchestrator_state.store import StateStore
from orchestrator_state.unit_of_work import UnitOfWork


async def get_store(connection: HTTPConnection) -> StateStore:
    """The application's store. Raises `ConfigurationError` if it has none that is open."""
    return provided_in(connection.app).store


async def get_session(connection: HTTPConnection) -> AsyncIterator[AsyncSession]:
    """A session of the application's own `sessionmaker`: one for each request, and one commit.

    It commits when the route's function has returned, and before the response is sent. If the function raises, an
    `HTTPException` too, all is rolled back. A commit that the database cannot make is a `StoreUnavailable`, and nobody
    is told that all was well.
    """
    sessionmaker = provided_in(connection.app).sessionmaker
    if sessionmaker is None:
        raise ConfigurationError(
            "there is no session to be had: give a sessionmaker to OrchestratorState(…), or to provide(…)"
        )
    # Closed for good: a stream that is sent later would begin a transaction in it, which nobody ends.
    async with sessionmaker(close_resets_only=False) as session:
        try:
            yield session
            await commit_callers(session)
        except Exception:
            # Closing does it too, but not after a COMMIT that SQLite refused: its transaction would wait in the pool.
            await session.rollback()
            raise


Store = Annotated[StateStore, Depends(get_store)]
"""A parameter of a route: the application's store."""

# By itself FastAPI ends a dependency after the response was sent, since 0.118: too late to say that a commit failed.
Session = Annotated[AsyncSession, Depends(get_session, scope="function")]
"""A parameter of a route: the session of this request, which commits when the route has returned."""


async def get_unit_of_work(store: Store, session: Session) -> UnitOfWork:
    """The store's unit of work on the session of this request."""
    return store.unit_of_work(session)


Uow = Annotated[UnitOfWork, Depends(get_unit_of_work)]
"""A parameter of a route: what starts, signals and cancels runs in the transaction of `Session`."""
