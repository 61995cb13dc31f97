"""How a session ends: what goes back with it to what it was, and who is told of its commit.

Saving a state moves its version on at once, so that it can be saved again in the same transaction. If that
transaction, or the savepoint around the save, does not commit, the objects go back to what they were: a
retry then starts from what the database holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, Engine, event, exc
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from orchestrator_state.concurrency import require_own_loop
from orchestrator_state.database.internals import begun_connections, greenlet_spawn

_PATIENCE: Final = 1.0  # seconds
_PAUSE: Final = 0.01  # seconds between two looks
_KEY: Final = "orchestrator_state.undo"


@dataclass(slots=True)
class _Outcome:
    """What the end of a transaction, or of a savepoint, is to bring about."""

    undo: list[Callable[[], None]] = field(default_factory=list)
    once_committed: list[Callable[[], None]] = field(default_factory=list)


_Log = dict[SessionTransaction, _Outcome]


class StoreSession(Session):
    """The store's own kind of session: its events are listened to once, for the class.

    A listener on a session by itself takes longer than sending a statement.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._loop = asyncio.get_running_loop()

    def get_bind(self, *arguments: Any, **options: Any) -> Engine | Connection:
        """What is called for each statement raises `ConfigurationError` in another event loop."""
        require_own_loop(self._loop)
        return super().get_bind(*arguments, **options)


def unless_committed(session: AsyncSession, undo: Callable[[], None]) -> None:
    """Call `undo` when the session's present transaction or savepoint ends in anything but a commit."""
    if (outcome := _outcome(session)) is not None:
        outcome.undo.append(undo)


def once_committed(session: AsyncSession, act: Callable[[], None]) -> None:
    """Call `act` when what the session's present transaction or savepoint wrote has been committed; once, if it is
    asked for again. It must not raise.

    Not where the session's transaction is a part of one that somebody else commits: who does so tells nobody.
    """
    if (outcome := _outcome(session)) is not None and act not in outcome.once_committed:
        outcome.once_committed.append(act)


def _outcome(session: AsyncSession) -> _Outcome | None:
    sync_session = session.sync_session
    log: _Log | None = sync_session.info.get(_KEY)
    if log is None:
        log = sync_session.info[_KEY] = {}
        if not isinstance(sync_session, StoreSession):
            _listen(sync_session)
    transaction = _present(sync_session)
    return None if transaction is None else log.setdefault(transaction, _Outcome())


def _listen(target: Session | type[Session]) -> None:
    event.listen(target, "after_commit", _hand_over)
    event.listen(target, "after_transaction_end", _undo)


def _present(session: Session) -> SessionTransaction | None:
    return session.get_nested_transaction() or session.get_transaction()


def settle(session: AsyncSession) -> None:
    """The transaction has committed, and a listener that was told of it first has raised: the others are told here."""
    _hand_over(session.sync_session)


def _hand_over(session: Session) -> None:
    """A released savepoint leaves its outcome to the transaction around it; a commit is the outcome."""
    log: _Log = session.info.get(_KEY, {})
    transaction = _present(session)
    outcome = None if transaction is None else log.pop(transaction, None)
    if transaction is None or outcome is None:
        return
    if transaction.nested and transaction.parent is not None:
        around = log.setdefault(transaction.parent, _Outcome())
        around.undo += outcome.undo
        around.once_committed += [act for act in outcome.once_committed if act not in around.once_committed]
    elif not any(connection.in_transaction() for connection in begun_connections(session)):
        for act in outcome.once_committed:
            act()


def _undo(session: Session, transaction: SessionTransaction) -> None:
    log: _Log = session.info.get(_KEY, {})
    outcome = log.pop(transaction, None)
    for undo in reversed(outcome.undo if outcome else []):
        undo()


_listen(StoreSession)


async def end_session(session: AsyncSession, *, failed: bool) -> None:
    """Roll back what has `failed`, and close the session for good. Raises nothing, whatever its connection does."""
    # A connection that has died cannot be rolled back, and need not: what failed first says more.
    with suppress(Exception):
        if failed:
            await session.rollback()  # unlike close(), it tells the states saved in it also when it fails
    with suppress(Exception):  # after a commit that was acknowledged this is nobody's failure
        await _close(session)


async def _close(session: AsyncSession) -> None:
    """A task that the caller's code left behind may be using the session at this very moment: then, after it.

    That may take as long as a statement does. Nobody waits for it, but for a moment; its connection comes back then.
    """
    if not await _is_closed(session):
        later = asyncio.create_task(_close_after_use(session), name="orchestrator_state end of a session in use")
        await asyncio.wait({later}, timeout=_PATIENCE)


async def _close_after_use(session: AsyncSession) -> None:
    while not await _is_closed(session):  # noqa: ASYNC110 - SQLAlchemy tells nobody when a statement is over
        await asyncio.sleep(_PAUSE)


async def _is_closed(session: AsyncSession) -> bool:
    """Whether it could be closed: not, while a task has it connect."""
    connections = begun_connections(session.sync_session)  # of which it knows no more once it has failed to close
    try:
        await session.close()
    except exc.IllegalStateChangeError:
        return False
    except Exception:  # noqa: BLE001 - whatever it is, as that a statement is under way, it is not used again
        for connection in connections:
            with suppress(Exception):
                await greenlet_spawn(connection.invalidate)
    return True
