"""Spans and metrics of runs, as the SDK of OpenTelemetry exports them."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any
from uuid import UUID

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import StatusCode

from orchestrator_state import LeaseLost, Retry, Run, StateStore, hooks
from orchestrator_state.hooks import StepStarted
from orchestrator_state.integrations.opentelemetry import OpenTelemetry, trace_id_of
from tests.support.children import child
from tests.support.running import Failing, Gate, change_row, expire_lease, vanish

AGAIN = Retry(attempts=3, wait_initial=0, wait_max=0, wait_jitter=0)


class Watched:
    """A hook with providers whose exports a test can look at."""

    def __init__(self, **options: Any) -> None:
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.provider = TracerProvider(**options)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader])
        self.hook = OpenTelemetry(tracer_provider=self.provider, meter_provider=self.meters, by_step=True)
        self.tracer = self.provider.get_tracer("the application's")

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self.exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def points(self, name: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        assert data is not None
        found = [
            metric.data.data_points
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == f"orchestrator_state.{name}"
        ]
        return [point for points in found for point in points]


@pytest.fixture
def watched() -> Watched:
    return Watched()


def context_of(span: ReadableSpan) -> trace.SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


async def one_step(run: Run) -> int:
    return await run.step("a", lambda: 1)


# --- traces ------------------------------------------------------------------------------------------------------


async def test_a_run_is_a_root_with_its_attempt_and_its_calls_below(database_url: str, watched: Watched) -> None:
    async def handler(run: Run) -> None:
        for _ in range(2):
            await run.step("fetch", Failing())
        await run.transact("write", lambda session: asyncio.sleep(0))

    async with StateStore.open(database_url, hook=watched.hook) as store:
        await store.run("chat", handler, workflow_id="w")
        state = await store.load_workflow_state_by_workflow_id("w")
    [root] = watched.named("invoke_workflow chat")
    [attempt] = watched.named("attempt chat")
    calls = [*watched.named("step fetch"), *watched.named("step write")]
    assert {f"{context_of(span).trace_id:032x}" for span in watched.spans} == {trace_id_of(state.id)}
    assert root.parent is None
    assert root.attributes == {
        "gen_ai.operation.name": "invoke_workflow",
        "gen_ai.workflow.name": "chat",
        "gen_ai.agent.name": "chat",
        "orchestrator_state.run.id": str(state.id),
        "orchestrator_state.workflow.id": "w",
        "orchestrator_state.outcome": "completed",
    }
    assert {parent_of(span) for span in (attempt, *calls)} == {context_of(root).span_id}
    assert [call.attributes["orchestrator_state.step.id"] for call in calls if call.attributes] == [
        "fetch",
        "fetch#2",
        "write",
    ]
    assert all(link.context == context_of(attempt) for call in calls for link in call.links)
    assert all(len(call.links) == 1 for call in calls)
    assert all(root.start_time <= span.start_time <= span.end_time <= root.end_time for span in calls)  # type: ignore[operator]


async def test_each_failed_call_is_a_span_with_its_error(database_url: str, watched: Watched) -> None:
    async def handler(run: Run) -> None:
        await run.step("a", Failing(OSError("a secret"), KeyError("a secret")), retry=AGAIN)
        raise LookupError("a secret")

    async with StateStore.open(database_url, hook=watched.hook) as store:
        with pytest.raises(LookupError):
            await store.run("chat", handler)
    found = [(span.attributes or {}, span.status.status_code) for span in watched.named("step a")]
    assert [(each.get("error.type"), each["orchestrator_state.step.call"], status) for each, status in found] == [
        ("OSError", 1, StatusCode.ERROR),
        ("KeyError", 2, StatusCode.ERROR),
        (None, 3, StatusCode.UNSET),
    ]
    [root] = watched.named("invoke_workflow chat")
    assert root.status.status_code is StatusCode.ERROR
    assert (root.attributes or {})["error.type"] == "LookupError"
    assert "a secret" not in "".join(span.to_json() for span in watched.spans)


async def test_a_resumed_run_goes_on_in_its_trace_and_what_is_on_record_has_no_span(
    database_url: str, watched: Watched
) -> None:
    other = Watched()
    attempts = 0

    async def handler(run: Run) -> None:
        nonlocal attempts
        attempts += 1
        await run.step("a", lambda: 1)
        if attempts == 1:
            vanish()
        await run.step("b", lambda: 2)

    async with StateStore.open(database_url, hook=watched.hook) as store:
        with pytest.raises(asyncio.CancelledError):
            await store.run("chat", handler, workflow_id="w")
    assert [span.name for span in watched.spans] == ["step a", "attempt chat"]
    async with StateStore.open(database_url, hook=other.hook) as store:
        await store.run("chat", handler, workflow_id="w")
    assert [span.name for span in other.spans] == ["step b", "attempt chat", "invoke_workflow chat"]
    root = other.spans[-1]
    below = [*watched.spans, *other.spans[:-1]]
    assert {context_of(span).trace_id for span in below} == {context_of(root).trace_id}
    assert {parent_of(span) for span in below} == {context_of(root).span_id}
    assert context_of(watched.spans[1]).span_id != context_of(other.spans[1]).span_id


class _Sends(SpanExporter):
    """Sends each span to the parent process."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            context = context_of(span)
            self._pipe.send((span.name, context.trace_id, context.span_id, parent_of(span), span.start_time))
        return SpanExportResult.SUCCESS


