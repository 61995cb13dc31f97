"""What a handler holds of its run's context: a dict, or a model of the application's. Stored it is the same JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

import msgspec
from pydantic import BaseModel

from orchestrator_state.codecs import Encode, decode, encode
from orchestrator_state.errors import InvalidPayload
from orchestrator_state.typed_values import Unreadable, adapter_of, dump, same, validated

Encoded = dict[str, str]
"""A context by top-level key, each value as JSON."""


def split(text: str, path: str) -> Encoded:
    """Take the JSON text of an object apart by top-level key, without decoding the values."""
    try:
        return {key: bytes(value).decode() for key, value in _split(text).items()}
    except (msgspec.DecodeError, ValueError, TypeError, RecursionError):
        raise InvalidPayload(f"{path} is not a JSON object", path=path) from None


_split: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def join(parts: Mapping[str, str]) -> str:
    """The JSON text of an object whose values are JSON texts already."""
    text: bytes = msgspec.json.encode({key: msgspec.Raw(value.encode()) for key, value in parts.items()})
    return text.decode()


class ContextValue(Protocol):
    """One object for the whole attempt, which the handler may keep in a variable, and changes."""

    @property
    def value(self) -> Any: ...

    def encoded(self) -> Encoded:
        """What it is now. Raises `InvalidPayload` if that cannot be stored."""

    def take(self, recorded: Encoded, keys: Iterable[str]) -> None:
        """Let `keys` be as in `recorded`, a whole context; the others stay as the handler left them."""

    def append(self, key: str, item: Any) -> None:
        """Append `item` to the list at `key`."""


class PlainContext:
    """A dict of JSON."""

    def __init__(self, start: Encoded, encode: Encode = encode) -> None:
        self.value: dict[str, Any] = {key: decode(text, "context") for key, text in start.items()}
        self._encode = encode

    def encoded(self) -> Encoded:
        if type(self.value) is not dict:
            raise InvalidPayload("context must stay a dict", path="context")
        encoded: Encoded = {}
        for key, item in self.value.items():
            # With its key, so that keys are checked, and levels counted, as in the whole context.
            text = self._encode({key: item}, "context")
            encoded[key] = text[len(msgspec.json.encode(key).decode()) + 2 : -1]
        return encoded

    def take(self, recorded: Encoded, keys: Iterable[str]) -> None:
        for key in keys:
            if key in recorded:
                self.value[key] = decode(recorded[key], f"context.{key}")
            else:
                self.value.pop(key, None)

    def append(self, key: str, item: Any) -> None:
        self._encode(item, f"context.{key}")
        _append(self.value.setdefault(key, []), key, item)


class TypedContext:
    """A model. Its JSON has the models' aliases as keys, and no computed fields."""

    def __init__(self, model: type[BaseModel], start: Encoded, encode: Encode = encode) -> None:
        """Raises `Unreadable` if the model does not accept `start`."""
        self._encode = encode
        self._adapter = adapter_of(model)
        self.value: BaseModel = self._read(start)
        self._fields = {
            info.serialization_alias or info.alias or name: name for name, info in model.model_fields.items()
        }
        self._sound: str | None = None
        """The last JSON that was seen to load back equal."""

    def encoded(self) -> Encoded:
        text = dump(self._adapter, self.value, "state", self._encode)
        if text != self._sound:
            try:
                loaded = validated(lambda: self._adapter.validate_json(text), "state")
            except Unreadable as error:
                raise InvalidPayload(f"the model does not accept {error}", path=error.paths[0]) from None
            if not same(self.value, loaded):
                raise self._not_the_same(loaded)
            self._sound = text
        return split(text, "state")

    def _not_the_same(self, loaded: BaseModel) -> InvalidPayload:
        values = vars(self.value)
        changed = (name for name, value in vars(loaded).items() if not same(values.get(name), value))
        path = ".".join(["state", *list(changed)[:1]])
        return InvalidPayload(f"{path} would not load back equal", path=path)

    def take(self, recorded: Encoded, keys: Iterable[str]) -> None:
        touched = list(keys)
        if not touched:
            return
        loaded = self._read(recorded)
        # Past the model's own assignment, which may be forbidden, or checked against fields that come next.
        values = vars(self.value)
        for key in touched:
            if (name := self._fields.get(key)) is not None:
                values[name] = vars(loaded)[name]
                self.value.__pydantic_fields_set__.add(name)
            elif self.value.__pydantic_extra__ is not None:
                self.value.__pydantic_extra__.pop(key, None)
                self.value.__pydantic_extra__ |= {
                    extra: item for extra, item in (loaded.__pydantic_extra__ or {}).items() if extra == key
                }
        for name in [name for name in values if name not in type(self.value).model_fields]:
            del values[name]  # properties that were cached

    def append(self, key: str, item: Any) -> None:
        _append(getattr(self.value, self._fields.get(key, key), None), key, item)

    def _read(self, context: Encoded) -> BaseModel:
        model: BaseModel = validated(lambda: self._adapter.validate_json(join(context)), "context")
        return model


def _append(items: Any, key: str, item: Any) -> None:
    if type(items) is not list:
        raise InvalidPayload(f"context.{key} is not a list, so nothing can be appended to it", path=f"context.{key}")
    items.append(item)
