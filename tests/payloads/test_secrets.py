"""Whatever goes wrong, nobody reads a payload or a password in an error, in the log, or in what a hook is told."""

import asyncio
import logging
import pickle
import shutil
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from pydantic import BaseModel
from sqlalchemy import text, update

from orchestrator_state import (
    Budget,
    Checkpoint,
    OrchestratorStateError,
    Run,
    StateSchema,
    StateStore,
    StepState,
    WorkflowState,
    errors,
)
from orchestrator_state.encryption import AesGcm, KeyRing, new_key
from orchestrator_state.execution import wanted_run
from orchestrator_state.models import checkpoints, signals
from orchestrator_state.payloads import Payloads
from tests.support.damage import CONTEXT, write_bytes
from tests.support.engines import own_engine
from tests.support.raw_sql import execute
from tests.support.running import Effect, Gate, Log, change_row, change_step, row_of, vanish
from tests.support.tcp_postgres import free_port

pytestmark = pytest.mark.process

PAYLOAD = "payload-canary-4711"
PASSWORD = "password-canary-4711"
USERS_OWN = "users-own-canary-4711"
SECRETS = (PAYLOAD, PASSWORD)
HIDDEN = {"secret": PAYLOAD, "list": [PAYLOAD, {"deep": PAYLOAD}]}
# Bases that say nothing by themselves; and what `store.run` answers by going on, which holds an id and no more.
NEVER_RAISED = {
    *(errors.OrchestratorStateError, errors.NotFound, errors.PayloadError, errors.SchemaMismatch),
    errors.PauseTakenBack,
}
LOGGERS = (
    "",
    "sqlalchemy",
    "sqlalchemy.engine",
    "sqlalchemy.pool",
    "aiosqlite",
    "asyncpg",
    "asyncio",
    "alembic",
)


def every_error(base: type[OrchestratorStateError] = OrchestratorStateError) -> set[type[OrchestratorStateError]]:
    """The public ones."""
    kinds = {base}.union(*(every_error(kind) for kind in base.__subclasses__()))
    return {kind for kind in kinds if kind.__module__ == errors.__name__}


def secrets_in(*texts: str, secrets: tuple[str, ...] = SECRETS) -> list[str]:
    return [secret for secret in secrets for text in texts if secret in text]


def shown(record: logging.LogRecord) -> str:
    """All that a log handler may write of a record."""
    return f"{logging.Formatter().format(record)} {record.args!r} {record.__dict__!r}"


@pytest.fixture
async def echo(caplog: pytest.LogCaptureFixture) -> AsyncIterator[pytest.LogCaptureFixture]:
    """Every logger at DEBUG: SQLAlchemy's echo, the drivers', and asyncio's in its debug mode."""
    for name in LOGGERS:
        caplog.set_level(logging.DEBUG, logger=name)
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    yield caplog
    loop.set_debug(False)


class Breaks(Log):
    """A hook that remembers what it is told, and then fails."""

    def on_event(self, event: Any) -> None:
        super().on_event(event)
        raise RuntimeError("the hook is broken")


class Driven:
    """The errors that were driven, each of them looked at from all sides."""

    def __init__(self) -> None:
        self.kinds: set[type[OrchestratorStateError]] = set()

    async def error(self, kind: type[OrchestratorStateError], call: Awaitable[object]) -> OrchestratorStateError:
        with pytest.raises(kind) as raised:
            await call
        return self.look_at(kind, raised.value)

    def look_at(self, kind: type[OrchestratorStateError], error: BaseException | None) -> OrchestratorStateError:
        assert type(error) is kind
        assert isinstance(error, OrchestratorStateError)
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), copy.about) == (kind, str(error), error.about)
        looks = [str(error), repr(error), repr(vars(error)), repr(pickle.dumps(error)), str(copy), repr(vars(copy))]
        assert not secrets_in(*looks, "".join(traceback.format_exception(error))), kind
        self.kinds.add(kind)
        return error


def with_password(url: str, backend: str) -> str:
    """The server of the tests trusts everybody, whatever the password."""
    parts = urlsplit(url)
    if backend == "sqlite" or parts.password is not None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return f"postgresql://{parts.username}:{PASSWORD}@{host}{parts.path}?{parts.query}"


