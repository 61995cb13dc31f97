"""Values of the application's own types, to JSON and back through pydantic.

What was stored is what is returned, the first time too: a value that does not load back equal is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Final

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from orchestrator_state.codecs import Encode, decode, encode
from orchestrator_state.errors import ConfigurationError, InvalidPayload
from orchestrator_state.round_trip import difference, same_to
from orchestrator_state.user_code import RAISED_BY_ITSELF

_MOST_PATHS: Final = 5


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
    if not same_to(adapter, accepted, loaded):
        found = difference(accepted, loaded)
        path += found.path
        raise InvalidPayload(f"{path} would not load back equal as {_name(kind)}: {found.remedy}", path=path)
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
    except RAISED_BY_ITSELF as error:  # a serializer of the application's may raise anything, values in it
        raise InvalidPayload(f"{path} cannot be dumped to JSON ({type(error).__qualname__})", path=path) from None
    return encode(plain, path)


def validated(validate: Callable[[], Any], path: str) -> Any:
    """Return `validate()`. Raises `Unreadable` for whatever it raises, without the values that are in there."""
    try:
        return validate()
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)
        raise Unreadable((_spell(path, each["loc"]) for each in found), (each["type"] for each in found)) from None
    except RAISED_BY_ITSELF as error:  # a validator of the application's may raise anything, values in it
        raise Unreadable((path,), (type(error).__qualname__,)) from None


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
