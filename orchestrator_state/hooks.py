"""What happens to runs, told to whoever listens: frozen events and a protocol of one method.

    class Log:
        def on_event(self, event: Event) -> None:
            print(event)

    StateStore.open(url, hook=Log())

A hook is called in the event loop, between the steps of a commit: it must be quick. What it raises is logged and
ignored. Events carry ids and never a payload.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, ParamSpec, Protocol
from uuid import UUID

from orchestrator_state.failures import message_of, name_of, places_of

__all__ = [
    "Event",
    "FellBack",
    "Hook",
    "RunEnded",
    "RunStarted",
    "StepCommitted",
    "StepCommitting",
    "StepReused",
    "StepStarted",
    "StepsUnused",
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


_Fields = ParamSpec("_Fields")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something happened to this run."""

    workflow_state_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """A worker owns the run and is about to call its handler. `attempts` counts owners that vanished before."""

    name: str
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(Event):
    """The worker is done with the run; `outcome` is a workflow status, or `suspended`, `released`, `interrupted`
    or `lost`."""

    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted(Event):
    """The step's function is about to be called for the `attempt`-th time."""

    step_id: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCommitting(Event):
    """The step's commit is about to be sent, each time that it is; of a `transact`: it was sent, COMMIT comes next."""

    step_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCommitted(Event):
    """The step's commit is durable; its result has not been used yet."""

    step_id: str


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


class Hook(Protocol):
    """Listens to events. Give it to `StateStore.open(url, hook=...)`."""

    def on_event(self, event: Event) -> None:
        """Take note of `event`, quickly: it is called in the event loop. What it raises is logged and ignored."""


def tell(hook: Hook | None, kind: Callable[_Fields, Event], *args: _Fields.args, **fields: _Fields.kwargs) -> None:
    """Call the hook with an event of that kind. What it raises is its own problem, never the run's.

    Without a hook the event is not made: several for each step would cost as much as all that is done to reuse one.
    """
    if hook is None:
        return
    event = kind(*args, **fields)
    try:
        hook.on_event(event)
    except KeyboardInterrupt:  # of somebody who ends the program
        raise
    except BaseException as error:  # noqa: BLE001
        # Not `logger.exception`: what the hook was told of may be a failure, whose text is chained to the hook's.
        what, failure = type(event).__name__, name_of(error)
        logger.error("a hook failed on %s: %s(%r) at %s", what, failure, message_of(error), places_of(error))  # noqa: TRY400