async def hide(run: Run) -> dict[str, Any]:
    """A handler that puts the canary everywhere."""
    run.context["seen"] = PAYLOAD
    run.append("log", HIDDEN)
    await run.step("load", Effect(), HIDDEN)
    return HIDDEN


async def abandon(run: Run) -> NoReturn:
    await hide(run)
    vanish()


async def wait(run: Run) -> Any:
    return await run.wait_for("go")


def a_hidden_state(**fields: Any) -> WorkflowState:
    state = WorkflowState(workflow_id=f"by hand {uuid4()}", workflow_name="n", context=HIDDEN, **fields)
    state.steps["load"] = StepState(step_id="load", outputs=HIDDEN, error=PAYLOAD)
    return state


# --- one part of the tree after the other ---


async def drive_configuration(driven: Driven, empty_url: str) -> None:
    for bad in (
        f"postgresql://u:{PASSWORD}@localhost:port/db",
        f"postgresql://u@localhost:port/db?password={PASSWORD}",
        f"postgresql://localhost/db?sslmode=no&password={PASSWORD}",
        f"sqlite:///x.db?password={PASSWORD}",
        f"mysql://u:{PASSWORD}@localhost/db",
    ):
        await driven.error(errors.ConfigurationError, StateStore.open(bad).__aenter__())
    await driven.error(errors.SchemaOutOfDate, StateStore.open(empty_url, migrate=False).__aenter__())
    port = free_port()
    for dead in (
        f"postgresql://u:{PASSWORD}@127.0.0.1:{port}/db",
        f"postgresql://127.0.0.1:{port}/db?user=u&password={PASSWORD}",
    ):
        await driven.error(errors.StoreUnavailable, StateStore.open(dead).__aenter__())


def damage(path: Path) -> None:
    path.write_bytes(PAYLOAD.encode() * 1000)


async def drive_what_an_open_store_meets(driven: Driven, path: Path) -> None:
    async with StateStore.open(path, retry_timeout=timedelta(milliseconds=50)) as store:
        async with store.begin() as uow:
            await uow.session.execute(text("ALTER TABLE workflow_states RENAME TO elsewhere"))
        await driven.error(errors.SchemaChanged, store.list_active_workflows())
        await store._transactions.database._pool.dispose()
        damage(path)
        await driven.error(errors.AccessLost, store.list_active_workflows())


