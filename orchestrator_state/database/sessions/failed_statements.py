"""What failed in a transaction, remembered on its connection, whatever the caller's code made of the exception."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Engine, event, exc
from sqlalchemy.engine import ExceptionContext, Transaction
from sqlalchemy.engine.interfaces import AdaptedConnection
from sqlalchemy.pool import ConnectionPoolEntry

from orchestrator_state.database.errors import fault_in_statement, is_out_of_step, spends_connection
from orchestrator_state.database.internals import hear_errors, is_entangled
from orchestrator_state.errors import ConfigurationError, StoreUnavailable

_FAILURES: Final = "orchestrator_state_failures"  # connection info
_OUT_OF_STEP: Final = "orchestrator_state_out_of_step"  # connection info
_LOST: Final = "the connection of this unit was lost; nothing of the unit is kept"


@dataclass(slots=True)
class Failures:
    """What failed in one transaction outside a savepoint. Who holds it can ask when the connection is long gone."""

    transaction: Transaction | None
    some: bool = False
    fault: StoreUnavailable | None = None
    """The first of the database's: what fails after it comes of it."""
    gave_up: bool = False
    """The caller's code cancelled a statement, at a deadline of its own, and so the connection was given up."""


def remember_failures(engine: Engine) -> None:
    """Note failed statements of `engine`, and give up connections that such an error has spent."""
    hear_errors(engine, _note)


def refuse_commits_after_failure(engine: Engine) -> None:
    """Let no transaction commit in which a statement failed outside a savepoint."""
    event.listen(engine, "commit", _refuse)


def refuse_entangled_connections(engine: Engine) -> None:
    """Take no connection to Postgres from the pool that is inside a transaction, or whose driver believes so.

    As asyncpg does after a BEGIN that was refused. And after a ROLLBACK that was, or a BEGIN that the application sent
    as plain text, it refuses to begin any.

    Nor is one taken on which the driver takes statements for prepared that are not.
    """
    if engine.dialect.name == "postgresql":
        event.listen(engine, "checkout", _refuse_entangled)


def failures_on(connection: Connection) -> Failures:
    """Those of the transaction that is under way on `connection`, to which others may be added."""
    transaction = connection.get_transaction()
    if connection.closed or connection.invalidated:
        return Failures(transaction)
    known: Failures | None = connection.info.get(_FAILURES)
    if known is None or known.transaction is not transaction:
        known = connection.info[_FAILURES] = Failures(transaction)
    return known


def refuse_after_failure(connection: Connection, failures: Failures) -> None:
    """Postgres answers the COMMIT of a transaction in which a statement failed with ROLLBACK, and no error.

    Raises the fault, if it was one of the database, or else `ConfigurationError`.
    """
    fault = fault_under(connection, failures)
    if fault is not None:
        raise fault
    if failures.some:
        raise statement_failed()


def statement_failed() -> ConfigurationError:
    """The caller's code let it pass."""
    return ConfigurationError(
        "a statement of this unit failed, so nothing of it is kept; let its error leave the block, "
        "or put the statement into a savepoint: `async with uow.session.begin_nested()`"
    )


def fault_under(connection: Connection, failures: Failures) -> StoreUnavailable | None:
    """What the database did to the connection or its transaction; None if nothing."""
    if failures.fault is not None or failures.gave_up:
        return failures.fault
    if connection.closed:
        return None  # by the caller's code
    return _lost() if connection.invalidated or _is_closed(connection) else None


def _lost() -> StoreUnavailable:
    return StoreUnavailable(_LOST, transient=True)


def _is_closed(connection: Connection) -> bool:
    driver: Any = connection.connection.driver_connection
    return connection.dialect.name == "postgresql" and bool(driver.is_closed())


def _refuse_entangled(dbapi_connection: AdaptedConnection, entry: ConnectionPoolEntry, _: object) -> None:
    driver = dbapi_connection.driver_connection
    misleads = entry.info.pop(_OUT_OF_STEP, False)
    if misleads or is_entangled(driver):
        raise exc.DisconnectionError


def _refuse(connection: Connection) -> None:
    refuse_after_failure(connection, failures_on(connection))


def _note(context: ExceptionContext) -> None:
    connection, error = context.connection, context.original_exception
    if spends_connection(error):
        context.is_disconnect = True  # so that neither it nor others made with it are used again
    if connection is None or connection.closed or connection.invalidated:
        return
    if connection.get_transaction() is None:
        return  # the first connection of an engine, while SQLAlchemy asks it about the server: it has no `info` either
    if is_out_of_step(error):
        connection.info[_OUT_OF_STEP] = True
    if connection.in_nested_transaction() and not context.is_disconnect:
        return
    failures = failures_on(connection)
    failures.some = True
    if not isinstance(error, Exception):
        failures.gave_up = True
    elif failures.fault is None and not failures.gave_up:
        failures.fault = fault_in_statement(error) or (_lost() if context.is_disconnect else None)
