"""One session, one commit."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state.payloads import PLAIN, Payloads
from orchestrator_state.repositories import CheckpointRepository, StepRepository, WorkflowRepository
from orchestrator_state.run_repository import RunRepository
from orchestrator_state.settings import DEFAULT_NAMESPACE


class UnitOfWork:
    """The repositories on one `AsyncSession`: what they write commits or rolls back with that session.

    `store.begin()` yields one and commits it at the end of the block. Made by hand from a session of the caller's, it
    joins the caller's transaction and never commits: business rows and workflow state stand or fall together.
    `schema` is the Postgres schema of our tables, if they are not on the session's search path; `payloads` is what the
    store was opened with, if it was given codecs or a blob store (`store.payloads`). Blobs are moved while the caller's
    transaction is open; those of rows that it deletes are left to `store.collect_garbage`.
    """

    def __init__(
        self,
        session: AsyncSession,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        schema: str | None = None,
        payloads: Payloads = PLAIN,
    ) -> None:
        """Raises `ConfigurationError` for a namespace that is no name."""
        self.session = session
        if payloads.offload is None:
            payloads = payloads.for_unit(namespace)
        self.workflows = WorkflowRepository(session, namespace=namespace, schema=schema, payloads=payloads)
        self.steps = StepRepository(session, namespace=namespace, schema=schema, payloads=payloads)
        self.checkpoints = CheckpointRepository(session, namespace=namespace, schema=schema, payloads=payloads)
        self.runs = RunRepository(session, namespace=namespace, schema=schema, payloads=payloads)
