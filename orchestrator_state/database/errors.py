"""Driver error -> our error, in one place, by code and type and never by text.

The mapping is total: what a driver, SQLAlchemy or the operating system raises in one of our own calls, and is not known
to be a refusal of the value that was sent, is a fault of the database, and is worth another try. A refused login,
privilege or name is the caller's to mend when the store is opened. Under a store that worked it is a fault like others.

Our errors are raised `from None`: the drivers' messages quote parameters and constraint details.
"""

from __future__ import annotations

import re
import sqlite3
from inspect import getattr_static
from types import TracebackType
from typing import Final, cast

import asyncpg
from sqlalchemy import Connection, exc

from orchestrator_state.database.internals import UNSENDABLE
from orchestrator_state.errors import (
    AccessLost,
    ConfigurationError,
    Conflict,
    CorruptPayload,
    InvalidPayload,
    OrchestratorStateError,
    PayloadTooLarge,
    SchemaChanged,
    SchemaOutOfDate,
    StoreUnavailable,
)
from orchestrator_state.failures import is_a, leaves

_SCHEMA_MESSAGE: Final = (
    "the database's tables do not fit this version of the package; run `orchestrator-state db upgrade`"
)
_POOL_IS_FULL: Final = (
    "no connection of the pool became free in time; raise pool_max (of an engine of the application's: pool_size or "
    "max_overflow) or pool_timeout, or lower the load"
)

# Raised by a driver about a value that it was given, before anything is sent.
_UNSENDABLE: Final = (UNSENDABLE, OverflowError, UnicodeEncodeError)

# After these SQLite has rolled the transaction back, or may have, while the session believes it is open.
SQLITE_ROLLED_BACK: Final = frozenset(
    {
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_NOTADB,
    }
)
_NAME_IS_TAKEN: Final = ("42P06", "42P07", "42710")  # of a schema; of a table, view, index; of a type
_SQLITE_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_SQLITE_REFUSED: Final = {
    sqlite3.SQLITE_NOTADB: "the file is not a SQLite database",
    sqlite3.SQLITE_CORRUPT: "the SQLite file is damaged; restore it from a backup",
    sqlite3.SQLITE_CANTOPEN: "the SQLite file cannot be opened; check its permissions, and that its directory exists "
    "and is writable",
    sqlite3.SQLITE_READONLY: "the SQLite file or its directory is read-only; a store writes to both",
    sqlite3.SQLITE_PERM: "the SQLite file may not be accessed; check its permissions",
    sqlite3.SQLITE_AUTH: "the SQLite file may not be accessed; check its permissions",
}
_SQLITE_REASONS: Final[dict[int | None, str]] = {
    sqlite3.SQLITE_FULL: "the disk with the SQLite file is full; free some space on it",
    sqlite3.SQLITE_IOERR: "the disk with the SQLite file failed; check it, and its space",
    sqlite3.SQLITE_NOMEM: "there is no memory left for SQLite",
    sqlite3.SQLITE_INTERRUPT: "a statement was interrupted",
}
_SQLITE_REFUSED_VALUES: Final[dict[int | None, tuple[type[OrchestratorStateError], str]]] = {
    sqlite3.SQLITE_CONSTRAINT: (Conflict, "the database refused the row"),
    sqlite3.SQLITE_MISMATCH: (InvalidPayload, "the database refused a value"),
    sqlite3.SQLITE_TOOBIG: (PayloadTooLarge, "the row is over SQLite's size limit"),
}
# The server, or the disk, did not get to the end of COMMIT: nobody can say whether it took effect.
_SQLITE_COMMIT_UNKNOWN: Final = frozenset({None, sqlite3.SQLITE_IOERR})

