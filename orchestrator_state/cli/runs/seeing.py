"""`orchestrator-state runs list|show|steps|result`: no payload is opened but a result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator_state.cli.documents import show_json
from orchestrator_state.cli.endings import ExitCode
from orchestrator_state.cli.options import MOST_AT_ONCE, Cursor, Json, Limit, RunId, as_age
from orchestrator_state.cli.output import note, write
from orchestrator_state.cli.runs.finding import (
    Attribute,
    Chosen,
    Condition,
    ErrorContains,
    FinishedSince,
    Name,
    Parent,
    StartedSince,
    Status,
    StuckFor,
    UpdatedSince,
    User,
    WorkflowId,
    as_filters,
    choose,
    find_run,
)
from orchestrator_state.cli.tables import Table, escaped, show_labelled
from orchestrator_state.cli.target import Target, on_store
from orchestrator_state.errors import RunCancelled, RunFailed

if TYPE_CHECKING:
    from orchestrator_state import RunDetails, RunSummary, StateStore, StepSummary


@on_store
def list_runs(  # noqa: PLR0913 - each filter is an option
    target: Target,
    *,
    status: Status = None,
    condition: Condition = None,
    name: Name = None,
    workflow_id: WorkflowId = None,
    user: User = None,
    parent: Parent = None,
    started_since: StartedSince = None,
    updated_since: UpdatedSince = None,
    finished_since: FinishedSince = None,
    attribute: Attribute = None,
    error_contains: ErrorContains = None,
    stuck_for: StuckFor = None,
    limit: Limit = 50,
    cursor: Cursor = None,
    every: Annotated[bool, typer.Option("--all", help="Finished ones, too.")] = False,
    json: Json = False,
) -> None:
    """List runs, the newest first: those that are not finished, unless a filter says otherwise."""
    filters = as_filters(
        status=status,
        condition=condition,
        name=name,
        workflow_id=workflow_id,
        user_id=user,
        parent=parent,
        started=started_since,
        updated=updated_since,
        finished=finished_since,
        attributes=attribute,
        error_contains=error_contains,
        stuck_for=stuck_for,
        every=every,
    )

    async def work(store: StateStore) -> Chosen:
        return await choose(store, limit, cursor, filters)

    found = target.open(work)
    if json:
        show_json(found.runs)
    else:
        _show_runs(found.runs)
    if found.next is not None:
        note(f"there are more: a larger --limit, or --cursor {found.next}")


@on_store
def show(target: Target, run_id: RunId, *, json: Json = False) -> None:
    """Show a run, and its last steps. Payloads are not shown."""
    run = target.open(lambda store: _details(store, run_id, 50))
    if json:
        show_json(run)
        return
    _show_run(run)
    if run.timeline:
        write()
        _show_steps(run.timeline)
    if run.earlier is not None:
        note("there are earlier steps: see `runs steps`")


@on_store
def steps(target: Target, run_id: RunId, limit: Limit = 1000, *, json: Json = False) -> None:
    """List the steps of a run, the last ones if there are more, in the order in which they were first saved."""
    run = target.open(lambda store: _details(store, run_id, limit))
    if json:
        show_json(run.timeline)
    else:
        _show_steps(run.timeline)
    if run.earlier is not None:
        note("there are earlier steps: a larger --limit")


@on_store
def result(
    target: Target,
    run_id: RunId,
    wait: Annotated[
        str | None, typer.Option("--wait", metavar="AGE", help="Wait so long for its end: 90m, or 45s.")
    ] = None,
) -> None:
    """Print, as JSON, what a completed run returned. Exits with 1 if it failed, with its error on stderr."""
    patience = None if wait is None else as_age(wait)

    async def work(store: StateStore) -> Any:
        run = await find_run(store, run_id)
        return await (store.result(run) if patience is None else store.wait(run, patience))

    try:
        show_json(target.open(work))
    except TimeoutError:
        note(f"the run is not over after {wait}")
        raise typer.Exit(ExitCode.CONFLICT) from None
    except (RunFailed, RunCancelled) as error:
        said = error.error if isinstance(error, RunFailed) else None
        note(escaped(said or str(error)))
        raise typer.Exit(ExitCode.NO) from None


@on_store
def stats(target: Target, stuck_for: StuckFor = None, *, json: Json = False) -> None:
    """Count the unfinished runs by status and condition, and those that ended within an hour and a day."""
    longest = {} if stuck_for is None else {"stuck_for": as_age(stuck_for)}
    found = target.open(lambda store: store.stats(**longest))
    if json:
        show_json(found)
        return
    unfinished = Table("status", "condition", "runs", "unchanged since")
    for each in found.unfinished:
        unfinished.add(each.status, each.condition, each.runs, each.updated_at)
    unfinished.show()
    if found.finished:
        write()
        finished = Table("status", "within an hour", "within a day")
        for ended in found.finished:
            finished.add(ended.status, ended.last_hour, ended.last_day)
        finished.show()


async def _details(store: StateStore, given: str, steps: int) -> RunDetails:
    """A run with its last `steps` steps, however many pages that are."""
    from dataclasses import replace

    run = await find_run(store, given)
    found = await store.get_run(run, steps_limit=min(steps, MOST_AT_ONCE))
    while found.earlier is not None and len(found.timeline) < steps:
        left = min(steps - len(found.timeline), MOST_AT_ONCE)
        before = await store.get_run(run, steps_limit=left, steps_cursor=found.earlier)
        found = replace(found, timeline=before.timeline + found.timeline, earlier=before.earlier)
    return found


def _show_runs(runs: Any) -> None:
    table = Table("id", "workflow id", "name", "status", "condition", "steps", "updated", "doing")
    for run in runs:
        progress = f"{run.finished_steps}/{run.steps}"
        row = (run.id, run.workflow_id, run.name, run.status or "?", run.condition or "?", progress, run.updated_at)
        table.add(*row, doing(run))
    table.show()


def doing(run: RunSummary) -> str:
    """What a run is at, in a few words."""
    if run.error_type:
        return run.error_type
    return ", ".join(step.id for step in run.current_steps[:3])


def _show_run(run: RunSummary) -> None:
    owner = run.owner and f"{run.owner.host or run.owner.id} {run.owner.pid or ''}".strip()
    show_labelled(
        id=run.id,
        workflow_id=run.workflow_id,
        name=run.name,
        user=run.user_id,
        status=run.status or "?",
        condition=run.condition or "?",
        error=run.error_type,
        doing=", ".join(step.id for step in run.current_steps),
        waits_for_signals=", ".join(run.waits_for_signals),
        waits_for_children=", ".join(map(str, run.waits_for_children)),
        wakes=run.wakes_at,
        unread_signals=", ".join(f"{name} ({number})" for name, number in run.unread_signals.items()),
        owner=owner,
        lease_ends=run.owner and run.owner.lease_expires_at,
        attempts=run.attempts or None,
        steps=f"{run.finished_steps}/{run.steps}",
        attributes=", ".join(f"{name}={value}" for name, value in run.attributes.items()),
        bytes=run.stored_bytes,
        parent=run.parent_id,
        forked_from=run.forked_from,
        started=run.started_at,
        updated=run.updated_at,
        finished=run.finished_at,
        damaged=", ".join(run.damaged),
    )


def _show_steps(timeline: tuple[StepSummary, ...]) -> None:
    table = Table("step", "kind", "status", "started", "seconds", "failures", "error")
    for step in timeline:
        seconds = "" if step.duration is None else f"{step.duration.total_seconds():.3f}"
        error = "yes" if step.has_error else ""
        table.add(step.id, step.kind, step.status or "?", step.started_at, seconds, step.retry_count, error)
    table.show()
