"""What happens to runs, told to whoever listens: frozen events and a protocol of one method.

    class Log:
        def on_event(self, event: Event) -> None:
            print(event)

    StateStore.open(url, hook=Log())

A hook is called in the event loop, between the steps of a commit: it must be quick. What it raises is logged and
ignored. Events carry ids and names, and never a payload. A duration is in seconds of a clock that nobody sets.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from types import TracebackType
from typing import Any, Final, ParamSpec, Protocol
from uuid import UUID

from orchestrator_state.errors import ConfigurationError
from orchestrator_state.failures import message_of, name_of, places_of

__all__ = [
    "BatchCommitted",
    "Event",
    "FellBack",
    "Hook",
    "LoginRefused",
    "RunEnded",
    "RunStarted",
    "StepCommitted",
    "StepCommitting",
    "StepFailed",
    "StepReused",
    "StepStarted",
    "StepsUnused",
    "StoreEvent",
    "TransactionRepeated",
    "UsageRecorded",
]


def _keep_to_one_line(record: logging.LogRecord) -> bool:
    """Ids and messages are others' words: with line breaks or escapes they would forge lines, or drive a terminal."""
    message = record.getMessage()
    if not message.isprintable():
        record.msg, record.args = "".join(map(_visible, message)), None
    return True


