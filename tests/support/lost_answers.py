"""A database whose answer to a COMMIT is lost, on both backends: the transaction is there, and nobody is told."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state import StateStore

_Act = Callable[[], Awaitable[object]]


@contextmanager
def answer_lost(
    store: StateStore, then: _Act | None = None, *, commit: int = 1, is_late: bool = False
) -> Iterator[list[str]]:
    """Lose the answer to that COMMIT of the store's; run `then` before anybody can find out.

    An answer that `is_late` arrives, after `then`. Yields a list that holds what was done: without it the test would
    prove nothing.
    """
    faults: list[str] = []
    seen = 0
    real = AsyncSession.commit

    async def lossy(session: AsyncSession) -> None:
        nonlocal seen
        await real(session)
        if session.bind is not store._transactions.database.writer:
            return
        seen += 1
        if seen == commit:
            faults.append("lost")
            if then is not None:
                await then()
            if not is_late:
                raise ConnectionResetError

    with patch.object(AsyncSession, "commit", lossy):
        yield faults
    assert faults == ["lost"], "no COMMIT was met"