# https://www.postgresql.org/docs/current/errcodes-appendix.html: a code, or the class that begins it.
_PG_LOCKED: Final = "55P03"
_PG_FAILED_BEFORE: Final = "25P02"
_FAILED_BEFORE: Final = "a statement of this transaction has failed before, so it takes no more; roll it back"
_OVERTAKEN: Final = "what this transaction has read was changed by another one: roll it back, and do it again"
_FLUSH_FAILED_BEFORE: Final = "7s2a"  # https://sqlalche.me/e/21/7s2a; the other code is for a connection that was lost
_PG_ROLLED_BACK: Final = ("40", "55", "25")
_PG_REFUSED: Final = {
    "08P01": "the server refused the connection's settings; behind PgBouncer open the store with pgbouncer=True",
    "28": "the server refused the user or the password; check both, and that pg_hba.conf lets them in from here",
    "3D": "the server has no such database; check its name in the URL, or create it",
    "42501": "the database user lacks a privilege; a store selects, inserts, updates and deletes, and a migration owns "
    "its tables",
    "42": "the database refused a statement or a name in it",
}
_PG_GAVE_UP: Final = "the database gave up on the transaction"
_PG_REASONS: Final = {
    _PG_FAILED_BEFORE: _FAILED_BEFORE,
    "25006": "the server, or the database for this user, may only be read; is it a standby?",
    "40001": _OVERTAKEN,
    "53100": "the server's disk is full; free some space on it",
    "53200": "the server has no memory left",
    "53300": "the server, or this user's role, has no connection free; lower pool_max, or raise its limit",
    "55P03": "another transaction held a row for longer than lock_timeout",
    "57014": "a statement took longer than command_timeout, or somebody cancelled it",
    "57P01": "the server ended the connection",
    "57P02": "the server ended the connection",
    "57P03": "the server is starting up or shutting down",
    "57P05": "the server ended the connection",
}
_PG_OUT_OF_RANGE: Final = "22003"
_SQLITE_OUT_OF_RANGE: Final = "integer overflow"
_CANNOT_GROW: Final = "a stored number cannot grow: it was damaged; `orchestrator-state verify` finds it"
_PG_REFUSED_VALUES: Final[dict[str, type[OrchestratorStateError]]] = {
    "22": InvalidPayload,
    "23": Conflict,
    "44": Conflict,
    "P0001": Conflict,  # a trigger of the application's raised an exception
    "54": PayloadTooLarge,
}
_PG_SCHEMA: Final = ("42P01", "42703", "3F000", "42883")
# After these the connection leads nowhere, or to a server that takes no writes (any more).
_PG_CONNECTION_IS_SPENT: Final = ("08", "57P", "25006", "25P03", "25P04", "28", "3D")
# The driver takes statements for prepared there that are not, or the other way about: after `DEALLOCATE ALL`, or behind
# a pooler that has exchanged the server's session. Of no other connection does it say anything.
_PG_OUT_OF_STEP: Final = ("26", "42P05")
# In a statement of the caller's own these are the caller's: a wrong name, statement or cursor, one row too many, what
# a function of theirs raised, what may not stand in a transaction, or what follows a failed statement. But for those
# after which the connection is spent.
_PG_CALLERS_OWN: Final = (
    *("42", "3F", "P0", "0A", "0B", "0F", "0L", "0P", "0Z", "09", "10", "20", "21", "24", "25", "26", "27", "2B"),
    *("2D", "2F", "34", "38", "39", "3B", "55000", "55P02", "55P04"),
)
_SQLITE_CALLERS_OWN: Final = (
    None,
    *(sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISUSE, sqlite3.SQLITE_RANGE, sqlite3.SQLITE_AUTH),
)


