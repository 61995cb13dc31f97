"""Take runs from one database to another: a file that is written, read and verified, and a copy of a SQLite file."""

from orchestrator_state.moving.backup import back_up
from orchestrator_state.moving.exporting import ExportReport, export_runs
from orchestrator_state.moving.files import Place
from orchestrator_state.moving.importing import ImportReport, import_runs
from orchestrator_state.moving.lines import MovedRun

__all__ = ["ExportReport", "ImportReport", "MovedRun", "Place", "back_up", "export_runs", "import_runs"]
