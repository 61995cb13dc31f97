"""`orchestrator-state prune`: delete what is too old or too much, as a cron job does."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Final

import typer

from orchestrator_state import StateStore
from orchestrator_state.cli.application import OptionalApp, store_options
from orchestrator_state.cli.opened import with_store
from orchestrator_state.cli.options import Namespace, Schema, Url
from orchestrator_state.maintenance import DeletionProgress, OnProgress

if TYPE_CHECKING:
    from rich.progress import Progress

_UNITS: Final = {"d": "days", "h": "hours", "m": "minutes"}


def prune(
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than",
            metavar="AGE",
            help="Delete finished workflows that nothing has changed for 30d, 12h or 90m.",
        ),
    ] = None,
    keep_checkpoints: Annotated[
        int | None,
        typer.Option(
            "--keep-checkpoints", min=0, help="Delete all but the newest so many checkpoints of each workflow."
        ),
    ] = None,
    app: OptionalApp = None,
    url: Url = None,
    db_schema: Schema = None,
    namespace: Namespace = None,
) -> None:
    """Delete what is too old or too much. What was deleted before an interruption stays deleted."""
    if older_than is None and keep_checkpoints is None:
        raise typer.BadParameter("say what to delete: --older-than, --keep-checkpoints, or both")
    age = None if older_than is None else _age(older_than)

    async def work(store: StateStore) -> list[str]:
        done = []
        with _progress() as bars:
            if age is not None:
                deleted = await store.delete_old_states(age, progress=_shown(bars, "workflows"))
                done.append(f"deleted {_counted(deleted, 'workflow')}")
            if keep_checkpoints is not None:
                pruned = await store.prune_checkpoints(keep=keep_checkpoints, progress=_shown(bars, "checkpoints"))
                done.append(f"deleted {_counted(pruned, 'checkpoint')}")
        return done

    for line in with_store(store_options(app, url, db_schema, namespace), work):
        typer.echo(line)


def _age(age: str) -> timedelta:
    match = re.fullmatch(r"([0-9]{1,9})([dhm])", age)
    if match is None:
        raise typer.BadParameter(f"{age!r} is no age; give days, hours or minutes, as in 30d, 12h or 90m")
    try:
        given = timedelta(**{_UNITS[match[2]]: int(match[1])})
        _ = datetime.now(UTC) - given
    except OverflowError:
        raise typer.BadParameter(f"nothing can be older than {age}") from None
    return given


def _progress() -> Progress:
    """On stderr, and only for somebody who watches."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _shown(bars: Progress, what: str) -> OnProgress:
    bar = bars.add_task(what, total=None)

    def show(progress: DeletionProgress) -> None:
        bars.update(bar, completed=progress.deleted, total=progress.total)

    return show


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
