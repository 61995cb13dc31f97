"""`StateStore`: every call that applications make, and what each of them promises."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Final, NoReturn, Self, TypeVar, Unpack, overload
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from orchestrator_state import hooks
from orchestrator_state.arguments import as_duration, as_flag, as_function, as_instance, as_listener, as_uuid
from orchestrator_state.database import listening
from orchestrator_state.domain import Checkpoint, WorkflowState
from orchestrator_state.errors import ConfigurationError
from orchestrator_state.execution import Executor, Recovery, RecoveryReport, RunControl
from orchestrator_state.maintenance import (
    OnProgress,
    Progress,
    RekeyReport,
    VerifyReport,
    collect_garbage,
    delete_old_states,
    prune_checkpoints,
    rekey,
    row_counter,
    verify,
)
from orchestrator_state.payloads import PLAIN, Payloads
from orchestrator_state.repositories import OnDamaged
from orchestrator_state.repositories.upkeep import CHECKED_TABLES
from orchestrator_state.runs import Duration, Handler, Run
from orchestrator_state.settings import Options
from orchestrator_state.state_schema import Schemas, StateSchema
from orchestrator_state.store import by_hand
from orchestrator_state.store.health import HealthChecks
from orchestrator_state.store.opening import Opening, open_transactions, settings_for
from orchestrator_state.store.starting import RunOptions, start, wanted_run
from orchestrator_state.transactions import Transactions
from orchestrator_state.unit_of_work import UnitOfWork

_T = TypeVar("_T")
_R = TypeVar("_R")
_State = TypeVar("_State", bound=BaseModel)
_GRACE: Final = timedelta(hours=1)
_HEALTH_CHECK_LIMIT: Final = timedelta(seconds=5)


class StateStore:
    """Workflow state in the application's own database. Open it with `StateStore.open`.

    Each call is one transaction of its own, unless it says otherwise; `begin` groups several calls in one. When the
    database gives up on a transaction (a deadlock, a dropped connection, a busy file), the call repeats it for
    `retry_timeout` before it raises `StoreUnavailable`, which any call may raise. Calls see the store's namespace
    only. A store may be used by many tasks of one event loop at once.
    """

    def __init__(self, transactions: Transactions, hook: hooks.Hook | None) -> None:
        self._transactions = transactions
        self._executor = Executor(transactions, hook)
        self._control = RunControl(transactions)
        self._health = HealthChecks(transactions)
        self._closing: asyncio.Task[None] | None = None

    # --- open and close ------------------------------------------------------------------------------------------

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
    ) -> Opening[Self]:
        """Open a store: `store = await StateStore.open(url)`, or `async with StateStore.open(url) as store`.

        `database` is a path, `:memory:`, `sqlite:///…` or `postgresql://…`; None is `DATABASE_URL`, else
        `./workflows.db`. `engine` is an `AsyncEngine` of the application's to use instead: its pool, which `close`
        leaves open. `options` are settings; those not given come from the environment. See `Settings` for their
        meaning and defaults.

        `migrate`: bring the schema up to date (True), or only verify it (False). By default an SQLite file is migrated
        and Postgres, or the application's engine, is verified.

        `payloads` says how payloads are written and read, if not as they are. `schemas` are the versions and types of
        the application's state, one for each workflow name. Under a name without one, state is stored as it is.

        Raises `ConfigurationError` for a URL or option that cannot work, `SchemaOutOfDate` naming the command to run,
        and `StoreUnavailable` within `connect_timeout` if the database cannot be reached.
        """
        settings = settings_for(database, engine, payloads, hook, dict(options))
        known = Schemas(schemas)

        async def open_store() -> Self:
            return cls(await open_transactions(settings, engine, known, payloads, migrate=migrate), hook)

        return Opening(cls, open_store)

    def __reduce__(self) -> NoReturn:
        raise ConfigurationError("a store belongs to its process, and does not pickle: open another one there")

    @property
    def namespace(self) -> str:
        """The namespace that it was opened with, which all its calls keep to."""
        return self._transactions.settings.namespace

    @property
    def payloads(self) -> Payloads:
        """How this store writes and reads payloads, for a `UnitOfWork` of the application's own."""
        return self._transactions.payloads

    async def close(self) -> None:
        """Close the store's connections. Closing twice is harmless; any other call afterwards raises.

        Runs under way are stopped where they are, as by a fault of the database, and let go of for whoever comes next.
        Once begun, closing goes on even if this call is cancelled; calling it again waits for the end.
        """
        if self._closing is not None and self._closing.cancelled():  # with the event loop that it ran in
            self._closing = None
        if self._closing is None or not self._closing.done():
            self._transactions.database.enter()
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="orchestrator_state closing")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await self._health.settle()
        await self._executor.close()
        self.payloads.aside.close()
        await self._transactions.close()

    async def __aenter__(self) -> Self:
        self._transactions.enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def health_check(self, timeout: Duration = _HEALTH_CHECK_LIMIT) -> None:  # noqa: ASYNC109 - no task is cut off
        """Raise `StoreUnavailable` unless the database answers a query within `timeout` (a duration, or seconds)."""
        await self._health.ask(as_duration(timeout, "timeout").total_seconds())

    # --- several calls in one transaction ------------------------------------------------------------------------

    def begin(self) -> AbstractAsyncContextManager[UnitOfWork]:
        """Open a unit of work: `async with store.begin() as uow`. It commits at the end of the block.

        Any exception, cancellation included, rolls it back, and the states saved in it go back to the version they
        had. The block is not repeated by itself. On SQLite it holds the file's write lock: keep it short.
        """
        return self._transactions.begin_for_caller()

    def unit_of_work(self, session: AsyncSession) -> UnitOfWork:
        """The repositories on a session of the application's own, as this store writes and reads.

        They have the store's namespace, schema, codecs, limits and state schemas. What they write commits with the
        session's transaction, which is the caller's; see `UnitOfWork`.
        """
        self._transactions.enter()
        return self._transactions.unit(session)

    # --- state by hand -------------------------------------------------------------------------------------------

    async def save_workflow_state(self, state: WorkflowState) -> None:
        """Insert `state`, or update the rows that changed since it was loaded or saved, in one transaction.

        Raises `StaleVersion` if somebody else saved it meanwhile, `LeaseHeld` if it is a run that a worker has, and
        `InvalidPayload` for what cannot be stored; then nothing is written.
        """
        await by_hand.save(self._transactions, as_instance(state, WorkflowState, "state"))

    async def load_workflow_state(self, workflow_state_id: UUID | str) -> WorkflowState:
        """Return the workflow with all its steps, as of one moment. Raises `WorkflowNotFound`."""
        return await by_hand.load(self._transactions, workflow_state_id)

    async def load_workflow_state_by_workflow_id(self, workflow_id: str) -> WorkflowState:
        """Return the most recently updated state of that `workflow_id`. Raises `WorkflowNotFound`."""
        return await self._transactions.read(lambda uow: uow.workflows.get_by_workflow_id(workflow_id))

    async def list_active_workflows(self, *, on_damaged: OnDamaged | None = None) -> list[WorkflowState]:
        """Return all pending, running and paused workflows with their steps, most recently updated first.

        One that cannot be read, because it is damaged or written with another key, does not hide the others: it is
        left out, and `on_damaged` is called with its error, whose `workflow_state_id` says which it is. By default the
        error is logged. If nothing can be read at all, the first error is raised.
        """
        listener = as_listener(on_damaged, "on_damaged")
        return await self._transactions.read(lambda uow: uow.workflows.list_active(listener))

    async def create_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Insert `checkpoint`, which is given its `seq`, and prune the workflow's to the newest `keep_checkpoints`.

        One transaction. Raises `WorkflowNotFound`, or `AlreadyExists` if the checkpoint was created before.
        """
        await by_hand.create_checkpoint(self._transactions, checkpoint)

    async def get_latest_checkpoint(self, workflow_state_id: UUID | str) -> Checkpoint | None:
        """Return the checkpoint with the highest `seq`, or None."""
        return await self._transactions.read(lambda uow: uow.checkpoints.find_latest(workflow_state_id))

    async def restore_from_checkpoint(self, checkpoint_id: UUID | str) -> WorkflowState:
        """Return the workflow as it was at that checkpoint. Nothing is written: saving it rolls the workflow back.

        It carries the live row's version, so that the save is refused if the workflow moved on in between. Raises
        `CheckpointNotFound`, or `InvalidPayload` if the snapshot is not a state of its workflow.
        """
        return await by_hand.restore(self._transactions, as_uuid(checkpoint_id, "checkpoint_id"))

    # --- maintenance ---------------------------------------------------------------------------------------------

    async def delete_old_states(self, older_than: datetime | timedelta, *, progress: OnProgress | None = None) -> int:
        """Delete finished workflows last updated before `older_than`, with their steps and checkpoints.

        That is an age, by the database's clock, or a moment (aware). Prefer an age: on a machine whose clock is wrong,
        a moment computed from it is wrong, too.

        A child run goes with its parent, in one transaction, unless the parent completed: an unfinished parent would
        call the child again. A parent stays while a run that descends from it is unfinished, or too young.

        Works from the oldest, in transactions of up to 200 workflows and some 5,000 rows, between which it lets other
        writers in; if it is interrupted, what they deleted stays deleted. After each, `progress` is called with a
        `DeletionProgress`. Returns the number of workflows deleted.
        """
        return await delete_old_states(self._transactions, older_than, as_listener(progress, "progress"))

    async def prune_checkpoints(self, *, keep: int, progress: OnProgress | None = None) -> int:
        """Delete all but the newest `keep` checkpoints of every workflow. Returns how many were deleted.

        In transactions of some 5,000 checkpoints. After each `progress` is called with a `DeletionProgress`.
        """
        return await prune_checkpoints(self._transactions, keep, as_listener(progress, "progress"))

    async def cleanup_old_checkpoints(self, workflow_state_id: UUID | str, keep: int = 10) -> int:
        """Delete all but the newest `keep` checkpoints of a workflow. Returns how many were deleted.

        In transactions of some 5,000 checkpoints.
        """
        only = as_uuid(workflow_state_id, "workflow_state_id")
        return await prune_checkpoints(self._transactions, keep, None, only=only)

    async def collect_garbage(self, older_than: Duration = _GRACE) -> int:
        """Remove blobs of this namespace that no row refers to any more. Returns how many; 0 without a blob store.

        They are left by values that were overwritten, and by crashes and rolled back transactions. Blobs younger than
        `older_than` (a duration, or seconds; an hour by default) stay, since their row may not have committed yet: it
        has to be longer than any transaction takes, and than clocks differ. May be interrupted, and may run at any
        time and from several places at once.
        """
        return await collect_garbage(self._transactions, as_duration(older_than, "older_than"))

    async def verify(self, *, load: bool = False, progress: Progress | None = None) -> VerifyReport:
        """Compare all payloads of the namespace with their digests, without opening them.

        `load` also loads every unfinished workflow and its newest checkpoint with this store's codecs, and tells which
        fail, and where. Nothing is written, damage is reported and not raised, and memory does not grow with the
        database. Each page of rows is a transaction of its own; then `progress(done, total)` is told how many rows.
        """
        loads = as_flag(load, "load")
        counted = await row_counter(self._transactions, as_listener(progress, "progress"), CHECKED_TABLES)
        return await verify(self._transactions, load=loads, on_rows=counted)

    async def rekey(self, *, dry_run: bool = False, progress: Progress | None = None) -> RekeyReport:
        """Write every payload of the namespace anew that is not stored as this store's codecs and keys write it.

        It may run beside live runs, and as often as you like. It works in short transactions and leaves alone what is
        current. To a row that somebody else changes or locks meanwhile it comes back a few times. Versions, times and
        leases stay as they are. Payloads that do not open, for example under an unknown key, are reported and stay.
        `dry_run` only counts. `progress` is as in `verify`.
        """
        is_dry = as_flag(dry_run, "dry_run")
        counted = await row_counter(self._transactions, as_listener(progress, "progress"))
        return await rekey(self._transactions, dry_run=is_dry, on_rows=counted)

    # --- durable runs --------------------------------------------------------------------------------------------

    # Overloads, since the last kind of `returns` is a type to pydantic and not to `type[...]`: a union, or Annotated.
    @overload
    async def run(
        self,
        name: str,
        handler: Callable[[Run[_State]], Awaitable[_T]],
        *,
        returns: None = None,
        **options: Unpack[RunOptions[_State]],
    ) -> _T: ...

    @overload
    async def run(
        self,
        name: str,
        handler: Callable[[Run[_State]], Awaitable[Any]],
        *,
        returns: type[_R],
        **options: Unpack[RunOptions[_State]],
    ) -> _R: ...

    @overload
    async def run(
        self,
        name: str,
        handler: Callable[[Run[_State]], Awaitable[Any]],
        *,
        returns: Any,
        **options: Unpack[RunOptions[_State]],
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

        The start, each step and the end are a transaction each, and none is open while the handler's code runs.
        Cancelling the call leaves the run for whoever comes next. `wait` (a duration, or seconds) is how long to wait
        for another worker to end or to vanish. `strict` fails a run that ends without asking for all its recorded
        steps.

        Raises `LeaseHeld` naming the owner if another worker has the run, `LeaseLost` if one took it over, and
        `RunPaused` or `RunCancelled` if somebody asked for that. `SchemaMismatch`, `DecryptionFailed`, `UnknownCodec`
        and `UnprotectedPayload` leave the run, unfinished, for a store that can read it; `CorruptPayload` fails it.
        """
        as_function(handler, "handler")
        types = self._executor.types_of(name, state, returns)
        wanted = await wanted_run(types, workflow_id, context, user_id, idempotency_key)
        patience = as_duration(0 if wait is None else wait, "wait")
        outcome = await self._executor.run(wanted, handler, wait=patience, strict=as_flag(strict, "strict"))
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
        """Record a run for a `Worker` to execute, once for each `workflow_id` or `idempotency_key`.

        The arguments are as in `run`. Returns the run's state, pending if it is new.
        """
        types = self._executor.types_of(name, state)
        wanted = await wanted_run(types, workflow_id, context, user_id, idempotency_key)
        return await start(self._transactions, self._executor, wanted)

    async def recover(self, handlers: Mapping[str, Handler[Any]], *, concurrency: int = 10) -> RecoveryReport:
        """Claim every abandoned run that has a handler here, and resume it: each to its end, or until it waits.

        Abandoned is a run whose worker vanished or let go of it, one that nobody started, one whose timer is due or
        whose signal came. `concurrency` is how many are resumed at a time. Handlers' exceptions do not stop it: they
        are in the report.
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

        `payload` is any JSON value. Raises `WorkflowNotFound`, `InvalidTransition` if the run is finished, or
        `InvalidPayload` and `PayloadTooLarge` for what cannot be stored.
        """
        await self._control.signal(workflow_state_id, name, payload)
        self._executor.lookout.look_now()

    async def pause(self, workflow_state_id: UUID | str) -> None:
        """Pause a run: at once if nobody owns it, else at its owner's next step.

        Raises `WorkflowNotFound`, or `InvalidTransition` if the run is finished.
        """
        await self._control.pause(workflow_state_id)
        self._executor.lookout.look_now()

    async def resume(self, workflow_state_id: UUID | str) -> None:
        """Let a paused or failed run go on, with a new budget of attempts; `recover` or a `Worker` picks it up.

        Raises `WorkflowNotFound`, or `InvalidTransition` if the run is completed or cancelled.
        """
        await self._control.resume(workflow_state_id)
        self._executor.lookout.look_now()

    async def cancel(self, workflow_state_id: UUID | str) -> None:
        """Cancel a run and its child runs: at once if nobody owns them, else at their owner's next step.

        Raises `WorkflowNotFound`, or `InvalidTransition` if the run is completed or failed.
        """
        await self._control.cancel(workflow_state_id)
        self._executor.lookout.look_now()

    async def fork(self, checkpoint_id: UUID | str, *, workflow_id: str | None = None) -> WorkflowState:
        """Create a new, pending workflow that starts from that checkpoint, and remembers where it came from.

        With a `workflow_id` it is made once: the same call returns the fork that is there, as it is by now. Raises
        `CheckpointNotFound`, or `InvalidPayload` if the snapshot is not a state of its workflow.
        """
        return await self._control.fork(checkpoint_id, workflow_id)

    async def rewind(self, checkpoint_id: UUID | str) -> WorkflowState:
        """Put a run back to that checkpoint, and return its state: later steps and checkpoints are forgotten.

        Raises `CheckpointNotFound`, `LeaseHeld` if a worker has the run, or `InvalidPayload` as in `fork`.
        """
        return await self._control.rewind(checkpoint_id)
