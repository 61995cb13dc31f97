"""What one commit did to a run's context, as it is stored with the step.

A change names what differs and nothing else: keys set and dropped, items by which lists grew, text by which texts
grew, and so on inside of what is nested. Values are JSON texts throughout; nothing is decoded.

There are two written forms. An object, as it always was, for changes of whole keys that the handler made all by
itself; and an array for the rest, which earlier software does not take for a patch: it leaves such a run alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from orchestrator_state.codecs import decode, encode
from orchestrator_state.context_value import Encoded, join, split
from orchestrator_state.errors import CorruptPayload, InvalidPayload

_PATH: Final = "context_patch"
_FORM: Final = 2
_EMPTY: Final = {"set": "{}", "append": "{}", "drop": "[]"}
_NUMBER: Final = frozenset("-0123456789")
_WHOLE: Final = 256
"""A value that short is stored whole: a change inside of it is not much shorter."""
_split_list: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


@dataclass(frozen=True, slots=True, repr=False)
class Change:
    """What differs between two objects; or two lists, whose keys are indices, and `""` stands for the list's end."""

    changed: Mapping[str, str] = field(default_factory=dict)
    appended: Mapping[str, str] = field(default_factory=dict)
    """Items by which a list grew, without its brackets."""
    dropped: tuple[str, ...] = ()
    extended: Mapping[str, str] = field(default_factory=dict)
    """What a text grew by, without its quotes."""
    added: Mapping[str, str] = field(default_factory=dict)
    """By how much a number grew."""
    within: Mapping[str, Change] = field(default_factory=dict)

    @property
    def keys(self) -> frozenset[str]:
        return frozenset((*self.changed, *self.appended, *self.dropped, *self.extended, *self.added, *self.within))

    @property
    def only_appends(self) -> bool:
        return not (self.changed or self.dropped or self.extended or self.added or self.within)

    @property
    def is_simple(self) -> bool:
        return not (self.extended or self.added or self.within)

    def only(self, keys: Iterable[str]) -> Change:
        """The part of it that concerns `keys`."""
        wanted = frozenset(keys)

        def part(values: Mapping[str, Any]) -> dict[str, Any]:
            return {key: value for key, value in values.items() if key in wanted}

        return Change(
            part(self.changed),
            part(self.appended),
            tuple(key for key in self.dropped if key in wanted),
            part(self.extended),
            part(self.added),
            part(self.within),
        )

    def apply(self, context: Encoded) -> Encoded:
        """Return `context` with this change; the argument is left as it is. Raises `CorruptPayload` if it cannot be."""
        result = dict(context)
        self.apply_to(result)
        return result

    def apply_to(self, context: Encoded) -> None:
        context.update(self.changed)
        for key, items in self.appended.items():
            context[key] = _longer(context.get(key, "[]"), items)
        for key, text in self.extended.items():
            context[key] = f"{_at(context, key)[:-1]}{text}" + '"'
        for key, number in self.added.items():
            context[key] = encode(decode(context.get(key, "0"), _PATH) + decode(number, _PATH), _PATH)
        for key, change in self.within.items():
            context[key] = change.apply_inside(_at(context, key))
        for key in self.dropped:
            context.pop(key, None)

    def apply_inside(self, text: str) -> str:
        """The same for the JSON text of an object, or of a list."""
        if text.startswith("{"):
            return join(self.apply(split(text, _PATH)))
        items = {str(index): item for index, item in enumerate(_items(text))}
        tail = self.appended.get("", "")
        rest = Change(
            self.changed,
            {key: value for key, value in self.appended.items() if key},
            self.dropped,
            self.extended,
            self.added,
            self.within,
        )
        result = f"[{','.join(rest.apply(items).values())}]"
        return _longer(result, tail) if tail else result

    def to_parts(self) -> dict[str, str]:
        """By name, as JSON; what is empty is left out."""
        parts = {
            "set": join(self.changed) if self.changed else "",
            "append": join({key: f"[{items}]" for key, items in self.appended.items()}) if self.appended else "",
            "extend": join({key: f'"{text}"' for key, text in self.extended.items()}) if self.extended else "",
            "add": join(self.added) if self.added else "",
            "drop": encode(list(self.dropped), "context") if self.dropped else "",
            "within": join({key: join(inner.to_parts()) for key, inner in self.within.items()}) if self.within else "",
        }
        return {name: text for name, text in parts.items() if text}

    @classmethod
    def from_parts(cls, parts: Mapping[str, str]) -> Change:
        """Raises `CorruptPayload`, or `InvalidPayload`, for what `to_parts` has not written."""
        if parts.keys() - {"set", "append", "extend", "add", "drop", "within"}:
            raise _none()
        appended, extended = split(parts.get("append", "{}"), _PATH), split(parts.get("extend", "{}"), _PATH)
        added, dropped = split(parts.get("add", "{}"), _PATH), decode(parts.get("drop", "[]"), _PATH)
        if not all(text.startswith("[") for text in appended.values()) or not _is_list_of(str, dropped):
            raise _none()
        if not all(text.startswith('"') for text in extended.values()) or not all(map(_is_number, added.values())):
            raise _none()
        within = split(parts.get("within", "{}"), _PATH)
        return cls(
            changed=split(parts.get("set", "{}"), _PATH),
            appended={key: items[1:-1] for key, items in appended.items()},
            dropped=tuple(dropped),
            extended={key: text[1:-1] for key, text in extended.items()},
            added=added,
            within={key: cls.from_parts(split(inner, _PATH)) for key, inner in within.items()},
        )


