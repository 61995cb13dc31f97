"""Values of the application's own types, to JSON and back through pydantic.

What was stored is what is returned, the first time too: a value that does not load back equal is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from datetime import date
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from typing import Any, Final

from pydantic import BaseModel, PydanticUserError, TypeAdapter, ValidationError

from orchestrator_state.codecs import Encode, decode, encode
from orchestrator_state.errors import ConfigurationError, InvalidPayload

_MOST_PATHS: Final = 5
_SCALARS: Final = frozenset({str, int, float, bool, type(None), Decimal, date})


class Unreadable(Exception):
    """A type does not accept a value. `paths` are the places inside it; the value itself is nowhere in here."""

    def __init__(self, paths: Iterable[str], reasons: Iterable[str]) -> None:
        self.paths = tuple(paths)
        found = [f"{path} ({reason})" for path, reason in zip(self.paths, reasons, strict=True)]
        more = f", and {len(found) - _MOST_PATHS} more" if len(found) > _MOST_PATHS else ""
        super().__init__(", ".join(found[:_MOST_PATHS]) + more)


def adapter_of(kind: Any) -> TypeAdapter[Any]:
    """The adapter of a type, made once. Raises `ConfigurationError` for what pydantic has no schema for."""
    try:
        return _cached_adapter(kind)
    except TypeError:  # not hashable, such as Annotated[int, [...]]
        return _adapter(kind)


def _adapter(kind: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(kind)
    except PydanticUserError as error:
        raise ConfigurationError(f"pydantic cannot validate {kind!r} ({error.code})") from None


_cached_adapter: Final = lru_cache(maxsize=1024)(_adapter)


def encode_value(kind: Any, value: Any, path: str, encode: Encode = encode) -> tuple[str, Any]:
    """Return the JSON text of `value`, and the value as it loads from there; `kind` None is plain JSON.

    Raises `InvalidPayload` if `kind` does not accept it, or if it would not load back equal.
    """
    if kind is None:
        return _encode_plain(value, path, encode), value
    adapter = adapter_of(kind)
    try:
        accepted = validated(lambda: adapter.validate_python(value), path)
        text = dump(adapter, accepted, path, encode)
        loaded = validated(lambda: adapter.validate_json(text), path)
    except Unreadable as error:
        raise InvalidPayload(f"the type does not accept {error}", path=error.paths[0]) from None
    if not same(accepted, loaded):
        raise InvalidPayload(f"{path} would not load back equal as {_name(kind)}", path=path)
    return text, loaded


def decode_value(kind: Any, text: str, path: str) -> Any:
    """Return the value of stored JSON `text`; `kind` None is plain JSON. Raises `Unreadable`, `CorruptPayload`."""
    if kind is None:
        return decode(text, path)
    return validated(lambda: adapter_of(kind).validate_json(text), path)


def dump(adapter: TypeAdapter[Any], value: Any, path: str, encode: Encode = encode) -> str:
    """The canonical JSON text of `value`. Raises `InvalidPayload`."""
    try:
        # Without pydantic's warnings, which quote values: what they warn of does not load back equal.
        plain = adapter.dump_python(value, mode="json", by_alias=True, round_trip=True, warnings=False)
    except Exception as error:  # noqa: BLE001 - a serializer of the application's may raise anything, values in it
        raise InvalidPayload(f"{path} cannot be dumped to JSON ({type(error).__qualname__})", path=path) from None
    return encode(plain, path)


def validated(validate: Callable[[], Any], path: str) -> Any:
    """Return `validate()`. Raises `Unreadable` for whatever it raises, without the values that are in there."""
    try:
        return validate()
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)
        raise Unreadable((_spell(path, each["loc"]) for each in found), (each["type"] for each in found)) from None
    except Exception as error:  # noqa: BLE001 - a validator of the application's may raise anything, values in it
        raise Unreadable((path,), (type(error).__qualname__,)) from None


def same(one: Any, other: Any) -> bool:
    """Whether a value and what it was loaded as are equal all the way down, in type too where JSON could change it."""
    if type(one) in _SCALARS:
        return type(one) is type(other) and bool(one == other)
    if isinstance(one, BaseModel | dict | list | tuple) or _is_dataclass(one):
        return type(one) is type(other) and _same_parts(one, other)
    related = isinstance(one, type(other)) or isinstance(other, type(one))
    alike = all(isinstance(one, kind) is isinstance(other, kind) for kind in (bool, Enum))
    return related and alike and bool(one == other)


def _same_parts(one: Any, other: Any) -> bool:
    if isinstance(one, BaseModel):
        # `other` was just loaded: it has no properties that were cached, and private attributes are no part of a value.
        values = vars(one)
        has_fields = all(name in values and same(values[name], value) for name, value in vars(other).items())
        return has_fields and same(one.model_extra, other.model_extra)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))


def _is_dataclass(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def _encode_plain(value: Any, path: str, encode: Encode) -> str:
    try:
        return encode(value, path)
    except InvalidPayload as error:
        if "found" not in error.about:
            raise
        raise InvalidPayload(f"{error}, or pass `returns=` with its type", **error.about) from None


def _spell(path: str, location: tuple[int | str, ...]) -> str:
    """`("items", 3, "price")` -> `context.items[3].price`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part[:64]}" for part in location]
    return path + "".join(parts)


def _name(kind: Any) -> str:
    return getattr(kind, "__qualname__", None) or str(kind)
