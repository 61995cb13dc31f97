"""The one classification: whatever a driver, the network or the operating system raises is one of our errors."""

import asyncio
import socket
import sqlite3
import ssl
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
from sqlalchemy import exc

from orchestrator_state import (
    ConfigurationError,
    Conflict,
    CorruptPayload,
    InvalidPayload,
    OrchestratorStateError,
    PayloadTooLarge,
    SchemaOutOfDate,
    StoreUnavailable,
)
from orchestrator_state.database.errors import fault_in, translate
from tests.support.cases import case

REFUSALS = (Conflict, CorruptPayload, InvalidPayload, PayloadTooLarge)
"""What the value that was sent, or is stored, deserves."""


def subclasses(kind: type[Any]) -> Iterator[type[Any]]:
    child: type[Any]
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


SERVERS = sorted({kind for kind in subclasses(asyncpg.PostgresError) if getattr(kind, "sqlstate", None)}, key=repr)
OTHERS: list[Exception] = [
    asyncpg.InternalClientError("cannot switch to state 11"),
    asyncpg.TargetServerAttributeNotMatched("no host is the primary"),
    asyncpg.ProtocolError("unexpected message"),
    asyncpg.InterfaceError("connection is closed"),
    ssl.SSLError("bad record"),
    ssl.SSLCertVerificationError("expired"),
    socket.gaierror("no such name"),
    ConnectionRefusedError(),
    TimeoutError(),
    asyncio.IncompleteReadError(b"", 4),
    RuntimeError("the transport is closed"),
    AttributeError("'NoneType' object has no attribute 'send'"),
    exc.DisconnectionError("stale"),
    exc.InterfaceError("SELECT", {}, Exception("unheard of")),
    sqlite3.ProgrammingError("Cannot operate on a closed database."),
]

UNSENDABLE: list[Exception] = [
    asyncpg.exceptions._base.DataError("secret"),
    OverflowError("secret"),
    UnicodeEncodeError("utf-8", "secret", 0, 1, "surrogates"),
]