NOTHING: Final = Change()


@dataclass(frozen=True, slots=True, repr=False)
class Patch:
    """One commit's change of the context: of everybody's, and of the handler's when it comes back to the step."""

    change: Change
    """What is everybody's from then on."""
    unseen: tuple[int, ...] = ()
    """Of the first form: positions of earlier patches that the handler had not come back to when it made this one."""
    after: int | None = None
    """The newest patch in the past of the branch that made this one, -1 for none. None: all that there are."""
    kept: Change | None = None
    """What the handler finds when it comes back to the step; None for all of `change`. The rest it does again."""
    made: tuple[Change, ...] = ()
    """What the step's function did: done to what the handler finds, where others have changed that by then."""

    @property
    def replayed(self) -> Change:
        return self.change if self.kept is None else self.kept

    @property
    def loose(self) -> frozenset[str]:
        """Keys that are the handler's own business: it has changed them in branches side by side."""
        made = (key for change in self.made for key in change.keys)
        return self.change.keys.union(made) - self.replayed.keys

    def to_json(self) -> str:
        if self.after is None and self.change.is_simple:
            parts = _EMPTY | self.change.to_parts()
            return join(parts | {"unseen": encode(list(self.unseen), "context")} if self.unseen else parts)
        parts = {"change": join(self.change.to_parts())}
        if self.after is not None:
            parts["after"] = str(self.after)
        if self.kept is not None:
            parts["kept"] = join(self.kept.to_parts())
        if self.made:
            parts["made"] = f"[{','.join(join(change.to_parts()) for change in self.made)}]"
        return f"[{_FORM},{join(parts)}]"

    @classmethod
    def from_json(cls, text: str) -> Patch:
        """Raises `CorruptPayload`, or `InvalidPayload`, for anything that `to_json` has not written."""
        if text.startswith("["):
            return cls._from_array(text)
        parts = split(text, _PATH)
        if parts.keys() - {"unseen"} != {"set", "append", "drop"}:
            raise _none()
        unseen = decode(parts.pop("unseen", "[]"), _PATH)
        if not _is_list_of(int, unseen):
            raise _none()
        return cls(Change.from_parts(parts), tuple(unseen))

    @classmethod
    def _from_array(cls, text: str) -> Patch:
        items = _items(text)
        if len(items) != 2 or items[0] != str(_FORM):
            raise _none()
        parts = split(items[1], _PATH)
        if "change" not in parts or parts.keys() - {"change", "after", "kept", "made"}:
            raise _none()
        after = decode(parts.get("after", "null"), _PATH)
        if after is not None and type(after) is not int:
            raise _none()
        made = tuple(map(_read, _items(parts.get("made", "[]"))))
        return cls(_read(parts["change"]), (), after, _read(parts["kept"]) if "kept" in parts else None, made)


def _read(text: str) -> Change:
    return Change.from_parts(split(text, _PATH))


def _raw_items(text: str) -> list[msgspec.Raw]:
    try:
        return _split_list(text)
    except (msgspec.DecodeError, ValueError, TypeError, RecursionError):
        raise InvalidPayload(f"{_PATH} is for a list, which is none", path=_PATH) from None


def _items(text: str) -> list[str]:
    return [bytes(item).decode() for item in _raw_items(text)]


def apply_all(context: Encoded, patches: Iterable[Patch]) -> Encoded:
    result = dict(context)
    for patch in patches:
        patch.change.apply_to(result)
    return result


def change_between(before: Mapping[str, str], after: Mapping[str, str]) -> Change:
    """What has to be done to `before`, to make it `after`."""
    parts = _Parts()
    for key, text in after.items():
        if (old := before.get(key)) != text:
            parts.note(key, old, text)
    return parts.change(tuple(key for key in before if key not in after))


