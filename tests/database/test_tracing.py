"""Whoever listens to SQLAlchemy hears of everything that the store does, the step's commit and the load included."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import pytest
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.engine import ExceptionContext

from orchestrator_state import Run, SchemaChanged, StateStore, WorkflowState
from tests.support.engines import own_engine
from tests.support.running import Effect, fetch
from tests.support.statements import listening

TABLES: Final = ("workflow_states", "step_states", "checkpoints")


@dataclass
class Span:
    statement: str
    status: str = "open"


@dataclass
class Tracer:
    """As tracing libraries do it: a span that hangs on the execution context, and a comment in the statement."""

    spans: list[Span] = field(default_factory=list)
    commits: int = 0
    comment: str = ""

    def before(
        self, conn: Connection, _: Any, statement: str, parameters: Any, context: Any, executemany: bool
    ) -> tuple[str, Any]:
        assert conn.engine.url.database is not None or conn.dialect.name == "postgresql"
        assert asyncio.current_task() is not None, "in the event loop, where the current span is found"
        assert executemany == (bool(parameters) and isinstance(parameters, list))
        context.span = Span(statement)
        self.spans.append(context.span)
        return f"{statement}{self.comment}", parameters

    def after(self, _: Connection, __: Any, statement: str, ___: Any, context: Any, ____: bool) -> None:
        assert statement == f"{context.span.statement}{self.comment}"
        context.span.status = "done"

    def failed(self, context: ExceptionContext) -> None:
        span = getattr(context.execution_context, "span", None)
        if span is not None:
            span.status = "failed"

    def committed(self, _: Connection) -> None:
        self.commits += 1

    @contextmanager
    def on(self, target: Engine | type[Engine]) -> Iterator["Tracer"]:
        heard: dict[str, Callable[..., Any]] = {
            "after_cursor_execute": self.after,
            "handle_error": self.failed,
            "commit": self.committed,
        }
        before: Callable[..., Any] = self.before
        event.listen(target, "before_cursor_execute", before, retval=True)
        for name, listener in heard.items():
            event.listen(target, name, listener)
        try:
            yield self
        finally:
            event.remove(target, "before_cursor_execute", before)
            for name, listener in heard.items():
                event.remove(target, name, listener)

    def count(self, verb: str, table: str) -> int:
        return sum(verb in span.statement and table in span.statement for span in self.spans)


@asynccontextmanager
async def traced_store(database_url: str, whose: str, tracer: Tracer, **options: Any) -> AsyncIterator[StateStore]:
    """A store whose statements `tracer` hears; by an engine of the application's, or by a URL."""
    if whose == "by URL":
        async with StateStore.open(database_url, **options) as store:
            with tracer.on(Engine):
                yield store
    else:
        engine = own_engine(database_url)
        try:
            async with StateStore.open(engine=engine, migrate=True, **options) as store:
                with tracer.on(engine.sync_engine):
                    yield store
        finally:
            await engine.dispose()


@pytest.mark.parametrize("whose", ["by URL", "the application's"])
async def test_a_step_and_a_load_are_heard_like_everything_else(database_url: str, whose: str) -> None:
    in_step, in_load = Tracer(), Tracer()

    async def handler(run: Run) -> None:
        await run.step("before", Effect())
        tracer.spans, tracer.commits = in_step.spans, 0
        await run.step("a", Effect())
        in_step.commits = tracer.commits

    tracer = Tracer()
    async with traced_store(database_url, whose, tracer) as store:
        state = await store.start("n", workflow_id="w")
        await store.run("n", handler, workflow_id="w")
        tracer.spans = in_load.spans
        loaded = await store.load_workflow_state(state.id)
    assert set(loaded.steps) == {"before", "a"}
    assert in_step.count("UPDATE", "workflow_states")
    assert in_step.count("INSERT", "step_states")
    assert in_step.count("INSERT", "checkpoints")
    assert in_step.commits == 1
    assert in_load.count("SELECT", "step_states") == 1
    assert {span.status for span in [*in_step.spans, *in_load.spans]} == {"done"}


