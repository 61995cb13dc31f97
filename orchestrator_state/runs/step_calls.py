"""The calls of a run that call a function, `step` and `transact`, and what a type checker knows of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from datetime import timedelta
from functools import partial
from typing import (
    Any,
    Concatenate,
    Final,
    Generic,
    ParamSpec,
    Protocol,
    TypedDict,
    TypeVar,
    TypeVarTuple,
    Unpack,
    cast,
    overload,
)

from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state.arguments import as_function
from orchestrator_state.errors import ConfigurationError
from orchestrator_state.runs.calls import Calling, OnUnknown, Retry
from orchestrator_state.runs.steps import Steps
from orchestrator_state.runs.transacting import THE_FUNCTION, transact

_Session = TypeVar("_Session", bound=AsyncSession)
_T = TypeVar("_T")
_R = TypeVar("_R")
_P = ParamSpec("_P")
_Args = TypeVarTuple("_Args")
Duration = timedelta | float

_STEP: Final = "the function of run.step"
_AS_USUAL: Final = Calling()
_RETRY: Final = "retry"


class StepOptions(TypedDict, total=False):
    """How `run.step` calls its function. See there."""

    retry: Retry | int | None
    """The number of calls in all, or how to call again."""
    timeout: Duration | None
    """Of each call, from the moment that the function is called."""
    on_unknown: OnUnknown
    """What to do about a step that was under way at a crash."""
    executor: Executor | None
    """Where to call a sync function: in other processes, say."""


class StepCaller:
    """`run.with_options(…)`: a run whose steps have these options."""

    def __init__(self, steps: Steps, returns: Any, calling: Calling) -> None:
        self._steps = steps
        self._returns = returns
        self._calling = calling

    @overload
    def step(
        self, step_id: str, fn: Callable[_P, Awaitable[_T]], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> Coroutine[Any, Any, _T]: ...

    @overload
    def step(
        self, step_id: str, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> Coroutine[Any, Any, _T]: ...

    def step(self, step_id: str, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """As `run.step`; every keyword is the function's, whatever its name."""
        as_function(fn, _STEP)
        self._calling.require_fit(fn)
        return self._steps.begin(step_id, fn, args, kwargs, self._returns, self._calling)


