"""`orchestrator-state import`, from a database of the original software."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from orchestrator_state.cli.documents import show_json
from orchestrator_state.cli.endings import ExitCode
from orchestrator_state.cli.output import note
from orchestrator_state.cli.payloads import shown_progress
from orchestrator_state.cli.tables import Table, escaped
from orchestrator_state.cli.target import Target

if TYPE_CHECKING:
    from orchestrator_state import OriginalImport

_MAGIC: Final = b"SQLite format 3\0"


def is_database(source: str) -> bool:
    """Whether that is a URL or a SQLite file, and no export. A pipe cannot be looked into, and is none."""
    if "://" in source:
        return True
    path = Path(source)
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False  # whoever opens it says why it cannot be


def import_database(target: Target, source: str, *, dry_run: bool, json: bool) -> ExitCode:
    """Take over the runs of a database of the original Rust crate."""
    with shown_progress("import") as progress:
        report = target.open(lambda store: store.import_original(source, dry_run=dry_run, progress=progress))
    if json:
        show_json(report)
    else:
        _show(report, dry_run=dry_run)
    return ExitCode.CONFLICT if report.conflicting else ExitCode.NO if report.unreadable else ExitCode.DONE


def _show(report: OriginalImport, *, dry_run: bool) -> None:
    counts = Table("runs to import" if dry_run else "runs imported", "steps", "checkpoints", "there already", "left")
    left = report.conflicting + report.unreadable
    counts.add(report.imported, report.steps, report.checkpoints, report.present, left)
    counts.show()
    for flaw in (*report.conflicts, *report.flaws):
        note(f"left: {flaw.table} {escaped(flaw.id)}: {escaped(flaw.reason)}")
    if more := left - len(report.conflicts) - len(report.flaws):
        note(f"and {more} more")
