"""What goes straight to the driver as a rule, by SQLAlchemy's way for who listens to it.

The same statements with the same parameters, in transactions of the same extent. But SQLAlchemy hands them over, and so
whatever listens to its events, or has its statements logged, hears of them as of all others, and when they begin and
end. Each function runs in SQLAlchemy's greenlet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Executable

from orchestrator_state.database.direct.batches import Batch, Outcome
from orchestrator_state.database.direct.driver import DriverStatements
from orchestrator_state.database.errors import database_errors

_Answer = TypeVar("_Answer")


def read(engine: Engine, sql: str, arguments: Sequence[Any]) -> Sequence[Any]:
    """The rows of one query."""
    with database_errors(), engine.connect() as connection:
        return connection.exec_driver_sql(sql, tuple(arguments)).all()


def write_one(engine: Engine, sql: str, arguments: Sequence[Any]) -> Sequence[Any]:
    """The rows of one statement on Postgres, which is a transaction by itself."""
    with database_errors(), engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        with database_errors(committing=True):
            rows = connection.exec_driver_sql(sql, tuple(arguments)).all()
            connection.commit()
    return rows


def write_several(engine: Engine, statements: DriverStatements, batch: Batch[_Answer]) -> _Answer:
    """What `batch` answers, written statement by statement in a transaction of its own."""
    with database_errors(), engine.connect() as connection:
        answer = _write(connection, statements, batch)
        with database_errors(committing=True):
            connection.commit()
    return answer


def _write(connection: Connection, statements: DriverStatements, batch: Batch[_Answer]) -> _Answer:
    def execute(statement: Executable, values: Mapping[str, Any]) -> Outcome:
        compiled = statements[statement]
        result = connection.exec_driver_sql(compiled.sql, tuple(compiled.arguments(values)))
        return (result.first() if result.returns_rows else None), result.rowcount

    def execute_each(statement: Executable, values: list[dict[str, Any]]) -> None:
        compiled = statements[statement]
        connection.exec_driver_sql(compiled.sql, [tuple(compiled.arguments(each)) for each in values])

    return batch.write(execute, execute_each)
