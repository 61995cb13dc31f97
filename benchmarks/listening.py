"""What does a listener cost a durable step? CPU of the process, many runs at once, beside the same without a hook."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from statistics import median
from typing import Final

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry

from benchmarks.contest import STEPS_PER_RUN, answer
from benchmarks.measure import Bench, Figure, Question
from orchestrator_state import Event, Hook, Run, StateStore
from orchestrator_state.integrations.opentelemetry import OpenTelemetry
from orchestrator_state.integrations.prometheus import Prometheus

_NOBODY: Final = "nobody"


class _Counts:
    def __init__(self) -> None:
        self.events = 0

    def on_event(self, event: Event) -> None:
        self.events += 1


async def _handler(run: Run) -> None:
    for number in range(STEPS_PER_RUN):
        await run.step(f"step-{number}", answer, number)


async def _cpu(store: StateStore, runs: int) -> float:
    """Microseconds for each step."""
    gc.collect()
    start = time.process_time()
    await asyncio.gather(*(store.run("benchmark", _handler) for _ in range(runs)))
    return (time.process_time() - start) / (runs * STEPS_PER_RUN) * 1e6


@contextmanager
def _listeners() -> Iterator[dict[str, Hook | None]]:
    """Spans are made and thrown away: what exports them is the application's choice."""
    tracers, meters = TracerProvider(), MeterProvider([InMemoryMetricReader()])
    yield {
        _NOBODY: None,
        "a hook that counts": _Counts(),
        "Prometheus": Prometheus(CollectorRegistry()),
        "OpenTelemetry": OpenTelemetry(tracer_provider=tracers, meter_provider=meters),
    }
    tracers.shutdown()
    meters.shutdown()


async def _measure(bench: Bench) -> list[Figure]:
    async with AsyncExitStack() as stack:
        listeners = stack.enter_context(_listeners())
        stores = {}
        for name, hook in listeners.items():
            url = stack.enter_context(bench.new_database())
            stores[name] = await stack.enter_async_context(StateStore.open(url, migrate=True, hook=hook))
            await _cpu(stores[name], min(10, bench.size))  # code gets warm
        spent = {name: [await _cpu(store, bench.size)] for name, store in stores.items()}
        for _ in range(bench.rounds - 1):
            for name, store in stores.items():
                spent[name].append(await _cpu(store, bench.size))
    return [
        Figure(
            what=f"CPU of a durable step, {name} listens",
            unit="x nobody",
            rounds=[one / without for one, without in zip(each, spent[_NOBODY], strict=True)],
            beside={"nobody µs": median(spent[_NOBODY]), "listening µs": median(each)},
        )
        for name, each in spent.items()
        if name != _NOBODY
    ]


LISTENING: Final = Question(name="listening", measure=_measure, size=100, quick_size=20)
