"""`orchestrator-state verify`, `… rekey` and `… collect-garbage`. None shows a payload."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator_state.cli.application import App, OptionalApp, store_options
from orchestrator_state.cli.options import Namespace, Schema, Url
from orchestrator_state.cli.output import write
from orchestrator_state.cli.tables import Table
from orchestrator_state.cli.target import with_store

if TYPE_CHECKING:
    from orchestrator_state import RekeyReport, VerifyReport


def verify(app: OptionalApp = None, url: Url = None, db_schema: Schema = None, namespace: Namespace = None) -> None:
    """Look for damaged payloads; with --app also load every live workflow as the application would.

    Nothing is written. Exits with 1 if anything is damaged or does not load.
    """
    options = store_options(app, url, db_schema, namespace)
    with shown_progress("verify") as progress:
        report = with_store(options, lambda store: store.verify(load=app is not None, progress=progress))
    _show_damage(report)
    if app is not None:
        _show_unloadable(report)
    raise typer.Exit(0 if report.is_sound else 1)


def rekey(
    app: App,
    url: Url = None,
    db_schema: Schema = None,
    namespace: Namespace = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would be written, and write nothing.")] = False,
) -> None:
    """Write every payload anew that is not stored as the application's codecs and keys write it now.

    Works beside live runs. If it is interrupted, or leaves something, run it again. Exits with 1 if payloads are left,
    so that an older key or codec is still needed.
    """
    options = store_options(app, url, db_schema, namespace)
    with shown_progress("rekey") as progress:
        report = with_store(options, lambda store: store.rekey(dry_run=dry_run, progress=progress))
    _show_rekeyed(report, dry_run=dry_run)
    raise typer.Exit(0 if report.is_complete else 1)


def collect_garbage(app: App, url: Url = None, db_schema: Schema = None, namespace: Namespace = None) -> None:
    """Remove blobs, older than an hour, that no row refers to any more: what crashes and overwritten values left."""
    options = store_options(app, url, db_schema, namespace)
    removed = with_store(options, lambda store: store.collect_garbage())
    write(f"{removed} blobs removed")


def _show_damage(report: VerifyReport) -> None:
    counts = Table("payloads", "intact", "without digest", "changed by older software", "damaged")
    counts.add(report.payloads, report.intact, report.undigested, report.unverified, report.damaged)
    counts.show()
    if not report.damage:
        return
    table = Table("table", "workflow", "step or id", "column", "damage")
    for one in report.damage:
        place = one.step_id or one.checkpoint_id or one.signal_id or one.request_id or ""
        table.add(one.table, one.workflow_state_id or "", place, one.column, one.reason)
    _show_list(table, len(report.damage), report.damaged + report.damaged_cells)


def _show_unloadable(report: VerifyReport) -> None:
    write(f"live workflows: {report.loaded} load, {report.failed} do not")
    if not report.unloadable:
        return
    table = Table("id", "workflow id", "what", "error", "message")
    for one in report.unloadable:
        table.add(one.workflow_state_id, one.workflow_id, one.what, one.error, one.message)
    _show_list(table, len({one.workflow_state_id for one in report.unloadable}), report.failed)


def _show_rekeyed(report: RekeyReport, *, dry_run: bool) -> None:
    counts = Table("current", "to be written" if dry_run else "written", "left", "unreadable")
    counts.add(report.current, report.resealed, report.left, report.failed)
    counts.show()
    if report.left:
        write("some were being changed by others: run it again")
    if not report.unreadable:
        return
    table = Table("payload", "error", "message")
    for one in report.unreadable:
        table.add(one.identity, one.error, one.message)
    _show_list(table, len(report.unreadable), report.failed)


def _show_list(table: Table, listed: int, found: int) -> None:
    write()
    table.show()
    if found > listed:
        write(f"and {found - listed} more")


@contextmanager
def shown_progress(name: str) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
