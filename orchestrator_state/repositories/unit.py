"""The three repositories that callers know, on one session."""

from __future__ import annotations

from functools import cached_property
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state.repositories.base import Repository
from orchestrator_state.repositories.checkpoints import CheckpointRepository
from orchestrator_state.repositories.steps import StepRepository
from orchestrator_state.repositories.workflows import WorkflowRepository

_Repository = TypeVar("_Repository", bound=Repository)


class Unit:
    """What its repositories write commits or rolls back with the session. Each is made when it is first used."""

    def __init__(self, session: AsyncSession, options: dict[str, Any]) -> None:
        """`options` are those of `Repository`, which somebody has checked."""
        self.session = session
        self._options = options

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
