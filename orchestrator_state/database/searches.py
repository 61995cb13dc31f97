"""What an operator looks for and where a page of that begins, in the words of each database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Boolean, Text, literal
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import SQLCoreOperations
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NullType

from orchestrator_state.column_types import Attributes, StoredTextKey


class moment_key(FunctionElement[Any]):  # noqa: N801 - reads as a phrase in a statement
    """A stored time as it is, also if it is none that Python can hold: for `moment_of`."""

    type = NullType()
    inherit_cache = True


@compiles(moment_key)
def _as_json(element: moment_key, compiler: SQLCompiler, **kw: Any) -> str:
    # Unlike a cast, in one form whatever DateStyle is.
    return f"(to_json({compiler.process(element.clauses, **kw)}) #>> '{{}}')"


@compiles(moment_key, "sqlite")
def _as_it_is(element: moment_key, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(element.clauses, **kw)


class moment_of(FunctionElement[Any]):  # noqa: N801
    """The stored time of a `moment_key`."""

    type = NullType()
    inherit_cache = True

    def __init__(self, key: object) -> None:
        super().__init__(literal(key, StoredTextKey))


@compiles(moment_of)
def _cast(element: moment_of, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST({compiler.process(element.clauses, **kw)} AS TIMESTAMP WITH TIME ZONE)"


@compiles(moment_of, "sqlite")
def _as_it_was(element: moment_of, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(element.clauses, **kw)


class holds_text(FunctionElement[bool]):  # noqa: N801
    """Whether a text holds another one, in capital or small letters, A to Z: SQLite knows no others."""

    type = Boolean()
    inherit_cache = True

    def __init__(self, text: SQLCoreOperations[Any], part: str) -> None:
        super().__init__(text, literal(part, Text))


@compiles(holds_text)
def _strpos(element: holds_text, compiler: SQLCompiler, **kw: Any) -> str:
    text, part = (f'lower({compiler.process(clause, **kw)} COLLATE "C")' for clause in element.clauses)
    return f"(strpos({text}, {part}) > 0)"


@compiles(holds_text, "sqlite")
def _instr(element: holds_text, compiler: SQLCompiler, **kw: Any) -> str:
    text, part = (f"lower({compiler.process(clause, **kw)})" for clause in element.clauses)
    return f"(instr({text}, {part}) > 0)"


class has_attributes(FunctionElement[bool]):  # noqa: N801
    """Whether attributes, which may be damaged, hold all of these, with values of the same kind."""

    type = Boolean()
    inherit_cache = True

    def __init__(self, attributes: SQLCoreOperations[Any], wanted: Mapping[str, Any]) -> None:
        super().__init__(attributes, literal(dict(wanted), Attributes))


@compiles(has_attributes)
def _contains(element: has_attributes, compiler: SQLCompiler, **kw: Any) -> str:
    attributes, wanted = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"({attributes} @> {wanted})"


@compiles(has_attributes, "sqlite")
def _lacks_none(element: has_attributes, compiler: SQLCompiler, **kw: Any) -> str:
    attributes, wanted = (compiler.process(clause, **kw) for clause in element.clauses)
    object_ = f"CASE WHEN json_valid({attributes}) THEN {attributes} ELSE '{{}}' END"
    # A number may be written as a whole one or not.
    kind = "CASE {0}.type WHEN 'integer' THEN 'real' ELSE {0}.type END"
    same = f"had.key = wanted.key AND {kind.format('had')} = {kind.format('wanted')} AND had.atom IS wanted.atom"
    had = f"EXISTS (SELECT 1 FROM json_each({object_}) AS had WHERE {same})"  # noqa: S608 - of our own words alone
    lacking = f"SELECT 1 FROM json_each({wanted}) AS wanted WHERE NOT {had}"  # noqa: S608
    return f"({attributes} IS NOT NULL AND NOT EXISTS ({lacking}))"
