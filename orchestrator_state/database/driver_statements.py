"""Statements as the driver itself takes them.

SQLAlchemy's way through a statement, from the session to the rows, takes longer than the database takes over a small
one. A statement that is executed for every step is compiled once, and given to the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Dialect, Executable, SelectBase
from sqlalchemy.sql.compiler import SQLCompiler


class DriverStatement:
    """A compiled statement: its text, and its parameters in the driver's order and form."""

    def __init__(self, statement: Executable, dialect: Dialect, schema: str | None) -> None:
        options: dict[str, Any] = {}
        if schema is not None:
            options = {"schema_translate_map": {None: schema}, "render_schema_translate": True}
        compiled: SQLCompiler = statement.compile(dialect=dialect, **options)  # type: ignore[attr-defined]
        self.sql: Final = compiled.string
        self._constants: Final = {name: value for name, value in compiled.params.items() if value is not None}
        self._names: Final = tuple(compiled.positiontup or ())
        self._sent_as: Final[list[tuple[int, Callable[[Any], Any]]]] = [
            (index, convert)
            for index, name in enumerate(self._names)
            if (convert := compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect)) is not None
        ]
        selected = statement.selected_columns if isinstance(statement, SelectBase) else ()
        self._conversions: Final[list[tuple[int, Callable[[Any], Any]]]] = [
            (index, convert)
            for index, column in enumerate(selected)
            if (convert := column.type.dialect_impl(dialect).result_processor(dialect, None)) is not None
        ]

    def arguments(self, values: Mapping[str, Any]) -> list[Any]:
        """What to send for `values`, which name every parameter."""
        if self._constants:
            values = {**self._constants, **values}
        arguments = [values[name] for name in self._names]
        for index, convert in self._sent_as:
            arguments[index] = convert(arguments[index])
        return arguments

    def converted(self, rows: Sequence[Any]) -> Sequence[Any]:
        """A query's rows with Python's values in the place of the driver's."""
        if not self._conversions:
            return rows
        found = []
        for row in rows:
            values = list(row)
            for index, convert in self._conversions:
                if values[index] is not None:
                    values[index] = convert(values[index])
            found.append(values)
        return found


class DriverStatements:
    """The compiled statements of one database, each compiled when it is first wanted."""

    def __init__(self, dialect: Dialect, schema: str | None) -> None:
        self._dialect = dialect
        self._schema = schema
        self._compiled: dict[Executable, DriverStatement] = {}

    def __getitem__(self, statement: Executable) -> DriverStatement:
        compiled = self._compiled.get(statement)
        if compiled is None:
            compiled = self._compiled[statement] = DriverStatement(statement, self._dialect, self._schema)
        return compiled
