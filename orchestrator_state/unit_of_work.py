"""One session, one commit."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state.arguments import as_configured_name
from orchestrator_state.database import StoreSession, refuse_autocommit
from orchestrator_state.errors import ConfigurationError
from orchestrator_state.payloads import Payloads
from orchestrator_state.repositories import (
    CheckpointRepository,
    Repository,
    StepRepository,
    UndeclaredPayloads,
    WorkflowRepository,
)
from orchestrator_state.settings import DEFAULT_NAMESPACE
from orchestrator_state.state_schema import NO_SCHEMAS, Schemas, StateSchema

__all__ = [
    "CheckpointRepository",
    "StepRepository",
    "UnitOfWork",
    "WorkflowRepository",
]

_Repository = TypeVar("_Repository", bound=Repository)


class UnitOfWork:
    """The repositories on one `AsyncSession`: what they write commits or rolls back with that session.

    `store.begin()` yields one and commits it at the end of the block. On a session of the caller's, it joins the
    caller's transaction and never commits: business rows and workflow state stand or fall together. Then it is made by
    `store.unit_of_work(session)`, or, where there is no store at hand, by hand: `schema` is the Postgres schema of our
    tables, if they are not on the session's search path, `payloads` and `schemas` what a store would be opened with.
    Without `payloads` they are plain, and writing them beside encrypted ones raises `ConfigurationError`. Blobs are
    moved while the caller's transaction is open, and those of rows that it deletes are left as garbage.
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
        self.session = session
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
        self._options: dict[str, Any] = {
            "namespace": namespace,
            "schema": schema,
            "payloads": payloads,
            "schemas": known,
        }

    @cached_property
    def workflows(self) -> WorkflowRepository:
        """Workflows with their steps."""
        return self._on_session(WorkflowRepository)

    @cached_property
    def steps(self) -> StepRepository:
        """Steps by themselves, for reading."""
        return self._on_session(StepRepository)

    @cached_property
    def checkpoints(self) -> CheckpointRepository:
        """The checkpoints of workflows."""
        return self._on_session(CheckpointRepository)

    def _on_session(self, kind: type[_Repository]) -> _Repository:
        return kind(self.session, **self._options)
