"""`orchestrator-state prune` and `… erase`: delete what is too old or too much, or all of a user's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator_state.cli.documents import show_json
from orchestrator_state.cli.endings import ExitCode
from orchestrator_state.cli.options import Force, Json, Yes, as_age, require_yes
from orchestrator_state.cli.output import note, write
from orchestrator_state.cli.tables import Table
from orchestrator_state.cli.target import Target, on_store

if TYPE_CHECKING:
    from rich.progress import Progress

    from orchestrator_state import DeletionProgress, StateStore
    from orchestrator_state.maintenance import OnProgress


@on_store
def prune(
    target: Target,
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than",
            metavar="AGE",
            help="Delete finished workflows that nothing has changed for 30d, 12h, 90m or 45s.",
        ),
    ] = None,
    keep_checkpoints: Annotated[
        int | None,
        typer.Option(
            "--keep-checkpoints", min=0, help="Delete all but the newest so many checkpoints of each workflow."
        ),
    ] = None,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count what would be deleted, and delete nothing.")
    ] = False,
) -> None:
    """Delete what is too old or too much. What was deleted before an interruption stays deleted."""
    if older_than is None and keep_checkpoints is None:
        raise typer.BadParameter("say what to delete: --older-than, --keep-checkpoints, or both")
    age = None if older_than is None else as_age(older_than)
    said = "would delete" if dry_run else "deleted"

    async def work(store: StateStore) -> list[str]:
        done = []
        with _progress() as bars:
            if age is not None:
                progress = _shown(bars, "workflows")
                deleted = await store.delete_old_states(age, dry_run=dry_run, progress=progress)
                done.append(f"{said} {_counted(deleted, 'workflow')}")
            if keep_checkpoints is not None:
                progress = _shown(bars, "checkpoints")
                pruned = await store.prune_checkpoints(keep=keep_checkpoints, dry_run=dry_run, progress=progress)
                done.append(f"{said} {_counted(pruned, 'checkpoint')}")
        return done

    for line in target.open(work):
        write(line)


@on_store
def erase(
    target: Target,
    user_id: Annotated[str, typer.Argument(metavar="USER", help="Whose workflows are deleted.", show_default=False)],
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count what would be deleted, and delete nothing.")
    ] = False,
    force: Force = False,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Delete everything of a user: workflows of any status, with all that belongs to them.

    Exits with 4 if runs were left because a worker has them.
    """
    require_yes(f"Delete everything of user {user_id!r} for good?", yes=yes or dry_run)
    report = target.open(lambda store: store.erase(user_id=user_id, dry_run=dry_run, force=force))
    if json:
        show_json(report)
    else:
        table = Table("workflows", "steps", "checkpoints", "signals", "blobs", "usage")
        table.add(report.workflows, report.steps, report.checkpoints, report.signals, report.blobs, report.usage)
        table.show()
    for run in report.owned:
        note(f"run {run} is left, since a worker has it: cancel it, or use --force")
    raise typer.Exit(ExitCode.CONFLICT if report.owned else ExitCode.DONE)


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
