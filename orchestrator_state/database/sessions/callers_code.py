"""The caller's code inside a transaction of ours, which has to be the same one afterwards.

Code that commits, or rolls back, parts its rows from what is to commit with them. If it does so by SQLAlchemy, that
shows at once. Of what is sent as text, or through the driver, only the database knows: Postgres by a mark that goes
with the transaction, for which the statement that follows looks, SQLite by a savepoint.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final, TypeVar, cast

from sqlalchemy import ColumnElement, Connection, event, exc, func, literal
from sqlalchemy.engine import Transaction
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from orchestrator_state.concurrency import call_apart
from orchestrator_state.database.errors import fault_in, is_unknown_to_sqlite
from orchestrator_state.database.sessions.failed_statements import failures_on, fault_under, refuse_after_failure
from orchestrator_state.database.sessions.lent import put_in_force, settings_in_force
from orchestrator_state.database.sessions.open_transactions import kept_open
from orchestrator_state.errors import ConfigurationError

_T = TypeVar("_T")
_SAVEPOINT: Final = "SAVEPOINT orchestrator_state"
_RELEASE: Final = "RELEASE SAVEPOINT orchestrator_state"


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
            await _begin_to_watch(session)
            async with kept_open(session, idle_limit):
                outputs = (await call_apart(call)).unless_cancelled()
            await session.flush()
        refuse_after_failure(connection, failures)  # for the function may have swallowed it
        await _end_savepoints(session)
        await _require_same(session, failures.transaction)
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


# --- whose transaction it is ---


# A setting of the transaction's own: it is gone with it, by whatever it was ended.
_MARK: Final = "orchestrator_state.transaction"
_MARKED: Final = "open"


def marking() -> ColumnElement[str]:
    """Sets a mark on the present transaction of Postgres."""
    return func.set_config(_MARK, _MARKED, literal(value=True))


def is_marked() -> ColumnElement[bool]:
    """Whether this is still the transaction that was marked."""
    return func.current_setting(_MARK, literal(value=True)) == _MARKED


def takes_marks(session: AsyncSession) -> bool:
    """Whether a transaction of this database has settings of its own, by which to know it again and to limit it."""
    return session.get_bind().dialect.name == "postgresql"


def transaction_ended() -> ConfigurationError:
    """The caller's code has parted what it wrote from what was to commit with it."""
    return ConfigurationError(
        "the function of run.transact must neither commit nor roll back its transaction: the run commits its rows with "
        "the step. To undo a part, use a savepoint: `async with session.begin_nested()`"
    )


async def _begin_to_watch(session: AsyncSession) -> None:
    """Before the caller's code has the transaction: note what `_require_same` looks for."""
    if session.get_bind().dialect.name == "sqlite":  # on Postgres the statement before has marked it
        await (await session.connection()).exec_driver_sql(_SAVEPOINT)


async def _require_same(session: AsyncSession, transaction: Transaction | None) -> None:
    """Raise if `transaction`, which `_begin_to_watch` saw, is over by any way that shows here.

    One that the caller's code has ended behind SQLAlchemy's back does not show on Postgres; the step's commit looks for
    its mark.
    """
    if transaction is None or not transaction.is_active:
        raise transaction_ended()
    if session.get_bind().dialect.name != "sqlite":
        return
    try:
        await (await session.connection()).exec_driver_sql(_RELEASE)
    except exc.DBAPIError as error:
        if is_unknown_to_sqlite(error):  # the savepoint went with its transaction
            raise transaction_ended() from None
        raise
