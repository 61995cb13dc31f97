"""`StateStore`: the facade that applications hold."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, TypeVar, Unpack, overload
from uuid import UUID, uuid4

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from orchestrator_state import hooks, schema
from orchestrator_state.arguments import as_duration, as_function, as_instance, as_listener, as_stored_name, as_uuid
from orchestrator_state.concurrency import Aside, running_loop
from orchestrator_state.database import adopt_engine, database_errors, listening, open_database
from orchestrator_state.domain import Checkpoint, WorkflowState
from orchestrator_state.errors import (
    ConfigurationError,
    InvalidPayload,
    NewerSchemaVersion,
    StaleVersion,
    StoreUnavailable,
    WorkflowNotFound,
    concerning,
)
from orchestrator_state.execution import Executor, Recovery, RecoveryReport, RunControl, WantedRun
from orchestrator_state.maintenance import (
    OnProgress,
    Progress,
    RekeyReport,
    VerifyReport,
    collect_garbage,
    rekey,
    retention,
    row_counter,
    verify,
)
from orchestrator_state.payloads import PLAIN, Limits, Payloads
from orchestrator_state.records import check_checkpoint, loaded_from, rebase, same_rows, show_in_place_of, snapshot_of
from orchestrator_state.repositories import CHECKED_TABLES, OnDamaged
from orchestrator_state.repositories.runs import MOST_LOOKS
from orchestrator_state.retry import after_an_effect
from orchestrator_state.runs import Duration, Handler, Run, RunTypes
from orchestrator_state.settings import Options, Settings
from orchestrator_state.state_schema import FIRST, Schemas, StateSchema
from orchestrator_state.transactions import Transactions
from orchestrator_state.unit_of_work import UnitOfWork

_T = TypeVar("_T")
_R = TypeVar("_R")
_State = TypeVar("_State", bound=BaseModel)
_GRACE: Final = timedelta(hours=1)
_HEALTH_CHECK_LIMIT: Final = timedelta(seconds=5)


class StateStore:
    """Workflow state in the application's own database. Open it with `StateStore.open`.

    Each call is one transaction of its own; `begin` groups several. A call whose transaction the database gave up on
    (a deadlock, a dropped connection, a busy file) is repeated for a while before `StoreUnavailable` is raised.
    A store may be used by many tasks of one event loop at once.
    """

    def __init__(self, transactions: Transactions, hook: hooks.Hook | None) -> None:
        self._transactions = transactions
        self._settings = transactions.settings
        self._executor = Executor(transactions, hook)
        self._control = RunControl(transactions)
        self._asking: set[asyncio.Task[None]] = set()
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    def open(
        cls,
        database: str | os.PathLike[str] | None = None,
        *,
        engine: AsyncEngine | None = None,
        migrate: bool | None = None,
        hook: hooks.Hook | None = None,
        payloads: Payloads = PLAIN,
        schemas: Iterable[StateSchema] = (),
        **options: Unpack[Options],
    ) -> Opening:
        """Open a store: `store = await StateStore.open(url)`, or `async with StateStore.open(url) as store`.

        `database` is a path, `:memory:`, `sqlite:///…` or `postgresql://…`; None is `DATABASE_URL`, else
        `./workflows.db`. `engine` is an `AsyncEngine` of the application's to use instead: its pool, which `close`
        leaves open. `options` are settings; those not given come from the environment. See `Settings` for their
        meaning and defaults.

        `migrate`: bring the schema up to date (True), or only verify it (False). By default an SQLite file is migrated
        and Postgres, or the application's engine, is verified.

        `payloads`: how payloads are written and read, if not as they are. `schemas` are the versions
        and types of the application's state, one for each workflow name; what is stored under a name without one is
        read and written as it is.

        Raises `ConfigurationError` for a URL or option that cannot work, `SchemaOutOfDate` naming the command to run,
        and `StoreUnavailable` within `connect_timeout` if the database cannot be reached.
        """
        if engine is not None and database is not None:
            raise ConfigurationError("give a database or an engine, not both")
        path_or_url = None if database is None else _path_or_url(database)
        settings = Settings.load(database_url=path_or_url, **options)
        if not isinstance(payloads, Payloads):
            raise ConfigurationError(f"payloads is a {type(payloads).__name__}; give Payloads([...])")
        if hook is not None and not callable(getattr(hook, "on_event", None)):
            raise ConfigurationError(f"hook is a {type(hook).__name__} without a method on_event")
        known = Schemas(schemas)
        return Opening(lambda: cls._open(settings, engine, known, payloads, migrate=migrate, hook=hook))

    @classmethod
    async def _open(
        cls,
        settings: Settings,
        engine: AsyncEngine | None,
        schemas: Schemas,
        payloads: Payloads,
        *,
        migrate: bool | None,
        hook: hooks.Hook | None,
    ) -> Self:
        running_loop()
        database = await adopt_engine(engine, settings) if engine is not None else open_database(settings)
        database.enter()
        try:
            if migrate is None:
                migrate = database.is_sqlite and engine is None
            if migrate:
                await schema.ensure(database, settings)
            else:
                await schema.verify(database)
            if engine is None and not database.is_sqlite:
                await database.warm_up(settings.pool_min)
        except BaseException:
            await database.close()
            raise
        limited = payloads.within(_limits(settings), Aside())
        if limited.protects:
            database.note_protected(settings.namespace)
        return cls(Transactions(database, settings, limited, schemas), hook)

    def __reduce__(self) -> NoReturn:
        raise ConfigurationError("a store belongs to its process, and does not pickle: open another one there")

    @property
    def namespace(self) -> str:
        return self._settings.namespace

    @property
    def payloads(self) -> Payloads:
        """How this store writes and reads payloads, for a `UnitOfWork` of the application's own."""
        return self._transactions.payloads

    async def close(self) -> None:
        """Close the store's connections. Closing twice is harmless; any other call afterwards raises.

        Runs under way are stopped where they are, as by a fault of the database, and let go of for whoever comes next.
        Once begun, it goes on if the call is cancelled: closing again waits for the end of it.
        """
        if self._closing is not None and self._closing.cancelled():  # with the event loop that it ran in
            self._closing = None
        if self._closing is None or not self._closing.done():
            self._transactions.database.enter()
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="orchestrator_state closing")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if self._asking:
            await asyncio.wait(self._asking)
        await self._executor.keeper.stop_runs()
        await self._executor.lookout.close()
        await self._executor.keeper.close()
        await self._executor.writer.close()
        self._executor.threads.close()
        self.payloads.aside.close()
        await self._transactions.close()

    async def __aenter__(self) -> Self:
        self._transactions.enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def begin(self) -> AbstractAsyncContextManager[UnitOfWork]:
        """Open a unit of work: `async with store.begin() as uow`. It commits at the end of the block.

        Any exception, cancellation included, rolls it back, and the states saved in it go back to the version they
        had. The block is not repeated by itself. On SQLite it holds the file's write lock: keep it short.
        """
        return self._transactions.begin()

    def unit_of_work(self, session: AsyncSession) -> UnitOfWork:
        """The repositories on a session of the application's own, as this store writes and reads.

        Its namespace, schema, codecs, limits and versions, that is. What they write commits with the session's
        transaction, which is the caller's; see `UnitOfWork`.
        """
        self._transactions.enter()
        return self._transactions.unit(session, self._transactions.unit_payloads())

    async def save_workflow_state(self, state: WorkflowState) -> None:
        """Insert `state`, or update the rows that changed since it was loaded or saved, in one transaction.

        Raises `StaleVersion` if somebody else saved it meanwhile; nothing is written then. See
        `WorkflowRepository.save`.
        """
        as_instance(state, WorkflowState, "state")
        written: list[WorkflowState] = []

        async def save(uow: UnitOfWork) -> None:
            await uow.workflows.save(state)
            written[:] = [snapshot_of(state)]

        async def landed() -> bool:
            live, mine = await self.load_workflow_state(state.id), written[0]
            if live.version > mine.version:
                raise StoreUnavailable(
                    "the connection was lost during the commit, and others have saved since: load it again",
                    outcome_unknown=True,
                )
            if not same_rows(live, mine):
                return False
            state.version, state.updated_at, state._saved = live.version, live.updated_at, live._saved
            return True

        with concerning(workflow_state_id=state.id):
            await self._transactions.write_or_compare(save, StaleVersion, landed)

    async def load_workflow_state(self, workflow_state_id: UUID | str) -> WorkflowState:
        """Return the workflow with all its steps, as of one moment. Raises `WorkflowNotFound`."""
        return await self._transactions.read(lambda uow: uow.workflows.get(workflow_state_id))

    async def load_workflow_state_by_workflow_id(self, workflow_id: str) -> WorkflowState:
        """Return the most recently updated state of that `workflow_id`. Raises `WorkflowNotFound`."""
        return await self._transactions.read(lambda uow: uow.workflows.get_by_workflow_id(workflow_id))

    async def list_active_workflows(self, *, on_damaged: OnDamaged | None = None) -> list[WorkflowState]:
        """Return all pending, running and paused workflows with their steps, most recently updated first.

        One that cannot be read, being damaged or written with another key, does not hide the others: it is left out,
        and `on_damaged` is called with its error, whose `workflow_state_id` says which it is. By default the error is
        logged; the first one is raised if nothing can be read at all.
        """
        return await self._transactions.read(
            lambda uow: uow.workflows.list_active(as_listener(on_damaged, "on_damaged"))
        )

    async def create_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Insert `checkpoint`, which is given its `seq`, and prune the workflow's to the newest `keep_checkpoints`.

        One transaction. Raises `WorkflowNotFound`, or `AlreadyExists` if the checkpoint was created before.
        """
        check_checkpoint(checkpoint, self.payloads)

        async def create(uow: UnitOfWork) -> int | None:
            await uow.checkpoints.add(checkpoint)
            await uow.checkpoints.prune(checkpoint.workflow_state_id, keep=self._settings.keep_checkpoints)
            return checkpoint.seq

        with concerning(workflow_state_id=checkpoint.workflow_state_id):
            checkpoint.seq = await self._transactions.write_once("checkpoint", create)

    async def get_latest_checkpoint(self, workflow_state_id: UUID | str) -> Checkpoint | None:
        """Return the checkpoint with the highest `seq`, or None."""
        return await self._transactions.read(lambda uow: uow.checkpoints.find_latest(workflow_state_id))

    async def restore_from_checkpoint(self, checkpoint_id: UUID | str) -> WorkflowState:
        """Return the workflow as it was at that checkpoint. Nothing is written: saving it rolls the workflow back.

        It carries the live row's version, so that the save is refused if the workflow moved on in between. Raises
        `CheckpointNotFound`, or `InvalidPayload` if the snapshot is not a state of its workflow.
        """
        origin = as_uuid(checkpoint_id, "checkpoint_id")
        with concerning(checkpoint_id=origin):
            return await self._restored(origin)

    async def _restored(self, checkpoint_id: UUID) -> WorkflowState:
        checkpoint = await self._transactions.read(lambda uow: uow.checkpoints.get(checkpoint_id))
        live = await self.load_workflow_state(checkpoint.workflow_state_id)
        restored = WorkflowState.from_snapshot(checkpoint.snapshot)
        if restored.id != live.id:
            raise InvalidPayload("the snapshot is another workflow's state", path="snapshot.id")
        await rebase(restored, live, self.payloads)
        version = loaded_from(live).stamps.get(None) or FIRST
        known = self._transactions.schemas.version_of(live.workflow_name)
        if known is not None and version < known:
            with contextlib.suppress(NewerSchemaVersion):  # a snapshot by hand, of today's version
                old = await self._transactions.read(lambda uow: uow.checkpoints.get_as_of(checkpoint_id, version))
                show_in_place_of(restored, WorkflowState.from_snapshot(old.snapshot), version)
        return restored

    async def delete_old_states(self, older_than: datetime | timedelta, *, progress: OnProgress | None = None) -> int:
        """Delete finished workflows last updated before `older_than`, with their steps and checkpoints.

        That is an age, by the database's clock, or a moment (aware). A machine whose clock is wrong takes a wrong
        moment for long ago: `timedelta(days=30)` does not depend on it.

        A child run whose parent has not completed goes with the parent, in one transaction, and not before: the parent
        would call it again. A parent stays while a run that descends from it is unfinished, or too young.

        Works from the oldest, in transactions of up to 200 workflows and some 5,000 rows, between which it lets other
        writers in; if it is interrupted, those that committed stay deleted. After each `progress` is called with a
        `DeletionProgress`. Returns the number of workflows deleted.
        """
        return await retention.delete_old_states(self._transactions, older_than, as_listener(progress, "progress"))

    async def prune_checkpoints(self, *, keep: int, progress: OnProgress | None = None) -> int:
        """Delete all but the newest `keep` checkpoints of every workflow. Returns how many were deleted.

        In transactions of some 5,000 checkpoints, after each of which `progress` is called.
        """
        return await retention.prune_checkpoints(self._transactions, keep, as_listener(progress, "progress"))

    async def cleanup_old_checkpoints(self, workflow_state_id: UUID | str, keep: int = 10) -> int:
        """Delete all but the newest `keep` checkpoints of a workflow. Returns how many were deleted.

        In transactions of some 5,000 checkpoints.
        """
        only = as_uuid(workflow_state_id, "workflow_state_id")
        return await retention.prune_checkpoints(self._transactions, keep, None, only=only)

    async def collect_garbage(self, older_than: Duration = _GRACE) -> int:
        """Remove blobs of this namespace that no row refers to any more. Returns how many; 0 without a blob store.

        They are left by values that were overwritten, and by crashes and rolled back transactions. Younger ones than
        `older_than` (an hour) are left alone, since their row may not have committed yet: it has to be longer than any
        transaction takes, and than clocks differ. May be interrupted, and run at any time from several places at once.
        """
        return await collect_garbage(self._transactions, as_duration(older_than, "older_than"))

    async def health_check(self, timeout: Duration = _HEALTH_CHECK_LIMIT) -> None:  # noqa: ASYNC109 - no task is cut off
        """Raise `StoreUnavailable` unless the database answers a query within `timeout`, by default 5 seconds."""
        limit = as_duration(timeout, "timeout").total_seconds()
        self._transactions.enter()

        async def ask(uow: UnitOfWork) -> None:
            with database_errors():
                await uow.session.execute(select(1))

        # In a task of its own: to close a connection to a server that is frozen takes a while, too.
        asking = asyncio.create_task(self._transactions.read(ask), name="orchestrator_state health check")
        self._asking.add(asking)
        asking.add_done_callback(self._asked)
        try:
            await asyncio.wait({asking}, timeout=limit)
        finally:
            answered = asking.done()
            asking.cancel()
        if not answered:
            raise StoreUnavailable(f"the database did not answer within {limit:g} s")
        await asking

    def _asked(self, asking: asyncio.Task[None]) -> None:
        self._asking.discard(asking)
        if not asking.cancelled():
            asking.exception()  # looked at, so that one that comes too late is not reported as lost

    # --- payloads -------------------------------------------------------------------------------------------------

    async def verify(self, *, load: bool = False, progress: Progress | None = None) -> VerifyReport:
        """Look for damage in all payloads of the namespace: against their digests, without opening them.

        `load` also loads every unfinished workflow and its newest checkpoint with this store's codecs, and tells
        which fail, and where. Nothing is written, damage is reported and not raised, and memory does not grow with the
        database. Each page of rows is a transaction of its own. `progress(done, total)` is told of rows.
        """
        counted = await row_counter(self._transactions, as_listener(progress, "progress"), CHECKED_TABLES)
        return await verify(self._transactions, load=load, on_rows=counted)

    async def rekey(self, *, dry_run: bool = False, progress: Progress | None = None) -> RekeyReport:
        """Write every payload of the namespace anew that is not stored as this store's codecs and keys write it.

        Beside live runs, and as often as you like: it works in short transactions, leaves alone what is current, and a
        row that somebody changes or locks meanwhile, to which it comes back some times. Versions, times and leases stay
        as they are. Payloads that do not open, as under an unknown key, are reported and stay. `dry_run` only counts.
        """
        counted = await row_counter(self._transactions, as_listener(progress, "progress"))
        return await rekey(self._transactions, dry_run=dry_run, on_rows=counted)

    # --- durable runs --------------------------------------------------------------------------------------------

    @overload
    async def run(
        self,
        name: str,
        handler: Callable[[Run[_State]], Awaitable[_T]],
        *,
        workflow_id: str | None = None,
        context: dict[str, Any] | _State | None = None,
        state: type[_State] | None = None,
        returns: None = None,
        user_id: str | None = None,
        idempotency_key: str | None = None,
        wait: Duration | None = None,
        strict: bool = False,
    ) -> _T: ...

    @overload
    async def run(
        self,
        name: str,
        handler: Callable[[Run[_State]], Awaitable[Any]],
        *,
        workflow_id: str | None = None,
        context: dict[str, Any] | _State | None = None,
        state: type[_State] | None = None,
        returns: type[_R],
        user_id: str | None = None,
        idempotency_key: str | None = None,
        wait: Duration | None = None,
        strict: bool = False,
    ) -> _R: ...

    @overload
    async def run(
        self,
        name: str,
        handler: Callable[[Run[_State]], Awaitable[Any]],
        *,
        workflow_id: str | None = None,
        context: dict[str, Any] | _State | None = None,
        state: type[_State] | None = None,
        returns: Any,
        user_id: str | None = None,
        idempotency_key: str | None = None,
        wait: Duration | None = None,
        strict: bool = False,
    ) -> Any: ...

    async def run(  # noqa: PLR0913 - how to start, what to make of it, and for how long
        self,
        name: str,
        handler: Callable[[Run[Any]], Awaitable[Any]],
        *,
        workflow_id: str | None = None,
        context: dict[str, Any] | BaseModel | None = None,
        state: type[BaseModel] | None = None,
        returns: Any = None,
        user_id: str | None = None,
        idempotency_key: str | None = None,
        wait: Duration | None = None,
        strict: bool = False,
    ) -> Any:
        """Start the run of `workflow_id`, resume it if it is unfinished, or return its recorded result.

        `handler(run)` is plain async code whose steps go through `run`. What it returns, any JSON value, is stored;
        what it raises marks the run failed and is raised here. Calling again resumes a failed run, its finished steps
        kept. `context` is the run's at its first start. Without a `workflow_id` each call is a run of its own, unless
        `idempotency_key` says which start it repeats.

        With `state=Model` the context is an instance of that model, or a dict that makes one, and the handler has it as
        `run.state`. With `returns=Type` the result is of that type, as the outputs of `run.step(..., returns=Type)`
        are. Where they are not given, they are those of the name's schema.

        Cancelling the call leaves the run for whoever comes next. `wait` is how long to wait for another worker to end
        or to vanish. `strict` fails a run that ends without asking for all its recorded steps.

        Raises `LeaseHeld` naming the owner if another worker has the run, `LeaseLost` if one took it over, and
        `RunPaused` or `RunCancelled` if somebody asked for that. `SchemaMismatch`, `DecryptionFailed`, `UnknownCodec`
        and `UnprotectedPayload` leave the run, unfinished, for a store that can read it; `CorruptPayload` fails it.
        """
        as_function(handler, "handler")
        types = self._executor.types_of(name, state, returns)
        wanted = await self._wanted(types, workflow_id, context, user_id, idempotency_key)
        patience = as_duration(0 if wait is None else wait, "wait")
        outcome = await self._executor.run(wanted, handler, wait=patience, strict=strict)
        return outcome.result()

    async def start(
        self,
        name: str,
        *,
        workflow_id: str | None = None,
        context: dict[str, Any] | BaseModel | None = None,
        state: type[BaseModel] | None = None,
        user_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> WorkflowState:
        """Record a run for a `Worker` to execute, once for each `workflow_id` or `idempotency_key`."""
        wanted = await self._wanted(
            self._executor.types_of(name, state), workflow_id, context, user_id, idempotency_key
        )
        for looks_left in reversed(range(MOST_LOOKS)):
            workflow_state_id, is_new = await self._executor.start(wanted)
            with after_an_effect():
                try:
                    return await self.load_workflow_state(workflow_state_id)
                except WorkflowNotFound:
                    if is_new or not looks_left:
                        raise
            # What was found has been deleted since, as one that had ended long ago: it is not this start's run.
        raise AssertionError("the last look returns or raises")

    async def recover(self, handlers: Mapping[str, Handler[Any]], *, concurrency: int = 10) -> RecoveryReport:
        """Claim every abandoned run that has a handler here, and resume it: each to its end, or until it waits.

        Abandoned is a run whose worker vanished or let go of it, one that nobody started, one whose timer is due or
        whose signal came. Handlers' exceptions do not stop it: they are in the report.
        """
        return await self.recovery(handlers).run_once(concurrency)

    def recovery(self, handlers: Mapping[str, Handler[Any]], *, patience: timedelta | None = None) -> Recovery:
        """The parts of `recover`, for `Worker`."""
        return Recovery(self._transactions.for_runs(), self._executor, handlers, patience=patience)

    def listening(self, wake: Callable[[], object]) -> AbstractAsyncContextManager[None]:
        """Call `wake` when Postgres announces that there is a run to claim, for the time of the block."""

        def told() -> None:
            self._executor.lookout.look_now()
            wake()

        return listening(self._transactions.database, self.namespace, told)

    async def signal(self, workflow_state_id: UUID | str, name: str, payload: Any = None) -> None:
        """Send a signal to an unfinished run, which consumes it with `run.wait_for`: first in, first out.

        Raises `WorkflowNotFound`, or `InvalidTransition` if the run is finished.
        """
        await self._control.signal(workflow_state_id, name, payload)
        self._executor.lookout.look_now()

    async def pause(self, workflow_state_id: UUID | str) -> None:
        """Pause a run: at once if nobody owns it, else at its owner's next step. Raises `InvalidTransition`."""
        await self._control.pause(workflow_state_id)
        self._executor.lookout.look_now()

    async def resume(self, workflow_state_id: UUID | str) -> None:
        """Let a paused or failed run go on, with a new budget of attempts; `recover` or a `Worker` picks it up."""
        await self._control.resume(workflow_state_id)
        self._executor.lookout.look_now()

    async def cancel(self, workflow_state_id: UUID | str) -> None:
        """Cancel a run and its child runs: at once if nobody owns them, else at their owner's next step."""
        await self._control.cancel(workflow_state_id)
        self._executor.lookout.look_now()

    async def fork(self, checkpoint_id: UUID | str, *, workflow_id: str | None = None) -> WorkflowState:
        """Create a new, pending workflow that starts from that checkpoint, and remembers where it came from.

        With a `workflow_id` it is made once: the same call returns the fork that is there, as it is by now.
        """
        return await self._control.fork(checkpoint_id, workflow_id)

    async def rewind(self, checkpoint_id: UUID | str) -> WorkflowState:
        """Put a run back to that checkpoint: later steps and checkpoints are forgotten. Raises `LeaseHeld`."""
        return await self._control.rewind(checkpoint_id)

    async def _wanted(
        self,
        types: RunTypes,
        workflow_id: str | None,
        context: dict[str, Any] | BaseModel | None,
        user_id: str | None,
        idempotency_key: str | None,
    ) -> WantedRun:
        """Check the arguments of a start as the domain would."""
        if idempotency_key is not None:
            as_stored_name(idempotency_key, "idempotency_key")
        checked = WorkflowState(workflow_id=str(uuid4()), workflow_name=types.workflow_name, user_id=user_id)
        given = idempotency_key if workflow_id is None else workflow_id
        if given is not None:
            checked.workflow_id = given
        return WantedRun(
            types=types,
            name=checked.workflow_name,
            workflow_id=checked.workflow_id,
            context=None if context is None else await types.started_with(context),
            user_id=user_id,
            idempotency_key=idempotency_key,
        )


