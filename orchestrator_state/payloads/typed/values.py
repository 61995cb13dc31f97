"""Values of the application's own types, to JSON and back through pydantic.

What was stored is what is returned, the first time too: a value that does not load back equal is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache
from typing import Any, Final

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from orchestrator_state.errors import ConfigurationError, InvalidPayload
from orchestrator_state.payloads.canonical import Encode, decode_long
from orchestrator_state.payloads.canonical import encode as encode_json
from orchestrator_state.payloads.typed.round_trip import UNDONE, difference, same_to
from orchestrator_state.payloads.typed.storable import flaw_of_type

_MOST_PATHS: Final = 5


class NotAccepted(Exception):
    """A type does not accept a value. `paths` are the places inside it; the value itself is nowhere in here."""

    def __init__(self, paths: Iterable[str], reasons: Iterable[str]) -> None:
        self.paths = tuple(paths)
        found = [f"{path} ({reason})" for path, reason in zip(self.paths, reasons, strict=True)]
        more = f", and {len(found) - _MOST_PATHS} more" if len(found) > _MOST_PATHS else ""
        super().__init__(", ".join(found[:_MOST_PATHS]) + more)


class ValueType:
    """A type whose values are stored as JSON. Take it from `of`, which makes it once for each type."""

    def __init__(self, kind: Any) -> None:
        """Raises `ConfigurationError` for what pydantic has no schema for."""
        self._kind = kind
        self._adapter = _adapter(kind)

    @staticmethod
    def of(kind: Any) -> ValueType:
        """Raises `ConfigurationError` for what pydantic has no schema for."""
        try:
            hash(kind)
        except BaseException:  # noqa: BLE001 - not hashable, such as Annotated[int, [...]]
            return ValueType(kind)
        return _cached(kind)

    def require_storable(self) -> None:
        """Raise `ConfigurationError`, with place and remedy, if no value of the type could be stored and loaded."""
        if self._flaw is not None:
            place, reason = self._flaw
            raise ConfigurationError(f"no {_name_of(self._kind)}{place} can be stored: {reason}")

    @cached_property
    def _flaw(self) -> tuple[str, str] | None:
        schema: Any = self._adapter.core_schema
        return flaw_of_type(schema)

    def encode(self, value: Any, path: str, encode: Encode = encode_json) -> tuple[str, Any]:
        """Return the JSON text of `value`, and the value as it loads from there.

        Raises `InvalidPayload` if the type does not accept it, or if it would not load back equal.
        """
        try:
            accepted = _validated(lambda: self._adapter.validate_python(value), path)
        except NotAccepted as error:
            raise InvalidPayload(f"the type does not accept {error}", path=error.paths[0]) from None
        text = self.dump(accepted, path, encode)
        try:
            loaded = self.decode(text, path)
        except NotAccepted as error:
            message = f"{error} would not load back as {_name_of(self._kind)}, which does not accept its JSON: {UNDONE}"
            raise InvalidPayload(message, path=error.paths[0]) from None
        self.check_same(accepted, loaded, path)
        return text, loaded

    def json_schema(self) -> dict[str, Any] | None:
        """What JSON the type accepts, as far as a JSON schema can say that. None if it cannot."""
        try:
            schema: dict[str, Any] = _without_non_finite(self._adapter.json_schema())
        except PydanticUserError:
            return None
        return schema

    def dump(self, value: Any, path: str, encode: Encode = encode_json) -> str:
        """The canonical JSON text of `value`, whatever it loads as. Raises `InvalidPayload`."""
        try:
            # Without pydantic's warnings, which quote values: what they warn of does not load back equal.
            plain = self._adapter.dump_python(value, mode="json", by_alias=True, round_trip=True, warnings=False)
        except BaseException as error:  # noqa: BLE001 - a serializer of the application's may raise anything, values in it
            raise InvalidPayload(f"{path} cannot be dumped to JSON ({type(error).__qualname__})", path=path) from None
        return encode(plain, path)

    def decode(self, text: str, path: str) -> Any:
        """The value of stored JSON `text`. Raises `NotAccepted`."""
        return _validated(lambda: self._adapter.validate_json(text), path)

    def check_same(self, value: Any, loaded: Any, path: str) -> None:
        """Raise `InvalidPayload`, with the place and a remedy, unless `loaded` is what `value` was."""
        if not same_to(self._adapter, value, loaded):
            found = difference(value, loaded)
            path += found.path
            raise InvalidPayload(
                f"{path} would not load back equal as {_name_of(self._kind)}: {found.remedy}", path=path
            )


def decode_value(kind: Any, text: str, path: str) -> Any:
    """Return the value of stored JSON `text`; `kind` None is plain JSON. Raises `NotAccepted`, `CorruptPayload`."""
    return decode_long(text, path) if kind is None else ValueType.of(kind).decode(text, path)


_cached: Final = lru_cache(maxsize=1024)(ValueType)


def _without_non_finite(schema: Any) -> Any:
    """Without the keys whose value JSON has no number for, such as a default that is infinite."""
    if isinstance(schema, dict):
        return {key: _without_non_finite(value) for key, value in schema.items() if not _is_non_finite(value)}
    return [_without_non_finite(item) for item in schema] if isinstance(schema, list) else schema


def _is_non_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _adapter(kind: Any) -> TypeAdapter[Any]:
    if isinstance(kind, str):
        raise ConfigurationError("a type is to be given by itself, not by its name")
    try:
        adapter = TypeAdapter(kind)
        adapter.core_schema["type"]  # where a name in it is not defined yet, pydantic says so only now
        return adapter
    except PydanticUserError as error:
        raise ConfigurationError(f"pydantic cannot validate {_name_of(kind)} ({error.code})") from None
    except BaseException as error:  # noqa: BLE001 - a type of the application's may make its schema by itself
        raise ConfigurationError(f"pydantic cannot validate {_name_of(kind)} ({type(error).__qualname__})") from None


def _validated(validate: Callable[[], Any], path: str) -> Any:
    """Return `validate()`. Raises `NotAccepted` for whatever it raises, without the values that are in there."""
    try:
        return validate()
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)
        raise NotAccepted((_spell(path, each["loc"]) for each in found), (each["type"] for each in found)) from None
    except BaseException as error:  # noqa: BLE001 - a validator of the application's may raise anything, values in it
        raise NotAccepted((path,), (type(error).__qualname__,)) from None


def _spell(path: str, location: tuple[int | str, ...]) -> str:
    """`("items", 3, "price")` -> `context.items[3].price`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part[:64]}" for part in location]
    return path + "".join(parts)


def _name_of(kind: Any) -> str:
    """What a type is called in messages."""
    try:
        return str(getattr(kind, "__qualname__", None) or str(kind))
    except BaseException:  # noqa: BLE001 - of the application's
        return type(kind).__qualname__
