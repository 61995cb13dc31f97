"""`Run`: what a handler holds. Each of its calls is a durable step, found by its id when the handler runs again."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import ContextVar, copy_context
from decimal import Decimal
from functools import partial
from typing import (
    Any,
    Final,
    Generic,
    NoReturn,
    Self,
    TypedDict,
    Unpack,
    cast,
    overload,
)
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession
from typing_extensions import TypeVar

from orchestrator_state.arguments import (
    as_duration,
    as_function,
    as_name,
    as_question_name,
    as_signal_name,
    as_stored_name,
)
from orchestrator_state.concurrency import Outcome, awaitable, outcome_of
from orchestrator_state.errors import ConfigurationError
from orchestrator_state.records.overview import Attribute, as_attributes
from orchestrator_state.runs.spending.amounts import as_nano, as_tokens
from orchestrator_state.runs.spending.prices import price_of
from orchestrator_state.runs.step_calls import Duration, StepCalls
from orchestrator_state.runs.steps import Steps, nothing
from orchestrator_state.runs.types import RunTypes
from orchestrator_state.runs.waiting.exits import HANDLER, mark
from orchestrator_state.runs.waiting.questions import ask, recorded_answer, wording_of
from orchestrator_state.runs.waiting.waits import Child, StartChild, child, recorded_signal, sleep, wait_for

_T = TypeVar("_T")
_R = TypeVar("_R")
State = TypeVar("State", bound=BaseModel, default=Any)
"""The model of a run's state; without one `Run` is `Run[Any]`."""
_ChildState = TypeVar("_ChildState", bound=BaseModel)
Handler = Callable[["Run[Any]"], Awaitable[_T]]

# Not the run itself: contexts outlive it, that of a connection which one of its steps has opened, say.
_current: Final[ContextVar[weakref.ref[Run[Any]] | None]] = ContextVar("orchestrator_state_current", default=None)


class ChildOptions(TypedDict, Generic[_ChildState], total=False):
    """What `run.child` starts its run with. See `store.run`."""

    context: dict[str, Any] | _ChildState | None
    state: type[_ChildState] | None


def call_handler(handler: Handler[_T], steps: Steps, start_child: StartChild) -> asyncio.Task[Outcome[_T]]:
    """Call `handler` in a task of its own, and let the run's switch stop it. All that it starts is known to be its."""
    run: Run[Any] = Run(steps, start_child)
    context = copy_context()
    context.run(_current.set, weakref.ref(run))
    context.run(mark, steps.room)
    context.run(steps.enter)
    work = outcome_of(partial(awaitable, "the handler", handler, run))
    task = asyncio.get_running_loop().create_task(work, name=f"{HANDLER} {run.id}", context=context)
    steps.switch.watch(task)
    return task


def _run_ended() -> ConfigurationError:
    return ConfigurationError("the run that Run.current() asks for has ended")


