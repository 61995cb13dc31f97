"""The dict that a handler has as its run's context: a dict that tells which of its keys somebody took up."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

_SCALARS: Final = frozenset({str, int, float, bool, type(None)})
_MISSING: Final = object()

Touch = Callable[[str | None], None]
"""Called with a key before it is set or deleted, or before its list or dict is handed out; with None for all keys."""


class ContextDict(dict[str, Any]):
    """Equal to a dict, and a dict to everybody; a copy of it, in whatever way, is a plain one."""

    __slots__ = ("_touch",)

    def __init__(self, values: dict[str, Any], touch: Touch) -> None:
        super().__init__(values)
        self._touch = touch

    def _handed_out(self, key: str, value: Any) -> Any:
        if type(value) not in _SCALARS:
            self._touch(key)
        return value

    # --- reads -------------------------------------------------------------------------------------------------------

    def __getitem__(self, key: str) -> Any:
        return self._handed_out(key, super().__getitem__(key))

    def get(self, key: str, default: Any = None) -> Any:
        return self._handed_out(key, super().get(key, default))

    # Overridden so that `dict(context)`, `{**context}` and the like come through here.
    def __iter__(self) -> Iterator[str]:
        return super().__iter__()

    def items(self) -> Any:
        self._touch(None)
        return super().items()

    def values(self) -> Any:
        self._touch(None)
        return super().values()

    def copy(self) -> dict[str, Any]:
        self._touch(None)
        return self.plain()

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return copy.deepcopy(self.plain(), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (self.plain(),)

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __ror__(self, other: Any) -> Any:
        return other | self.copy()

    # --- writes ------------------------------------------------------------------------------------------------------

    def __setitem__(self, key: str, value: Any) -> None:
        self._touch(key)
        super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        self._touch(key)
        super().__delitem__(key)

    def setdefault(self, key: str, default: Any = None) -> Any:
        self._touch(key)
        return super().setdefault(key, default)

    def pop(self, key: str, default: Any = _MISSING) -> Any:
        self._touch(key)
        return super().pop(key) if default is _MISSING else super().pop(key, default)

    def popitem(self) -> tuple[str, Any]:
        self._touch(next(reversed(self), None))
        return super().popitem()

    def clear(self) -> None:
        for key in self:
            self._touch(key)
        super().clear()

    def update(self, *others: Any, **values: Any) -> None:
        for key, value in dict(*others, **values).items():
            self[key] = value

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        return self

    # --- for those who store it: nobody is told ----------------------------------------------------------------------

    def put(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)

    def drop(self, keys: Iterable[str]) -> None:
        for key in keys:
            super().pop(key, None)

    def plain(self) -> dict[str, Any]:
        """A plain dict of the same values."""
        return dict(super().items())
