"""Call a step's function: async, or sync and then in a thread or an executor, with a time limit; again, if it fails."""

from __future__ import annotations

import asyncio
import inspect
import math
import random
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import partial
from types import CodeType
from typing import Any, Final, Literal, NamedTuple, Self, TypeGuard, TypeVar, cast

from orchestrator_state import hooks
from orchestrator_state.arguments import as_duration, as_executor, as_on_unknown, as_pause
from orchestrator_state.concurrency import Returned, Threads, call_apart
from orchestrator_state.errors import AbnormalExit, ConfigurationError, PayloadError
from orchestrator_state.failures import note
from orchestrator_state.runs.elsewhere import call_elsewhere, start_clock

_T = TypeVar("_T")

StepFunction = Callable[..., Awaitable[_T]] | Callable[..., _T]
OnUnknown = Literal["retry", "raise"] | Callable[..., Any]
Kinds = type[BaseException] | tuple[type[BaseException], ...]


# --- again -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Call a failing step again: up to `attempts` calls in all, pauses growing from `wait_initial` to `wait_max`.

    The pauses double and are jittered; they are `timedelta`, or seconds. `on` says which exceptions are worth another
    call: classes, or a function that is given the exception. A result that cannot be stored never is. Raises
    `ConfigurationError` for what makes no sense.
    """

    attempts: int = 3
    wait_initial: timedelta | float = timedelta(milliseconds=100)
    wait_max: timedelta | float = timedelta(seconds=30)
    wait_jitter: timedelta | float = timedelta(milliseconds=100)
    on: Kinds | Callable[[BaseException], bool] = Exception

    def __post_init__(self) -> None:
        if type(self.attempts) is not int or self.attempts < 1:
            raise ConfigurationError("attempts must be a whole number, 1 or more: the calls in all")
        for each in fields(self):
            if each.name.startswith("wait_"):
                object.__setattr__(self, each.name, as_pause(getattr(self, each.name), each.name))
        if self.wait_initial > self.wait_max:  # type: ignore[operator]
            raise ConfigurationError("wait_initial must not be longer than wait_max")
        if not (_are_kinds(self.on) or _is_predicate(self.on)):
            raise ConfigurationError(
                "on must be an exception class, a tuple of them, or a plain function that returns True or False"
            )

    @classmethod
    def of(cls, given: Retry | int | None) -> Retry:
        """`retry=3` is three calls in all; None is one. Raises `ConfigurationError`."""
        if given is None:
            return ONCE
        if isinstance(given, Retry):
            return given
        if type(given) is not int:
            raise ConfigurationError("retry must be a number of calls, or a Retry")
        return cls(attempts=given)

    def pause_after(self, calls: int) -> float:
        """Seconds until the next call, after so many that failed."""
        initial, longest, jitter = (
            cast("timedelta", each).total_seconds() for each in (self.wait_initial, self.wait_max, self.wait_jitter)
        )
        doubled = math.ldexp(initial, min(calls - 1, 100)) if initial < longest else longest
        return min(longest, doubled + random.uniform(0, jitter))  # noqa: S311 - spreads load, guards nothing

    def is_worth_it(self, error: Exception) -> bool:
        """Whether to call again. A predicate that fails says no, and a note on `error` says so."""
        if issubclass(type(error), PayloadError):
            return False
        raised = error.__cause__ if type(error) is AbnormalExit and error.__cause__ is not None else error
        if _are_kinds(self.on):
            # Not isinstance, which asks the object.
            return any(issubclass(type(each), self.on) for each in (error, raised))
        try:
            return bool(cast("Callable[[BaseException], bool]", self.on)(raised))
        except BaseException as failure:  # noqa: BLE001 - the step's own failure is what counts
            name = type(failure).__qualname__
            note(error, f"the function that `Retry(on=…)` was given raised {name}, so the step was not called again")
            hooks.logger.warning("the function given to Retry(on=...) raised %s", name)
            return False


def _are_kinds(on: object) -> TypeGuard[Kinds]:
    kinds = on if isinstance(on, tuple) else (on,)
    return all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds)


def _is_predicate(on: object) -> bool:
    is_async = inspect.iscoroutinefunction(on) or inspect.iscoroutinefunction(getattr(on, "__call__", None))  # noqa: B004
    return callable(on) and not isinstance(on, type) and not is_async


ONCE: Final = Retry(attempts=1)


def pause_before_next(retry: Retry, error: Exception, calls: int, step: str) -> float | None:
    """Seconds until the next call, after so many that failed, the last one with `error`; None if that was the last.

    `step` is what the log calls it. By hand: a retry library has one logger for the whole process, and no words for
    what is repeated.
    """
    if calls >= retry.attempts or not retry.is_worth_it(error):
        return None
    pause = retry.pause_after(calls)
    hooks.logger.warning(
        "%s failed (%s), call %d of %d; it is called again in %.1f s",
        *(step, type(error).__qualname__, calls, retry.attempts, pause),
    )
    return pause


class Calling(NamedTuple):
    """How `run.step` has its function called."""

    retry: Retry = ONCE
    limit: timedelta | None = None
    on_unknown: OnUnknown = "retry"
    executor: Executor | None = None

    @classmethod
    def of(
        cls,
        fn: Callable[..., Any] | None = None,
        *,
        retry: Retry | int | None = None,
        timeout: timedelta | float | None = None,
        on_unknown: OnUnknown = "retry",
        executor: Executor | None = None,
    ) -> Self:
        """Raises `ConfigurationError`, also if `fn` cannot be called in an executor."""
        calling = cls(
            Retry.of(retry),
            None if timeout is None else as_duration(timeout, "timeout"),
            as_on_unknown(on_unknown),
            None if executor is None else as_executor(executor),
        )
        if fn is not None:
            calling.require_fit(fn)
        return calling

    def require_fit(self, fn: Callable[..., Any]) -> None:
        if self.executor is not None and is_async(fn):
            raise ConfigurationError(
                "an async function is called in the event loop; only a sync one can be called in an `executor`"
            )


# --- once --------------------------------------------------------------------------------------------------------


class _NotBegun(Exception):
    """The function was not called: the lease has to be asked for first."""


async def call(
    threads: Threads,
    fn: StepFunction[Any],
    args: tuple[Any, ...],
    limit: timedelta | None,
    executor: Executor | None = None,
    *,
    may_begin: Callable[[], bool],
    ask: Callable[[], Awaitable[None]],
) -> Returned[Any]:
    """Call `fn`, a sync one in `executor`, or one of `threads`. Raises what it raises, as an `Exception`.

    See `call_apart`. Raises `TimeoutError` when `limit` is over, counted from the moment that `fn` is called. A thread
    cannot be stopped: after a timeout or a cancellation a sync function runs on, and its result is dropped. `may_begin`
    is asked at the last moment, in the thread that is to call `fn`, or to hand it over: if it says no, `ask` is awaited
    first. There is time for it to change: a call waits for its turn of the loop, for a thread, or out a pause after a
    failure. Raises `NotTaken` if `executor` does not call.
    """

    def begin() -> None:
        if not may_begin():
            raise _NotBegun

    if executor is not None:
        work = partial(call_elsewhere, executor, threads, fn, args, limit, begin)
    elif is_async(fn):
        work = partial(_call_async, fn, args, limit, begin)
    else:
        work = partial(_call_in_thread, threads, fn, args, limit, begin)
    while True:
        try:
            return await call_apart(work)
        except _NotBegun:
            await ask()


def is_async(fn: Callable[..., Any]) -> bool:
    code = getattr(fn, "__code__", None)  # of a proxy it may be anything
    if type(code) is CodeType and code.co_flags & inspect.CO_COROUTINE:
        return True  # as nearly always; `inspect` looks under partials and methods first
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004


async def _call_async(
    fn: Callable[..., Awaitable[_T]], args: tuple[Any, ...], limit: timedelta | None, begin: Callable[[], None]
) -> _T:
    begin()
    if limit is None:
        return await fn(*args)
    async with asyncio.timeout(limit.total_seconds()):
        return await fn(*args)


async def _call_in_thread(
    threads: Threads,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    limit: timedelta | None,
    begin: Callable[[], None],
) -> Any:
    def work() -> Any:
        begin()  # there may have been a queue for the thread
        return fn(*args)

    async with asyncio.timeout(None) as clock:
        result = await threads.call(work, partial(start_clock, clock, limit))
        return await result if inspect.isawaitable(result) else result