def sqlite_code(error: BaseException | None) -> int | None:
    """The primary result code of a `sqlite3` error, or None."""
    code = getattr(error, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else None


def is_unknown_to_sqlite(error: exc.DBAPIError) -> bool:
    """Whether SQLite refused a statement for a name in it, or its text."""
    return sqlite_code(error.orig) == sqlite3.SQLITE_ERROR


def translate(
    error: BaseException, *, committing: bool = False, opening: bool = False
) -> OrchestratorStateError | None:
    """Return our error for what one of our calls of a driver raised.

    `committing`: the commit may have been on its way. `opening`: nothing has worked yet, so that a refusal is the
    caller's to mend. None if `error` is ours already, or a wrong use of SQLAlchemy, which no database causes.
    """
    if isinstance(error, OrchestratorStateError) or not isinstance(error, Exception):
        return None
    if isinstance(error, exc.DBAPIError):
        error = _original(error)
    unconverted = _from_conversion(error)
    if unconverted is not None:
        return unconverted
    if isinstance(error, (exc.TimeoutError, exc.PendingRollbackError)):
        return _from_sqlalchemy(error)
    if isinstance(error, sqlite3.Error):
        return _from_sqlite(error, committing=committing, opening=opening)
    if _comes_from_postgres(error):
        return _from_postgres(error, committing=committing, opening=opening)
    return _from_elsewhere(error, committing=committing, opening=opening)


def fault_in(error: BaseException) -> StoreUnavailable | None:
    """The database's fault in what the caller's own code raised while it used our connection, in whatever group.

    None if that is the caller's own: a value, a name or a statement that was refused, or no error of a database.
    """
    for leaf in leaves(error):
        if is_a(leaf, StoreUnavailable):
            return cast("StoreUnavailable", leaf)
        if _is_a_drivers(leaf) and not _is_callers_own(leaf):
            ours = translate(leaf)
            if isinstance(ours, StoreUnavailable):
                return ours
    return None


def fault_in_statement(error: BaseException) -> StoreUnavailable | None:
    """Like `fault_in`, of what a statement raised. There what the network does is not the caller's own."""
    if is_a(error, (OSError, EOFError)):  # among them the driver's `TimeoutError`
        return StoreUnavailable(f"the database did not answer ({type(error).__name__})", transient=True)
    return fault_in(error)


def spends_connection(error: BaseException) -> bool:
    """Whether the connection on which `error` was raised, and others made with it, are of no more use."""
    if isinstance(error, exc.DBAPIError):
        error = _original(error)
    state = _sqlstate(error)
    if state is not None:
        return state.startswith(_PG_CONNECTION_IS_SPENT)
    return isinstance(error, asyncpg.InternalClientError | ConnectionError | EOFError)


def taken_name(connection: Connection, error: exc.DBAPIError) -> str | None:
    """What a CREATE could not make, because something else has its name."""
    created = re.match(r'\s*CREATE\s+(?:UNIQUE\s+)?\w+\s+(?:IF\s+NOT\s+EXISTS\s+)?"?(\w+)', error.statement or "")
    if created is None or error.connection_invalidated:
        return None
    name = created[1]
    if connection.dialect.name == "sqlite":
        named = connection.exec_driver_sql("SELECT 1 FROM sqlite_master WHERE name = ?", (name,)).first()
        return name if named else None
    return name if _sqlstate(_original(error)) in _NAME_IS_TAKEN else None


def is_out_of_step(error: BaseException) -> bool:
    """Whether the driver and the server disagree about what was prepared on the connection: it fails again and again.

    Unless a statement of the caller's own named one that never was.
    """
    state = _sqlstate(_original(error) if isinstance(error, exc.DBAPIError) else error)
    return state is not None and state.startswith(_PG_OUT_OF_STEP)


def _original(error: exc.DBAPIError) -> Exception:
    return error.orig if isinstance(error.orig, Exception) else error


def _sqlstate(error: BaseException) -> str | None:
    state = getattr(error, "sqlstate", None) or getattr(error.__cause__, "sqlstate", None)
    return state if isinstance(state, str) else None


def _comes_from_postgres(error: BaseException) -> bool:
    kinds = (asyncpg.PostgresError, asyncpg.InterfaceError, exc.DBAPIError)
    return is_a(error, kinds) or getattr_static(error, "sqlstate", None) is not None


def _is_a_drivers(error: BaseException | None) -> bool:
    if error is None:
        return False
    kinds = (sqlite3.Error, asyncpg.InternalClientError, exc.TimeoutError)
    return is_a(error, kinds) or _comes_from_postgres(error)


def _is_callers_own(error: BaseException) -> bool:
    """Of an error of a driver in a statement of the caller's.

    asyncpg raises an `InterfaceError` for a wrong use of it. It also does on a connection that is closed: whoever has
    the connection can tell.
    """
    original = _original(error) if isinstance(error, exc.DBAPIError) else error
    if isinstance(original, sqlite3.Error):
        return sqlite_code(original) in _SQLITE_CALLERS_OWN
    state = _sqlstate(original)
    if state is None:
        return isinstance(original.__cause__ or original, asyncpg.InterfaceError)
    return state.startswith(_PG_CALLERS_OWN) and not (
        state.startswith(_PG_CONNECTION_IS_SPENT) or _is_outdated(original)
    )


def _is_outdated(error: BaseException) -> bool:
    """Whether what a connection knows of a table was overtaken by a migration: it learns it anew, and goes on."""
    kinds = (asyncpg.InvalidCachedStatementError, asyncpg.OutdatedSchemaCacheError)
    return isinstance(error.__cause__ or error, kinds)


def _from_elsewhere(error: Exception, *, committing: bool, opening: bool) -> OrchestratorStateError | None:
    """What neither a server nor SQLite said: the network, the operating system, a driver that lost its way."""
    if isinstance(error, exc.SQLAlchemyError) and not isinstance(error, exc.DisconnectionError):
        return None
    known = isinstance(error, (OSError, EOFError)) or _is_a_drivers(error) or _is_a_drivers(error.__cause__)
    if opening and not known:
        return None
    name = type(error).__name__
    message = "did not answer in time" if isinstance(error, TimeoutError) else f"cannot be reached ({name})"
    return StoreUnavailable(f"the database {message}", transient=True, outcome_unknown=committing)


def _from_sqlalchemy(error: exc.TimeoutError | exc.PendingRollbackError) -> OrchestratorStateError:
    if isinstance(error, exc.TimeoutError):
        return StoreUnavailable(_POOL_IS_FULL, transient=True, crowded=True)
    if error.code == _FLUSH_FAILED_BEFORE:
        return StoreUnavailable(_FAILED_BEFORE, transient=True, failed_before=True)
    return StoreUnavailable("the connection of this unit was lost; nothing of the unit is kept", transient=True)


def _refused(message: str, *, opening: bool) -> OrchestratorStateError:
    return ConfigurationError(message) if opening else AccessLost(message, transient=True)


def _misfit(*, opening: bool) -> OrchestratorStateError:
    return SchemaOutOfDate(_SCHEMA_MESSAGE) if opening else SchemaChanged(_SCHEMA_MESSAGE, transient=True)


def _from_sqlite(error: sqlite3.Error, *, committing: bool, opening: bool) -> OrchestratorStateError:
    code = sqlite_code(error)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    if code in _SQLITE_BUSY:
        is_overtaken = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY_SNAPSHOT
        message = _OVERTAKEN if is_overtaken else "another process holds the SQLite file"
        return StoreUnavailable(f"{message} ({name})", transient=True)
    if code in _SQLITE_REFUSED:
        return _refused(f"{_SQLITE_REFUSED[code]} ({name})", opening=opening)
    if code in _SQLITE_REFUSED_VALUES:
        kind, message = _SQLITE_REFUSED_VALUES[code]
        return kind(f"{message} ({name})")
    if code == sqlite3.SQLITE_ERROR and str(error) == _SQLITE_OUT_OF_RANGE:
        return CorruptPayload(f"{_CANNOT_GROW} ({_SQLITE_OUT_OF_RANGE})", path="number")
    if code == sqlite3.SQLITE_ERROR:
        return _misfit(opening=opening)
    unknown = committing and code in _SQLITE_COMMIT_UNKNOWN
    message = _SQLITE_REASONS.get(code, "SQLite failed")
    return StoreUnavailable(f"{message} ({name})", transient=True, outcome_unknown=unknown)


def _from_conversion(error: Exception) -> OrchestratorStateError | None:
    """What a driver could not turn into the database's form, or back."""
    if _is_no_text(error):
        message = "a stored text is not valid UTF-8: it was damaged; `orchestrator-state verify` finds it"
        return CorruptPayload(message, path="text")
    if isinstance(error, _UNSENDABLE) or isinstance(error.__cause__, _UNSENDABLE):
        return InvalidPayload("the driver refused a value that no column can hold")
    return None


def _is_no_text(error: BaseException) -> bool:
    """Whether a driver could not decode a stored text. All other `OperationalError`s of sqlite3 have a code."""
    undecoded = type(error) is sqlite3.OperationalError and sqlite_code(error) is None
    return undecoded or isinstance(error, UnicodeDecodeError)


def _from_postgres(error: Exception, *, committing: bool, opening: bool) -> OrchestratorStateError:
    cause = error.__cause__ or error
    if _is_outdated(error):
        return StoreUnavailable("the schema changed under a prepared statement", transient=True)
    state = _sqlstate(error)
    if state is not None:
        return _from_sqlstate(state, committing=committing, opening=opening)
    return StoreUnavailable(
        f"the connection to the database was lost ({type(cause).__name__})",
        transient=True,
        outcome_unknown=committing,
    )


def _from_sqlstate(state: str, *, committing: bool, opening: bool) -> OrchestratorStateError:
    if state.startswith(_PG_SCHEMA):
        return _misfit(opening=opening)
    for prefix, reason in _PG_REFUSED.items():
        if state.startswith(prefix):
            return _refused(f"{reason} (SQLSTATE {state})", opening=opening)
    # No value of ours is, so it is what a stored one would become. With a commit the caller's own objects are sent.
    if state == _PG_OUT_OF_RANGE and not committing:
        return CorruptPayload(f"{_CANNOT_GROW} (SQLSTATE {state})", path="number")
    for prefix, refusal in _PG_REFUSED_VALUES.items():
        if state.startswith(prefix):
            return refusal(f"the database refused a value (SQLSTATE {state})")
    # A serialization failure or deadlock at COMMIT has rolled back; a dropped connection may have committed.
    unknown = committing and not state.startswith(_PG_ROLLED_BACK)
    reason = next((words for prefix, words in _PG_REASONS.items() if state.startswith(prefix)), _PG_GAVE_UP)
    message = f"{reason} (SQLSTATE {state})"
    return StoreUnavailable(
        message,
        transient=True,
        outcome_unknown=unknown,
        locked=state == _PG_LOCKED,
        failed_before=state == _PG_FAILED_BEFORE,
    )


class database_errors:  # noqa: N801 - a context manager reads as a phrase: `with database_errors():`
    """Raise our error for any error inside the block that a database causes. Cancellation passes through untouched.

    Put it around our own calls only: user code inside would have its `OSError` taken for the database's.
    """

    def __init__(self, *, committing: bool = False, opening: bool = False) -> None:
        self._committing = committing
        self._opening = opening

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            ours = translate(error, committing=self._committing, opening=self._opening)
            if ours is not None:
                raise ours from None
