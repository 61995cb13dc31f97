"""One session, one commit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state.arguments import as_configured_name, as_flag, as_signal_name, as_uuid
from orchestrator_state.database import StoreSession, once_committed, refuse_autocommit
from orchestrator_state.domain import WorkflowState
from orchestrator_state.errors import ConfigurationError, WorkflowNotFound, concerning
from orchestrator_state.execution import cancel_run, send_signal, start_pending, wanted_run
from orchestrator_state.payloads import Payloads
from orchestrator_state.records import SignalPlace
from orchestrator_state.repositories import (
    CheckpointRepository,
    StepRepository,
    UndeclaredPayloads,
    Unit,
    WorkflowRepository,
)
from orchestrator_state.repositories.runs import MOST_LOOKS
from orchestrator_state.runs import Budget, RunTypes
from orchestrator_state.settings import DEFAULT_NAMESPACE
from orchestrator_state.state_schema import NO_SCHEMAS, Schemas, StateSchema
from orchestrator_state.transactions import StoreUnit

__all__ = [
    "CheckpointRepository",
    "StepRepository",
    "UnitOfWork",
    "WorkflowRepository",
]


class UnitOfWork(Unit):
    """The repositories on one `AsyncSession`, and what runs are asked: all commits or rolls back with that session.

    `store.begin()` yields one and commits it at the end of the block. On a session of the caller's, it joins the
    caller's transaction and never commits: business rows and workflow state stand or fall together. Then it is made by
    `store.unit_of_work(session)`, or, where there is no store at hand, by hand: `schema` is the Postgres schema of our
    tables, if they are not on the session's search path, `payloads` and `schemas` what a store would be opened with.
    Without `payloads` they are plain, and writing them beside encrypted ones raises `ConfigurationError`. Blobs are
    moved while the caller's transaction is open, and those of rows that it deletes are left as garbage.

    `start`, `signal` and `cancel` wake workers once the session has committed, and not before.
    """

    def __init__(
        self,
        session: AsyncSession,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        schema: str | None = None,
        payloads: Payloads | None = None,
        schemas: Iterable[StateSchema] = NO_SCHEMAS,
    ) -> None:
        """Raises `ConfigurationError` for what is none of these, and for two schemas of one name.

        So does the first statement, if the session's connection commits each by itself (AUTOCOMMIT).
        """
        if not isinstance(session, AsyncSession):
            raise ConfigurationError(f"session is a {type(session).__name__}; give an AsyncSession")
        namespace = as_configured_name(namespace, "namespace")
        if schema is not None:
            schema = as_configured_name(schema, "schema")
        payloads = UndeclaredPayloads() if payloads is None else payloads
        if not isinstance(payloads, Payloads):
            raise ConfigurationError(f"payloads is a {type(payloads).__name__}; give Payloads([...])")
        if not isinstance(session.sync_session, StoreSession):
            refuse_autocommit(session)
        if payloads.offload is None:
            payloads = payloads.for_unit(namespace)
        known = schemas if isinstance(schemas, Schemas) else Schemas(schemas)
        options: dict[str, Any] = {
            "namespace": namespace,
            "schema": schema,
            "payloads": payloads,
            "schemas": known,
        }
        super().__init__(session, options)

    async def start(
        self,
        name: str,
        *,
        workflow_id: str | None = None,
        context: dict[str, Any] | BaseModel | None = None,
        state: type[BaseModel] | None = None,
        user_id: str | None = None,
        idempotency_key: str | None = None,
        budget: Budget | Decimal | float | None = None,
    ) -> WorkflowState:
        """Record a run for a `Worker` to execute, once for each `workflow_id` or `idempotency_key`.

        As `StateStore.start`, and returns the run's state: pending if it is new. A start of the same run in another
        transaction that has not ended yet is waited for. Raises `Conflict` if the run that is there is another
        workflow's.
        """
        unit = self._entered()
        types = RunTypes.of(self._options["schemas"], self._options["payloads"], name, state)
        wanted = await wanted_run(
            types,
            workflow_id=workflow_id,
            context=context,
            user_id=user_id,
            idempotency_key=idempotency_key,
            budget=budget,
        )
        for _ in range(MOST_LOOKS):
            workflow_state_id, is_new = await start_pending(unit, wanted)
            if is_new:
                self._taken_from([workflow_state_id])
            if (found := await self.workflows.find(workflow_state_id)) is not None:
                return found
            # Deleted since it was found, as one that had ended long ago: it is not this start's run.
        message = f"run {wanted.workflow_id!r} is deleted as often as it is started"
        raise WorkflowNotFound(message, workflow_id=wanted.workflow_id)

    async def signal(
        self, workflow_state_id: UUID | str, name: str, payload: Any = None, *, once: bool = False
    ) -> None:
        """Send a signal to an unfinished run, as `StateStore.signal` does; the run gets it after the commit.

        Raises `WorkflowNotFound`, `InvalidTransition` if the run is finished, `AlreadyExists` if it is to be sent
        `once` and one of that name was sent before, or `InvalidPayload` and `PayloadTooLarge` for what cannot be
        stored. Without `once`, calling it twice sends two.
        """
        unit, payloads = self._entered(), self._options["payloads"]
        target, signal_id = as_uuid(workflow_state_id, "workflow_state_id"), uuid4()
        name, is_only = as_signal_name(name), as_flag(once, "once")
        encoded = await payloads.encode_aside(payload, "payload")
        prepared = await SignalPlace(target, signal_id, unit.namespace, name).prepared(payloads, encoded)
        with concerning(workflow_state_id=target):
            await send_signal(
                unit, workflow_state_id=target, signal_id=signal_id, name=name, payload=prepared, once=is_only
            )
        once_committed(self.session, self._look_now)

    async def cancel(self, workflow_state_id: UUID | str, *, force: bool = False) -> None:
        """Cancel a run and its child runs, as `StateStore.cancel` does: with the commit, or at their owner's next step.

        With `force` their owners lose their leases with the commit. Raises `WorkflowNotFound`, or `InvalidTransition`
        if the run is completed or failed.
        """
        unit, target = self._entered(), as_uuid(workflow_state_id, "workflow_state_id")
        is_forced = as_flag(force, "force")
        with concerning(workflow_state_id=target):
            unfinished = await cancel_run(unit, workflow_state_id=target, force=is_forced)
        if is_forced:
            self._taken_from(unfinished)
        once_committed(self.session, self._look_now)

    def _entered(self) -> StoreUnit:
        """What acts on runs in this transaction. Raises `ConfigurationError` if the store must not be used."""
        return StoreUnit(self.session, self._options)

    def _taken_from(self, ids: Sequence[UUID]) -> None:
        """These runs, if they are under way in this process, have lost their leases once this has committed."""

    def _look_now(self) -> None:
        """The runs that wait in this process may have got something."""
