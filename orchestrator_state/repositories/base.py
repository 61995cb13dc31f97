"""What all repositories share: a session, a namespace, the door to the database, and errors of ours.

A repository works in the transaction of the session it is given. It adds and flushes, and never commits. `get` raises
when there is nothing, `find` returns None. Every statement is confined to one namespace.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar, cast
from uuid import UUID

from sqlalchemy import CursorResult, Delete, Executable, Result, delete, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from orchestrator_state.database import ReadingSession, announce, database_errors, shared_cache
from orchestrator_state.errors import WorkflowNotFound
from orchestrator_state.models import WorkflowRow
from orchestrator_state.payloads import PLAIN, Payloads
from orchestrator_state.records import Columns, prepared_workflow, seal_workflow
from orchestrator_state.repositories.expressions import HANGING, NOW_IF_ASLEEP, OF_WORKFLOW, reference_columns
from orchestrator_state.repositories.undeclared import UndeclaredPayloads
from orchestrator_state.settings import DEFAULT_NAMESPACE
from orchestrator_state.state_schema import NO_SCHEMAS, Schemas

_CALLING: Final = database_errors()
_Repository = TypeVar("_Repository", bound="Repository")
Parameters = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None

# asyncpg allows 32,767 parameters in a statement, older SQLite 999.
_MAX_IDS: Final = 500

# A session of the caller's may have several binds: whichever it has for our models or tables, all statements take it.
_OURS: Final[dict[str, Any]] = {"mapper": WorkflowRow.__mapper__}
_WAKE: Final = update(WorkflowRow).where(*OF_WORKFLOW).values({WorkflowRow.wake_at: NOW_IF_ASLEEP})


class Repository:
    """A session, a namespace, and errors of ours."""

    def __init__(
        self,
        session: AsyncSession,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        schema: str | None = None,
        payloads: Payloads = PLAIN,
        schemas: Schemas = NO_SCHEMAS,
    ) -> None:
        self._session = session
        self._payloads = payloads
        self._schemas = schemas
        self._namespace = namespace
        self._schema = schema
        self._options: dict[str, Any] = {"schema_translate_map": {None: schema}} if schema else {}

    def _beside(self, kind: type[_Repository]) -> _Repository:
        """Another repository in the same unit."""
        return kind(
            self._session,
            namespace=self._namespace,
            schema=self._schema,
            payloads=self._payloads,
            schemas=self._schemas,
        )

    async def _execute(self, statement: Executable, parameters: Parameters = None) -> Result[Any]:
        """The door to the database, for all but the commits of steps and the reads of `ReadingSession.rows`."""
        payloads = self._payloads
        if payloads.offload is not None and payloads.offload.has_uploads:
            await payloads.offload.settle()  # before a row refers to them
        if isinstance(payloads, UndeclaredPayloads) and payloads.is_to_be_checked:
            await payloads.check(self._session, self._namespace, self._rows)
        with _CALLING:
            if isinstance(self._session, ReadingSession):
                result: Result[Any] = await self._session.execute(
                    statement, parameters, execution_options=self._options
                )
                return result
            return await self._session.run_sync(_on_connection, statement, parameters, self._options)

    async def _rows(
        self, statement: Executable, parameters: Mapping[str, Any] | None = None, *, bare: bool = False
    ) -> Sequence[Any]:
        """The rows of a query, as they are stored; `bare`: values without names, by the shortest way there is."""
        if bare and isinstance(self._session, ReadingSession):
            with _CALLING:
                rows = await self._session.rows(statement, parameters or {})
            if rows is not None:
                return rows
        return (await self._execute(statement, parameters)).all()

    async def _row(self, statement: Executable, parameters: Parameters = None) -> Any:
        """The first row of a query, or that a statement returns; None if there is none."""
        return (await self._execute(statement, parameters)).first()

    async def _rows_with_blobs(
        self,
        statement: Executable,
        parameters: Mapping[str, Any] | None = None,
        *,
        bare: bool = False,
        for_many: bool = False,
    ) -> Sequence[Any]:
        """The rows of a query whose payloads are to be opened: those in the blob store are fetched.

        The query is made again if a blob is gone: a rekey may have written that row anew. `for_many` is as in
        `Offload.fetch`.
        """
        rows, offload = await self._rows(statement, parameters, bare=bare), self._payloads.offload
        if offload is not None:
            await offload.fetch(rows, for_many=for_many)
            if offload.lacks(rows):
                rows = await self._rows(statement, parameters, bare=bare)
                await offload.fetch(rows, for_many=for_many)
        return rows

    async def _sealed_workflow(self, workflow_state_id: UUID, columns: Columns) -> Columns:
        """See `seal_workflow`; what is long about it is done beside the event loop."""
        prepared = await prepared_workflow(self._payloads, workflow_state_id, columns)
        return seal_workflow(self._payloads, workflow_state_id, prepared)

    async def _delete(self, statement: Delete, parameters: Mapping[str, Any] | None = None) -> int:
        """Delete rows, and their blobs once that has committed. Returns how many rows."""
        offload, references = self._payloads.offload, reference_columns(statement.table)
        if offload is None or not references:
            return rowcount(await self._execute(statement, parameters))
        rows = await self._rows(statement.returning(*references), parameters)
        offload.discard(rows)
        return len(rows)

    async def _begin_without_history(self, workflow_state_id: UUID, created: Any) -> None:
        """Delete what hangs on the id of a workflow that was just `created`: it is no history of the new one."""
        if created.has_leftovers:
            for hanging in HANGING:
                await self._delete(delete(hanging).where(hanging.workflow_state_id == workflow_state_id))

    async def _wake(self, workflow_state_id: UUID) -> None:
        """Let a sleeping run be claimed now. Locks its row in any case: it may be about to fall asleep."""
        await self._execute(_WAKE, {"of_id": workflow_state_id, "of_namespace": self._namespace})
        await self._announce()

    async def _announce(self) -> None:
        """Wake the workers with this commit: a run can be claimed."""
        with _CALLING:
            connection = await self._session.connection(bind_arguments=_OURS)
            await announce(self._session, connection, self._namespace)

    @property
    def _dialect(self) -> str:
        return self._session.get_bind(**_OURS).dialect.name

    def _workflow_not_found(self, workflow_state_id: UUID | str) -> WorkflowNotFound:
        return WorkflowNotFound(
            f"there is no workflow with id {workflow_state_id} in namespace {self._namespace!r}",
            workflow_state_id=workflow_state_id,
        )


def _on_connection(
    session: Session, statement: Executable, parameters: Parameters, options: Mapping[str, Any]
) -> Result[Any]:
    """Execute on the session's connection: rows and no entities, which its identity map would keep as they were.

    Nor are the caller's objects flushed, as `Session.execute` would do for a statement of mapped attributes; which
    also takes it half as long again.
    """
    # A session that routes in a way of its own may go by the statement. By binds, all is where the workflows are: an
    # application that has named our tables one by one does not know those of later releases.
    routes = type(session).get_bind is not Session.get_bind
    connection = session.connection(bind_arguments={**_OURS, "clause": statement} if routes else _OURS)
    return connection.execute(statement, parameters, execution_options={**options, **shared_cache(connection.engine)})


def rowcount(result: Result[Any]) -> int:
    return cast("CursorResult[Any]", result).rowcount


def chunks(ids: Sequence[Any]) -> Iterable[Sequence[Any]]:
    """`ids` in parts that fit into one statement."""
    return (ids[start : start + _MAX_IDS] for start in range(0, len(ids), _MAX_IDS))
