"""Call a step's function: async or sync, with retries and a time limit."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import stamina

from orchestrator_state.errors import PayloadError

_T = TypeVar("_T")

StepFunction = Callable[..., Awaitable[_T]] | Callable[..., _T]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Call a failing step again: up to `attempts` calls in all, pauses growing from `wait_initial` to `wait_max`.

    The pauses double and are jittered. `on` says which exceptions are worth another call; a result that cannot be
    stored never is.
    """

    attempts: int = 3
    wait_initial: timedelta = timedelta(milliseconds=100)
    wait_max: timedelta = timedelta(seconds=30)
    wait_jitter: timedelta = timedelta(milliseconds=100)
    on: type[Exception] | tuple[type[Exception], ...] = Exception

    @classmethod
    def of(cls, given: Retry | int | None) -> Retry:
        """`retry=3` is three calls in all; None is one."""
        return given if isinstance(given, Retry) else cls(attempts=given or 1)

    def is_worth_it(self, error: Exception) -> bool:
        return isinstance(error, self.on) and not isinstance(error, PayloadError)


class _Failed(Exception):
    """A call failed. The retry library, which logs the repr of what it sees, must not see the step's own exception."""

    def __init__(self, error: Exception) -> None:
        super().__init__(type(error).__qualname__)
        self.error = error


async def call_with_retries(
    attempt: Callable[[], Awaitable[_T]], retry: Retry, note_failure: Callable[[Exception], None]
) -> _T:
    """Return `await attempt()`. `note_failure` sees each exception, the last one included; that one is raised."""

    async def noted() -> _T:
        try:
            return await attempt()
        except Exception as error:  # noqa: BLE001 - raised again, below
            note_failure(error)
            raise _Failed(error) from None

    def is_worth_it(failed: Exception) -> bool:
        return isinstance(failed, _Failed) and retry.is_worth_it(failed.error)

    if retry.attempts == 1:
        try:
            return await attempt()
        except Exception as error:
            note_failure(error)
            raise
    last: Exception = AssertionError("stamina yields until it returns or raises")
    try:
        async for again in stamina.retry_context(
            on=is_worth_it,
            attempts=retry.attempts,
            timeout=None,
            wait_initial=retry.wait_initial,
            wait_max=retry.wait_max,
            wait_jitter=retry.wait_jitter,
        ):
            with again:
                return await noted()
    except _Failed as failed:
        last = failed.error
    raise last  # out here, where it keeps the cause and the context that it came with


async def call(fn: StepFunction[Any], *args: Any, limit: timedelta | None = None) -> Any:
    """Call `fn`, a sync one in a thread of its own. Raises `TimeoutError` when `limit` is over.

    A thread cannot be stopped: after a timeout or a cancellation a sync function runs on, and its result is dropped.
    """
    if limit is None:
        return await _call(fn, *args)
    async with asyncio.timeout(limit.total_seconds()):
        return await _call(fn, *args)


async def _call(fn: StepFunction[Any], *args: Any) -> Any:
    if inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None)):  # noqa: B004
        return await fn(*args)
    result = await asyncio.to_thread(fn, *args)
    return await result if inspect.isawaitable(result) else result


def describe(error: BaseException) -> str:
    """Type and message of an exception as storable text of at most 2,000 characters, whatever `str` does."""
    name = type(error).__qualname__
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - a hostile __str__ must not hide that the step failed
        message = "(its message cannot be printed)"
    text = f"{name}: {message}" if message else name
    return text[:2000].replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
