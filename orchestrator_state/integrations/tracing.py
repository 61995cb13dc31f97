"""The spans of runs: their ids are made from the run's, so that all who work on a run work on one trace."""

from __future__ import annotations

import re
import time
from asyncio import CancelledError
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from typing import Final, Protocol
from uuid import UUID

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, Status, StatusCode, TraceFlags, Tracer, TracerProvider

from orchestrator_state.domain import FINISHED, WorkflowStatus
from orchestrator_state.hooks import (
    Event,
    RunEnded,
    RunStarted,
    StepCommitted,
    StepFailed,
    StepStarted,
    UsageRecorded,
    logger,
)
from orchestrator_state.integrations import conventions

SCOPE: Final = "orchestrator_state"
_COUNTED: Final = re.compile(r"#\d+$")
_MISHAPS: Final = (WorkflowStatus.FAILED.value, "interrupted", "lost")
_OPEN: Final = Context()
"""Without a parent."""


# --- ids ---------------------------------------------------------------------------------------------------------


def trace_id_for(run_id: UUID) -> int:
    """Not the run's id itself: samplers take the bits of a trace's for random, and some of a UUID's are not."""
    return int.from_bytes(blake2b(run_id.bytes, digest_size=16).digest()) or 1


def _span_id_for(run_id: UUID, attempt: int = 0) -> int:
    """Of the root, or of that attempt."""
    return int.from_bytes(blake2b(run_id.bytes, digest_size=8, salt=attempt.to_bytes(8)).digest()) or 1


class _Generator(Protocol):
    """What tracers of opentelemetry-sdk have as their `id_generator`."""

    def generate_span_id(self) -> int: ...
    def generate_trace_id(self) -> int: ...


_wanted: ContextVar[tuple[int, int] | None] = ContextVar("wanted", default=None)


class _GivenIds:
    """Generates the ids that are wanted at the moment, or else what the provider's own generator does."""

    def __init__(self, usual: _Generator) -> None:
        self._usual = usual

    def generate_trace_id(self) -> int:
        wanted = _wanted.get()
        return self._usual.generate_trace_id() if wanted is None else wanted[0]

    def generate_span_id(self) -> int:
        wanted = _wanted.get()
        return self._usual.generate_span_id() if wanted is None else wanted[1]

    def is_trace_id_random(self) -> bool:
        """Made by a hash function, it may be taken for that."""
        return True


# --- spans -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Attempt:
    """An attempt at a run in this process, with its open spans. The root is ended by the attempt that ends the run."""

    root: Span
    span: Span
    calls: dict[str, Span] = field(default_factory=dict)
    used: Counter[str] = field(default_factory=Counter)
    """Tokens, by attribute."""


