"""Where the database is, and every fact about a dialect."""

from orchestrator_state.database.adopted import refuse_autocommit
from orchestrator_state.database.announcements import announce, hearing_of_ends, listening, tell_of_ends
from orchestrator_state.database.clock import FAR_FUTURE, LATEST_WAKING, DatabaseClock, elapsed
from orchestrator_state.database.compiled import shared_cache
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
    utc_day,
)
from orchestrator_state.database.direct.batches import Execute, ExecuteEach, write_in
from orchestrator_state.database.engine import (
    Database,
    ReadingSession,
)
from orchestrator_state.database.errors import database_errors, taken_name
from orchestrator_state.database.opening import Source, adopt_engine, open_database
from orchestrator_state.database.postgres.encoding import require_unicode
from orchestrator_state.database.searches import has_attributes, holds_text, moment_key, moment_of
from orchestrator_state.database.sessions.callers import commit_callers, require_fit_maker
from orchestrator_state.database.sessions.callers_code import (
    FunctionFailed,
    call_inside,
    is_marked,
    marking,
    takes_marks,
    transaction_ended,
)
from orchestrator_state.database.sessions.failed_statements import statement_failed
from orchestrator_state.database.sessions.lent import lend
from orchestrator_state.database.sessions.open_transactions import (
    Idling,
    Places,
    idle_limit,
    idling,
    setting_idle_limit,
    wait_briefly_for_locks,
    writes_alone,
)
from orchestrator_state.database.sessions.protected import is_protected
from orchestrator_state.database.sessions.session import StoreSession, once_committed, unless_committed
from orchestrator_state.database.urls import SqliteLocation, locate

__all__ = [
    "FAR_FUTURE",
    "LATEST_WAKING",
    "Database",
    "DatabaseClock",
    "Execute",
    "ExecuteEach",
    "FunctionFailed",
    "Idling",
    "Places",
    "ReadingSession",
    "Source",
    "SqliteLocation",
    "StoreSession",
    "adopt_engine",
    "announce",
    "call_inside",
    "commit_callers",
    "conflict_aware_insert",
    "counts_on",
    "database_errors",
    "database_now",
    "database_time_in",
    "elapsed",
    "has_attributes",
    "hearing_of_ends",
    "holds_text",
    "idle_limit",
    "idling",
    "is_addressable",
    "is_marked",
    "is_moment",
    "is_protected",
    "is_stored_name",
    "lend",
    "lies_ahead",
    "listening",
    "locate",
    "marking",
    "moment_key",
    "moment_of",
    "once_committed",
    "one_more",
    "open_database",
    "refuse_autocommit",
    "require_fit_maker",
    "require_unicode",
    "setting_idle_limit",
    "shared_cache",
    "statement_failed",
    "stored_bytes",
    "taken_name",
    "takes_marks",
    "tell_of_ends",
    "time_after",
    "transaction_ended",
    "unless_committed",
    "utc_day",
    "wait_briefly_for_locks",
    "write_in",
    "writes_alone",
]
