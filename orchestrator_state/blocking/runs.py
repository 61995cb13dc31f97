"""A run whose handler is a plain function: it is called in a thread, and each of its calls is awaited for it."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context, copy_context
from decimal import Decimal
from functools import partial, wraps
from typing import Any, Concatenate, Generic, NoReturn, ParamSpec, TypeVar, TypeVarTuple, Unpack, cast, overload
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from orchestrator_state.arguments import as_function
from orchestrator_state.blocking.calls import Call, Errands, blocking
from orchestrator_state.blocking.loops import LoopThread
from orchestrator_state.blocking.step_calls import BlockingStep, BlockingStepCaller, BlockingTypedStepCaller
from orchestrator_state.concurrency import Outcome
from orchestrator_state.errors import ConfigurationError, StoreUnavailable
from orchestrator_state.runs import ChildOptions, Run, State, StepOptions, is_async

_T = TypeVar("_T")
_R = TypeVar("_R")
_P = ParamSpec("_P")
_Args = TypeVarTuple("_Args")
_ChildState = TypeVar("_ChildState", bound=BaseModel)


def in_a_thread(loop: LoopThread, handler: Callable[..., Any]) -> Callable[..., Any]:
    """The handler as a store takes it: an async one as it is, a plain function so that it is called in a thread."""
    as_function(handler, "the handler")
    if is_async(handler):
        return handler

    @wraps(handler)
    async def call(run: Run[Any]) -> Any:
        return await _HandlerThread(loop, run).call(handler)

    return call


class _HandlerThread:
    """The thread of a handler, and the handler's task, which awaits what the thread asks for.

    In that task and no other: which task does something tells what the handler has surely done before.
    """

    def __init__(self, loop: LoopThread, run: Run[Any]) -> None:
        self.loop = loop
        self._run = run
        self._errands = Errands()
        self._outcome: Outcome[Any] = Outcome(None)
        self._ended = asyncio.get_running_loop().create_future()
        self._thread: threading.Thread | None = None

    async def call(self, handler: Callable[[BlockingRun[Any]], Any]) -> Any:
        """Return what `handler` returns. A thread cannot be stopped: if the run is, its next call there raises.

        Where the run is stopped while the thread waits for it, it is waited for until it has cleaned up.
        """
        work = partial(self._work, handler, copy_context())
        self._thread = threading.Thread(target=work, name=f"orchestrator_state handler {self._run.id}", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the system has no more threads: no fault of the run
            raise StoreUnavailable("no thread can be started for the handler of a run") from None
        try:
            await self._errands.serve()
        except asyncio.CancelledError:
            if self._errands.was_cut_off:
                await self._ended
            raise
        return self._outcome.result()

    def ask(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """In the thread: return `await work()`. Raises `CancelledError` once the run was stopped, or left."""
        if threading.current_thread() is not self._thread:
            raise ConfigurationError("a step of a run is called from the thread of its handler; this is another one")
        call = Call(work)
        try:
            with self.loop.watching(call, partial(self._errands.take, call)):
                call.wait()
        except ConfigurationError:  # the store was closed under it
            raise asyncio.CancelledError from None
        return call.result()

    def look(self, at: Callable[[], _T]) -> _T:
        """Return `at()`, which depends on who asks: the handler, or the function of a step in a thread of its own."""
        if threading.current_thread() is not self._thread:
            return at()

        async def look() -> _T:
            return at()

        return self.ask(look)

    def _work(self, handler: Callable[[BlockingRun[Any]], Any], context: Context) -> None:
        try:
            self._outcome = Outcome(context.run(_called, handler, BlockingRun(self._run, self)))
        except BaseException as error:  # noqa: BLE001 - any class is the handler's answer
            self._outcome = Outcome(None, error)
        self.loop.post(self._errands.end)
        self.loop.post(_resolve, self._ended)
        del handler, context


def _called(handler: Callable[[BlockingRun[Any]], Any], run: BlockingRun[Any]) -> Any:
    answer = handler(run)
    if inspect.isawaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()
        raise ConfigurationError("the handler returned something to await: give the `async def` itself as the handler")
    return answer


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class BlockingRun(Generic[State]):
    """A `Run` for a handler that is a plain function. Each call blocks, and has the name and the arguments of `Run`'s.

    The handler is called in a thread of its own. What stops it is what would stop an async one, `CancelledError`: from
    the call that it waits for, or else from its next one. Its calls are made one after the other, in that thread.
    """

    def __init__(self, run: Run[State], thread: _HandlerThread) -> None:
        self._run = run
        self._thread = thread

    def __reduce__(self) -> NoReturn:
        raise ConfigurationError("a Run belongs to its process: hand on its id, and what a step needs, not the run")

    # --- what it is ----------------------------------------------------------------------------------------------

    @property
    def id(self) -> UUID:
        """See `Run.id`."""
        return self._run.id

    @property
    def workflow_id(self) -> str:
        """See `Run.workflow_id`."""
        return self._run.workflow_id

    @property
    def name(self) -> str:
        """See `Run.name`."""
        return self._run.name

    @property
    def user_id(self) -> str | None:
        """See `Run.user_id`."""
        return self._run.user_id

    @property
    def parent_id(self) -> UUID | None:
        """See `Run.parent_id`."""
        return self._run.parent_id

    @property
    def attempts(self) -> int:
        """See `Run.attempts`."""
        return self._run.attempts

    @property
    def context(self) -> dict[str, Any]:
        """See `Run.context`."""
        return self._thread.look(lambda: self._run.context)

    @property
    def state(self) -> State:
        """See `Run.state`."""
        return self._thread.look(lambda: self._run.state)

    @property
    def step_key(self) -> str:
        """See `Run.step_key`."""
        return self._run.step_key

    @property
    def unused_steps(self) -> tuple[str, ...]:
        """See `Run.unused_steps`."""
        return self._run.unused_steps

    # --- durable calls -------------------------------------------------------------------------------------------

    def record_usage(
        self,
        *,
        model: str,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cost: Decimal | float | None = None,
        provider: str | None = None,
    ) -> None:
        """See `Run.record_usage`."""
        self._run.record_usage(
            model=model, input_tokens=input_tokens, output_tokens=output_tokens, cost=cost, provider=provider
        )

    step = cast("BlockingStep", blocking(cast("Any", Run.step)))
    checkpoint = blocking(Run.checkpoint)
    sleep = blocking(Run.sleep)
    wait_for = blocking(Run.wait_for)
    ask = blocking(Run.ask)
    set_attributes = blocking(Run.set_attributes)

    @overload
    def with_options(self, *, returns: None = None, **options: Unpack[StepOptions]) -> BlockingStepCaller: ...

    @overload
    def with_options(self, *, returns: type[_R], **options: Unpack[StepOptions]) -> BlockingTypedStepCaller[_R]: ...

    @overload
    def with_options(self, *, returns: Any, **options: Unpack[StepOptions]) -> BlockingTypedStepCaller[Any]: ...

    def with_options(
        self, *, returns: Any = None, **options: Unpack[StepOptions]
    ) -> BlockingStepCaller | BlockingTypedStepCaller[Any]:
        """See `Run.with_options`."""
        return BlockingStepCaller(self._run.with_options(returns=returns, **options), self._thread.ask)

    def key_of(self, step_id: str) -> str:
        """See `Run.key_of`."""
        return self._thread.look(lambda: self._run.key_of(step_id))

    def append(self, key: str, item: Any) -> None:
        """See `Run.append`."""
        self._thread.look(lambda: self._run.append(key, item))

    @overload
    def transact(
        self, step_id: str, fn: Callable[[AsyncSession, *_Args], Awaitable[_T]], *args: *_Args, returns: None = None
    ) -> _T: ...

    @overload
    def transact(
        self, step_id: str, fn: Callable[[Session, *_Args], _T], *args: *_Args, returns: None = None
    ) -> _T: ...

    @overload
    def transact(
        self,
        step_id: str,
        fn: Callable[[AsyncSession, *_Args], Awaitable[object]] | Callable[[Session, *_Args], object],
        *args: *_Args,
        returns: type[_R],
    ) -> _R: ...

    @overload
    def transact(
        self,
        step_id: str,
        fn: Callable[[AsyncSession, *_Args], Awaitable[object]] | Callable[[Session, *_Args], object],
        *args: *_Args,
        returns: Any,
    ) -> Any: ...

    @overload
    def transact(
        self,
        step_id: str,
        fn: Callable[Concatenate[AsyncSession, _P], Awaitable[_T]],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T: ...

    @overload
    def transact(
        self, step_id: str, fn: Callable[Concatenate[Session, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T: ...

    def transact(  # type: ignore[misc]  # a function's own keyword could be named as an option is
        self, step_id: str, fn: Callable[..., Any], *args: Any, returns: Any = None, **kwargs: Any
    ) -> Any:
        """Return `fn(session, *args)`, whose rows commit together with the step: see `Run.transact`.

        A plain function is given a `Session`; it is called in the thread of the event loop, and so should do nothing
        but write rows. An async one is given the `AsyncSession`.
        """
        as_function(fn, "the function of run.transact")
        work = fn if is_async(fn) else _with_session(fn)
        return self._call(Run.transact, (step_id, work, *args), {"returns": returns, **kwargs})

    @overload
    def child(
        self,
        name: str,
        handler: Callable[[Run[_ChildState]], Awaitable[_T]],
        *,
        returns: None = None,
        **options: Unpack[ChildOptions[_ChildState]],
    ) -> _T: ...

    @overload
    def child(
        self,
        name: str,
        handler: Callable[[BlockingRun[_ChildState]], _T],
        *,
        returns: None = None,
        **options: Unpack[ChildOptions[_ChildState]],
    ) -> _T: ...

    @overload
    def child(
        self,
        name: str,
        handler: Callable[[Run[_ChildState]], Awaitable[object]] | Callable[[BlockingRun[_ChildState]], object],
        *,
        returns: type[_R],
        **options: Unpack[ChildOptions[_ChildState]],
    ) -> _R: ...

    @overload
    def child(
        self,
        name: str,
        handler: Callable[[Run[_ChildState]], Awaitable[object]] | Callable[[BlockingRun[_ChildState]], object],
        *,
        returns: Any,
        **options: Unpack[ChildOptions[_ChildState]],
    ) -> Any: ...

    def child(
        self,
        name: str,
        handler: Callable[..., Any],
        *,
        context: dict[str, Any] | BaseModel | None = None,
        state: type[BaseModel] | None = None,
        returns: Any = None,
    ) -> Any:
        """Return the result of another run, as `Run.child` does. Its handler may be a plain function, too."""
        options = {"context": context, "state": state, "returns": returns}
        return self._call(Run.child, (name, in_a_thread(self._thread.loop, handler)), options)

    def _call(self, method: Callable[..., Coroutine[Any, Any, Any]], args: Any, options: Any) -> Any:
        return self._thread.ask(lambda: method(self._run, *args, **options))


def _with_session(fn: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    async def call(session: AsyncSession, *args: Any, **kwargs: Any) -> Any:
        return await session.run_sync(cast("Any", fn), *args, **kwargs)

    return call
