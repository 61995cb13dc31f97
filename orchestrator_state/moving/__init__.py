"""Take runs from one database to another: a file that is written, read and verified, a copy of a SQLite file, and the
database of the software that ours comes from."""

from orchestrator_state.moving.backup import back_up
from orchestrator_state.moving.exporting import ExportReport, export_runs
from orchestrator_state.moving.files import Place
from orchestrator_state.moving.importing import ImportReport, import_runs
from orchestrator_state.moving.lines import MovedRun
from orchestrator_state.moving.original import OriginalImport, import_original
from orchestrator_state.records.original import OriginalFlaw

__all__ = [
    "ExportReport",
    "ImportReport",
    "MovedRun",
    "OriginalFlaw",
    "OriginalImport",
    "Place",
    "back_up",
    "export_runs",
    "import_original",
    "import_runs",
]
