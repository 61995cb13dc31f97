"""`orchestrator-state runs usage`: what calls of models have used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from orchestrator_state.cli.documents import show_json
from orchestrator_state.cli.options import MOST_AT_ONCE, Json, as_moment
from orchestrator_state.cli.runs.finding import Name, User, WorkflowId, find_run
from orchestrator_state.cli.tables import Table
from orchestrator_state.cli.target import Target, on_store

if TYPE_CHECKING:
    from orchestrator_state import StateStore, UsageTotal

_TIME = "2026-11-30T12:00 (UTC), or an age such as 30d, 12h or 90m."
_COLUMNS = {
    "run": {"id": "workflow_state_id", "workflow id": "workflow_id"},
    "name": {"name": "name"},
    "user": {"user": "user_id"},
    "model": {"model": "model"},
    "day": {"day": "day"},
}


@on_store
def usage(  # noqa: PLR0913 - each filter is an option
    target: Target,
    *,
    by: Annotated[
        list[str] | None, typer.Option("--by", help="Add up by run, name, user, model or day (may be repeated).")
    ] = None,
    run: Annotated[str | None, typer.Option("--run", help="Of this run: its id, or its workflow id.")] = None,
    name: Name = None,
    workflow_id: WorkflowId = None,
    user: User = None,
    model: Annotated[str | None, typer.Option("--model", help="Of this model.")] = None,
    since: Annotated[str | None, typer.Option("--since", metavar="TIME", help=f"Recorded since {_TIME}")] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help=f"Recorded before {_TIME}")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=MOST_AT_ONCE, help="How many lines at most.")] = 100,
    json: Json = False,
) -> None:
    """Add up the tokens and the US dollars that calls of models have used.

    What calls of steps that failed have used is counted beside: it was paid for, too.
    """
    filters = {"name": name, "workflow_id": workflow_id, "user_id": user, "model": model}
    times = {"since": as_moment(since), "until": as_moment(until)}

    async def work(store: StateStore) -> Sequence[UsageTotal]:
        of_run = {} if run is None else {"workflow_state_id": await find_run(store, run)}
        asked = cast("Any", by or None)
        return await store.usage(asked, limit=limit, **cast("Any", filters | times | of_run))

    found = target.open(work)
    if json:
        show_json(found)
    else:
        _show(found, by or [])


def _show(found: Sequence[UsageTotal], by: Sequence[str]) -> None:
    groups = {title: field for each, columns in _COLUMNS.items() if each in by for title, field in columns.items()}
    table = Table(*groups, "calls", "input", "output", "US$", "unpriced", "failed calls", "failed US$")
    for each in found:
        cells = [getattr(each, field) for field in groups.values()]
        cells += [each.calls, each.input_tokens, each.output_tokens, f"{each.cost:f}", each.unpriced]
        table.add(*cells, each.failed_calls, f"{each.failed_cost:f}")
    table.show()