@pytest.mark.parametrize("whose", ["by URL", "the application's"])
async def test_a_statement_that_fails_ends_its_span(database_url: str, whose: str) -> None:
    tracer = Tracer()
    async with traced_store(database_url, whose, tracer, retry_timeout=timedelta(milliseconds=1)) as store:
        state = WorkflowState(workflow_id="w", workflow_name="n")
        await store.save_workflow_state(state)
        async with store.begin() as uow:
            await uow.session.execute(text("ALTER TABLE step_states RENAME TO elsewhere"))
        with pytest.raises(Exception, match="do not fit"):
            await store.load_workflow_state(state.id)
    assert "failed" in {span.status for span in tracer.spans}
    assert "open" not in {span.status for span in tracer.spans}


async def test_who_listens_to_errors_alone_hears_those_of_a_step_and_of_a_load(database_url: str) -> None:
    failed: list[str] = []

    async def handler(run: Run) -> None:
        await run.step("before", Effect())
        assert failed == []
        async with store.begin() as uow:
            await uow.session.execute(text("ALTER TABLE step_states RENAME TO elsewhere"))
        await run.step("a", Effect())

    async with StateStore.open(database_url, retry_timeout=timedelta(milliseconds=1)) as store:
        state = await store.start("n", workflow_id="w")
        with listening(Engine, {"handle_error": lambda context: failed.append(context.statement)}):
            with pytest.raises(SchemaChanged):
                await store.run("n", handler, workflow_id="w")
            assert any("INSERT INTO step_states" in statement for statement in failed)
            failed.clear()
            with pytest.raises(SchemaChanged):
                await store.load_workflow_state(state.id)
            assert any("step_states" in statement for statement in failed)


async def test_a_statement_is_sent_as_a_listener_has_changed_it(database_url: str) -> None:
    async def handler(run: Run) -> str:
        return str(await run.step("a", Effect(), "x"))

    tracer = Tracer(comment=" /* traced */")
    async with traced_store(database_url, "by URL", tracer) as store:
        assert await store.run("n", handler, workflow_id="w") == "x"


async def test_who_comes_and_goes_is_told_what_happens_meanwhile_and_the_outcome_is_the_same(
    database_url: str,
) -> None:
    tracer, heard = Tracer(), []

    async def handler(run: Run) -> None:
        for n in range(6):
            if n % 2:
                with tracer.on(Engine):
                    await run.step(f"step {n}", Effect(), n)
            else:
                await run.step(f"step {n}", Effect(), n)
            heard.append(tracer.commits)

    async with StateStore.open(database_url, checkpoint_every=1) as store:
        state = await store.start("n", workflow_id="w")
        await store.run("n", handler, workflow_id="w")
        assert heard == [0, 1, 1, 2, 2, 3]
        unheard = await store.load_workflow_state(state.id)
        with tracer.on(Engine):
            assert await store.load_workflow_state(state.id) == unheard
    assert {key: step.outputs for key, step in unheard.steps.items()} == {f"step {n}": n for n in range(6)}


async def test_what_is_logged_has_every_statement_and_no_payload(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(run: Run) -> None:
        await run.step("a", Effect(), "the canary")

    async with StateStore.open(database_url) as store:
        with caplog.at_level(logging.INFO, "sqlalchemy.engine"):
            await store.run("n", handler, workflow_id="w", context={"canary": "the canary"})
    logged = Counter(table for record in caplog.records for table in TABLES if table in record.getMessage())
    assert logged.keys() == {*TABLES}
    assert any("INSERT INTO step_states" in record.getMessage() for record in caplog.records)
    assert "the canary" not in caplog.text


async def test_a_hundred_runs_at_once_are_heard_and_none_is_lost(database_url: str) -> None:
    async def handler(run: Run) -> int:
        return sum([await run.step(f"step {n}", Effect(), n) for n in range(3)])

    tracer = Tracer()
    async with traced_store(database_url, "by URL", tracer) as store:
        ends = await asyncio.gather(*(store.run("n", handler, workflow_id=str(n)) for n in range(100)))
        rows = await fetch(store, text("SELECT count(*) FROM step_states WHERE status = 'completed'"))
    assert ends == [3] * 100
    assert rows[0] == (300,)
    assert [span for span in tracer.spans if span.status != "done"] == []
