"""Call the function of `run.transact` inside the run's transaction, and see that it is still the same one afterwards.

A function that commits, or rolls back, parts its rows from the step. SQLAlchemy's own calls show that here. Of what is
sent as text, or through the driver, only the database knows: Postgres by a mark that goes with the transaction (the
step's commit looks for it, see `open_transactions`), SQLite by a savepoint.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar, cast

from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from orchestrator_state.concurrency import call_apart
from orchestrator_state.database import (
    begin_to_watch,
    failures_on,
    fault_in,
    fault_under,
    kept_open,
    put_in_force,
    refuse_after_failure,
    require_same,
    settings_in_force,
    transaction_ended,
)

_T = TypeVar("_T")


class FunctionFailed(Exception):
    """What the function of a `transact` raised, of whatever class: not to be taken for what happened to the run."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


async def call_inside(
    session: AsyncSession, call: Callable[[], Awaitable[_T]], idle_limit: timedelta, *, is_repeated: bool = False
) -> _T:
    """Return what `call` returns, with all that it wrote in the open transaction of `session`, and that one whole.

    If it `is_repeated`, what it has set is no longer in force then: it may be what the step was refused for.

    Raises a fault of the database's, whatever the function made of it; or else `FunctionFailed`, with what the function
    raised, or a `ConfigurationError` if it let a failed statement pass, or ended the transaction.
    """
    connection = cast("Connection", (await session.connection()).sync_connection)
    settings = await settings_in_force(session) if is_repeated else None
    failures = failures_on(connection)
    try:
        with _only_the_run_commits(session):
            await begin_to_watch(session)
            async with kept_open(session, idle_limit):
                outputs = (await call_apart(call)).unless_cancelled()
            await session.flush()
        refuse_after_failure(connection, failures)  # for the function may have swallowed it
        await _end_savepoints(session)
        await require_same(session, failures.transaction)
        if settings is not None:
            await put_in_force(session, settings)
    except Exception as error:  # noqa: BLE001 - of any class
        # In whatever it has wrapped that; and what else it raised may have come of it.
        fault = fault_in(error) or fault_under(connection, failures)
        if fault is not None:
            raise fault from None
        raise FunctionFailed(error) from None
    return outputs


@contextmanager
def _only_the_run_commits(session: AsyncSession) -> Iterator[None]:
    """The end of a savepoint is no commit."""

    def refuse(committing: Session) -> None:
        if not committing.in_nested_transaction():
            raise transaction_ended()

    event.listen(session.sync_session, "before_commit", refuse)
    try:
        yield
    finally:
        event.remove(session.sync_session, "before_commit", refuse)


async def _end_savepoints(session: AsyncSession) -> None:
    """Those that the function left open, as a commit would. One of them may hide a failed statement."""
    while (left_open := session.get_nested_transaction()) is not None:
        await left_open.commit()