async def work(pipe: Connection, url: str, dies: bool) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(_Sends(pipe)))

    async def handler(run: Run) -> None:
        await run.step("a", lambda: 1)
        await run.step("b", os.kill if dies else Failing(), *((os.getpid(), signal.SIGKILL) if dies else ()))

    hook = OpenTelemetry(tracer_provider=provider, metrics=False)
    async with StateStore.open(url, pool_min=1, hook=hook) as store:
        await store.recover({"chat": handler})
    pipe.close()


@pytest.mark.process
async def test_a_run_whose_process_was_killed_is_one_trace_with_one_root(database_url: str) -> None:
    async with StateStore.open(database_url) as store:
        state = await store.start("chat", workflow_id="w")
    with child(work, database_url, True) as first:
        before = first.hear_all()
    with child(work, database_url, False) as second:
        after = second.hear_all()
    assert [name for name, *_ in before] == ["step a"]
    assert [name for name, *_ in after] == ["step b", "attempt chat", "invoke_workflow chat"]
    root = after[-1]
    assert {f"{each[1]:032x}" for each in (*before, *after)} == {trace_id_of(state.id)}
    assert {each[3] for each in (*before, *after[:-1])} == {root[2]}
    assert root[3] is None
    assert root[4] <= before[0][4]


async def test_code_in_handlers_and_steps_is_below_their_spans(database_url: str, watched: Watched) -> None:
    def inner(name: str) -> None:
        with watched.tracer.start_as_current_span(name):
            pass

    async def in_task(name: str) -> None:
        inner(name)

    async def handler(run: Run) -> None:
        inner("in handler")
        await run.step("sync", inner, "in thread")
        await run.step("async", in_task, "in task")
        await run.transact("write", lambda session: in_task("in transact"))
        with contextlib.suppress(OSError):
            await run.step("fails", Failing(OSError()))
        inner("later")

    async with StateStore.open(database_url, hook=watched.hook) as store:
        with watched.tracer.start_as_current_span("caller"):
            await store.run("chat", handler)
            inner("after")
    by_id = {context_of(span).span_id: span.name for span in watched.spans}
    found = {span.name: by_id.get(parent_of(span) or 0) for span in watched.spans}
    assert found["in handler"] == found["later"] == "attempt chat"
    assert (found["in thread"], found["in task"]) == ("step sync", "step async")
    assert found["in transact"] == "step write"
    assert found["after"] == "caller"
    [caller] = watched.named("caller")
    for span in (*watched.named("attempt chat"), *watched.named("invoke_workflow chat")):
        assert [link.context for link in span.links] == [context_of(caller)]


async def test_a_child_run_is_a_trace_of_its_own_that_links_to_its_parents(database_url: str, watched: Watched) -> None:
    async def handler(run: Run) -> None:
        await run.child("inner", one_step)

    async with StateStore.open(database_url, hook=watched.hook) as store:
        await store.run("outer", handler)
    [parent] = watched.named("invoke_workflow outer")
    [inner] = watched.named("invoke_workflow inner")
    assert context_of(parent).trace_id != context_of(inner).trace_id
    linked = {(link.context.trace_id, link.context.span_id) for link in inner.links}
    assert (context_of(parent).trace_id, context_of(parent).span_id) in linked