class Run(StepCalls, Generic[State]):
    """A durable run, as its handler sees it. Made by `store.run`, `store.recover` and `Worker`.

    `Run[Totals]` is one whose `state` is a `Totals`.

    A step that finished never runs again: when the handler is resumed, the same call returns what was recorded. Steps
    are found by id, so that a new version of the handler may add or reorder them. Apart from its steps a handler is
    plain async code. No database connection is held while a step runs.
    """

    def __init__(self, steps: Steps, start_child: StartChild) -> None:
        super().__init__(steps)
        self._start_child = start_child
        self._pid = os.getpid()

    @staticmethod
    def current() -> Run[Any]:
        """The run whose handler, or step, is calling, however deep: for code that it was not passed on to.

        A sync function finds it in its thread, too; in a child run it is the child. Raises `ConfigurationError` outside
        a run, after its end, and in another process.
        """
        ref = _current.get()
        if ref is None:
            raise ConfigurationError("Run.current() is for code that the handler of a run, or a step, calls")
        if (run := ref()) is None:
            raise _run_ended()
        return run._here()  # noqa: SLF001 - of this class

    def _here(self) -> Self:
        if self._steps.switch.has_ended:
            raise _run_ended()
        if self._pid != os.getpid():  # forked off while a step ran, with its context
            raise ConfigurationError("a Run belongs to its process: Run.current() finds none in another one")
        return self

    def __reduce__(self) -> NoReturn:
        raise ConfigurationError("a Run belongs to its process: hand on its id, and what a step needs, not the run")

    # --- what it is ----------------------------------------------------------------------------------------------

    @property
    def id(self) -> UUID:
        """Of the workflow's row: what `store.signal`, `pause` and `cancel` take."""
        return self._steps.journal.run.id

    @property
    def workflow_id(self) -> str:
        """What the run was started as."""
        return self._steps.journal.run.workflow_id

    @property
    def name(self) -> str:
        """The name under which handlers are found; the row's `workflow_name`."""
        return self._steps.journal.run.name

    @property
    def user_id(self) -> str | None:
        """Whose run it is, as given at the start."""
        return self._steps.journal.run.user_id

    @property
    def parent_id(self) -> UUID | None:
        """The run that started this one with `run.child`."""
        return self._steps.journal.run.parent_id

    @property
    def attempts(self) -> int:
        """How often the run was taken over from a worker that vanished, since it last finished a step."""
        return self._steps.journal.run.attempts

    @property
    def context(self) -> dict[str, Any]:
        """The run's JSON context. What changed in it is saved with the next step's commit.

        A resumed handler finds it as it was at the start, and after each recorded step as that step's commit saved it.
        Branches that run side by side share it, and each commit saves what all of them did to it; on a resume each line
        of theirs counts once. Take it from here where you change it: so it is known who did. Raises
        `ConfigurationError` if the run has a `state`.
        """
        if (model := self._steps.types.state) is not None:
            raise ConfigurationError(f"the context of this run is a {model.__qualname__}: use run.state")
        return cast("dict[str, Any]", self._steps.journal.history.taken_up())

    @property
    def state(self) -> State:
        """The run's context as the model that `state=`, or the schema, says it is.

        It is saved, replayed and shared like `context`, and always is the same object. Raises `ConfigurationError` if
        the run has no model.
        """
        if self._steps.types.state is None:
            raise ConfigurationError("this run has no model of its state: pass `state=`, or use run.context")
        return cast("State", self._steps.journal.history.taken_up())

    @property
    def unused_steps(self) -> tuple[str, ...]:
        """Finished steps on record that the handler has not asked for: in the end, those that it no longer has."""
        return self._steps.unused

    # --- durable calls -------------------------------------------------------------------------------------------

    def checkpoint(self, label: str = "checkpoint") -> Coroutine[Any, Any, None]:
        """Commit the context now, as a step of that name, with a checkpoint whatever the policy."""
        numbered = self._steps.number(label)
        return self._steps.call(numbered, nothing, partial(self._steps.checkpoint, numbered))

    def append(self, key: str, item: Any) -> None:
        """Append `item` to the list `context[key]`, or that field of `state`; the next commit writes the item alone."""
        self._steps.journal.history.held.append(as_name(key, "key"), item)

    def record_usage(
        self,
        *,
        model: str,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cost: Decimal | float | None = None,
        provider: str | None = None,
    ) -> None:
        """Record what a call of a model has used, for `store.usage`: it commits with the step whose function calls.

        Once for each call of a model. A step that is on record is not called again, so nothing is counted twice; of a
        step that was called several times the call counts that gave its result, and the others are shown as failed.

        `cost` is in US dollars. Without it, the price is that of `genai-prices`, if the extra `prices` is installed and
        knows the model (of that `provider`, if it is given); else it is unknown. Raises `InvalidPayload` for what
        cannot be recorded, and `ConfigurationError` outside of the function of a step, or after its end.
        """
        model = as_stored_name(model, "model")
        provider = None if provider is None else as_stored_name(provider, "provider")
        read, written = as_tokens(input_tokens, "input_tokens"), as_tokens(output_tokens, "output_tokens")
        price = price_of(model, provider, read, written) if cost is None else as_nano(cost, "cost")
        self._steps.journal.spending.record(
            model=model, provider=provider, input_tokens=read, output_tokens=written, cost=price
        )

    def set_attributes(self, /, **attributes: Attribute) -> Coroutine[Any, Any, None]:
        """Set what the run is to be found by, as `store.set_attributes` does; None takes one away, and others stay.

        It is a step, `attributes`, which commits with its effect: a handler that is called again, and passes it again,
        takes back nothing that was set since.
        """
        changes, steps = as_attributes(attributes, "attributes"), self._steps

        async def change(session: AsyncSession) -> None:
            await steps.transactions.unit_on(session).overview.set_attributes(steps.id, changes)

        return self.transact("attributes", change)

    def sleep(self, duration: Duration) -> Coroutine[Any, Any, None]:
        """Wait, durably: a restart waits for what is left, by the database's clock."""
        numbered = self._steps.number("sleep")
        work = partial(sleep, self._steps, numbered, as_duration(duration, "duration"))
        return self._steps.call(numbered, nothing, work)

    @overload
    def wait_for(self, name: str, timeout: Duration | None = None, *, returns: type[_R]) -> Coroutine[Any, Any, _R]: ...

    @overload
    def wait_for(
        self, name: str, timeout: Duration | None = None, *, returns: Any = None
    ) -> Coroutine[Any, Any, Any]: ...

    def wait_for(self, name: str, timeout: Duration | None = None, *, returns: Any = None) -> Coroutine[Any, Any, Any]:
        """Return the payload of the oldest signal `name`, waiting if there is none. It is consumed with this step.

        Raises `TimeoutError` after `timeout`, which is durable too. Under `store.recover` and `Worker` a waiting run is
        let go of, and resumed when the signal is there. `returns` is as in `step`; a payload that it does not accept is
        consumed all the same, and raises `InvalidPayload`: the next call waits for the next signal.
        """
        name = as_signal_name(name)
        numbered = self._steps.number(f"signal:{name}")
        limit = None if timeout is None else as_duration(timeout, "timeout")
        returns = self._steps.types.of_step(numbered, returns)
        work = partial(wait_for, self._steps, numbered, name, limit, returns)
        return self._steps.call(numbered, partial(recorded_signal, self._steps, name, returns), work)

    @overload
    def ask(
        self,
        name: str,
        prompt: Any = None,
        *,
        returns: type[_R],
        choices: Sequence[Any] | None = None,
        timeout: Duration | None = None,
    ) -> Coroutine[Any, Any, _R]: ...

    @overload
    def ask(
        self,
        name: str,
        prompt: Any = None,
        *,
        returns: Any = None,
        choices: Sequence[Any] | None = None,
        timeout: Duration | None = None,
    ) -> Coroutine[Any, Any, Any]: ...

    def ask(
        self,
        name: str,
        prompt: Any = None,
        *,
        returns: Any = None,
        choices: Sequence[Any] | None = None,
        timeout: Duration | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Ask people something, and return the answer that one of them gives with `store.answer`.

        `store.list_questions` shows it until then, with the `prompt` (any JSON value), the JSON schema of `returns`,
        the `choices` and the deadline. An answer that does not fit is refused there; one is accepted, and no second.
        Where `returns` accepts less than its JSON schema tells, the question is open again after an answer that it does
        not accept, and says why.

        Raises `TimeoutError` after `timeout` (a duration, or seconds), which is durable. Under `store.recover` and
        `Worker` a run that waits is let go of. The step is called `question:` and the name.
        """
        name = as_question_name(name)
        numbered = self._steps.number(f"question:{name}")
        limit = None if timeout is None else as_duration(timeout, "timeout")
        returns = self._steps.types.of_step(numbered, returns)
        wording = wording_of(name, prompt, returns, choices, limit)
        work = partial(ask, self._steps, numbered, wording, returns)
        return self._steps.call(numbered, partial(recorded_answer, self._steps, name, returns), work)

    @overload
    def child(
        self,
        name: str,
        handler: Callable[[Run[_ChildState]], Awaitable[_T]],
        *,
        returns: None = None,
        **options: Unpack[ChildOptions[_ChildState]],
    ) -> Coroutine[Any, Any, _T]: ...

    @overload
    def child(
        self,
        name: str,
        handler: Callable[[Run[_ChildState]], Awaitable[object]],
        *,
        returns: type[_R],
        **options: Unpack[ChildOptions[_ChildState]],
    ) -> Coroutine[Any, Any, _R]: ...

    @overload
    def child(
        self,
        name: str,
        handler: Callable[[Run[_ChildState]], Awaitable[object]],
        *,
        returns: Any,
        **options: Unpack[ChildOptions[_ChildState]],
    ) -> Coroutine[Any, Any, Any]: ...

    def child(
        self,
        name: str,
        handler: Callable[[Run[Any]], Awaitable[Any]],
        *,
        context: dict[str, Any] | BaseModel | None = None,
        state: type[BaseModel] | None = None,
        returns: Any = None,
    ) -> Coroutine[Any, Any, Any]:
        """Return the result of another run, started once for this call, and cancelled with this run.

        `context`, `state` and `returns` are as in `store.run`.
        """
        as_function(handler, "the handler of run.child")
        types = RunTypes.of(self._steps.transactions.schemas, self._steps.types.payloads, name, state, returns)
        started_with = None if context is None else types.context_text(context)
        numbered = self._steps.number(f"child:{types.workflow_name}")
        # In the parent's record the result is the outputs of a step, so the parent's schema converts it.
        kind = self._steps.types.of_step(numbered, types.result)
        work = partial(child, self._steps, numbered, self._start_child, Child(handler, types, started_with), kind)
        return self._steps.call(numbered, partial(self._steps.recorded, kind), work)