def growth_between(before: Mapping[str, str], after: Mapping[str, str]) -> Change:
    """The same, told so that it can be done to something else: what numbers, lists, texts and objects grew by."""
    parts = _Parts(is_growth=True)
    for key, text in after.items():
        if (old := before.get(key)) != text:
            parts.note(key, old, text)
    return parts.change(tuple(key for key in before if key not in after))


def items_added(before: str | None, after: str) -> str | None:
    """The items by which the list `after` is longer than the list `before`, or None if that is not the difference."""
    if before is None or not before.startswith("[") or not after.startswith("["):
        return None
    if before == "[]":
        return after[1:-1]
    head = before[:-1]
    if after.startswith(head) and after[len(head)] == ",":
        return after[len(head) + 1 : -1]
    return None


class _Parts:
    """A change while it is put together."""

    def __init__(self, *, is_growth: bool = False) -> None:
        self._is_growth = is_growth
        self.changed: Encoded = {}
        self.added: Encoded = {}
        self.appended: Encoded = {}
        self.extended: Encoded = {}
        self.within: dict[str, Change] = {}

    def change(self, dropped: tuple[str, ...] = ()) -> Change:
        return Change(self.changed, self.appended, dropped, self.extended, self.added, self.within)

    def note(self, key: str, before: str | None, after: str) -> None:
        if self._is_growth:
            self._note_growth(key, before, after)
        else:
            self._note_shortest(key, before, after)

    def _note_growth(self, key: str, before: str | None, after: str) -> None:
        if before is None and after.startswith("["):
            before = "[]"
        if before is None:
            self.changed[key] = after
        elif (items := items_added(before, after)) is not None:
            self.appended[key] = items
        elif _is_number(before) and _is_number(after):
            self.added[key] = encode(decode(after, _PATH) - decode(before, _PATH), _PATH)
        elif before[0] == after[0] == '"' and after.startswith(before[:-1]):
            self.extended[key] = after[len(before) - 1 : -1]
        elif before[0] == after[0] == "{":
            self.within[key] = growth_between(split(before, _PATH), split(after, _PATH))
        elif before[0] == after[0] == "[" and (inner := _of_lists(before, after, _Parts(is_growth=True))) is not None:
            self.within[key] = inner
        else:
            self.changed[key] = after

    def _note_shortest(self, key: str, before: str | None, after: str) -> None:
        if before is None:
            self.changed[key] = after
        elif (items := items_added(before, after)) is not None:
            self.appended[key] = items
        elif len(after) <= _WHOLE:
            self.changed[key] = after
        elif before[0] == after[0] == '"' and after.startswith(before[:-1]):
            self.extended[key] = after[len(before) - 1 : -1]
        elif (inner := _change_inside(before, after)) is not None:
            self.within[key] = inner
        else:
            self.changed[key] = after


def _change_inside(before: str, after: str) -> Change | None:
    """The difference between two objects or two lists, if it is much shorter than `after`, and leads there."""
    if before[0] != after[0] or after[0] not in "{[":
        return None
    inner = _of_objects(before, after) if after[0] == "{" else _of_lists(before, after, _Parts())
    return None if inner is None or len(join(inner.to_parts())) * 2 > len(after) else inner


def _of_objects(before: str, after: str) -> Change | None:
    old, new = split(before, _PATH), split(after, _PATH)
    kept = [key for key in old if key in new]
    # Keys may have changed places, which no change tells.
    return change_between(old, new) if kept == [*new][: len(kept)] else None


def _of_lists(before: str, after: str, parts: _Parts) -> Change | None:
    old, new = _raw_items(before), _raw_items(after)
    if len(new) < len(old):
        return None
    for index, (was, item) in enumerate(zip(old, new, strict=False)):
        if was != item:
            parts.note(str(index), bytes(was).decode(), bytes(item).decode())
    if len(new) > len(old):
        parts.appended[""] = b",".join(map(bytes, new[len(old) :])).decode()
    return parts.change()


def _longer(items: str, more: str) -> str:
    return f"[{more}]" if items == "[]" else f"{items[:-1]},{more}]"


def _at(context: Encoded, key: str) -> str:
    if key not in context:
        raise CorruptPayload("the stored context_patch changes what is not there", path=_PATH)
    return context[key]


def _is_number(text: str) -> bool:
    return text[0] in _NUMBER and type(decode(text, _PATH)) in (int, float)


def _is_list_of(kind: type, value: object) -> bool:
    return type(value) is list and all(type(item) is kind for item in value)


def _none() -> CorruptPayload:
    return CorruptPayload("the stored context_patch is none", path=_PATH)
