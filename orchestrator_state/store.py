"""`StateStore`: the facade that applications hold."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator_state import schema
from orchestrator_state.domain import Checkpoint, WorkflowState
from orchestrator_state.driver_errors import database_errors
from orchestrator_state.engine import Database, adopt_engine, open_database
from orchestrator_state.errors import (
    AlreadyExists,
    ConfigurationError,
    Conflict,
    InvalidPayload,
    StaleVersion,
    StoreUnavailable,
)
from orchestrator_state.mapping import rebase, same_rows, snapshot_of
from orchestrator_state.retry import while_transient
from orchestrator_state.settings import Options, Settings
from orchestrator_state.unit_of_work import UnitOfWork

_Result = TypeVar("_Result")
_DELETE_BATCH: Final = 200


class StateStore:
    """Workflow state in the application's own database. Open it with `StateStore.open`.

    Each call is one transaction of its own; `begin` groups several. A call whose transaction the database gave up on
    (a deadlock, a dropped connection, a busy file) is repeated for a while before `StoreUnavailable` is raised.
    A store may be used by many tasks of one event loop at once.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._closed = False

    @classmethod
    def open(
        cls,
        database: str | os.PathLike[str] | None = None,
        *,
        engine: AsyncEngine | None = None,
        migrate: bool | None = None,
        **options: Unpack[Options],
    ) -> Opening:
        """Open a store: `store = await StateStore.open(url)`, or `async with StateStore.open(url) as store`.

        `database` is a path, `:memory:`, `sqlite:///…` or `postgresql://…`; None is `DATABASE_URL`, else
        `./workflows.db`. `engine` is an `AsyncEngine` of the application's to use instead: its pool, which `close`
        leaves open. `options` are settings; those not given come from the environment. See `Settings` for their
        meaning and defaults.

        `migrate`: bring the schema up to date (True), or only verify it (False). By default an SQLite file is migrated
        and Postgres, or the application's engine, is verified.

        Raises `ConfigurationError` for a URL or option that cannot work, `SchemaOutOfDate` naming the command to run,
        and `StoreUnavailable` within `connect_timeout` if the database cannot be reached.
        """
        if engine is not None and database is not None:
            raise ConfigurationError("give a database or an engine, not both")
        path_or_url = None if database is None else os.fspath(database)
        settings = Settings.load(database_url=path_or_url, **options)
        return Opening(lambda: cls._open(settings, engine, migrate=migrate))

    @classmethod
    async def _open(cls, settings: Settings, engine: AsyncEngine | None, *, migrate: bool | None) -> Self:
        database = adopt_engine(engine, settings) if engine else open_database(settings)
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
        return cls(database, settings)

    @property
    def namespace(self) -> str:
        return self._settings.namespace

    async def close(self) -> None:
        """Close the store's connections. Closing twice is harmless; any other call afterwards raises."""
        if not self._closed:
            self._closed = True
            await self._database.close()

    async def __aenter__(self) -> Self:
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
        return self._writing()

    async def save_workflow_state(self, state: WorkflowState) -> None:
        """Insert `state`, or update the rows that changed since it was loaded or saved, in one transaction.

        Raises `StaleVersion` if somebody else saved it meanwhile; nothing is written then. See
        `WorkflowRepository.save`.
        """
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

        await self._write_once(save, StaleVersion, landed)

    async def load_workflow_state(self, workflow_state_id: UUID | str) -> WorkflowState:
        """Return the workflow with all its steps, as of one moment. Raises `WorkflowNotFound`."""
        return await self._read(lambda uow: uow.workflows.get(workflow_state_id))

    async def load_workflow_state_by_workflow_id(self, workflow_id: str) -> WorkflowState:
        """Return the most recently updated state of that `workflow_id`. Raises `WorkflowNotFound`."""
        return await self._read(lambda uow: uow.workflows.get_by_workflow_id(workflow_id))

    async def list_active_workflows(self) -> list[WorkflowState]:
        """Return all pending, running and paused workflows with their steps, most recently updated first."""
        return await self._read(lambda uow: uow.workflows.list_active())

    async def create_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Insert `checkpoint`, which is given its `seq`, and prune the workflow's to the newest `keep_checkpoints`.

        One transaction. Raises `WorkflowNotFound`, or `AlreadyExists` if the checkpoint was created before.
        """

        async def create(uow: UnitOfWork) -> None:
            await uow.checkpoints.add(checkpoint)
            await uow.checkpoints.prune(checkpoint.workflow_state_id, keep=self._settings.keep_checkpoints)

        async def landed() -> bool:
            there = await self._read(lambda uow: uow.checkpoints.find(checkpoint.id))
            if there is None or there.workflow_state_id != checkpoint.workflow_state_id:
                return False
            checkpoint.seq = there.seq
            return True

        await self._write_once(create, AlreadyExists, landed)

    async def get_latest_checkpoint(self, workflow_state_id: UUID | str) -> Checkpoint | None:
        """Return the checkpoint with the highest `seq`, or None."""
        return await self._read(lambda uow: uow.checkpoints.find_latest(workflow_state_id))

    async def restore_from_checkpoint(self, checkpoint_id: UUID | str) -> WorkflowState:
        """Return the workflow as it was at that checkpoint. Nothing is written: saving it rolls the workflow back.

        It carries the live row's version, so that the save is refused if the workflow moved on in between. Raises
        `CheckpointNotFound`, or `InvalidPayload` if the snapshot is not a state of its workflow.
        """
        checkpoint = await self._read(lambda uow: uow.checkpoints.get(checkpoint_id))
        live = await self.load_workflow_state(checkpoint.workflow_state_id)
        restored = WorkflowState.from_snapshot(checkpoint.snapshot)
        if restored.id != live.id:
            raise InvalidPayload("the snapshot is another workflow's state", path="snapshot.id")
        rebase(restored, live)
        return restored

    async def delete_old_states(self, older_than: datetime) -> int:
        """Delete finished workflows last updated before `older_than` (aware), with their steps and checkpoints.

        Works in transactions of 200 workflows; if it is interrupted, those that committed stay deleted. Returns the
        number of workflows deleted.
        """
        total = 0
        while True:
            deleted = await self._write(
                lambda uow: uow.workflows.delete_finished(older_than=older_than, limit=_DELETE_BATCH)
            )
            total += deleted
            if deleted < _DELETE_BATCH:
                return total

    async def cleanup_old_checkpoints(self, workflow_state_id: UUID | str, keep: int = 10) -> int:
        """Delete all but the newest `keep` checkpoints of a workflow. Returns how many were deleted."""
        return await self._write(lambda uow: uow.checkpoints.prune(workflow_state_id, keep=keep))

    async def health_check(self) -> None:
        """Raise `StoreUnavailable` unless the database answers a query."""

        async def ask(uow: UnitOfWork) -> None:
            with database_errors():
                await uow.session.execute(select(1))

        await self._read(ask)

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[UnitOfWork]:
        self._require_open()
        async with self._database.writing() as session:
            yield UnitOfWork(session, namespace=self.namespace, schema=self._database.schema)

    async def _read(self, work: Callable[[UnitOfWork], Awaitable[_Result]]) -> _Result:
        async def attempt() -> _Result:
            self._require_open()
            async with self._database.reading() as session:
                return await work(UnitOfWork(session, namespace=self.namespace, schema=self._database.schema))

        return await while_transient(attempt, self._settings.retry_timeout)

    async def _write(self, work: Callable[[UnitOfWork], Awaitable[_Result]]) -> _Result:
        async def attempt() -> _Result:
            async with self._writing() as uow:
                return await work(uow)

        return await while_transient(attempt, self._settings.retry_timeout)

    async def _write_once(
        self,
        work: Callable[[UnitOfWork], Awaitable[None]],
        conflict: type[Conflict],
        landed: Callable[[], Awaitable[bool]],
    ) -> None:
        """Like `_write`, for work that must not be doubled.

        When the connection drops during COMMIT nobody knows whether it took effect. The repetition then meets its own
        first attempt as `conflict`, and `landed` reads back and compares.
        """
        outcome_unknown = False

        async def attempt() -> None:
            nonlocal outcome_unknown
            try:
                try:
                    async with self._writing() as uow:
                        await work(uow)
                except conflict:
                    if not (outcome_unknown and await landed()):
                        raise
            except StoreUnavailable as error:
                # Of the whole call: an earlier attempt may have landed, although this one did not.
                outcome_unknown = error.outcome_unknown = outcome_unknown or error.outcome_unknown
                raise

        await while_transient(attempt, self._settings.retry_timeout)

    def _require_open(self) -> None:
        if self._closed:
            raise ConfigurationError("the store is closed; open another")


class Opening:
    """What `StateStore.open` returns: await it, or enter it with `async with`."""

    def __init__(self, open_store: Callable[[], Awaitable[StateStore]]) -> None:
        self._open_store = open_store
        self._store: StateStore | None = None

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
