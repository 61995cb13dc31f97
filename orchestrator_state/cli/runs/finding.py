"""Which run is meant, and which runs are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple
from uuid import UUID

import typer

from orchestrator_state.cli.options import MOST_AT_ONCE, as_age, as_moment
from orchestrator_state.cli.output import note
from orchestrator_state.cli.tables import plain
from orchestrator_state.errors import WorkflowNotFound

if TYPE_CHECKING:
    from orchestrator_state import RunFilters, RunSummary, StateStore

Status = Annotated[
    list[str] | None,
    typer.Option("--status", help="pending, running, paused, completed, failed or cancelled (may be repeated)."),
]
Condition = Annotated[
    list[str] | None,
    typer.Option(
        "--condition",
        help="owned, stuck, waiting, asleep, abandoned, runnable, paused or finished (may be repeated).",
    ),
]
Name = Annotated[str | None, typer.Option("--name", help="The name they were started with.")]
WorkflowId = Annotated[str | None, typer.Option("--workflow-id", help="Your own name for them.")]
User = Annotated[str | None, typer.Option("--user", help="Whose they are.")]
Parent = Annotated[str | None, typer.Option("--parent", help="Child runs of this run (its id).")]
Attribute = Annotated[
    list[str] | None,
    typer.Option(
        "--attribute", metavar="NAME=VALUE", help="With this attribute; a VALUE that is JSON is taken as such."
    ),
]
ErrorContains = Annotated[
    str | None, typer.Option("--error-contains", help="With this in the error, where that is stored in plain text.")
]
StuckFor = Annotated[
    str | None, typer.Option("--stuck-for", metavar="AGE", help="Stuck: no step ended for so long (default: 10m).")
]


_TIME: Final = "since then: 2026-11-30T12:00 (UTC), or an age such as 30d, 12h or 90m."
StartedSince = Annotated[str | None, typer.Option("--started-since", metavar="TIME", help=f"Started {_TIME}")]
UpdatedSince = Annotated[str | None, typer.Option("--updated-since", metavar="TIME", help=f"Changed {_TIME}")]
FinishedSince = Annotated[str | None, typer.Option("--finished-since", metavar="TIME", help=f"Ended {_TIME}")]


UNFINISHED: Final = ("pending", "running", "paused")
_SAY_WHETHER_FINISHED: Final = ("status", "condition", "workflow_id", "parent", "finished", "error_contains")


class Chosen(NamedTuple):
    """Runs that were asked for, and where the next ones begin."""

    runs: Sequence[RunSummary]
    next: str | None


def as_filters(*, every: bool, **given: Any) -> RunFilters:
    """The filters of `store.list_runs` that the options mean. By default they are the unfinished runs."""
    for name in ("started", "updated", "finished"):
        since = as_moment(given[name])
        given[name] = None if since is None else (since, None)
    if given["stuck_for"] is not None:
        given["stuck_for"] = as_age(given["stuck_for"])
    given["attributes"] = _attributes(given["attributes"] or [])
    if not every and not any(given[name] for name in _SAY_WHETHER_FINISHED):
        given["status"] = UNFINISHED
    return {name: value for name, value in given.items() if value}  # type: ignore[return-value]


def _attributes(given: Sequence[str]) -> dict[str, Any]:
    import json

    found = {}
    for text in given:
        name, is_there, value = text.partition("=")
        if not is_there:
            raise typer.BadParameter("--attribute is NAME=VALUE")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
        except RecursionError:
            raise typer.BadParameter("--attribute has a text, a number, true, false or null as its value") from None
    return found


async def choose(store: StateStore, limit: int, cursor: str | None, filters: RunFilters) -> Chosen:
    """Up to `limit` runs, however many pages that are."""
    runs: list[RunSummary] = []
    while True:
        page = await store.list_runs(limit=min(limit - len(runs), MOST_AT_ONCE), cursor=cursor, **filters)
        runs += page.runs
        cursor = page.next
        if cursor is None or len(runs) == limit:
            return Chosen(runs, cursor)


async def find_run(store: StateStore, given: str) -> UUID:
    """By id, else by workflow id, which may look like an id too. Raises `WorkflowNotFound`."""
    try:
        return (await store.get_run(UUID(given), steps_limit=1)).id
    except (ValueError, WorkflowNotFound):
        found = await store.list_runs(workflow_id=given, limit=2)
    if not found.runs:
        raise WorkflowNotFound(f"there is no run with the id or the workflow id {plain(given)}", workflow_id=given)
    if len(found) > 1:
        note(f"several runs have the workflow id {plain(given)}: this is the one that started last")
    return found.runs[0].id
