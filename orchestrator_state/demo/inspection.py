"""What the parent learns without running the workflow: the steps to expect, and what the database holds."""

import asyncio
from collections.abc import Callable, Mapping
from typing import cast

from orchestrator_state import StateStore, StepStatus
from orchestrator_state.demo.pipeline import P, Report, T, process
from orchestrator_state.errors import ConfigurationError
from orchestrator_state.urls import SqliteLocation, locate


def rehearse(source: str, recorded: Mapping[str, object]) -> tuple[list[str], str]:
    """Go through the pipeline in memory; return its step ids and the report it would write.

    The summaries in `recorded` stand in for those it would make. Raises `DocumentError` for a bad input.
    """
    steps: list[str] = []
    reports: list[str] = []

    async def step(step_id: str, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        steps.append(step_id)
        if step_id.startswith("summarise ") and step_id in recorded:
            return cast("T", recorded[step_id])
        if step_id == "write":
            return cast("T", Report(bytes=0, sha256=""))
        result = fn(*args, **kwargs)
        if step_id == "combine":
            reports.append(cast("str", result))
        return result

    asyncio.run(process(step, source, output=""))
    return steps, reports[-1]


def prepare(db: str) -> None:
    """Bring the database to the current schema. `ConfigurationError` for one that dies with its process."""
    location = locate(db)
    if isinstance(location, SqliteLocation) and location.path is None:
        raise ConfigurationError("a database in memory dies with the process that is killed; give a file")

    async def main() -> None:
        async with StateStore.open(db, migrate=True):
            pass

    asyncio.run(main())


def finished_steps(db: str, workflow_id: str) -> dict[str, object]:
    """The recorded outputs of the finished steps."""

    async def main() -> dict[str, object]:
        async with StateStore.open(db) as store:
            state = await store.load_workflow_state_by_workflow_id(workflow_id)
        return {step.step_id: step.outputs for step in state.steps.values() if step.status is StepStatus.COMPLETED}

    return asyncio.run(main())