class TypedStepCaller(Generic[_R]):
    """`run.with_options(returns=…)`: a `StepCaller` whose steps return that."""

    def __init__(self, caller: StepCaller) -> None:
        self._caller: Any = caller

    def step(
        self, step_id: str, fn: Callable[_P, object], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> Coroutine[Any, Any, _R]:
        """As `run.step`; every keyword is the function's, whatever its name."""
        return cast("Coroutine[Any, Any, _R]", self._caller.step(step_id, fn, *args, **kwargs))


class StepMethod(Protocol):
    """`Run.step`, as a type checker sees it.

    Overloads and not a union: of that a checker makes Never for every async function. The fourth is for what is a type
    to pydantic and not to `type[...]`: a union, or Annotated. Options come before the function's own keywords, as they
    do when it runs; both in one call cannot be expressed, and `with_options` is for that.

    Not overloads of the method itself: of those pyright picks none for a `Run[Any]`, since that is partly Any.
    """

    @overload
    def __call__(
        self,
        step_id: str,
        fn: Callable[[*_Args], Awaitable[_T]],
        *args: *_Args,
        returns: None = None,
        **options: Unpack[StepOptions],
    ) -> Coroutine[Any, Any, _T]: ...

    @overload
    def __call__(
        self,
        step_id: str,
        fn: Callable[[*_Args], _T],
        *args: *_Args,
        returns: None = None,
        **options: Unpack[StepOptions],
    ) -> Coroutine[Any, Any, _T]: ...

    @overload
    def __call__(
        self,
        step_id: str,
        fn: Callable[[*_Args], object],
        *args: *_Args,
        returns: type[_R],
        **options: Unpack[StepOptions],
    ) -> Coroutine[Any, Any, _R]: ...

    @overload
    def __call__(
        self,
        step_id: str,
        fn: Callable[[*_Args], object],
        *args: *_Args,
        returns: Any,
        **options: Unpack[StepOptions],
    ) -> Coroutine[Any, Any, Any]: ...

    @overload
    def __call__(
        self, step_id: str, fn: Callable[_P, Awaitable[_T]], *args: _P.args, **kwargs: _P.kwargs
    ) -> Coroutine[Any, Any, _T]: ...

    @overload
    def __call__(
        self, step_id: str, fn: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> Coroutine[Any, Any, _T]: ...


def _as_a_checker_sees_it(method: Callable[..., Any]) -> StepMethod:
    return cast("StepMethod", method)


class StepCalls:
    """What of a `Run` is about functions."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    @property
    def step_key(self) -> str:
        """The idempotency key of the step that is running: the same in every attempt, another for every step.

        Give it to services that can tell a repetition by it. Raises `ConfigurationError` outside a step's function.
        """
        step_id = self._steps.running
        if step_id is None:
            raise ConfigurationError("run.step_key is for the function of a step; none is running here")
        return self._steps.journal.key(step_id)

    @_as_a_checker_sees_it
    def step(
        self,
        step_id: str,
        fn: Callable[..., Any],
        *args: Any,
        returns: Any = None,
        retry: Retry | int | None = None,
        timeout: Duration | None = None,
        on_unknown: OnUnknown = _RETRY,
        executor: Executor | None = None,
        **kwargs: Any,
    ) -> Coroutine[Any, Any, Any]:
        """Return `fn(*args, **kwargs)`, computed once: after a crash the recorded outputs come back instead.

        `fn` is async, or sync and then runs in a thread, or where `executor` calls it; what it returns must be JSON.
        One commit writes the step, the changed context, the checkpoint and its pruning, and only then is the result
        returned. The same id called again is `step_id#2`, and so on, numbered when `step` is called. A step that was
        under way at a crash runs again, with the same `step_key`. With `on_unknown="raise"`, or a callable, the intent
        is committed first, so that this is noticed: then `OutcomeUnknown` is raised, or the callable is called with the
        key and returns `Happened`, or None to run the step again.

        With `returns=SomeType` the outputs are of that type, for which pydantic has a schema: a model, a dataclass,
        `datetime`, `list[Page]`. What comes back is loaded from what was stored, the first time too.

        `retry` is the number of calls in all, or a `Retry`; `timeout` bounds each of them, from the moment that `fn` is
        called. Whatever it raises is a failure. When the last call fails, the failure is committed and its exception
        raised; for what is no `Exception`, such as `SystemExit`, an `AbnormalExit`. A cancellation from outside is no
        failure. Raises `InvalidPayload` for outputs that cannot be stored, and `StateMismatch` if `returns` does not
        accept recorded ones.

        `executor` is any `concurrent.futures.Executor`, for sync functions that would keep this process busy. If it
        takes no calls any more, the run is left to whoever comes next, with `ExecutorUnavailable`.

        Keywords that are no options are the function's. If it has one that is named as an option is, or a type checker
        is to look at both together, call `run.with_options(…).step(…)`.
        """
        as_function(fn, _STEP)
        if retry is None and timeout is None and executor is None and on_unknown is _RETRY:
            calling = _AS_USUAL
        else:
            calling = Calling.of(fn, retry=retry, timeout=timeout, on_unknown=on_unknown, executor=executor)
        return self._steps.begin(step_id, fn, args, kwargs, returns, calling)

    @overload
    def with_options(self, *, returns: None = None, **options: Unpack[StepOptions]) -> StepCaller: ...

    @overload
    def with_options(self, *, returns: type[_R], **options: Unpack[StepOptions]) -> TypedStepCaller[_R]: ...

    @overload
    def with_options(self, *, returns: Any, **options: Unpack[StepOptions]) -> TypedStepCaller[Any]: ...

    def with_options(self, *, returns: Any = None, **options: Unpack[StepOptions]) -> StepCaller | TypedStepCaller[Any]:
        """For steps with these options of `step`: `run.with_options(retry=3).step("id", fn, page, depth=2)`.

        There every keyword is the function's. It can be kept, and used for several steps.
        """
        caller = StepCaller(self._steps, returns, Calling.of(**options))
        return caller if returns is None else TypedStepCaller(caller)

    def key_of(self, step_id: str) -> str:
        """The `step_key` of the next call of `step_id`: to be given to a function that another process is to call.

        await run.step("charge", charge, order, run.key_of("charge"), executor=pool)
        """
        return self._steps.journal.key(self._steps.next_id(step_id))

    @overload
    def transact(
        self,
        step_id: str,
        fn: Callable[[_Session, *_Args], Awaitable[_T]],
        *args: *_Args,
        returns: None = None,
    ) -> Coroutine[Any, Any, _T]: ...

    @overload
    def transact(
        self,
        step_id: str,
        fn: Callable[[_Session, *_Args], Awaitable[object]],
        *args: *_Args,
        returns: type[_R],
    ) -> Coroutine[Any, Any, _R]: ...

    @overload
    def transact(
        self,
        step_id: str,
        fn: Callable[[_Session, *_Args], Awaitable[object]],
        *args: *_Args,
        returns: Any,
    ) -> Coroutine[Any, Any, Any]: ...

    @overload
    def transact(
        self,
        step_id: str,
        fn: Callable[Concatenate[_Session, _P], Awaitable[_T]],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> Coroutine[Any, Any, _T]: ...

    def transact(  # type: ignore[misc]  # a function's own keyword could be named as an option is
        self,
        step_id: str,
        fn: Callable[..., Awaitable[Any]],
        *args: Any,
        returns: Any = None,
        **kwargs: Any,
    ) -> Coroutine[Any, Any, Any]:
        """Return `await fn(session, *args, **kwargs)`, whose rows commit together with the step: exactly once.

        `session` is an `AsyncSession`, made by the store's `sessionmaker` if it has one: add and flush, and leave the
        commit to the run. If the database gives up on the transaction, all of it is repeated, and what `fn` did to the
        context is taken back before. It is open while `fn` runs, so `fn` should do nothing but write rows.
        `returns` is as in `step`.
        """
        as_function(fn, THE_FUNCTION)
        numbered = self._steps.number(step_id)
        returns = self._steps.types.of_step(numbered, returns)
        if kwargs:
            fn = partial(fn, **kwargs)
        work = partial(transact, self._steps, numbered, fn, args, returns)
        return self._steps.call(numbered, partial(self._steps.recorded, returns), work)