def drive_missing_extra(driven: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = KeyRing({"k": PAYLOAD.encode().ljust(32)}, "k")
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(errors.MissingExtra) as raised:
        AesGcm(ring)
    driven.look_at(errors.MissingExtra, raised.value)


async def drive_domain(driven: Driven, store: StateStore) -> None:
    state = a_hidden_state(error=PAYLOAD)
    await store.save_workflow_state(state)
    stale = await store.load_workflow_state(state.id)
    state.context = [HIDDEN]
    await store.save_workflow_state(state)
    stale.context = PAYLOAD
    await driven.error(errors.StaleVersion, store.save_workflow_state(stale))
    checkpoint = Checkpoint(workflow_state_id=state.id, step_id="load", snapshot=HIDDEN)
    await store.create_checkpoint(checkpoint)
    await driven.error(errors.AlreadyExists, store.create_checkpoint(checkpoint))
    await driven.error(errors.WorkflowNotFound, store.load_workflow_state(uuid4()))
    await driven.error(errors.WorkflowNotFound, store.load_workflow_state_by_workflow_id("nobody's"))
    await driven.error(errors.CheckpointNotFound, store.restore_from_checkpoint(uuid4()))
    async with store.begin() as uow:
        await driven.error(errors.StepNotFound, uow.steps.get(state.id, "no such step"))
    state.mark_completed()
    with pytest.raises(errors.InvalidTransition) as raised:
        state.mark_failed(PAYLOAD)
    driven.look_at(errors.InvalidTransition, raised.value)
    await store.save_workflow_state(state)
    await driven.error(errors.InvalidTransition, store.signal(state.id, "go", HIDDEN))


async def drive_refusals(driven: Driven, store: StateStore) -> None:
    unfit = {**HIDDEN, "set": {PAYLOAD}}
    huge = {"secret": PAYLOAD * (17 * 1024 * 1024 // len(PAYLOAD))}
    row = await row_of(store, "done")
    for bad, kind in ((unfit, errors.InvalidPayload), (huge, errors.PayloadTooLarge)):
        state = a_hidden_state()
        state.context = bad
        checkpoint = Checkpoint(workflow_state_id=row.id, step_id="load", snapshot=unfit)
        await driven.error(kind, store.save_workflow_state(state))
        await driven.error(errors.InvalidPayload, store.create_checkpoint(checkpoint))
        await driven.error(kind, store.run("n", hide, workflow_id="refused", context=bad))
        await driven.error(kind, store.signal(row.id, "go", bad))

        async def handler(run: Run, outputs: Any = bad) -> None:
            await run.step("load", lambda: outputs)

        await driven.error(kind, store.run("n", handler, context=HIDDEN))


async def drive_runs(driven: Driven, store: StateStore) -> None:
    await store.run("n", hide, workflow_id="done", context=HIDDEN)
    await driven.error(errors.Conflict, store.run("other", hide, workflow_id="done", context=HIDDEN))
    await drive_leases(driven, store)
    with suppress(asyncio.CancelledError):
        await store.run("n", abandon, workflow_id="paused", context=HIDDEN)
    row = await row_of(store, "paused")
    await store.pause(row.id)
    await driven.error(errors.RunPaused, store.run("n", hide, workflow_id="paused", context=HIDDEN))
    await store.cancel(row.id)
    await driven.error(errors.RunCancelled, store.run("n", hide, workflow_id="paused", context=HIDDEN))
    wanted = await wanted_run(
        store._executor.types_of("n"), workflow_id="waiting", context=HIDDEN, user_id=None, idempotency_key=None
    )
    waiting = store._executor.run(wanted, wait, wait=timedelta(), linger=timedelta())
    await driven.error(errors.RunSuspended, waiting)

    async def none(_: Run) -> None: ...

    with suppress(asyncio.CancelledError):
        await store.run("n", abandon, workflow_id="unused", context=HIDDEN)
    await driven.error(errors.UnusedSteps, store.run("n", none, workflow_id="unused", strict=True))

    async def pays(run: Run) -> None:
        await run.step("pay", vanish if first else Effect(), on_unknown="raise")

    async def fails(run: Run) -> None:
        def fail() -> NoReturn:
            raise LookupError(USERS_OWN)

        with pytest.raises(LookupError):
            await run.step("load", fail, retry=2)
        await run.transact("write", lambda _: asyncio.sleep(0, HIDDEN))
        raise LookupError(USERS_OWN)

    async def exits(run: Run) -> None:
        def leave() -> NoReturn:
            raise SystemExit(USERS_OWN)

        await run.step("load", leave)

    await driven.error(errors.AbnormalExit, store.run("n", exits, workflow_id="exits", context=HIDDEN))
    await drive_family(driven, store)
    first = True
    with suppress(asyncio.CancelledError):
        await store.run("n", pays, workflow_id="pays", context=HIDDEN)
    first = False
    await driven.error(errors.OutcomeUnknown, store.run("n", pays, workflow_id="pays"))
    with pytest.raises(LookupError):
        await store.run("n", fails, workflow_id="fails", context=HIDDEN)


async def drive_family(driven: Driven, store: StateStore) -> None:
    async def parent(run: Run) -> Any:
        return await run.child("child", wait, context=HIDDEN)

    wanted = await wanted_run(
        store._executor.types_of("n"), workflow_id="family", context=HIDDEN, user_id=None, idempotency_key=None
    )
    waiting = store._executor.run(wanted, parent, wait=timedelta(), linger=timedelta())
    await driven.error(errors.RunSuspended, waiting)
    child = next(state for state in await store.list_active_workflows() if state.workflow_name == "child")
    await change_row(store, child.id, status="failed")
    await driven.error(errors.RunFailed, store.run("n", parent, workflow_id="family"))


async def drive_questions(driven: Driven, store: StateStore) -> None:
    async def asks(run: Run) -> Any:
        return await run.ask("secret", HIDDEN, choices=[PAYLOAD])

    await store.start("asks", workflow_id="asking", context={"seen": PAYLOAD})
    await store.recover({"asks": asks})
    (question,) = await store.list_questions()
    assert not secrets_in(repr(question))
    await driven.error(errors.QuestionNotFound, store.answer(uuid4(), PAYLOAD))
    await driven.error(errors.InvalidPayload, store.answer(question.id, HIDDEN))
    await driven.error(errors.RunUnfinished, store.result(question.workflow_state_id))
    await store.answer(question.id, PAYLOAD)
    await driven.error(errors.QuestionClosed, store.answer(question.id, PAYLOAD))

    async def spends(run: Run) -> Any:
        await run.step("a", lambda: run.record_usage(model="m", input_tokens=1))
        return await run.step("b", lambda: PAYLOAD)

    options: dict[str, Any] = {"workflow_id": "spends", "context": {"seen": PAYLOAD}, "budget": Budget(tokens=1)}
    state = await store.start("spends", **options)
    await store.recover({"spends": spends})
    (question,) = (await store.list_questions(workflow_state_id=state.id)).questions
    await store.answer(question.id, "stop")
    await driven.error(errors.BudgetSpent, store.run("spends", spends, **options))


async def drive_executors(driven: Driven, store: StateStore) -> None:
    pool = ThreadPoolExecutor()
    pool.shutdown()

    async def handler(run: Run) -> None:
        await run.step("load", len, PAYLOAD, executor=pool)

    await driven.error(errors.ExecutorUnavailable, store.run("n", handler, workflow_id="refused by the pool"))


async def drive_leases(driven: Driven, store: StateStore) -> None:
    gate = Gate()

    async def handler(run: Run) -> Any:
        run.context["seen"] = PAYLOAD
        return await run.step("load", gate, HIDDEN)

    owner = asyncio.create_task(store.run("n", handler, workflow_id="owned", context=HIDDEN))
    await gate.reached.wait()
    row = await row_of(store, "owned")
    held = await driven.error(errors.LeaseHeld, store.run("n", hide, workflow_id="owned", context=HIDDEN))
    assert held.about["owner"] == row.lease_owner
    state = await store.load_workflow_state(row.id)
    state.context = [HIDDEN]
    await driven.error(errors.LeaseHeld, store.save_workflow_state(state))
    await change_row(store, row.id, lease_token=row.lease_token + 1)
    gate.opened.set()
    await driven.error(errors.LeaseLost, owner)


REFUSING = {
    # The driver's message quotes the one, the server's DETAIL the whole row of the other.
    "sqlite": f"""CREATE TRIGGER refuse BEFORE INSERT ON step_states WHEN NEW.step_id = 'refused'
        BEGIN SELECT RAISE(ABORT, '{PAYLOAD}'); END""",
    "postgres": "ALTER TABLE step_states ADD CONSTRAINT refuse CHECK (step_id <> 'refused')",
}


async def drive_database_refusals(driven: Driven, store: StateStore, backend: str, url: str) -> None:
    execute(url, REFUSING[backend])
    state = a_hidden_state()
    state.steps["refused"] = StepState(step_id="refused", outputs=HIDDEN)
    await driven.error(errors.Conflict, store.save_workflow_state(state))
    del state.steps["refused"]
    await store.save_workflow_state(state)
    write_bytes(url, CONTEXT, state.id, f'["{PAYLOAD}'.encode() + b'\xff"]')
    await driven.error(errors.CorruptPayload, store.load_workflow_state(state.id))
    await change_row(store, state.id, status="cancelled")


async def drive_damage(driven: Driven, store: StateStore) -> None:
    torn = f'{{"torn{PAYLOAD}'
    with suppress(asyncio.CancelledError):
        await store.run("n", abandon, workflow_id="damaged", context=HIDDEN)
    row, waiting = await row_of(store, "damaged"), await row_of(store, "waiting")
    latest = await store.get_latest_checkpoint(row.id)
    assert latest is not None
    await store.signal(waiting.id, "go", HIDDEN)
    async with store.begin() as uow:
        await uow.session.execute(update(checkpoints).values(snapshot=torn))
        await uow.session.execute(update(signals).values(payload=torn))
    await change_row(store, row.id, context=torn, initial_context=torn)
    await change_step(store, row.id, "load", outputs=torn, error=PAYLOAD, context_patch=torn)
    for call in (
        store.load_workflow_state(row.id),
        store.restore_from_checkpoint(latest.id),
        store.fork(latest.id),
        store.rewind(latest.id),
        store.run("n", hide, workflow_id="damaged"),
        store.run("n", wait, workflow_id="waiting"),
    ):
        await driven.error(errors.CorruptPayload, call)


async def drive_keys(driven: Driven, store: StateStore, open_store: Callable[..., Any]) -> None:
    keys = {"one": KeyRing({"k": new_key()}, "k"), "other": KeyRing({"k": new_key()}, "k")}
    state = a_hidden_state()
    async with open_store(payloads=Payloads([AesGcm(keys["one"])])) as encrypted:
        await encrypted.save_workflow_state(state)
    for kind, payloads in (
        (errors.DecryptionFailed, Payloads([AesGcm(keys["other"])])),
        (errors.UnknownCodec, Payloads()),
    ):
        async with open_store(payloads=payloads) as other:
            await driven.error(kind, other.load_workflow_state(state.id))
    async with open_store(payloads=Payloads([AesGcm(keys["one"])], strict=True)) as strict:
        await driven.error(errors.UnprotectedPayload, strict.load_workflow_state((await row_of(store, "done")).id))


async def drive_schemas(driven: Driven, open_store: Callable[..., Any]) -> None:
    def refuse(_: Any) -> NoReturn:
        raise LookupError(USERS_OWN)

    class Strict(BaseModel):
        secret: int

    raises = StateSchema("n", version=2)
    raises.upcast(1)(refuse)
    state = a_hidden_state()
    async with open_store(schemas=[StateSchema("n", version=1)]) as first:
        await first.save_workflow_state(state)
    newer = a_hidden_state()
    async with open_store(schemas=[StateSchema("n", version=2)]) as second:
        await second.save_workflow_state(newer)
    for kind, schema, stored in (
        (errors.UpcasterMissing, StateSchema("n", version=2), state),
        (errors.UpcasterFailed, raises, state),
        (errors.StateMismatch, StateSchema("n", version=1, state=Strict), state),
        (errors.NewerSchemaVersion, StateSchema("n", version=1), newer),
    ):
        async with open_store(schemas=[schema]) as store:
            await driven.error(kind, store.load_workflow_state(stored.id))


# --- all of it ---


async def test_no_error_no_log_record_and_no_event_shows_a_payload_or_a_password(
    backend: str,
    database_url: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    echo: pytest.LogCaptureFixture,
) -> None:
    driven, hook = Driven(), Breaks()
    url = with_password(database_url, backend)
    empty = with_password(str(request.getfixturevalue(f"empty_{backend}_url")), backend)

    def open_store(**options: Any) -> Any:
        return StateStore.open(url, hook=hook, **options)

    async with open_store() as store:
        await drive_runs(driven, store)
        await drive_questions(driven, store)
        await drive_executors(driven, store)
        await drive_domain(driven, store)
        await drive_refusals(driven, store)
        await drive_database_refusals(driven, store, backend, database_url)
        await drive_damage(driven, store)
        await drive_keys(driven, store, open_store)
        await drive_schemas(driven, open_store)
        assert not secrets_in(repr(store), repr(vars(store)), repr(vars(store._transactions.database)))
    await drive_configuration(driven, empty)
    sqlite_template: Path = request.getfixturevalue("sqlite_template")
    await drive_what_an_open_store_meets(driven, shutil.copyfile(sqlite_template, tmp_path / "open.db"))
    drive_missing_extra(driven, monkeypatch)
    async with StateStore.open(empty, migrate=True):
        pass
    assert driven.kinds == every_error() - NEVER_RAISED
    logged = [shown(record) for record in echo.records]
    assert any("INSERT INTO" in text for text in logged), "the echo is on"
    assert any("the hook is broken" in text for text in logged)
    assert not [text for text in logged if secrets_in(text, secrets=(*SECRETS, USERS_OWN))]
    assert not secrets_in(*(repr(event) for event in hook.events), secrets=(*SECRETS, USERS_OWN))


async def test_what_an_applications_own_engine_shows_is_the_applications_to_hide(
    database_url: str, echo: pytest.LogCaptureFixture
) -> None:
    """The control of the test above: it does see a canary in the echo of an engine that was not told to hide it."""
    engine = own_engine(database_url)
    try:
        async with StateStore.open(engine=engine) as store:
            await store.save_workflow_state(a_hidden_state())
    finally:
        await engine.dispose()
    assert [record for record in echo.records if secrets_in(shown(record))]
