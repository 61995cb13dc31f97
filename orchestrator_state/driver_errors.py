"""Driver error -> our error, in one place, by code and type and never by text.

Our errors are raised `from None`: the drivers' messages quote parameters and constraint details.
"""

from __future__ import annotations

import sqlite3
from types import TracebackType
from typing import Final

import asyncpg
from sqlalchemy import exc

from orchestrator_state.errors import (
    ConfigurationError,
    Conflict,
    CorruptPayload,
    InvalidPayload,
    OrchestratorStateError,
    PayloadTooLarge,
    SchemaOutOfDate,
    StoreUnavailable,
)

_SCHEMA_COMMAND: Final = "run `orchestrator-state db upgrade`"

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
_SQLITE_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_SQLITE_CONFIGURATION: Final = {
    sqlite3.SQLITE_NOTADB: "the file is not a SQLite database",
    sqlite3.SQLITE_CORRUPT: "the SQLite file is damaged; restore it from a backup",
    sqlite3.SQLITE_CANTOPEN: "the SQLite file cannot be opened; check that its directory exists and is writable",
    sqlite3.SQLITE_READONLY: "the SQLite file or its directory is read-only",
    sqlite3.SQLITE_PERM: "the SQLite file may not be accessed; check its permissions",
    sqlite3.SQLITE_AUTH: "the SQLite file may not be accessed; check its permissions",
}

# https://www.postgresql.org/docs/current/errcodes-appendix.html: a code, or the class that begins it.
_PG_TRANSIENT: Final = ("08", "40001", "40P01", "55P03", "57P01", "57P02", "57P03", "53300", "25P03")
_PG_LOCKED: Final = "55P03"
_PG_ROLLED_BACK: Final = ("40", "55")
_PG_CONFIGURATION: Final = {
    "08P01": "the server refused the connection's settings; behind PgBouncer open the store with pgbouncer=True",
    "28": "the server refused the user or the password",
    "3D": "the server has no such database",
    "42501": "the database user lacks a privilege",
    "42": "the database refused a statement or a name in it",
}
_PG_REFUSALS: Final[dict[str, type[OrchestratorStateError]]] = {
    "22": InvalidPayload,
    "23": Conflict,
    "44": Conflict,
    "P0001": Conflict,  # a trigger of the application's raised an exception
    "54": PayloadTooLarge,
}
_PG_SCHEMA: Final = ("42P01", "42703", "3F000", "42883")


def sqlite_code(error: BaseException | None) -> int | None:
    """The primary result code of a `sqlite3` error, or None."""
    code = getattr(error, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else None


def translate(error: BaseException, *, committing: bool = False) -> OrchestratorStateError | None:
    """Return our error for a driver's, or None if `error` is not the database's doing."""
    if isinstance(error, exc.DBAPIError):
        error = error.orig or error
    if _is_no_text(error):
        message = "a stored text is not valid UTF-8: it was damaged; `orchestrator-state verify` finds it"
        return CorruptPayload(message, path="text")
    if isinstance(error, sqlite3.Error):
        return _from_sqlite(error)
    if isinstance(error, (exc.TimeoutError, exc.PendingRollbackError)):
        return _from_sqlalchemy(error)
    if isinstance(error, (asyncpg.PostgresError, asyncpg.InterfaceError, exc.DBAPIError)) or hasattr(error, "sqlstate"):
        return _from_postgres(error, committing=committing)
    if isinstance(error, OSError):
        late = isinstance(error, TimeoutError)
        message = "did not answer in time" if late else f"cannot be reached ({type(error).__name__})"
        return StoreUnavailable(f"the database {message}", transient=committing, outcome_unknown=committing)
    return None


def _from_sqlalchemy(error: exc.TimeoutError | exc.PendingRollbackError) -> OrchestratorStateError:
    if isinstance(error, exc.TimeoutError):
        return StoreUnavailable("no database connection became free in time; raise pool_max or lower the load")
    return StoreUnavailable("the connection of this unit was lost; nothing of the unit is kept", transient=True)


def _from_sqlite(error: sqlite3.Error) -> OrchestratorStateError:
    code = sqlite_code(error)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    if code in _SQLITE_BUSY:
        return StoreUnavailable(f"another process holds the SQLite file ({name})", transient=True)
    if code in _SQLITE_CONFIGURATION:
        return ConfigurationError(f"{_SQLITE_CONFIGURATION[code]} ({name})")
    if code == sqlite3.SQLITE_TOOBIG:
        return PayloadTooLarge("the row is over SQLite's size limit")
    if code == sqlite3.SQLITE_CONSTRAINT:
        return Conflict(f"the database refused the row ({name})")
    if code == sqlite3.SQLITE_ERROR:
        return SchemaOutOfDate(f"the database's tables do not fit this version of the package; {_SCHEMA_COMMAND}")
    return StoreUnavailable(f"SQLite failed ({name})")


def _is_no_text(error: BaseException) -> bool:
    """Whether a driver could not decode a stored text. All other `OperationalError`s of sqlite3 have a code."""
    undecoded = type(error) is sqlite3.OperationalError and sqlite_code(error) is None
    return undecoded or isinstance(error, UnicodeDecodeError)


def _from_postgres(error: BaseException, *, committing: bool) -> OrchestratorStateError:
    cause = error.__cause__ or error
    if isinstance(cause, (asyncpg.InvalidCachedStatementError, asyncpg.OutdatedSchemaCacheError)):
        return StoreUnavailable("the schema changed under a prepared statement", transient=True)
    state = getattr(error, "sqlstate", None) or getattr(cause, "sqlstate", None)
    if isinstance(state, str):
        return _from_sqlstate(state, committing=committing)
    return StoreUnavailable(
        f"the connection to the database was lost ({type(cause).__name__})",
        transient=True,
        outcome_unknown=committing,
    )


def _from_sqlstate(state: str, *, committing: bool) -> OrchestratorStateError:
    if state.startswith(_PG_SCHEMA):
        return SchemaOutOfDate(f"the database's tables do not fit this version of the package; {_SCHEMA_COMMAND}")
    for prefix, reason in _PG_CONFIGURATION.items():
        if state.startswith(prefix):
            return ConfigurationError(f"{reason} (SQLSTATE {state})")
    if state.startswith(_PG_TRANSIENT):
        # A serialization failure or deadlock at COMMIT has rolled back; a dropped connection may have committed.
        unknown = committing and not state.startswith(_PG_ROLLED_BACK)
        message = f"the database gave up on the transaction (SQLSTATE {state})"
        return StoreUnavailable(message, transient=True, outcome_unknown=unknown, locked=state == _PG_LOCKED)
    for prefix, refusal in _PG_REFUSALS.items():
        if state.startswith(prefix):
            return refusal(f"the database refused a value (SQLSTATE {state})")
    return StoreUnavailable(f"the database failed (SQLSTATE {state})")


class database_errors:  # noqa: N801 - a context manager reads as a phrase: `with database_errors():`
    """Raise our error for any driver error inside the block. Cancellation passes through untouched.

    Put it around our own calls only: user code inside would have its `OSError` taken for the database's.
    """

    def __init__(self, *, committing: bool = False) -> None:
        self._committing = committing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None and isinstance(error, Exception):
            ours = translate(error, committing=self._committing)
            if ours is not None:
                raise ours from None
