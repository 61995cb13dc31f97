"""Compiled statements, which the stores of a process share: they are the same for all databases of one kind.

SQLAlchemy compiles each statement anew for each engine. A store for each tenant, or for each test, would spend more on
that than on its first run. What is shared is a function of statement and dialect alone, as in `functools.cache`: no
name of a database or connection is in it.

SQLAlchemy keeps a statement together with the values that stood in it when it was compiled. In ours these are at most
ids, names, times and numbers: a payload, or its digest, is always given to a statement as a parameter. What is in the
statements of the caller's code, nobody knows: those are kept by their store, and go with it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, MutableMapping
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Dialect, Engine, Executable
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator_state.database.internals import LRUCache

_Compiled = TypeVar("_Compiled")

# Twice as many as we have statements on both databases, and SQLAlchemy keeps half as many again.
_MOST: Final = 1000
_MOST_OF_CALLERS: Final = 500  # as SQLAlchemy's own engines
_OPTION: Final = "compiled_cache"  # of SQLAlchemy's
_PLAIN: Final = (bool, int, str, tuple, type(None))
_shared: Final[LRUCache[Hashable, Any]] = LRUCache(_MOST)


def compiled_once(
    kind: Hashable, statement: Executable, compile_statement: Callable[[Executable], _Compiled]
) -> _Compiled:
    """What `compile_statement` makes of `statement`, or has made of it for another database of this kind."""
    key = (kind, statement)
    found: _Compiled | None = _shared.get(key)
    if found is None:
        found = _shared[key] = compile_statement(statement)
    return found


def kind_of(dialect: Dialect) -> Hashable:
    """Equal for two dialects that compile statements alike: of one class, with equal options, and of equal servers."""
    kind = type(dialect)
    said = {name: value for name, value in vars(dialect).items() if isinstance(value, _PLAIN)}
    # What a dialect has worked out of the rest, and remembers, it has only once it has compiled something.
    worked_out = {name for name in said if hasattr(getattr(kind, name, None), "__get__")}
    return kind, frozenset((name, value) for name, value in said.items() if name not in worked_out)


def share_compiled(engine: AsyncEngine) -> None:
    """Let what `engine` and its views compile be there for others, and use what they have compiled."""
    engine.update_execution_options(**{_OPTION: SharedCache(engine.dialect)})


def keep_compiled_apart(connection: Connection) -> None:
    """Let what the caller's code executes on `connection` be kept by its engine alone."""
    shared = shared_cache(connection.engine).get(_OPTION)
    if shared is not None:
        connection.execution_options(**{_OPTION: shared.of_callers_code})


def shared_cache(engine: Engine | Connection) -> dict[str, SharedCache]:
    """The execution option by which a statement of ours is compiled once, whoever has the connection."""
    cache = engine.get_execution_options().get(_OPTION)
    return {_OPTION: cache} if isinstance(cache, SharedCache) else {}


class SharedCache(MutableMapping[Any, Any]):
    """The `compiled_cache` of an engine: what SQLAlchemy has compiled for any engine of its kind.

    SQLAlchemy has the engine's dialect in its keys, another object for each engine; here its kind stands there.
    """

    def __init__(self, dialect: Dialect) -> None:
        self.of_callers_code: Final[LRUCache[Any, Any]] = LRUCache(_MOST_OF_CALLERS)
        self._dialect = dialect
        self._kind: Hashable = None

    def get(self, key: Any, default: Any = None) -> Any:
        return _shared.get(self._common(key), default)

    def __getitem__(self, key: Any) -> Any:
        return _shared[self._common(key)]

    def __setitem__(self, key: Any, compiled: Any) -> None:
        _shared[self._common(key)] = compiled

    def __delitem__(self, key: Any) -> None:
        del _shared[self._common(key)]

    def __iter__(self) -> Iterator[Any]:
        return iter(_shared)

    def __len__(self) -> int:
        return len(_shared)

    def _common(self, key: Any) -> Hashable:
        if self._kind is None:  # only now, since a dialect knows its server when it has connected for the first time
            self._kind = kind_of(self._dialect)
        return (self._kind, *(part for part in key if part is not self._dialect))
