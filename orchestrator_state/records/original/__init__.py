"""What the original software, a Rust crate, says in a row, in whatever form: without a database."""

from orchestrator_state.records.original.forms import (
    Unreadable,
    as_id,
    as_time,
    id_form,
    is_plain_id,
    is_plain_time,
    spellings,
    time_form,
)
from orchestrator_state.records.original.rows import OriginalFlaw, RawRow, RawRun, ReadRun, named, read_run

__all__ = [
    "OriginalFlaw",
    "RawRow",
    "RawRun",
    "ReadRun",
    "Unreadable",
    "as_id",
    "as_time",
    "id_form",
    "is_plain_id",
    "is_plain_time",
    "named",
    "read_run",
    "spellings",
    "time_form",
]
