"""`orchestrator-state runs …`: look at durable runs, and ask something of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import typer

from orchestrator_state import StateStore, StepStatus, WorkflowState, WorkflowStatus
from orchestrator_state.cli.application import OptionalApp, store_options
from orchestrator_state.cli.opened import with_store
from orchestrator_state.cli.options import Namespace, Schema, Url
from orchestrator_state.cli.tables import add_row, new_table, plain, show_table
from orchestrator_state.errors import CorruptPayload, WorkflowNotFound
from orchestrator_state.payloads import decode
from orchestrator_state.retry import after_an_effect

runs = typer.Typer(no_args_is_help=True, help="Look at durable runs, and ask something of them.")

Id = Annotated[str, typer.Argument(metavar="ID", help="The run's id, or its workflow id.", show_default=False)]


@runs.command("list")
def list_runs(app: OptionalApp = None, url: Url = None, db_schema: Schema = None, namespace: Namespace = None) -> None:
    """List the runs that are not finished, most recently changed first."""

    async def work(store: StateStore) -> list[WorkflowState]:
        return await store.list_active_workflows()

    table = new_table("id", "workflow id", "name", "status", "steps", "updated")
    for state in with_store(store_options(app, url, db_schema, namespace), work):
        finished = sum(step.status is StepStatus.COMPLETED for step in state.steps.values())
        row = [str(state.id), state.workflow_id, state.workflow_name, state.status, str(finished)]
        add_row(table, *row, _time(state.updated_at))
    show_table(table)


@runs.command()
def show(
    run_id: Id, app: OptionalApp = None, url: Url = None, db_schema: Schema = None, namespace: Namespace = None
) -> None:
    """Show a run and its steps. Payloads are not shown."""
    state = with_store(store_options(app, url, db_schema, namespace), lambda store: _find(store, run_id))
    typer.echo(f"{state.id}  {plain(state.workflow_id)}  {plain(state.workflow_name)}  {state.status}")
    if state.error:
        typer.echo(plain(state.error))
    table = new_table("step", "status", "started", "seconds", "failures", "error")
    for step in state.steps.values():
        seconds = ""
        if step.started_at and step.completed_at:
            seconds = f"{(step.completed_at - step.started_at).total_seconds():.3f}"
        row = [step.step_id, step.status, _time(step.started_at), seconds, str(step.retry_count)]
        add_row(table, *row, step.error or "")
    show_table(table)


@runs.command()
def signal(
    run_id: Id,
    name: Annotated[str, typer.Argument(help="What the run waits for.")],
    payload: Annotated[str, typer.Argument(help="JSON that the run receives.")] = "null",
    app: OptionalApp = None,
    url: Url = None,
    db_schema: Schema = None,
    namespace: Namespace = None,
) -> None:
    """Send a signal to a run."""
    try:
        value = decode(payload, "payload")
    except CorruptPayload:
        raise typer.BadParameter("the payload is not JSON; a text needs quotes of its own, as in '\"yes\"'") from None
    _ask(run_id, store_options(app, url, db_schema, namespace), lambda store, found: store.signal(found, name, value))


@runs.command()
def pause(
    run_id: Id, app: OptionalApp = None, url: Url = None, db_schema: Schema = None, namespace: Namespace = None
) -> None:
    """Pause a run: now, or at its worker's next step."""
    _ask(run_id, store_options(app, url, db_schema, namespace), StateStore.pause, becomes=WorkflowStatus.PAUSED)


@runs.command()
def resume(
    run_id: Id, app: OptionalApp = None, url: Url = None, db_schema: Schema = None, namespace: Namespace = None
) -> None:
    """Let a paused or failed run go on; a worker picks it up."""
    _ask(run_id, store_options(app, url, db_schema, namespace), StateStore.resume)


@runs.command()
def cancel(
    run_id: Id, app: OptionalApp = None, url: Url = None, db_schema: Schema = None, namespace: Namespace = None
) -> None:
    """Cancel a run and its child runs: now, or at their worker's next step."""
    _ask(run_id, store_options(app, url, db_schema, namespace), StateStore.cancel, becomes=WorkflowStatus.CANCELLED)


def _ask(
    run_id: str,
    options: Mapping[str, Any],
    question: Callable[[StateStore, UUID], Awaitable[None]],
    becomes: WorkflowStatus | None = None,
) -> None:
    """Put a question to the store about a run, and say what became of it, or will."""

    async def work(store: StateStore) -> WorkflowState:
        found = (await _find(store, run_id)).id
        await question(store, found)
        with after_an_effect():
            return await store.load_workflow_state(found)

    state = with_store(options, work)
    later = "" if becomes in (None, state.status) else f"; it is {becomes} at its worker's next step"
    typer.echo(f"run {state.id} is {state.status}{later}")


async def _find(store: StateStore, run_id: str) -> WorkflowState:
    """By id, else by workflow id, which may look like an id too."""
    try:
        return await store.load_workflow_state(UUID(run_id))
    except (ValueError, WorkflowNotFound):
        return await store.load_workflow_state_by_workflow_id(run_id)


def _time(at: datetime | None) -> str:
    return "" if at is None else at.strftime("%Y-%m-%d %H:%M:%S")
