"""Whether a value and what was loaded from its JSON are the same, all the way down; and if not, where and why.

Same means same to the type. What Python calls equal is not enough where JSON, or the way back, loses something that
two equal values may differ in: a deque's `maxlen`, a time's zone, a subclass. And a value that is equal but of another
class than the loaded one is the same if its type makes that class of it anyway, as of the 0 in `score: float = 0`.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

from pydantic import BaseModel, TypeAdapter

_SCALARS: Final = frozenset({str, int, float, bool, type(None), Decimal, date})
_MISSING: Final = object()
_Pairs = Iterable[tuple[Any, Any]]


class Difference(NamedTuple):
    path: str
    """The place inside the value: `.items[3].price`."""
    remedy: str


def same_to(adapter: TypeAdapter[Any], one: Any, other: Any) -> bool:
    """Whether `other`, just loaded, is what `one` is to the type of `adapter`."""
    if _same(one, other):
        return True
    if not _same(one, other, to_python=True):
        return False
    try:
        plain = adapter.dump_python(one, mode="python", by_alias=True, round_trip=True, warnings=False)
        return _same(adapter.validate_python(plain), other)
    except BaseException:  # noqa: BLE001 - a serializer or a validator of the application's may raise anything
        return False


def difference(one: Any, other: Any) -> Difference:
    """Where two values that are not the same differ first, and what can be done about it."""
    kind: Any = type(one)
    composite = _composite_of(kind)
    if composite is not None and type(one) is type(other) and composite.is_alike(one, other):
        parts = list(zip(composite.places(one, other), composite.pairs(one, other), strict=True))
        for to_python in (True, False):  # first what Python, too, calls another value
            for place, (a, b) in parts:
                if not _same(a, b, to_python=to_python):
                    inner = difference(a, b)
                    return Difference(place + inner.path, inner.remedy)
    return Difference("", _remedy(one, other))


def _same(one: Any, other: Any, *, to_python: bool = False) -> bool:
    """`to_python`: of values that Python calls equal the class makes no difference."""
    kind: Any = type(one)
    if kind in _SCALARS:
        return (kind is type(other) or to_python) and _equal(one, other)
    composite = _composite_of(kind)
    if composite is None:
        return _same_single(one, other, to_python=to_python)
    if kind is not type(other):
        return to_python and _equal(one, other)
    return composite.is_alike(one, other) and all(
        _same(a, b, to_python=to_python) for a, b in composite.pairs(one, other)
    )


def _same_single(one: Any, other: Any, *, to_python: bool) -> bool:
    """Of values that have no parts."""
    if isinstance(one, datetime | time):
        return _same_time(one, other)
    if isinstance(one, ZoneInfo):
        return isinstance(other, ZoneInfo) and bool(one.key) and one.key == other.key
    related = isinstance(one, type(other)) or isinstance(other, type(one))
    alike = to_python or all(isinstance(one, kind) is isinstance(other, kind) for kind in (bool, Enum))
    return related and alike and _equal(one, other)


def _same_time(one: datetime | time, other: Any) -> bool:
    """JSON has a time's distance to UTC and neither its zone, which says what it is on another day, nor its fold."""
    if not (isinstance(other, type(one)) or isinstance(one, type(other))):
        return False
    if one.tzinfo is None:
        return bool(one.fold == other.fold) and _equal(one, other)
    return _is_fixed(one) and _equal(one, other) and bool(one.utcoffset() == other.utcoffset())


def _is_fixed(moment: datetime | time) -> bool:
    return moment.tzinfo is None or moment.tzinfo.utcoffset(None) is not None


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except BaseException:  # noqa: BLE001 - an __eq__ of the application's
        return False


# --- what has parts --------------------------------------------------------------------------------------------------


class _Composite(NamedTuple):
    """How two values of one class are compared by their parts."""

    is_alike: Callable[[Any, Any], bool]
    """Whether what is around the parts is the same."""
    pairs: Callable[[Any, Any], _Pairs]
    """The parts of both, side by side."""
    places: Callable[[Any, Any], Iterable[str]]
    """Where these are."""


def _extra_keys_are_alike(one: BaseModel, other: BaseModel) -> bool:
    return (one.model_extra or {}).keys() == (other.model_extra or {}).keys()


def _of_model(one: BaseModel, other: BaseModel) -> Iterator[tuple[Any, Any]]:
    # `other` was just loaded: it has no properties that were cached, and private attributes are no part of a value.
    values = vars(one)
    for name, value in vars(other).items():
        yield values.get(name, _MISSING), value
    for name, value in (other.model_extra or {}).items():
        yield (one.model_extra or {})[name], value


def _places_in_model(_: BaseModel, other: BaseModel) -> list[str]:
    return [f".{name[:64]}" for name in (*vars(other), *(other.model_extra or {}))]


