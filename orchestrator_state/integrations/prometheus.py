"""Metrics for Prometheus, in the registry of `prometheus-client`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from orchestrator_state.arguments import as_flag
from orchestrator_state.errors import ConfigurationError, MissingExtra
from orchestrator_state.hooks import Event, StoreEvent
from orchestrator_state.integrations.instruments import INSTRUMENTS, STEP, Instrument, Measures

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
except ImportError as error:
    message = "metrics for Prometheus need prometheus-client: pip install 'orchestrator-state[prometheus]'"
    raise MissingExtra(message, extra="prometheus") from error

__all__ = ["Prometheus"]

_NAMESPACE: Final = "orchestrator_state"
_UNITS: Final = {"s": "_seconds", "By": "", "USD": "_dollars"}


class Prometheus:
    """A hook that counts and measures into `registry`, which is prometheus-client's own unless given.

        metrics = Prometheus()
        StateStore.open(url, hook=metrics)

    One serves all stores of a process: a second one in the same registry is a `ConfigurationError`. The metrics have
    labels for the workflow's name, the outcome and the class of an error; with `by_step` also for the step, where
    `fetch#2` counts as `fetch`. Each label has at most 200 names, and the rest counts as `(other)`.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY, *, by_step: bool = False) -> None:
        self._by_step = as_flag(by_step, "by_step")
        try:
            self._metrics = {each: self._metric(each, registry) for each in INSTRUMENTS}
        except ValueError:
            raise ConfigurationError(
                "the registry has these metrics already; give one Prometheus(...) to all stores of the process"
            ) from None
        self._measures = Measures(self._record, by_step=self._by_step)

    def on_event(self, event: Event) -> None:
        """See `Hook`."""
        self._measures.on_event(event)

    def on_store_event(self, event: StoreEvent) -> None:
        """See `Hook`."""
        self._measures.on_store_event(event)

    def _metric(self, instrument: Instrument, registry: CollectorRegistry) -> Any:
        name = f"{_NAMESPACE}_{instrument.name.replace('.', '_')}{_UNITS.get(instrument.unit, '')}"
        about = name, instrument.description, self._labels(instrument)
        match instrument.kind:
            case "counter":
                return Counter(*about, registry=registry)
            case "histogram":
                return Histogram(*about, registry=registry, buckets=instrument.buckets)
            case "gauge" | "up_down":
                return Gauge(*about, registry=registry, multiprocess_mode="livesum")

    def _labels(self, instrument: Instrument) -> list[str]:
        return [label for label in instrument.labels if label != STEP or self._by_step]

    def _record(self, instrument: Instrument, value: float, labels: Mapping[str, str]) -> None:
        metric: Any = self._metrics[instrument]
        if names := self._labels(instrument):
            metric = metric.labels(*(labels[name] for name in names))
        match instrument.kind:
            case "histogram":
                metric.observe(value)
            case "gauge":
                metric.set(value)
            case "counter" | "up_down":
                metric.inc(value)