async def test_a_hundred_runs_at_once_do_not_mix_their_spans(database_url: str, watched: Watched) -> None:
    seen: dict[int, set[int]] = {}

    async def look(number: int) -> None:
        await asyncio.sleep(0)
        seen.setdefault(number, set()).add(trace.get_current_span().get_span_context().trace_id)

    async def handler(run: Run) -> None:
        number = run.context["n"]
        await asyncio.gather(*(run.step(f"s{branch}", look, number) for branch in range(3)))
        await run.step("in a thread", lambda: seen[number].add(trace.get_current_span().get_span_context().trace_id))

    async with StateStore.open(database_url, hook=watched.hook) as store:
        ids = [(await store.start("n", context={"n": n})).id for n in range(100)]
        report = await store.recover({"n": handler}, concurrency=100)
    assert len(report.completed) == 100
    assert {n: {f"{each:032x}" for each in traces} for n, traces in seen.items()} == {
        n: {trace_id_of(run_id)} for n, run_id in enumerate(ids)
    }
    assert len(watched.spans) == 100 * 6
    roots = {context_of(span).trace_id: context_of(span).span_id for span in watched.named("invoke_workflow n")}
    assert all(parent_of(span) == roots[context_of(span).trace_id] for span in watched.spans if span.parent)
    for span in watched.spans:
        run_id = str((span.attributes or {})["orchestrator_state.run.id"])
        assert f"{context_of(span).trace_id:032x}" == trace_id_of(run_id)


async def test_a_cancelled_call_has_an_end_and_a_run_that_goes_on_has_no_root(
    database_url: str, watched: Watched
) -> None:
    gate = Gate()

    async def handler(run: Run) -> None:
        await run.step("a", gate)

    async with StateStore.open(database_url, hook=watched.hook) as store:
        task = asyncio.create_task(store.run("chat", handler))
        await gate.reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    outcomes = [(span.name, (span.attributes or {})["orchestrator_state.outcome"]) for span in watched.spans]
    assert outcomes == [("step a", "cancelled"), ("attempt chat", "released")]


async def test_a_run_that_is_given_up_on_has_its_root(database_url: str, watched: Watched) -> None:
    async with StateStore.open(database_url, hook=watched.hook, max_attempts=1) as store:
        state = await store.start("chat")
        await change_row(store, state.id, attempts=5)
        await store.recover({"chat": one_step})
    assert [span.name for span in watched.spans] == ["invoke_workflow chat"]


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
async def test_a_trace_is_sampled_as_a_whole_by_whoever_works_on_it(sqlite_url: str, rate: float) -> None:
    first, second = (Watched(sampler=ParentBased(TraceIdRatioBased(rate))) for _ in range(2))
    ids: list[UUID] = []
    resumed: set[UUID] = set()

    async def handler(run: Run) -> None:
        await run.step("a", lambda: 1)
        if run.id not in resumed:
            resumed.add(run.id)
            vanish()
        await run.step("b", lambda: 1)

    for watched in (first, second):
        async with StateStore.open(sqlite_url, hook=watched.hook) as store:
            for number in range(40):
                with contextlib.suppress(asyncio.CancelledError):
                    await store.run("n", handler, workflow_id=str(number))
                if watched is first:
                    ids.append((await store.load_workflow_state_by_workflow_id(str(number))).id)
    spans = [*first.spans, *second.spans]
    per_trace: dict[int, set[str]] = {}
    for span in spans:
        per_trace.setdefault(context_of(span).trace_id, set()).add(span.name)
    whole = {"step a", "step b", "attempt n", "invoke_workflow n"}
    assert all(names == whole for names in per_trace.values())
    assert {0.0: len(per_trace) == 0, 0.3: 1 <= len(per_trace) <= 30, 1.0: len(per_trace) == 40}[rate]


async def test_without_a_provider_of_the_sdk_there_are_no_spans_and_no_harm(database_url: str) -> None:
    hook = OpenTelemetry()  # the global ones, which nobody has set
    seen = []
    async with StateStore.open(database_url, hook=hook) as store:
        await store.run("n", lambda run: run.step("a", lambda: seen.append(trace.get_current_span())))
    assert not seen[0].get_span_context().is_valid
    assert hook._traces is not None
    assert not hook._traces._attempts


async def test_a_tracer_that_takes_no_ids_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    class Other(trace.Tracer):
        def start_span(self, *args: Any, **options: Any) -> Any: ...
        def start_as_current_span(self, *args: Any, **options: Any) -> Any: ...

    class Provider(trace.TracerProvider):
        def get_tracer(self, *args: Any, **options: Any) -> trace.Tracer:
            return Other()

    async with StateStore.open(":memory:", hook=OpenTelemetry(tracer_provider=Provider(), metrics=False)) as store:
        for _ in range(2):
            await store.run("n", one_step)
    assert sum("takes no ids" in each for each in caplog.messages) == 1


