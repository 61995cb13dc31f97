"""One session, one commit."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state.repositories import CheckpointRepository, StepRepository, WorkflowRepository
from orchestrator_state.run_commits import CommitRepository
from orchestrator_state.run_repository import RunRepository
from orchestrator_state.settings import DEFAULT_NAMESPACE


class UnitOfWork:
    """The repositories on one `AsyncSession`: what they write commits or rolls back with that session.

    `store.begin()` yields one and commits it at the end of the block. Made by hand from a session of the caller's, it
    joins the caller's transaction and never commits: business rows and workflow state stand or fall together.
    `schema` is the Postgres schema of our tables, if they are not on the session's search path.
    """

    def __init__(self, session: AsyncSession, *, namespace: str = DEFAULT_NAMESPACE, schema: str | None = None) -> None:
        """Raises `ConfigurationError` for a namespace that is no name."""
        self.session = session
        self.workflows = WorkflowRepository(session, namespace=namespace, schema=schema)
        self.steps = StepRepository(session, namespace=namespace, schema=schema)
        self.checkpoints = CheckpointRepository(session, namespace=namespace, schema=schema)
        self.runs = RunRepository(session, namespace=namespace, schema=schema)
        self.commits = CommitRepository(session, namespace=namespace, schema=schema)
