"""Whether a cell holds a value of its column's type, asked in SQL: SQLite keeps anything in any column."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Boolean, Integer
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from orchestrator_state.damaged import FURTHEST_COUNT
from orchestrator_state.domain import LARGEST_COUNT

_WHOLE: Final = "'integer'"
_HEX: Final = "[0-9a-f]"
_CANONICAL: Final = "-".join(_HEX * digits for digits in (8, 4, 4, 4, 12))


class is_addressable(FunctionElement[bool]):  # noqa: N801 - reads as a phrase in a statement
    """Whether a column of ids holds one in the form that it is looked for in."""

    type = Boolean()
    inherit_cache = True


@compiles(is_addressable)
def _is_there(element: is_addressable, compiler: SQLCompiler, **options: Any) -> str:
    return f"({compiler.process(element.clauses, **options)} IS NOT NULL)"


@compiles(is_addressable, "sqlite")
def _is_canonical(element: is_addressable, compiler: SQLCompiler, **options: Any) -> str:
    return f"({compiler.process(element.clauses, **options)} GLOB '{_CANONICAL}')"


class is_stored_name(FunctionElement[bool]):  # noqa: N801 - reads as a phrase in a statement
    """Whether a column of names holds a text, and not an empty one."""

    type = Boolean()
    inherit_cache = True


@compiles(is_stored_name)
def _is_not_empty(element: is_stored_name, compiler: SQLCompiler, **options: Any) -> str:
    return f"(({compiler.process(element.clauses, **options)} <> '') IS TRUE)"


@compiles(is_stored_name, "sqlite")
def _is_text_not_empty(element: is_stored_name, compiler: SQLCompiler, **options: Any) -> str:
    name = compiler.process(element.clauses, **options)
    return f"(typeof({name}) = 'text' AND {name} <> '')"


class counts_on(FunctionElement[bool]):  # noqa: N801 - reads as a phrase in a statement
    """Whether all of the given counts can grow."""

    type = Boolean()
    inherit_cache = True


@compiles(counts_on)
def _are_small(element: counts_on, compiler: SQLCompiler, **options: Any) -> str:
    greatest = f"greatest({compiler.process(element.clauses, **options)})"
    return f"({greatest} < {FURTHEST_COUNT} AND {_none_is_null(element, compiler, **options)})"


def _none_is_null(element: counts_on, compiler: SQLCompiler, **options: Any) -> str:
    counts = (compiler.process(count, **options) for count in element.clauses)
    return f"({' AND '.join(f'{count} IS NOT NULL' for count in counts)})"


@compiles(counts_on, "sqlite")
def _are_small_numbers(element: counts_on, compiler: SQLCompiler, **options: Any) -> str:
    counts = [compiler.process(count, **options) for count in element.clauses]
    return f"({' AND '.join(f'(typeof({count}) = {_WHOLE} AND {count} < {FURTHEST_COUNT})' for count in counts)})"


class one_more(FunctionElement[int]):  # noqa: N801 - reads as a phrase in a statement
    """A count and one. It fails as Postgres does where a column cannot hold that.

    SQLite would go on with a floating point number, of which it loses the last digits.
    """

    type = Integer()
    inherit_cache = True


@compiles(one_more)
def _next(element: one_more, compiler: SQLCompiler, **options: Any) -> str:
    return f"({compiler.process(element.clauses, **options)} + 1)"


@compiles(one_more, "sqlite")
def _next_or_none(element: one_more, compiler: SQLCompiler, **options: Any) -> str:
    count = compiler.process(element.clauses, **options)
    # The absolute value of the smallest number is none. Statements cannot raise errors otherwise, outside of triggers.
    failing = f"abs(-{2**63 - 1} - 1)"
    return f"CASE WHEN typeof({count}) = {_WHOLE} AND {count} < {LARGEST_COUNT} THEN {count} + 1 ELSE {failing} END"
