"""What one commit did to a run's context, as it is stored with the step.

A change names what differs and nothing else: keys set and dropped, items by which lists grew, text by which texts
grew, and which stretches of another long value stay. Values are JSON texts throughout; nothing is decoded.

There are two written forms. An object, as it always was, for changes of whole keys that the handler made all by
itself; and an array for the rest, which earlier software does not take for a patch: it leaves such a run alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from orchestrator_state.errors import CorruptPayload, InvalidPayload
from orchestrator_state.payloads import decode, encode
from orchestrator_state.records.context.held import Encoded, join, split
from orchestrator_state.records.context.text_edits import Edit, edit_between

_PATH: Final = "context_patch"
_FORM: Final = 2
_EMPTY: Final = {"set": "{}", "append": "{}", "drop": "[]"}
_PARTS: Final = frozenset({"set", "append", "extend", "add", "drop", "within", "edit"})
_NUMBER: Final = frozenset("-0123456789")
_NULL: Final = "null"
_WHOLE: Final = 256
"""A value that short is stored whole: a change inside of it is not much shorter."""
_split_list: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


@dataclass(slots=True, repr=False)  # a resumed run reads one with each step: `frozen` would take four times as long
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
    edited: Mapping[str, Edit] = field(default_factory=dict)

    @property
    def keys(self) -> frozenset[str]:
        grown = (self.appended, self.extended, self.added, self.within, self.edited)
        return frozenset(self.changed).union(*grown, self.dropped)

    @property
    def only_appends(self) -> bool:
        return self.is_simple and not (self.changed or self.dropped)

    @property
    def is_simple(self) -> bool:
        return not (self.extended or self.added or self.within or self.edited)

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
            part(self.edited),
        )

    def apply(self, context: Encoded) -> Encoded:
        """Return `context` with this change; the argument is left as it is. Raises `CorruptPayload` if it cannot be."""
        result = dict(context)
        self.apply_to(result)
        return result

    def apply_to(self, context: Encoded) -> None:
        context.update(self.changed)
        for key, items in self.appended.items():
            context[key] = _longer(_or(context.get(key), "[]"), items)
        for key, text in self.extended.items():
            context[key] = f"{_at(context, key)[:-1]}{text}" + '"'
        for key, number in self.added.items():
            context[key] = encode(decode(_or(context.get(key), "0"), _PATH) + decode(number, _PATH), _PATH)
        for key, change in self.within.items():
            context[key] = change.apply_inside(_or(context.get(key), "{}"))
        for key, edit in self.edited.items():
            context[key] = edit.apply(_at(context, key))
        for key in self.dropped:
            context.pop(key, None)

    def apply_inside(self, text: str) -> str:
        """The same for the JSON text of an object, or of a list."""
        if text.startswith("{"):
            return join(self.apply(split(text, _PATH)))
        items = {str(index): item for index, item in enumerate(_items(text))}
        tail = self.appended.get("", "")
        rest = replace(self, appended={key: value for key, value in self.appended.items() if key})
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
            "edit": join({key: edit.to_json() for key, edit in self.edited.items()}) if self.edited else "",
        }
        return {name: text for name, text in parts.items() if text}

    @classmethod
    def from_parts(cls, parts: Mapping[str, str]) -> Change:
        """Raises `CorruptPayload`, or `InvalidPayload`, for what `to_parts` has not written."""
        if not parts.keys() <= _PARTS:
            raise _none()
        added = _part(parts, "add")
        if not all(map(_is_number, added.values())):
            raise _none()
        return cls(
            changed=_part(parts, "set"),
            appended={key: _inside("[", items) for key, items in _part(parts, "append").items()},
            dropped=_names(parts.get("drop", "[]")),
            extended={key: _inside('"', text) for key, text in _part(parts, "extend").items()},
            added=added,
            within={key: cls.from_parts(split(inner, _PATH)) for key, inner in _part(parts, "within").items()},
            edited={key: Edit.from_json(edit) for key, edit in _part(parts, "edit").items()},
        )


NOTHING: Final = Change()


class _FirstForm(msgspec.Struct, forbid_unknown_fields=True):
    """Most patches are written like this: read in one go."""

    set: dict[str, msgspec.Raw]
    append: dict[str, msgspec.Raw]
    drop: list[str]
    unseen: list[int] = []


_read_first_form: Final = msgspec.json.Decoder(_FirstForm).decode


def _texts(values: Mapping[str, msgspec.Raw]) -> Encoded:
    return {key: bytes(value).decode() for key, value in values.items()}


@dataclass(slots=True, repr=False)  # like `Change`
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
        if self.kept is None and not self.made:
            return frozenset()
        made = (key for change in self.made for key in change.keys)
        return self.change.keys.union(made) - self.replayed.keys

    def without(self, key: str) -> Patch:
        """The same, but for what it says of `key`; what a function did there is still done once more."""
        kept = None if self.kept is None else self.kept.only(self.kept.keys - {key})
        return replace(self, change=self.change.only(self.change.keys - {key}), kept=kept)

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
        try:
            found = _read_first_form(text)
        except (msgspec.DecodeError, ValueError, TypeError, RecursionError):
            raise _none() from None
        appended = {key: _inside("[", items) for key, items in _texts(found.append).items()}
        return cls(Change(_texts(found.set), appended, tuple(found.drop)), tuple(found.unseen))

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


def _part(parts: Mapping[str, str], name: str) -> Encoded:
    text = parts.get(name, "{}")
    return {} if text == "{}" else split(text, _PATH)


def _names(text: str) -> tuple[str, ...]:
    names = [] if text == "[]" else decode(text, _PATH)
    if not _is_list_of(str, names):
        raise _none()
    return tuple(names)


def _inside(opening: str, text: str) -> str:
    if not text.startswith(opening):
        raise _none()
    return text[1:-1]


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


def applicable(context: Encoded, patches: Mapping[int, Patch]) -> tuple[dict[int, Patch], Encoded]:
    """Those of `patches`, by position, that can be done to `context` one after the other, and where they lead to.

    One that is missing may have made what a later one edits; then that one leaves the value alone.
    """
    result = dict(context)
    kept: dict[int, Patch] = {}
    for position in sorted(patches):
        patch = patches[position]
        for key in patch.change.keys:
            try:
                result = patch.change.only([key]).apply(result)
            except (CorruptPayload, InvalidPayload):
                patch = patch.without(key)
        if patch.change.keys or patch.made:
            kept[position] = patch
    return kept, result


def change_between(
    before: Mapping[str, str], after: Mapping[str, str], *, outright: Collection[str] = frozenset()
) -> Change:
    """What has to be done to `before`, to make it `after`; the values at the keys `outright` are told as they are."""
    changed: Encoded = {}
    appended: Encoded = {}
    edited: dict[str, Edit] = {}
    for key, text in after.items():
        old = before.get(key)
        if old == text:
            continue
        if old is None or key in outright:
            changed[key] = text
        elif (items := items_added(old, text)) is not None:
            appended[key] = items
        elif len(text) > _WHOLE and (edit := edit_between(old, text)) is not None:
            edited[key] = edit
        else:
            changed[key] = text
    return Change(changed, appended, tuple(key for key in before if key not in after), edited=edited)


def growth_between(before: Mapping[str, str], after: Mapping[str, str]) -> Change:
    """The same, told so that it can be done to something else: what numbers, lists, texts and objects grew by."""
    parts = _Growth()
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


class _Growth:
    """A change while it is put together."""

    def __init__(self) -> None:
        self.changed: Encoded = {}
        self.added: Encoded = {}
        self.appended: Encoded = {}
        self.extended: Encoded = {}
        self.within: dict[str, Change] = {}

    def change(self, dropped: tuple[str, ...] = ()) -> Change:
        return Change(self.changed, self.appended, dropped, self.extended, self.added, self.within)

    def note(self, key: str, before: str | None, after: str) -> None:
        if before in (None, _NULL):  # whoever needs it first makes it: then the other has not done so a second time
            before = _empty(after) or before
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
        elif before[0] == after[0] == "[" and (inner := _growth_of_list(before, after)) is not None:
            self.within[key] = inner
        else:
            self.changed[key] = after


def _growth_of_list(before: str, after: str) -> Change | None:
    parts = _Growth()
    old, new = _raw_items(before), _raw_items(after)
    if len(new) < len(old):
        return None
    for index, (was, item) in enumerate(zip(old, new, strict=False)):
        if was != item:
            parts.note(str(index), bytes(was).decode(), bytes(item).decode())
    if len(new) > len(old):
        parts.appended[""] = b",".join(map(bytes, new[len(old) :])).decode()
    return parts.change()


def same_kind(one: str, other: str) -> bool:
    """Whether two values are made alike: lists where the other has lists, and objects where it has objects."""
    if one[0] == other[0] == "{":
        mine, theirs = split(one, _PATH), split(other, _PATH)
        return all(same_kind(mine[key], theirs[key]) for key in mine.keys() & theirs.keys())
    return one[0] == other[0] or not {one[0], other[0]} & {"[", "{"}


def _or(text: str | None, empty: str) -> str:
    return empty if text is None or text == _NULL else text


def _empty(text: str) -> str | None:
    """What a value of this kind grows from."""
    return {"[": "[]", "{": "{}"}.get(text[0], "0" if _is_number(text) else None)


def _longer(items: str, more: str) -> str:
    return f"[{more}]" if items == "[]" else f"{items[:-1]},{more}]"


def _at(context: Encoded, key: str) -> str:
    text = context.get(key, _NULL)
    if text == _NULL:
        raise CorruptPayload("the stored context_patch changes what is not there", path=_PATH)
    return text


def _is_number(text: str) -> bool:
    return text[0] in _NUMBER and type(decode(text, _PATH)) in (int, float)


def _is_list_of(kind: type, value: object) -> bool:
    return type(value) is list and all(type(item) is kind for item in value)


def _none() -> CorruptPayload:
    return CorruptPayload("the stored context_patch is none", path=_PATH)
