"""`BlockingRun.step`, as a type checker sees it, and the steps of `BlockingRun.with_options`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, TypeVarTuple, Unpack, overload

from orchestrator_state.runs import StepOptions

_T = TypeVar("_T")
_R = TypeVar("_R")
_R_co = TypeVar("_R_co", covariant=True)
_P = ParamSpec("_P")
_Args = TypeVarTuple("_Args")


class BlockingStep(Protocol):
    """`BlockingRun.step`: the overloads of `Run.step`, whose results are there at once."""

    @overload
    def __call__(
        self,
        step_id: str,
        fn: Callable[[*_Args], Awaitable[_T]],
        *args: *_Args,
        returns: None = None,
        **options: Unpack[StepOptions],
    ) -> _T: ...

    @overload
    def __call__(
        self,
        step_id: str,
        fn: Callable[[*_Args], _T],
        *args: *_Args,
        returns: None = None,
        **options: Unpack[StepOptions],
    ) -> _T: ...

    @overload
    def __call__(
        self,
        step_id: str,
        fn: Callable[[*_Args], object],
        *args: *_Args,
        returns: type[_R],
        **options: Unpack[StepOptions],
    ) -> _R: ...

    @overload
    def __call__(
        self,
        step_id: str,
        fn: Callable[[*_Args], object],
        *args: *_Args,
        returns: Any,
        **options: Unpack[StepOptions],
    ) -> Any: ...

    @overload
    def __call__(self, step_id: str, fn: Callable[_P, Awaitable[_T]], *args: _P.args, **kwargs: _P.kwargs) -> _T: ...

    @overload
    def __call__(self, step_id: str, fn: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T: ...


class BlockingStepCaller:
    """`run.with_options(…)`: a run whose steps have these options."""

    def __init__(self, caller: Any, ask: Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]) -> None:
        self._caller = caller
        self._ask = ask

    @overload
    def step(self, step_id: str, fn: Callable[_P, Awaitable[_T]], /, *args: _P.args, **kwargs: _P.kwargs) -> _T: ...

    @overload
    def step(self, step_id: str, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T: ...

    def step(self, step_id: str, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """As `run.step`; every keyword is the function's, whatever its name."""
        return self._ask(lambda: self._caller.step(step_id, fn, *args, **kwargs))


class BlockingTypedStepCaller(Protocol, Generic[_R_co]):
    """`run.with_options(returns=…)`: a `BlockingStepCaller` whose steps return that."""

    def step(self, step_id: str, fn: Callable[_P, object], /, *args: _P.args, **kwargs: _P.kwargs) -> _R_co:
        """As `run.step`; every keyword is the function's, whatever its name."""
        ...
