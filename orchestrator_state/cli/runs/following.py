"""`orchestrator-state runs watch`: a line for each change, on a terminal and in a pipe alike."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from orchestrator_state.cli.documents import show_json_line
from orchestrator_state.cli.endings import ExitCode
from orchestrator_state.cli.options import Json, Limit
from orchestrator_state.cli.output import note, write
from orchestrator_state.cli.runs.finding import UNFINISHED, choose, find_run
from orchestrator_state.cli.runs.seeing import doing
from orchestrator_state.cli.tables import plain, shown
from orchestrator_state.cli.target import Target, on_store
from orchestrator_state.errors import WorkflowNotFound

if TYPE_CHECKING:
    from orchestrator_state import RunSummary, StateStore

_Runs = Mapping[UUID, "RunSummary"]


@on_store
def watch(
    target: Target,
    run_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="A run's id, or its workflow id (default: all unfinished).")
    ] = None,
    interval: Annotated[float, typer.Option("--interval", min=0.05, help="Seconds between two looks.")] = 1.0,
    limit: Limit = 500,
    *,
    json: Json = False,
) -> None:
    """Follow one run to its end, or all that are unfinished until you interrupt it: a line for each change.

    Of one run it exits with 0 if that completed, else with 1.
    """
    show = show_json_line if json else _show_change
    if run_id is None:
        target.open(lambda store: _follow_all(store, interval, limit, show))
    else:
        completed = target.open(lambda store: _follow(store, run_id, interval, show))
        raise typer.Exit(ExitCode.DONE if completed else ExitCode.NO)


async def _follow(store: StateStore, given: str, interval: float, show: Any) -> bool:
    """Returns whether it completed."""
    run, seen = await find_run(store, given), None
    while True:
        now = await store.get_run(run, steps_limit=1)
        if (looks := _looks_of(now)) != seen:
            show(_summary(now))
            seen = looks
        if now.condition == "finished":
            return now.status == "completed"
        await asyncio.sleep(interval)


async def _follow_all(store: StateStore, interval: float, limit: int, show: Any) -> None:
    before: _Runs = {}
    while True:
        chosen = await choose(store, limit, None, {"status": UNFINISHED})
        now = {run.id: run for run in chosen.runs}
        if not before and chosen.next is not None:
            note(f"there are more than {limit}: these are the newest")
        for gone in before.keys() - now.keys():
            if chosen.next is None:
                await _show_end(store, gone, show)
        for run in now.values():
            if run.id not in before or _looks_of(before[run.id]) != _looks_of(run):
                show(run)
        before = now
        await asyncio.sleep(interval)


async def _show_end(store: StateStore, run: UUID, show: Any) -> None:
    try:
        show(_summary(await store.get_run(run, steps_limit=1)))
    except WorkflowNotFound:
        note(f"run {run} was deleted")


def _summary(run: Any) -> RunSummary:
    """Without the timeline."""
    from dataclasses import fields

    from orchestrator_state import RunSummary

    return RunSummary(**{field.name: getattr(run, field.name) for field in fields(RunSummary)})


def _looks_of(run: RunSummary) -> tuple[object, ...]:
    """What a change has to be of to be shown: not the lease, which is renewed all the time."""
    owner = run.owner and run.owner.id
    steps = tuple(step.id for step in run.current_steps)
    return run.status, run.condition, run.finished_steps, run.steps, steps, owner, tuple(run.unread_signals.items())


def _show_change(run: RunSummary) -> None:
    parts = (shown(datetime.now(UTC)), run.id, plain(run.workflow_id), plain(run.name), run.status or "?")
    said = (*parts, run.condition or "?", f"{run.finished_steps}/{run.steps}", plain(doing(run)))
    write("  ".join(map(str, said)).rstrip(), at_once=True)