def _path_or_url(database: str | os.PathLike[str]) -> str:
    given: object = os.fspath(database) if isinstance(database, os.PathLike) else database
    if isinstance(given, str):
        return given
    raise ConfigurationError(f"the database is a {type(given).__name__}; give a URL or a path, as a str or a Path")


def _limits(settings: Settings) -> Limits:
    return Limits(
        payload_bytes=settings.max_payload_bytes,
        workflow_bytes=settings.max_workflow_bytes,
        depth=settings.max_depth,
        values=settings.max_values,
        steps=settings.max_steps,
    )


class Opening:
    """What `StateStore.open` returns: await it, or enter it with `async with`."""

    def __init__(self, open_store: Callable[[], Awaitable[StateStore]]) -> None:
        self._open_store = open_store
        self._store: StateStore | None = None

    if not TYPE_CHECKING:  # a type checker says it better

        def __getattr__(self, name: str) -> NoReturn:
            """Say what was forgotten to who takes this for the store."""
            if hasattr(StateStore, name):
                raise ConfigurationError(
                    "the store is not open yet: write `store = await StateStore.open(...)`, or "
                    "`async with StateStore.open(...) as store`"
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    def __await__(self) -> Generator[Any, None, StateStore]:
        return self._open_store().__await__()

    async def __aenter__(self) -> StateStore:
        self._store = await self._open_store()
        return self._store

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._store is not None:
            await self._store.close()
