"""Repeat a transaction that the database gave up on."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final, TypeVar

from orchestrator_state import hooks
from orchestrator_state.errors import LeaseLost, StoreUnavailable
from orchestrator_state.failures import message_of, name_of

_Result = TypeVar("_Result")

_FIRST_PAUSE: Final = 0.01  # seconds; they double
_LONGEST_PAUSE: Final = 0.5


async def while_transient(
    work: Callable[[], Awaitable[_Result]],
    patience: timedelta,
    *,
    endures_crowds: bool = False,
    hook: hooks.Hook | None = None,
) -> _Result:
    """Return `await work()`, calling it again with growing, jittered pauses while it fails transiently.

    Once `patience` is over the last error is raised. `work` must be one whole transaction. Once the outcome of one
    attempt is unknown, that of the call is: it may have taken effect, although the last one did not. A crowd, in which
    an attempt has waited for `pool_timeout` before it failed, is waited for no longer, unless `endures_crowds`.

    By hand, since a retry library logs each of many attempts, and what they cost together is no more than one line.
    """
    deadline = time.monotonic() + patience.total_seconds()
    longest = _FIRST_PAUSE
    outcome_unknown = False
    while True:
        try:
            return await work()
        except StoreUnavailable as error:
            outcome_unknown = error.outcome_unknown = outcome_unknown or error.outcome_unknown
            pause = longest * random.uniform(0.5, 1)  # noqa: S311 - spreads load, guards nothing
            is_hopeless = not error.transient or (error.crowded and not endures_crowds)
            if is_hopeless or time.monotonic() + pause >= deadline:
                raise
            hooks.tell_of_store(hook, hooks.TransactionRepeated, error_type=name_of(error))
            if longest == _FIRST_PAUSE:
                hooks.logger.info(
                    "a transaction is repeated until it succeeds, or for %s: %s", patience, message_of(error)
                )
        except LeaseLost as error:
            if not outcome_unknown:
                raise
            raise StoreUnavailable(
                "another worker has the run by now; an earlier attempt to write it may have taken effect",
                **error.about | {"outcome_unknown": True},
            ) from None
        longest = min(2 * longest, _LONGEST_PAUSE)
        await asyncio.sleep(pause)


@contextmanager
def after_an_effect(*, acted: bool | Callable[[], bool] = True) -> Iterator[None]:
    """Around the rest of a call whose earlier transactions have changed something: a fault in here hides that.

    `acted`: whether they have; a function is asked when there is a fault.
    """
    try:
        yield
    except StoreUnavailable as error:
        error.outcome_unknown = error.outcome_unknown or (acted() if callable(acted) else acted)
        raise