async def test_nothing_is_kept_of_runs_that_are_over(database_url: str, watched: Watched) -> None:
    async def fails(run: Run) -> None:
        await run.step("a", Failing(OSError("x")))

    async with StateStore.open(database_url, hook=watched.hook) as store:
        for _ in range(5):
            with pytest.raises(OSError, match="x"):
                await store.run("n", fails)
            await store.run("n", one_step)
    assert watched.hook._traces is not None
    assert not watched.hook._traces._attempts
    assert sum(point.value for point in watched.points("runs.active")) == 0


async def test_a_hook_beside_it_that_raises_takes_no_span_away(database_url: str, watched: Watched) -> None:
    class Raises:
        def on_event(self, event: hooks.Event) -> None:
            raise OSError("broken")

        def around(self, event: Any) -> Any:
            raise OSError("broken")

    async with StateStore.open(database_url, hook=[Raises(), watched.hook, Raises()]) as store:
        await store.run("n", one_step)
    assert len(watched.spans) == 3


# --- metrics -----------------------------------------------------------------------------------------------------


async def test_runs_steps_and_commits_are_measured(database_url: str, watched: Watched) -> None:
    async def handler(run: Run) -> None:
        for number in range(3):
            await run.step("fetch", Failing(*([OSError("1")] if number == 0 else [])), retry=AGAIN)

    async with StateStore.open(database_url, hook=watched.hook) as store:
        await store.run("chat", handler)
    [run] = watched.points("run.duration")
    assert isinstance(run, HistogramDataPoint)
    assert run.attributes == {"gen_ai.workflow.name": "chat", "orchestrator_state.outcome": "completed"}
    assert run.count == 1
    steps = {
        (point.attributes["orchestrator_state.outcome"], point.attributes.get("error.type")): point.count
        for point in watched.points("step.duration")
    }
    assert steps == {("completed", None): 3, ("retried", "OSError"): 1}
    assert {point.attributes["orchestrator_state.step.id"] for point in watched.points("step.commits")} == {"fetch"}
    [size] = watched.points("batch.size")
    assert (size.sum, size.count) == (3, 3)
    [written] = watched.points("commit.bytes")
    assert isinstance(written, NumberDataPoint)
    assert written.value > 0
    [queue] = watched.points("commit.queue")
    assert queue.value == 0


async def test_takeovers_and_lost_leases_are_counted(database_url: str, watched: Watched) -> None:
    async with StateStore.open(database_url, hook=watched.hook) as store:

        async def loses(run: Run) -> None:
            await change_row(store, run.id, lease_token=99)
            await run.step("a", Failing())

        with pytest.raises(LeaseLost):
            await store.run("n", loses, workflow_id="w")
        state = await store.load_workflow_state_by_workflow_id("w")
        await expire_lease(store, state.id)
        await store.run("n", one_step, workflow_id="w")
    assert [point.value for point in watched.points("lease.losses")] == [1]
    assert [point.value for point in watched.points("run.takeovers")] == [1]


async def test_labels_are_bounded(sqlite_url: str, watched: Watched) -> None:
    measures = watched.hook._measures
    assert measures is not None
    for number in range(1000):
        measures.on_event(StepStarted(workflow_state_id=UUID(int=1), name=f"chat of {number}", step_id="a", attempt=1))
        measures.on_event(hooks.StepReused(workflow_state_id=UUID(int=1), name=f"chat of {number}", step_id="a"))
    points = watched.points("step.reuses")
    assert len(points) == 201
    assert {point.value for point in points if point.attributes["gen_ai.workflow.name"] == "(other)"} == {800}


async def test_an_attempt_says_how_many_tokens_its_steps_have_used(database_url: str) -> None:
    watched = Watched()

    async def handler(run: Run) -> None:
        for number in (1, 2):
            await run.step("llm", lambda: run.record_usage(model="m", input_tokens=100, output_tokens=number))  # noqa: B023
        await run.step("other", str)

    async with StateStore.open(database_url, hook=watched.hook) as store:
        await store.run("h", handler)
    (attempt,) = watched.named("attempt h")
    assert attempt.attributes is not None
    used = [attempt.attributes[f"gen_ai.usage.{kind}_tokens"] for kind in ("input", "output")]
    assert used == [200, 3]
