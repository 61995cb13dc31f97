"""Values of the application's own types, to JSON and back through pydantic.

What was stored is what is returned, the first time too: a value that does not load back equal is refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import lru_cache, partial
from typing import Any, Final

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from orchestrator_state.concurrency import Aside
from orchestrator_state.errors import ConfigurationError, InvalidPayload
from orchestrator_state.payloads.canonical import Encode, decode_long, encode
from orchestrator_state.payloads.round_trip import UNDONE, difference, same_to

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
        hash(kind)
    except BaseException:  # noqa: BLE001 - not hashable, such as Annotated[int, [...]]
        return _adapter(kind)
    return _cached_adapter(kind)


def _adapter(kind: Any) -> TypeAdapter[Any]:
    if isinstance(kind, str):
        raise ConfigurationError("a type is to be given by itself, not by its name")
    try:
        adapter = TypeAdapter(kind)
        adapter.core_schema["type"]  # where a name in it is not defined yet, pydantic says so only now
        return adapter
    except PydanticUserError as error:
        raise ConfigurationError(f"pydantic cannot validate {name_of(kind)} ({error.code})") from None
    except BaseException as error:  # noqa: BLE001 - a type of the application's may make its schema by itself
        raise ConfigurationError(f"pydantic cannot validate {name_of(kind)} ({type(error).__qualname__})") from None


_cached_adapter: Final = lru_cache(maxsize=1024)(_adapter)


def encode_value(kind: Any, value: Any, path: str, encode: Encode = encode) -> tuple[str, Any]:
    """Return the JSON text of `value`, and the value as it loads from there.

    Raises `InvalidPayload` if `kind` does not accept it, or if it would not load back equal.
    """
    adapter = adapter_of(kind)
    try:
        accepted = validated(lambda: adapter.validate_python(value), path)
    except Unreadable as error:
        raise InvalidPayload(f"the type does not accept {error}", path=error.paths[0]) from None
    text = dump(adapter, accepted, path, encode)
    try:
        loaded = validated(lambda: adapter.validate_json(text), path)
    except Unreadable as error:
        message = f"{error} would not load back as {name_of(kind)}, which does not accept its JSON: {UNDONE}"
        raise InvalidPayload(message, path=error.paths[0]) from None
    if not same_to(adapter, accepted, loaded):
        found = difference(accepted, loaded)
        path += found.path
        raise InvalidPayload(f"{path} would not load back equal as {name_of(kind)}: {found.remedy}", path=path)
    return text, loaded


def decode_value(kind: Any, text: str, path: str) -> Any:
    """Return the value of stored JSON `text`; `kind` None is plain JSON. Raises `Unreadable`, `CorruptPayload`."""
    if kind is None:
        return decode_long(text, path)
    return validated(lambda: adapter_of(kind).validate_json(text), path)


async def decode_aside(aside: Aside, kind: Any, text: str, path: str) -> Any:
    """`decode_value`, beside the event loop if it is long; validators of a type are called in the loop all the same."""
    return await aside.call(partial(decode_value, kind, text, path), len(text) if kind is None else 0)


def dump(adapter: TypeAdapter[Any], value: Any, path: str, encode: Encode = encode) -> str:
    """The canonical JSON text of `value`. Raises `InvalidPayload`."""
    try:
        # Without pydantic's warnings, which quote values: what they warn of does not load back equal.
        plain = adapter.dump_python(value, mode="json", by_alias=True, round_trip=True, warnings=False)
    except BaseException as error:  # noqa: BLE001 - a serializer of the application's may raise anything, values in it
        raise InvalidPayload(f"{path} cannot be dumped to JSON ({type(error).__qualname__})", path=path) from None
    return encode(plain, path)


def validated(validate: Callable[[], Any], path: str) -> Any:
    """Return `validate()`. Raises `Unreadable` for whatever it raises, without the values that are in there."""
    try:
        return validate()
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)
        raise Unreadable((_spell(path, each["loc"]) for each in found), (each["type"] for each in found)) from None
    except BaseException as error:  # noqa: BLE001 - a validator of the application's may raise anything, values in it
        raise Unreadable((path,), (type(error).__qualname__,)) from None


async def encode_plain(value: Any, path: str, encode: Callable[[Any, str], Awaitable[str]]) -> str:
    """`encode_value` of plain JSON, with an `encode` that takes its time."""
    try:
        return await encode(value, path)
    except InvalidPayload as error:
        raise _hinting_at_types(error) from None


def _hinting_at_types(error: InvalidPayload) -> InvalidPayload:
    if "found" not in error.about:
        return error
    return InvalidPayload(f"{error}, or pass `returns=` with its type", **error.about)


def _spell(path: str, location: tuple[int | str, ...]) -> str:
    """`("items", 3, "price")` -> `context.items[3].price`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part[:64]}" for part in location]
    return path + "".join(parts)


def name_of(kind: Any) -> str:
    """What a type is called in messages."""
    try:
        return str(getattr(kind, "__qualname__", None) or str(kind))
    except BaseException:  # noqa: BLE001 - of the application's
        return type(kind).__qualname__