class Traces:
    """Makes the spans, by what a hook is told."""

    def __init__(self, provider: TracerProvider | None) -> None:
        self._provider = provider
        self._tracer: Tracer | None = None
        self._has_complained = False
        self._attempts: dict[tuple[UUID, int], _Attempt] = {}

    def on_event(self, event: Event) -> None:
        """Begin and end spans. An attempt that began unheard of has none."""
        match event:
            case RunStarted():
                self._run_started(event)
            case RunEnded():
                self._run_ended(event)
            case StepStarted() | StepFailed() | StepCommitted():
                if (attempt := self._attempts.get(_key(event))) is not None:
                    self._of_step(attempt, event)
            case UsageRecorded():
                if (attempt := self._attempts.get(_key(event))) is not None:
                    attempt.used[conventions.INPUT_TOKENS] += event.input_tokens
                    attempt.used[conventions.OUTPUT_TOKENS] += event.output_tokens
            case _:
                pass

    @contextmanager
    def around(self, event: RunStarted | StepStarted) -> Iterator[None]:
        """Make the span that `event` has begun the current one. A call that is cancelled ends here: no event tells."""
        attempt = self._attempts.get(_key(event))
        if attempt is None:
            yield
            return
        step_id = event.step_id if isinstance(event, StepStarted) else None
        span = attempt.span if step_id is None else attempt.calls[step_id]
        token = contexts.attach(trace.set_span_in_context(span))
        try:
            yield
        except CancelledError:
            if step_id is not None and attempt.calls.get(step_id) is span:
                _end(attempt.calls.pop(step_id), "cancelled")
            raise
        finally:
            contexts.detach(token)

    # --- the run -------------------------------------------------------------------------------------------------

    def _run_started(self, event: RunStarted) -> None:
        if self._is_off():
            return
        caller = trace.get_current_span().get_span_context()
        links = [Link(caller, {conventions.LINK_TO: "caller"})] if caller.is_valid else []
        root = self._root(event, links)
        attributes = {conventions.RUN_ATTEMPT: event.token, conventions.VANISHED: event.attempts}
        span_id = _span_id_for(event.workflow_state_id, event.token)
        span = self._start(f"attempt {event.name}", event, span_id, root=root, links=links, attributes=attributes)
        self._attempts[_key(event)] = _Attempt(root, span)

    def _run_ended(self, event: RunEnded) -> None:
        attempt = self._attempts.pop(_key(event), None)
        if attempt is not None:
            for call in attempt.calls.values():
                _end(call, "uncommitted")
            attempt.span.set_attributes(attempt.used)
            _end(attempt.span, event.outcome, event.error_type)
        elif self._is_off():
            return
        if event.outcome in FINISHED:
            _end(self._root(event, []) if attempt is None else attempt.root, event.outcome, event.error_type)

    def _root(self, event: RunStarted | RunEnded, links: list[Link]) -> Span:
        attributes = {
            conventions.OPERATION_NAME: conventions.INVOKE_WORKFLOW,
            conventions.WORKFLOW_NAME: event.name,
            conventions.AGENT_NAME: event.name,
            conventions.WORKFLOW_ID: event.workflow_id,
        }
        if event.parent_id is not None:
            attributes[conventions.PARENT_ID] = str(event.parent_id)
            parent = SpanContext(
                trace_id_for(event.parent_id), _span_id_for(event.parent_id), is_remote=True, trace_flags=TraceFlags(1)
            )
            links = [*links, Link(parent, {conventions.LINK_TO: "parent run"})]
        name = f"{conventions.INVOKE_WORKFLOW} {event.name}"
        span_id = _span_id_for(event.workflow_state_id)
        return self._start(name, event, span_id, links=links, began_at=event.started_at, attributes=attributes)

    # --- its steps -----------------------------------------------------------------------------------------------

    def _of_step(self, attempt: _Attempt, event: StepStarted | StepFailed | StepCommitted) -> None:
        if isinstance(event, StepCommitted) and event.outcome == "running":  # an intent
            return
        call = attempt.calls.pop(event.step_id, None)
        if call is not None:
            outcome = "repeated" if isinstance(event, StepStarted) else "failed"
            error_type = None if isinstance(event, StepStarted) else event.error_type
            _end(call, event.outcome if isinstance(event, StepCommitted) else outcome, error_type)
        if isinstance(event, StepStarted):
            self._step_started(attempt, event)

    def _step_started(self, attempt: _Attempt, event: StepStarted) -> None:
        name = f"step {_COUNTED.sub('', event.step_id)}"
        attributes: dict[str, str | int] = {
            conventions.WORKFLOW_NAME: event.name,
            conventions.STEP_ID: event.step_id,
            conventions.STEP_CALL: event.attempt,
            conventions.RUN_ATTEMPT: event.token,
        }
        links = [Link(attempt.span.get_span_context(), {conventions.LINK_TO: "attempt"})]
        attempt.calls[event.step_id] = self._start(
            name, event, None, root=attempt.root, links=links, attributes=attributes
        )

    # --- the tracer ----------------------------------------------------------------------------------------------

    def _start(
        self,
        name: str,
        event: Event,
        span_id: int | None,
        *,
        root: Span | None = None,
        links: list[Link],
        attributes: Mapping[str, str | int],
        began_at: datetime | None = None,
    ) -> Span:
        """A span in the trace of the run, below its `root` if it is not that, with the `span_id` if one is given."""
        if self._tracer is None:
            return trace.INVALID_SPAN
        now = time.time_ns()
        start = now if began_at is None else min(now, int(began_at.timestamp() * 1e6) * 1000)
        wanted = _wanted.set(None if span_id is None else (trace_id_for(event.workflow_state_id), span_id))
        try:
            return self._tracer.start_span(
                name,
                _OPEN if root is None else trace.set_span_in_context(root, _OPEN),
                attributes={conventions.RUN_ID: str(event.workflow_state_id), **attributes},
                links=links,
                start_time=start,
            )
        finally:
            _wanted.reset(wanted)

    def _is_off(self) -> bool:
        """Whether there is no tracer (yet) that takes ids from us: the global provider may be set later."""
        if self._tracer is None:
            tracer = trace.get_tracer(SCOPE, tracer_provider=self._provider)
            usual = getattr(tracer, "id_generator", None)
            if usual is not None:
                if not isinstance(usual, _GivenIds):
                    tracer.id_generator = _GivenIds(usual)  # type: ignore[attr-defined]
                self._tracer = tracer
            elif not isinstance(tracer, (trace.NoOpTracer, trace.ProxyTracer)) and not self._has_complained:
                self._has_complained = True
                logger.warning("there are no traces: %s takes no ids from us", type(tracer).__qualname__)
        return self._tracer is None


def _key(event: Event) -> tuple[UUID, int]:
    return event.workflow_state_id, event.token


def _end(span: Span, outcome: str, error_type: str | None = None) -> None:
    span.set_attribute(conventions.OUTCOME, outcome)
    if error_type is not None:
        span.set_attribute(conventions.ERROR_TYPE, error_type)
    if outcome in _MISHAPS:
        span.set_status(Status(StatusCode.ERROR, error_type))
    span.end()
