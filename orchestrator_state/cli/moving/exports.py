"""`orchestrator-state export`, `… import` and `… backup`. None opens a payload."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from orchestrator_state.cli.documents import show_json
from orchestrator_state.cli.endings import ExitCode
from orchestrator_state.cli.moving.originals import import_database, is_database
from orchestrator_state.cli.options import Json
from orchestrator_state.cli.output import OutputFailed, note, write
from orchestrator_state.cli.payloads import shown_progress
from orchestrator_state.cli.tables import Table, escaped
from orchestrator_state.cli.target import Target, on_store

if TYPE_CHECKING:
    from orchestrator_state import ImportReport
    from orchestrator_state.moving import MovedRun

_STANDARD = "-"
_File = Annotated[
    str, typer.Argument(metavar="FILE", help="A path (.zst: compressed), or - for a pipe.", show_default=False)
]
_Source = Annotated[
    str,
    typer.Argument(
        metavar="FILE", help="A path, or - for a pipe; or the path or URL of the crate's database.", show_default=False
    ),
]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Count what would be imported, and write nothing.")]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")]


@on_store
def export(target: Target, file: _File, *, overwrite: _Overwrite = False, json: Json = False) -> None:
    """Write all runs of the namespace to a file of JSON lines, payloads as they are stored.

    Before all is written there is no file of that name. The counts go to stderr if the export goes to stdout. Exits
    with 1 if something could not be exported: it is named.
    """
    place: Any = sys.stdout.buffer if file == _STANDARD else file
    with shown_progress("export") as progress, _output_fails():
        report = target.open(lambda store: store.export_runs(place, overwrite=overwrite, progress=progress))
    if file == _STANDARD:
        note(f"{report.runs} runs exported")
    elif json:
        show_json(report)
    else:
        counts = Table("runs", "rows", "blobs", "left")
        counts.add(report.runs, sum(report.rows.values()), report.blobs, report.left)
        counts.show()
    _name_left(report.runs_left, report.left)
    for name in report.lost_blobs:
        note(f"a blob is gone: {escaped(name)}")
    raise typer.Exit(ExitCode.DONE if report.is_complete else ExitCode.NO)


@on_store
def import_(target: Target, source: _Source, *, dry_run: _DryRun = False, json: Json = False) -> None:
    """Take over the runs of a file that `export` has written, or of a database of the original Rust crate.

    The file is verified before anything is written; a pipe, as it is read. What is there already is left alone, so
    after an interruption it is repeated. The crate's database is only read. Exits with 4 if runs were left because
    something else is there under their id, and else with 1 if rows of the crate's were left that cannot be read.
    """
    if is_database(source):
        raise typer.Exit(import_database(target, source, dry_run=dry_run, json=json))
    if dry_run:
        raise typer.BadParameter("--dry-run is for a database of the Rust crate; an export is verified in any case")
    place: str | IO[bytes] = sys.stdin.buffer if source == _STANDARD else source
    with shown_progress("import") as progress:
        report = target.open(lambda store: store.import_runs(place, progress=progress))
    _show_import(report, json=json)
    raise typer.Exit(ExitCode.DONE if report.is_complete else ExitCode.CONFLICT)


@on_store
def backup(target: Target, file: _File, *, overwrite: _Overwrite = False) -> None:
    """Copy a SQLite database, as it is at one moment, while others use it. Blobs are not in the copy."""
    with _output_fails():
        size = target.open(lambda store: store.backup(file, overwrite=overwrite))
    write(f"{size} bytes copied")


def _show_import(report: ImportReport, *, json: bool) -> None:
    if json:
        show_json(report)
    else:
        counts = Table("runs imported", "there already", "left")
        counts.add(report.imported, report.present, report.conflicting)
        counts.show()
    _name_left(report.conflicts, report.conflicting)


def _name_left(runs: list[MovedRun], left: int) -> None:
    for run in runs:
        note(f"left: {run.id}: {escaped(run.reason)}")
    if left > len(runs):
        note(f"and {left - len(runs)} more")


@contextmanager
def _output_fails() -> Iterator[None]:
    """A file that cannot be written ends the command as a full disk behind stdout does."""
    try:
        yield
    except BrokenPipeError as error:
        raise OutputFailed(error) from None
    except OSError as error:
        note(f"error: the file cannot be written: {error.strerror}")
        raise typer.Exit(ExitCode.OUTPUT) from None
