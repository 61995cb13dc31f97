"""Two calls on Postgres of which one stops between two of its statements, while the other goes on."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.util import await_only

from orchestrator_state import StateStore
from tests.support.running import fetch
from tests.support.statements import listening


@contextmanager
def at_statement(
    store: StateStore,
    part: str,
    act: Callable[[], Awaitable[object]],
    *,
    passing: int = 0,
    times: int = 1,
    moment: str = "before",
) -> Iterator[None]:
    """Await `act()` before or after the first statement of `store` that has `part` in it.

    After `passing` others, and at so many `times` of those that follow. What `act` raises is the statement's error.
    """
    engine = store._transactions.database._pool.sync_engine
    seen = 0

    def stop(_: Any, __: Any, statement: str, *___: Any) -> None:
        nonlocal seen
        if part in statement:
            seen += 1
            if passing < seen <= passing + times:
                await_only(act())

    with listening(engine, {f"{moment}_cursor_execute": stop}):
        yield
    assert seen >= passing + times, f"{seen} statements had {part!r} in them"


just_before: Final = partial(at_statement, moment="before")
just_after: Final = partial(at_statement, moment="after")


def raising(*errors: BaseException) -> Callable[[], Awaitable[object]]:
    """An `act` that raises one after the other, and nothing after the last."""
    left = list(errors)

    async def act() -> None:
        if left:
            raise left.pop(0)

    return act


async def done_or_waiting(call: asyncio.Task[Any], store: StateStore) -> None:
    """Return once `call` has ended, or waits for a lock. `store` is a third one, which waits for nothing."""
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    while not call.done() and (await fetch(store, waiting))[0] == (0,):  # noqa: ASYNC110 - a lock of the server
        await asyncio.sleep(0.01)
