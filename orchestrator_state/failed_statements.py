"""What failed in a transaction, remembered on its connection, whatever the caller's code made of the exception."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext

from orchestrator_state.driver_errors import fault_in, spends_connection
from orchestrator_state.errors import ConfigurationError, StoreUnavailable

_FAILED: Final = (
    "orchestrator_state_failed"  # connection info: a transaction in which a statement failed, and the fault
)


def remember_failures(engine: Engine) -> None:
    """Note failed statements of `engine`, and give up connections that such an error has spent."""
    event.listen(engine, "handle_error", _note)


def refuse_commits_after_failure(engine: Engine) -> None:
    """Let no transaction commit in which a statement failed outside a savepoint."""
    event.listen(engine, "commit", refuse_after_failure)


def refuse_after_failure(connection: Connection) -> None:
    """Postgres answers the COMMIT of a transaction in which a statement failed with ROLLBACK, and no error.

    Raises the fault, if it was one of the database, or else `ConfigurationError`.
    """
    fault = fault_under(connection)
    if fault is not None:
        raise fault
    failed, _ = connection.info.pop(_FAILED, (None, None))
    if failed is not None and failed is connection.get_transaction():
        raise ConfigurationError(
            "a statement of this unit failed, so nothing of it is kept; let its error leave the block, "
            "or put the statement into a savepoint: `async with uow.session.begin_nested()`"
        )


def fault_under(connection: Connection) -> StoreUnavailable | None:
    """What the database did to the connection or its transaction; None if nothing."""
    if connection.closed:
        return None  # by the caller's code
    if connection.invalidated or _is_closed(connection):
        return StoreUnavailable("the connection of this unit was lost; nothing of the unit is kept", transient=True)
    failed, fault = connection.info.get(_FAILED, (None, None))
    found: StoreUnavailable | None = fault if failed is connection.get_transaction() else None
    return found


def _is_closed(connection: Connection) -> bool:
    driver: Any = connection.connection.driver_connection
    return connection.dialect.name == "postgresql" and bool(driver.is_closed())


def _note(context: ExceptionContext) -> None:
    connection, error = context.connection, context.original_exception
    if spends_connection(error):
        context.is_disconnect = True  # so that neither it nor others made with it are used again
    if connection is not None and not connection.invalidated and not connection.in_nested_transaction():
        connection.info[_FAILED] = connection.get_transaction(), fault_in(error)
