"""Traces and metrics for OpenTelemetry."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final
from uuid import UUID

from orchestrator_state.arguments import as_flag, as_uuid
from orchestrator_state.errors import MissingExtra
from orchestrator_state.hooks import Event, RunStarted, StepStarted, StoreEvent
from orchestrator_state.integrations import conventions
from orchestrator_state.integrations.instruments import (
    ERROR_TYPE,
    INSTRUMENTS,
    MODEL,
    OUTCOME,
    STEP,
    TOKEN_TYPE,
    WORKFLOW,
    Instrument,
    Measures,
)

try:
    from opentelemetry import metrics
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from orchestrator_state.integrations.tracing import SCOPE, Traces, trace_id_for
except ImportError as error:
    message = "traces and metrics need opentelemetry-api: pip install 'orchestrator-state[opentelemetry]'"
    raise MissingExtra(message, extra="opentelemetry") from error

__all__ = ["OpenTelemetry", "trace_id_of"]

_ATTRIBUTES: Final = {
    WORKFLOW: conventions.WORKFLOW_NAME,
    OUTCOME: conventions.OUTCOME,
    ERROR_TYPE: conventions.ERROR_TYPE,
    STEP: conventions.STEP_ID,
    MODEL: conventions.MODEL,
    TOKEN_TYPE: conventions.TOKEN_TYPE,
}


class OpenTelemetry:
    """A hook that makes spans and measurements, with the providers given, or else with the global ones.

        StateStore.open(url, hook=OpenTelemetry())

    A run is one trace, whoever works on it. Its root span is exported when the run ends, by the worker that ends it.
    The attempts at it are spans below, and so are the calls of its steps' functions, each with a link to its attempt. A
    step that is found on record has no span. A child run is a trace of its own, with a link to its parent's; to the
    span in which `store.run` was called there is a link, too. Code in a handler has the span of the attempt as its
    current one, code in a step that of the call.

    Traces need a provider of opentelemetry-sdk, or one whose tracers have an `id_generator` as its tracers do; with
    another there are none. One hook serves all stores of a process. `by_step` gives the metrics of steps an attribute
    for the step, where `fetch#2` counts as `fetch`. Each attribute has at most 200 values, and the rest counts as
    `(other)`.
    """

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        traces: bool = True,
        metrics: bool = True,
        by_step: bool = False,
    ) -> None:
        self._traces = Traces(tracer_provider) if as_flag(traces, "traces") else None
        self._measures: Measures | None = None
        if as_flag(metrics, "metrics"):
            self._instruments = _instruments(meter_provider)
            self._measures = Measures(self._record, by_step=as_flag(by_step, "by_step"))

    def on_event(self, event: Event) -> None:
        """See `Hook`."""
        if self._measures is not None:
            self._measures.on_event(event)
        if self._traces is not None:
            self._traces.on_event(event)

    def on_store_event(self, event: StoreEvent) -> None:
        """See `Hook`."""
        if self._measures is not None:
            self._measures.on_store_event(event)

    def around(self, event: RunStarted | StepStarted) -> AbstractContextManager[None]:
        """See `Hook`: the attempt's span, or that of the call, is the current one in the block."""
        return nullcontext() if self._traces is None else self._traces.around(event)

    def _record(self, instrument: Instrument, value: float, labels: Mapping[str, str]) -> None:
        target: Any = self._instruments[instrument]
        attributes = {_ATTRIBUTES[label]: text for label, text in labels.items() if text}
        match instrument.kind:
            case "histogram":
                target.record(value, attributes)
            case "gauge":
                target.set(value, attributes)
            case "counter" | "up_down":
                target.add(value, attributes)


def trace_id_of(workflow_state_id: UUID | str) -> str:
    """The id of a run's trace, as 32 hexadecimal digits: to look for it, or to link to it from elsewhere."""
    return f"{trace_id_for(as_uuid(workflow_state_id, 'workflow_state_id')):032x}"


def _instruments(provider: MeterProvider | None) -> dict[Instrument, Any]:
    meter = metrics.get_meter(SCOPE, meter_provider=provider)
    made: dict[Instrument, Any] = {}
    for each in INSTRUMENTS:
        name, about = f"{SCOPE}.{each.name}", {"unit": each.unit, "description": each.description}
        match each.kind:
            case "counter":
                made[each] = meter.create_counter(name, **about)
            case "up_down":
                made[each] = meter.create_up_down_counter(name, **about)
            case "gauge":
                made[each] = meter.create_gauge(name, **about)
            case "histogram":
                buckets = each.buckets
                made[each] = meter.create_histogram(name, **about, explicit_bucket_boundaries_advisory=buckets)
    return made