def raised_by_sqlite(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("refused")
    error.sqlite_errorcode, error.sqlite_errorname = code, "SQLITE_SOMETHING"
    return error


def test_every_error_of_a_server_is_ours_and_a_fault_unless_the_value_deserves_it() -> None:
    for kind in SERVERS:
        ours = translate(kind("secret"))
        assert isinstance(ours, REFUSALS) or (isinstance(ours, StoreUnavailable) and ours.transient), kind
        assert "secret" not in repr(ours)


def test_what_nobody_knows_counts_as_a_database_that_is_away() -> None:
    for error in OTHERS:
        with case(repr(error)):
            ours = translate(error)
            assert isinstance(ours, StoreUnavailable)
            assert (ours.transient, ours.outcome_unknown) == (True, False)
            committing = translate(error, committing=True)
            assert isinstance(committing, StoreUnavailable)
            assert committing.outcome_unknown


def test_a_value_that_a_driver_cannot_send_is_refused_at_once() -> None:
    for error in UNSENDABLE:
        with case(repr(error)):
            for raised in (error, exc.InterfaceError("INSERT", {}, error)):
                ours = translate(raised, committing=True)
                assert isinstance(ours, InvalidPayload)
                assert "secret" not in repr(ours)
                assert fault_in(raised) is None, "nor is it a fault in a statement of the caller's own"


def test_every_code_of_sqlite_is_ours_and_a_fault_unless_the_row_deserves_it() -> None:
    codes = {value for name, value in vars(sqlite3).items() if name.startswith("SQLITE_") and isinstance(value, int)}
    for code in {code & 0xFF for code in codes if 0 < code & 0xFF < 27}:
        ours = translate(raised_by_sqlite(code))
        assert isinstance(ours, REFUSALS) or (isinstance(ours, StoreUnavailable) and ours.transient), code


def test_what_is_refused_at_the_opening_is_the_callers_to_mend() -> None:
    for kind in (
        asyncpg.InvalidPasswordError,
        asyncpg.InvalidCatalogNameError,
        asyncpg.InsufficientPrivilegeError,
        asyncpg.UndefinedTableError,
    ):
        opening = translate(kind("secret"), opening=True)
        assert type(opening) in (ConfigurationError, SchemaOutOfDate)
        later = translate(kind("secret"))
        assert isinstance(later, ConfigurationError), "it says what to do all the same"
        assert isinstance(later, StoreUnavailable)


def test_a_wrong_use_of_sqlalchemy_and_an_error_of_ours_are_no_fault() -> None:
    for error in (exc.InvalidRequestError("closed"), exc.ArgumentError("?"), Conflict("taken"), KeyboardInterrupt()):
        assert translate(error) is None


CALLERS_OWN: list[Exception] = [
    asyncpg.UndefinedTableError("theirs"),
    asyncpg.InsufficientPrivilegeError("theirs"),
    asyncpg.UniqueViolationError("theirs"),
    asyncpg.InFailedSQLTransactionError("theirs"),
    asyncpg.CardinalityViolationError("theirs"),
    asyncpg.ActiveSQLTransactionError("theirs"),
    asyncpg.InvalidCursorNameError("theirs"),
    asyncpg.InvalidSavepointSpecificationError("theirs"),
    asyncpg.ExternalRoutineError("theirs"),
    raised_by_sqlite(sqlite3.SQLITE_ERROR),
    raised_by_sqlite(sqlite3.SQLITE_CONSTRAINT),
    raised_by_sqlite(sqlite3.SQLITE_MISMATCH),
    FileNotFoundError("theirs"),
    TimeoutError("theirs"),
    ValueError("theirs"),
    OrchestratorStateError("theirs"),
]
FAULTS: list[Exception] = [
    asyncpg.DeadlockDetectedError(),
    asyncpg.AdminShutdownError(),
    asyncpg.ReadOnlySQLTransactionError(),
    asyncpg.DiskFullError(),
    asyncpg.LockNotAvailableError(),
    asyncpg.InternalClientError("lost its way"),
    asyncpg.InvalidCachedStatementError("a migration"),
    raised_by_sqlite(sqlite3.SQLITE_BUSY),
    raised_by_sqlite(sqlite3.SQLITE_FULL),
    raised_by_sqlite(sqlite3.SQLITE_READONLY),
    StoreUnavailable("away"),
]


def test_what_the_callers_own_statement_deserves_is_no_fault() -> None:
    for error in CALLERS_OWN:
        with case(repr(error)):
            assert fault_in(error) is None
            assert fault_in(ExceptionGroup("", [error])) is None


def test_a_fault_under_the_callers_own_statement_is_found_in_any_wrapping() -> None:
    for error in FAULTS:
        with case(repr(error)):
            wrapped = exc.DBAPIError("INSERT", {}, error)
            for raised in (error, wrapped, ExceptionGroup("", [ValueError(), ExceptionGroup("", [wrapped])])):
                assert isinstance(fault_in(raised), StoreUnavailable)


# --- in words -----------------------------------------------------------------------------------------------------


def sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("canary")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (sqlite_error(sqlite3.SQLITE_FULL), "disk with the SQLite file is full; free some space"),
        (asyncpg.DiskFullError("canary"), "disk is full; free some space"),
        (sqlite_error(sqlite3.SQLITE_READONLY), "read-only"),
        (asyncpg.ReadOnlySQLTransactionError("canary"), "may only be read"),
        (asyncpg.TooManyConnectionsError("canary"), "lower pool_max"),
        (asyncpg.InsufficientPrivilegeError("canary"), "selects, inserts, updates and deletes"),
        (asyncpg.InvalidPasswordError("canary"), "check both"),
        (asyncpg.InvalidCatalogNameError("canary"), "create it"),
        (sqlite_error(sqlite3.SQLITE_CANTOPEN), "check its permissions"),
    ],
)
def test_what_is_wrong_and_what_to_do_is_said_and_nothing_of_the_drivers(raised: Exception, words: str) -> None:
    for opening in (True, False):
        ours = translate(raised, opening=opening)
        assert words in str(ours)
        assert "canary" not in str(ours)


def test_at_an_opening_an_error_of_a_driver_inside_another_is_a_fault_too() -> None:
    adapted = RuntimeError("canary")
    adapted.__cause__ = asyncpg.TargetServerAttributeNotMatched("no host")
    assert isinstance(translate(exc.DBAPIError("", None, adapted), opening=True), StoreUnavailable)
