"""What a handler holds of its run's context: a dict, or a model of the application's. Stored it is the same JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, Protocol

import msgspec
from pydantic import BaseModel

from orchestrator_state.errors import InvalidPayload
from orchestrator_state.payloads import (
    PLAIN,
    ContextDict,
    NotAccepted,
    Payloads,
    Touch,
    ValueType,
    decode,
    decode_long,
)
from orchestrator_state.records.context.changes.encoded import Decoded, Encoded, join, split

_MANY: Final = 1000
"""Whoever goes through the values of a dict with more keys than this counts as holding all of them."""
_CHECKED_ALWAYS: Final = 4096
"""Characters of JSON. Whether a longer value is still the same is seen from its JSON alone, which is fast."""


class LongValues(Exception):
    """Raised for values that take long to look at: have `vouch` called beside the event loop, then look again."""

    def __init__(self, vouch: Callable[[], None]) -> None:
        super().__init__()
        self.vouch = vouch


class ContextValue(Protocol):
    """What a handler has of its context: one object for the whole attempt, to keep in a variable and to change."""

    @property
    def may_have_changed(self) -> bool:
        """False as long as nobody was given the object: then it is what was put there."""

    def taken_up(self) -> Any:
        """The object, for the handler or the function of a step to read and change."""

    def snapshot(self, key: str | None) -> Encoded:
        """What it is now at `key`, or everywhere, unchecked."""

    @property
    def is_in_hand(self) -> bool:
        """Whether somebody may change it anywhere from now on without telling `Touch`."""

    def everything(self) -> Encoded:
        """What it is now, unchecked."""

    def changes(self, seen: Encoded, *, everywhere: bool, at_once: bool = True) -> tuple[Encoded, tuple[str, ...]]:
        """What is now other than in `seen`, and which keys are gone; without `everywhere`, where somebody took it up.

        Raises `InvalidPayload` if it cannot be stored, and `LongValues` if that takes long and need not be `at_once`.
        """

    def put(self, values: Encoded, gone: Iterable[str] = (), ahead: Decoded | None = None) -> None:
        """Let it have `values`, and not what is `gone`; the rest stays as the handler left it.

        Some of them may be decoded already.
        """

    def append(self, key: str, item: Any) -> None:
        """Append `item` to the list at `key`."""


class PlainContext:
    """A dict of JSON."""

    def __init__(self, start: Encoded, touch: Touch, payloads: Payloads = PLAIN) -> None:
        self._value = ContextDict(
            {key: decode_long(text, "context") for key, text in start.items()}, touch=self._taken_up
        )
        self._touch = touch
        self._payloads = payloads
        self._vouched: Encoded = {}
        """The JSON of long values that were found fit to be stored."""
        self._taken: set[str] = set()
        self._is_all_taken = False
        self.may_have_changed = False

    def taken_up(self) -> ContextDict:
        self.may_have_changed = True
        return self._value

    def _taken_up(self, key: str | None) -> None:
        if key is not None:
            self._touch(key)
            self._taken.add(key)
        elif len(self._value) > _MANY:
            self._touch(None)
            self._is_all_taken = True
        else:
            for each in [each for each, item in self._value.plain().items() if isinstance(item, dict | list)]:
                self._taken_up(each)

    def snapshot(self, key: str | None) -> Encoded:
        if key is None:
            return {}
        value = self._value.plain()
        return {key: _unchecked(value[key]) or "null"} if key in value else {}

    is_in_hand = False

    def everything(self) -> Encoded:
        return {key: _unchecked(item) or "null" for key, item in self._value.plain().items()}

    def changes(self, seen: Encoded, *, everywhere: bool, at_once: bool = True) -> tuple[Encoded, tuple[str, ...]]:
        value = self._value.plain()
        keys: Iterable[Any] = value if everywhere or self._is_all_taken else self._taken
        changed: Encoded = {}
        long: dict[str, Any] = {}
        for key in keys:
            if key not in value:
                continue
            before = seen.get(key)
            text = self._text_of(key, value[key], before, at_once=at_once)
            if text is None:
                long[key] = value[key]
            elif text != before:
                changed[key] = text
        if long:
            raise LongValues(partial(self._vouch, long))
        self._vouched.clear()
        if keys is value and len(value) == len(seen) and not changed:
            return changed, ()
        return changed, tuple(key for key in (seen if keys is value else self._taken & seen.keys()) if key not in value)

    def _text_of(self, key: Any, item: Any, before: str | None, *, at_once: bool) -> str | None:
        """The JSON of what is at `key`, checked; None if that takes long and need not be `at_once`."""
        if (before is not None and len(before) > _CHECKED_ALWAYS) or key in self._vouched:
            text = _unchecked(item)
            if text and text in (before, self._vouched.get(key)):
                return text
        return self._checked(key, item) if at_once else self._checked_if_small(key, item)

    def _checked(self, key: Any, item: Any) -> str:
        # With its key, so that keys are checked, and levels counted, as in the whole context.
        return _without_key(key, self._payloads.encode({key: item}, "context"))

    def _checked_if_small(self, key: Any, item: Any) -> str | None:
        text = self._payloads.encode_small({key: item}, "context")
        return None if text is None else _without_key(key, text)

    def _vouch(self, items: Mapping[str, Any]) -> None:
        for key, item in items.items():
            text = self._payloads.encode_steady({key: item}, "context")
            if text is not None:
                self._vouched[key] = _without_key(key, text)

    def put(self, values: Encoded, gone: Iterable[str] = (), ahead: Decoded | None = None) -> None:
        for key, text in values.items():
            known, value = ahead.pop(key, (None, None)) if ahead else (None, None)
            self._value.put(key, value if known == text else decode(text, f"context.{key}"))
        self._value.drop(gone)

    def append(self, key: str, item: Any) -> None:
        self.may_have_changed = True
        self._payloads.encode(item, f"context.{key}")
        _append(self._value.setdefault(key, []), key, item)


def _without_key(key: Any, text: str) -> str:
    return text[len(_to_json(key).decode()) + 2 : -1]


def _unchecked(value: Any) -> str:
    """The JSON of `value`, and nothing if there is none. Fast: it may hold what would load back as something else."""
    try:
        return _to_json(value).decode()
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        return ""


_to_json: Final = msgspec.json.Encoder().encode


class TypedContext:
    """A model. Its JSON has the models' aliases as keys, and no computed fields."""

    may_have_changed = True
    """Always: its defaults may not be on record."""

    def __init__(self, model: type[BaseModel], start: Encoded, touch: Touch, payloads: Payloads = PLAIN) -> None:
        """Raises `NotAccepted` if the model does not accept `start`."""
        self._encode = payloads.encode
        self._touch = touch
        self._is_taken = False
        self._type = ValueType.of(model)
        self._value: BaseModel = self._read(start)
        self._fields = {
            info.serialization_alias or info.alias or name: name for name, info in model.model_fields.items()
        }
        self._sound: str | None = None
        """The last JSON that is known to load back equal."""

    def taken_up(self) -> BaseModel:
        self._is_taken = True
        self._touch(None)
        return self._value

    def snapshot(self, key: str | None) -> Encoded:
        try:
            return split(self._type.dump(self._value, "state", self._encode), "state")
        except InvalidPayload:
            return {}

    @property
    def is_in_hand(self) -> bool:
        return self._is_taken

    def everything(self) -> Encoded:
        return self.snapshot(None)

    def changes(self, seen: Encoded, *, everywhere: bool, at_once: bool = True) -> tuple[Encoded, tuple[str, ...]]:
        if not (everywhere or self._is_taken):
            return {}, ()
        now = self.encoded()
        changed = {key: text for key, text in now.items() if seen.get(key) != text}
        return changed, tuple(key for key in seen if key not in now)

    def encoded(self) -> Encoded:
        text = self._type.dump(self._value, "state", self._encode)
        if text != self._sound:
            try:
                loaded = self._type.decode(text, "state")
            except NotAccepted as error:
                raise InvalidPayload(f"the model does not accept {error}", path=error.paths[0]) from None
            self._type.check_same(self._value, loaded, "state")
            self._sound = text
        return split(text, "state")

    def put(self, values: Encoded, gone: Iterable[str] = (), ahead: Decoded | None = None) -> None:
        gone = frozenset(gone)
        kept = {key: text for key, text in self.snapshot(None).items() if key not in gone}
        loaded = self._read({**kept, **values})
        # Past the model's own assignment, which may be forbidden, or checked against fields that come next.
        fields = vars(self._value)
        for key in (*values, *gone):
            if (name := self._fields.get(key)) is not None:
                fields[name] = vars(loaded)[name]
                self._value.__pydantic_fields_set__.add(name)
            elif self._value.__pydantic_extra__ is not None:
                self._value.__pydantic_extra__.pop(key, None)
                self._value.__pydantic_extra__ |= {
                    extra: item for extra, item in (loaded.__pydantic_extra__ or {}).items() if extra == key
                }
        for name in [name for name in fields if name not in type(self._value).model_fields]:
            del fields[name]  # properties that were cached

    def append(self, key: str, item: Any) -> None:
        _append(getattr(self.taken_up(), self._fields.get(key, key), None), key, item)

    def _read(self, context: Encoded) -> BaseModel:
        model: BaseModel = self._type.decode(join(context), "context")
        return model


def _append(items: Any, key: str, item: Any) -> None:
    if type(items) is not list:
        raise InvalidPayload(f"context.{key} is not a list, so nothing can be appended to it", path=f"context.{key}")
    items.append(item)