def _of_dict(one: dict[Any, Any], other: dict[Any, Any]) -> Iterator[tuple[Any, Any]]:
    keys = other if all(type(key) is str for key in one) else {key: key for key in other}
    for key, value in one.items():
        yield value, other[key]
        if keys is not other:
            yield key, keys[key]


def _places_in_dict(one: dict[Any, Any], _: dict[Any, Any]) -> Iterator[str]:
    has_other_keys = any(type(key) is not str for key in one)
    for key in one:
        yield f"[{key[:64]!r}]" if type(key) is str else "[…]"
        if has_other_keys:
            yield "[a key]"


def _of_set(one: Any, other: Any) -> Iterator[tuple[Any, Any]]:
    members = {member: member for member in other}
    return ((member, members[member]) for member in one)


def _of_dataclass(one: Any, other: Any) -> Iterator[tuple[Any, Any]]:
    for name in _compared(one):
        yield getattr(one, name, _MISSING), getattr(other, name, _MISSING)


def _compared(value: Any) -> list[str]:
    return [field.name for field in fields(value) if field.compare]


def _numbers(one: Any, _: Any) -> Iterator[str]:
    return (f"[{number}]" for number in range(len(one)))


def _are_as_long(one: Any, other: Any) -> bool:
    return len(one) == len(other)


_COMPOSITES: Final[tuple[tuple[type | tuple[type, ...], _Composite], ...]] = (
    (BaseModel, _Composite(_extra_keys_are_alike, _of_model, _places_in_model)),
    (OrderedDict, _Composite(lambda one, other: list(one) == list(other), _of_dict, _places_in_dict)),
    (
        defaultdict,
        _Composite(
            lambda one, other: one.default_factory is other.default_factory and one.keys() == other.keys(),
            _of_dict,
            _places_in_dict,
        ),
    ),
    (dict, _Composite(lambda one, other: one.keys() == other.keys(), _of_dict, _places_in_dict)),
    (deque, _Composite(lambda one, other: one.maxlen == other.maxlen and len(one) == len(other), zip, _numbers)),
    ((list, tuple), _Composite(_are_as_long, zip, _numbers)),
    ((set, frozenset), _Composite(_equal, _of_set, lambda one, _: ("[…]" for _ in one))),
)
_DATACLASS: Final = _Composite(lambda *_: True, _of_dataclass, lambda one, _: (f".{name}" for name in _compared(one)))
# Compared by identity, which nothing keeps, so by what they hold.
_WITHOUT_EQUALITY: Final = _Composite(
    lambda one, other: vars(one).keys() == vars(other).keys(),
    lambda one, other: ((value, vars(other)[name]) for name, value in vars(one).items()),
    lambda one, _: (f".{name}" for name in vars(one)),
)


@lru_cache(maxsize=1024)
def _composite_of(kind: Any) -> _Composite | None:
    for base, composite in _COMPOSITES:
        if issubclass(kind, base):
            return composite
    if is_dataclass(kind):
        return _DATACLASS
    equality: Any = kind.__eq__
    by_identity = equality is object.__eq__ and not issubclass(kind, Enum) and "__dict__" in dir(kind)
    return _WITHOUT_EQUALITY if by_identity else None


# --- what to do about it ---------------------------------------------------------------------------------------------

_ZONE: Final = (
    "only the distance of its time zone to UTC is stored: convert it with `.astimezone(UTC)`, "
    "and store the zone's name beside it"
)
_FOLD: Final = "its `fold` is not stored: give it a time zone"
_MAXLEN: Final = "its `maxlen` is not stored: use a list, or a deque without"
_FACTORY: Final = "its `default_factory` is not stored: use a dict, or the factory of the type"
_KEYS: Final = "it loads with other keys, or in another order: declare the type of its keys, or convert them before"
_NOT_STORED: Final = "it is not stored: give it a serializer, or leave it out of the comparison"
UNDONE: Final = "give its type a validator and a serializer that undo each other"
_ANOTHER: Final = (
    "another value is loaded: it is excluded (`exclude=True`), or its serializer and its validators do not undo each "
    "other"
)


def _remedy(one: Any, other: Any) -> str:
    if isinstance(one, datetime | time) and (one.fold or not _is_fixed(one)):
        return _FOLD if _is_fixed(one) else _ZONE
    if one is _MISSING or other is _MISSING:
        return _NOT_STORED
    if type(one) is not type(other):
        mine, loaded = type(one).__qualname__, type(other).__qualname__
        return f"a {mine} loads as a {loaded}: declare its type so that it loads as a {mine}, or convert it before"
    if isinstance(one, deque) and one.maxlen != other.maxlen:
        return _MAXLEN
    if isinstance(one, dict):
        return _FACTORY if one.keys() == other.keys() else _KEYS
    return _ANOTHER
