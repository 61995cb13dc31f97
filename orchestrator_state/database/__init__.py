"""Where the database is, and every fact about a dialect."""

from orchestrator_state.database.adopted import refuse_autocommit
from orchestrator_state.database.batches import Execute, ExecuteEach, write_in
from orchestrator_state.database.clock import FAR_FUTURE, LATEST_WAKING, DatabaseClock
from orchestrator_state.database.dialects import (
    conflict_aware_insert,
    counts_on,
    database_now,
    database_time_in,
    is_addressable,
    is_moment,
    is_stored_name,
    lies_ahead,
    one_more,
    stored_bytes,
    time_after,
)
from orchestrator_state.database.engine import (
    PROTECTED_NAMESPACES,
    Database,
    ReadingSession,
)
from orchestrator_state.database.errors import database_errors, fault_in
from orchestrator_state.database.failed_statements import (
    failures_on,
    fault_under,
    refuse_after_failure,
    statement_failed,
)
from orchestrator_state.database.lent import lend, put_in_force, settings_in_force
from orchestrator_state.database.notifications import announce, listening
from orchestrator_state.database.open_transactions import (
    Idling,
    Places,
    begin_to_watch,
    idle_limit,
    idling,
    is_marked,
    kept_open,
    marking,
    require_same,
    setting_idle_limit,
    takes_marks,
    transaction_ended,
    writes_alone,
)
from orchestrator_state.database.opening import adopt_engine, open_database
from orchestrator_state.database.postgres.encoding import require_unicode
from orchestrator_state.database.sessions import StoreSession, unless_committed
from orchestrator_state.database.urls import SqliteLocation, locate

__all__ = [
    "FAR_FUTURE",
    "LATEST_WAKING",
    "PROTECTED_NAMESPACES",
    "Database",
    "DatabaseClock",
    "Execute",
    "ExecuteEach",
    "Idling",
    "Places",
    "ReadingSession",
    "SqliteLocation",
    "StoreSession",
    "adopt_engine",
    "announce",
    "begin_to_watch",
    "conflict_aware_insert",
    "counts_on",
    "database_errors",
    "database_now",
    "database_time_in",
    "failures_on",
    "fault_in",
    "fault_under",
    "idle_limit",
    "idling",
    "is_addressable",
    "is_marked",
    "is_moment",
    "is_stored_name",
    "kept_open",
    "lend",
    "lies_ahead",
    "listening",
    "locate",
    "marking",
    "one_more",
    "open_database",
    "put_in_force",
    "refuse_after_failure",
    "refuse_autocommit",
    "require_same",
    "require_unicode",
    "setting_idle_limit",
    "settings_in_force",
    "statement_failed",
    "stored_bytes",
    "takes_marks",
    "time_after",
    "transaction_ended",
    "unless_committed",
    "write_in",
    "writes_alone",
]
