"""The process that is killed: runs the document pipeline, or goes on where another process stopped.

    python -m orchestrator_state.demo.worker --workflow-id ID --input DIR --output FILE --journal FILE

A step's result is acknowledged once it is in the database together with a checkpoint; a step that is found
finished there is not run again. Without --db the database is DATABASE_URL, which `ps` does not show.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from orchestrator_state import Checkpoint, StateStore, StepState, StepStatus, WorkflowState
from orchestrator_state.demo.journal import Journal
from orchestrator_state.demo.llm import LlmError
from orchestrator_state.demo.pipeline import DocumentError, P, T, process
from orchestrator_state.errors import OrchestratorStateError, WorkflowNotFound

WORKFLOW_NAME = "demo-documents"
LINGER_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DurableStep:
    """Runs each step of one workflow once: what finished comes back from the state, the rest is saved.

    It pauses for `pace` seconds before each step, so that a person can watch; the step `linger` waits, with its
    work done and nothing recorded, to be killed.
    """

    store: StateStore
    state: WorkflowState
    journal: Journal
    pace: float
    linger: str | None

    async def __call__(self, step_id: str, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        step = self.state.steps.setdefault(step_id, StepState(step_id=step_id))
        if step.status is StepStatus.COMPLETED:
            return cast("T", step.outputs)
        await asyncio.sleep(self.pace)
        if step.status is not StepStatus.PENDING:
            step.increment_retry()
        step.mark_running()
        await self.store.save_workflow_state(self.state)
        attempt = step.retry_count + 1
        self.journal.add("start", step_id, attempt)
        try:
            outputs = await asyncio.to_thread(fn, *args, **kwargs)
        except (DocumentError, LlmError) as error:
            step.mark_failed(str(error))
            raise
        if step_id == self.linger:
            self.journal.add("midway", step_id, attempt)
            await asyncio.sleep(LINGER_SECONDS)
        self.journal.add("end", step_id, attempt)
        step.mark_completed(outputs)
        await self._save_with_checkpoint(step_id)
        self.journal.add("saved", step_id, attempt)
        return outputs

    async def _save_with_checkpoint(self, step_id: str) -> None:
        await self.store.save_workflow_state(self.state)
        snapshot = self.state.to_snapshot()
        checkpoint = Checkpoint(workflow_state_id=self.state.id, step_id=step_id, snapshot=snapshot)
        await self.store.create_checkpoint(checkpoint)


async def run(options: argparse.Namespace) -> None:
    """Start the workflow, or resume it from the database, and finish it."""
    async with StateStore.open(options.db) as store:
        state = await _find_or_create(store, options)
        state.mark_running()
        with Journal(options.journal) as journal:
            step = DurableStep(store=store, state=state, journal=journal, pace=options.pace, linger=options.linger)
            try:
                await process(step, state.context["input"], state.context["output"], options.llm)
            except (DocumentError, LlmError) as error:
                state.mark_failed(str(error))
                await store.save_workflow_state(state)
                raise
        state.mark_completed()
        await store.save_workflow_state(state)


async def _find_or_create(store: StateStore, options: argparse.Namespace) -> WorkflowState:
    try:
        return await store.load_workflow_state_by_workflow_id(options.workflow_id)
    except WorkflowNotFound:
        context = {"input": str(options.input.absolute()), "output": str(options.output.absolute())}
        return WorkflowState(workflow_id=options.workflow_id, workflow_name=WORKFLOW_NAME, context=context)


def main() -> int:
    """Exit status 0 when the workflow is finished; 2, with one line on stderr, when it cannot be."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator_state.demo.worker")
    parser.add_argument("--db", help="database URL or path; default DATABASE_URL")
    parser.add_argument("--workflow-id", required=True)
    parser.add_argument("--input", type=Path, required=True, help="directory of .txt and .md files")
    parser.add_argument("--output", type=Path, required=True, help="the Markdown report")
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--llm", metavar="URL", help="OpenAI-compatible endpoint")
    parser.add_argument("--pace", type=float, default=0.0, metavar="SECONDS", help="pause before each step")
    parser.add_argument("--linger", metavar="STEP", help="stay in this step until killed")
    try:
        asyncio.run(run(parser.parse_args()))
    except (DocumentError, LlmError, OrchestratorStateError) as error:
        print(error, file=sys.stderr)  # noqa: T201 - the last line of the log is what the parent reports
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