def _visible(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


logger: Final = logging.getLogger("orchestrator_state")
logger.addFilter(_keep_to_one_line)


# --- what happens to a run ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something happened to this run.

    `name` is the workflow's. `token` is that of the lease under which it happened, which grows with each claim: so it
    tells one attempt at the run from another.
    """

    workflow_state_id: UUID
    name: str = ""
    token: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """A worker owns the run and is about to call its handler.

    `attempts` counts owners that vanished since the run last finished a step: with more than none, it was taken over.
    `started_at` is when the run began, on the database's clock, and `parent_id` the run whose child it is.
    """

    name: str
    attempts: int
    workflow_id: str = ""
    started_at: datetime | None = None
    parent_id: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(Event):
    """The worker is done with the run, `duration` seconds after it began to load it.

    `outcome` is `completed`, `failed` or `cancelled`: the run is over. Or `paused`, `suspended` (it waits), `released`
    (its task was cancelled), `interrupted` (the database is away, or this process cannot read it), `lost` (another
    worker has it, or it was cancelled or deleted by force). `error_type` is the class of what it failed of, or was
    interrupted by. A run that is over before its handler could be called has no `RunStarted`.
    """

    outcome: str
    error_type: str | None = None
    duration: float = 0.0
    workflow_id: str = ""
    started_at: datetime | None = None
    parent_id: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted(Event):
    """The step's function is about to be called for the `attempt`-th time."""

    step_id: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFailed(Event):
    """The step failed `duration` seconds after its function was called for the `attempt`-th time.

    `will_retry`: the function is called again after a pause. Else the failure is committed next, as `StepCommitted`
    says. There is no duration where no function was called: a child run failed, or a signal was of another type.
    """

    step_id: str
    error_type: str
    will_retry: bool
    attempt: int = 1
    duration: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCommitting(Event):
    """The step's commit is about to be sent, each time that it is; of a `transact`: it was sent, COMMIT comes next."""

    step_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCommitted(Event):
    """The step's commit is durable; its result has not been used yet.

    `outcome` is what was committed: `completed`, `failed`, `skipped` (no signal came in time), or `running`: the intent
    to call a function, or the end of a wait that begins. `duration` is the seconds since the function was called for
    the `attempt`-th time, the commit included; None where none was called.
    """

    step_id: str
    outcome: str = "completed"
    error_type: str | None = None
    attempt: int = 1
    duration: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRecorded(Event):
    """What `run.record_usage` was told of a call of a model is durable.

    `failed`: it was used by a call of the step's function that did not give the step's result. `cost` is in US dollars;
    None if nobody knows the price.
    """

    step_id: str
    model: str
    provider: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cost: Decimal | None = None
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReused(Event):
    """A resumed handler was given the recorded outputs."""

    step_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FellBack(Event):
    """Recorded steps could not be read, and were taken from checkpoint `seq` (None: run again)."""

    step_ids: tuple[str, ...]
    seq: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsUnused(Event):
    """A resumed handler ended without asking for these finished steps: it was probably changed in between."""

    step_ids: tuple[str, ...]


# --- what happens to the store -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreEvent:
    """Something happened to the store, and to no run by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCommitted(StoreEvent):
    """So many step commits, of as many runs, went to the database together, and took `duration` seconds.

    `size` is the bytes of their payloads as they are stored in the rows; `queued` how many commits wait for the next
    batch by now.
    """

    commits: int
    size: int
    queued: int
    duration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionRepeated(StoreEvent):
    """The database gave up on a transaction, which is about to be sent again."""

    error_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginRefused(StoreEvent):
    """Postgres refused the user or the password of a new connection; `sqlstate` says which it was."""

    sqlstate: str


# --- who listens -------------------------------------------------------------------------------------------------


class Hook(Protocol):
    """Listens to events. Give it, or a list of several, to `StateStore.open(url, hook=...)`.

    It may have two methods more. `on_store_event(event: StoreEvent)` is told what happens to no run by itself.
    `around(event: RunStarted | StepStarted)` returns a context manager, which is entered around the call of the handler
    or of the step's function, in the task that calls: what it sets in a `ContextVar` is seen by the code in there.
    """

    def on_event(self, event: Event) -> None:
        """Take note of `event`, quickly: it is called in the event loop. What it raises is logged and ignored."""


_Fields = ParamSpec("_Fields")


class _Several:
    """Some hooks, each of which is told whatever becomes of the others."""

    def __init__(self, hooks: Iterable[Hook]) -> None:
        self._hooks = tuple(hooks)

    def on_event(self, event: Event) -> None:
        for hook in self._hooks:
            _call(hook.on_event, event)

    def on_store_event(self, event: StoreEvent) -> None:
        for listener in filter(None, (_optional(hook, "on_store_event") for hook in self._hooks)):
            _call(listener, event)

    @contextmanager
    def around(self, event: RunStarted | StepStarted) -> Iterator[None]:
        with ExitStack() as stack:
            for hook in self._hooks:
                stack.enter_context(around(hook, event))
            yield


def as_hook(given: Hook | Sequence[Hook] | None) -> Hook | None:
    """What `StateStore.open` was given: a hook, a list of them, or None. Raises `ConfigurationError`."""
    if given is None:
        return None
    several: list[Any] = list(given) if isinstance(given, (list, tuple)) else [given]
    for hook in several:
        if not callable(getattr(hook, "on_event", None)):
            raise ConfigurationError(f"hook is a {type(hook).__name__} without a method on_event")
    if not several:
        return None
    only: Hook = several[0] if len(several) == 1 else _Several(several)
    return only


def tell(hook: Hook | None, kind: Callable[_Fields, Event], *args: _Fields.args, **fields: _Fields.kwargs) -> None:
    """Call the hook with an event of that kind. What it raises is its own problem, never the run's.

    Without a hook the event is not made: several for each step would cost as much as all that is done to reuse one.
    """
    if hook is not None:
        _call(hook.on_event, kind(*args, **fields))


def tell_of_store(
    hook: Hook | None, kind: Callable[_Fields, StoreEvent], *args: _Fields.args, **fields: _Fields.kwargs
) -> None:
    """The same, for a hook that listens to such events."""
    if hook is not None and (listener := _optional(hook, "on_store_event")) is not None:
        _call(listener, kind(*args, **fields))


def around(hook: Hook, event: RunStarted | StepStarted) -> AbstractContextManager[object]:
    """What the hook wants to be entered around the call that `event` tells of. What that raises is its own problem."""
    make = _optional(hook, "around")
    return nullcontext() if make is None else _Around(make, event)


class _Around:
    def __init__(self, make: Callable[[Any], AbstractContextManager[object]], event: Event) -> None:
        self._make = make
        self._event = event
        self._entered: AbstractContextManager[object] | None = None

    def _enter(self, event: Event) -> None:
        entered = self._make(event)
        entered.__enter__()
        self._entered = entered

    def __enter__(self) -> None:
        _call(self._enter, self._event)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if (entered := self._entered) is not None:
            _call(lambda _: entered.__exit__(kind, error, traceback), self._event)


def _optional(hook: Hook, method: str) -> Any:
    """A method that a hook need not have. Its class is asked: a mock has whatever it is asked for."""
    return getattr(hook, method) if hasattr(type(hook), method) else None


def _call(listener: Callable[[Any], object], event: Event | StoreEvent) -> None:
    try:
        listener(event)
    except KeyboardInterrupt:  # of somebody who ends the program
        raise
    except BaseException as error:  # noqa: BLE001
        # Not `logger.exception`: what the hook was told of may be a failure, whose text is chained to the hook's.
        what, failure = type(event).__name__, name_of(error)
        logger.error("a hook failed on %s: %s(%r) at %s", what, failure, message_of(error), places_of(error))  # noqa: TRY400
