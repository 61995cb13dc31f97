"""What differs between two contexts. It names that and nothing else, and can be done to a context.

Keys set and dropped, items by which lists grew, text by which texts grew, and which stretches of another long value
stay. Values are JSON texts throughout; nothing is decoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from orchestrator_state.errors import CorruptPayload
from orchestrator_state.payloads import decode, encode
from orchestrator_state.records.context.changes.encoded import PATH, Encoded, is_number, items_of, join, split
from orchestrator_state.records.context.changes.text_edits import Edit

_PARTS: Final = frozenset({"set", "append", "extend", "add", "drop", "within", "edit"})
NULL: Final = "null"


@dataclass(slots=True, repr=False)  # a resumed run reads one with each step: `frozen` would take four times as long
class Change:
    """What differs between two objects; or two lists, whose keys are indices, and `""` stands for the list's end.

    Of a list something is always appended at `""`, and be it no item, so that it is not done to an object.
    """

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

    @property
    def is_of_list(self) -> bool:
        """Whether it tells of a list. Objects have such keys as well, but hardly these alone."""
        return "" in self.appended and len(self.keys) > 1 and all(key.isdigit() for key in self.keys if key)

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
            context[key] = _longer(_of_kind("[", _or(context.get(key), "[]")), items)
        for key, text in self.extended.items():
            context[key] = _of_kind('"', _at(context, key))[:-1] + f'{text}"'
        for key, number in self.added.items():
            old = _or(context.get(key), "0")
            if not is_number(old):
                raise _another_kind()
            context[key] = encode(decode(old, PATH) + decode(number, PATH), PATH)
        for key, change in self.within.items():
            context[key] = change.apply_inside(context.get(key, NULL))
        for key, edit in self.edited.items():
            context[key] = edit.apply(_at(context, key))
        for key in self.dropped:
            context.pop(key, None)

    def apply_inside(self, text: str) -> str:
        """The same for the JSON text of an object, or of a list. An object is made if there is none."""
        if text.startswith(("{", NULL)) and not self.is_of_list:
            return join(self.apply(split(_or(text, "{}"), PATH)))
        items = {str(index): item for index, item in enumerate(items_of(_of_kind("[", text)))}
        tail = self.appended.get("", "")
        rest = replace(self, appended={key: value for key, value in self.appended.items() if key})
        if not rest.keys <= items.keys():
            raise _another_kind()
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
            raise no_patch()
        added = _part(parts, "add")
        if not all(map(is_number, added.values())):
            raise no_patch()
        return cls(
            changed=_part(parts, "set"),
            appended={key: inside("[", items) for key, items in _part(parts, "append").items()},
            dropped=_names(parts.get("drop", "[]")),
            extended={key: inside('"', text) for key, text in _part(parts, "extend").items()},
            added=added,
            within={key: cls.from_parts(split(inner, PATH)) for key, inner in _part(parts, "within").items()},
            edited={key: Edit.from_json(edit) for key, edit in _part(parts, "edit").items()},
        )


NOTHING: Final = Change()


def _part(parts: Mapping[str, str], name: str) -> Encoded:
    text = parts.get(name, "{}")
    return {} if text == "{}" else split(text, PATH)


def _names(text: str) -> tuple[str, ...]:
    names = [] if text == "[]" else decode(text, PATH)
    if not _is_list_of(str, names):
        raise no_patch()
    return tuple(names)


def inside(opening: str, text: str) -> str:
    if not text.startswith(opening):
        raise no_patch()
    return text[1:-1]


def _or(text: str | None, empty: str) -> str:
    return empty if text is None or text == NULL else text


def _of_kind(opening: str, text: str) -> str:
    if not text.startswith(opening):
        raise _another_kind()
    return text


def _longer(items: str, more: str) -> str:
    if not more:  # the list was made
        return items
    return f"[{more}]" if items == "[]" else f"{items[:-1]},{more}]"


def _at(context: Encoded, key: str) -> str:
    text = context.get(key, NULL)
    if text == NULL:
        raise CorruptPayload("the stored context_patch changes what is not there", path=PATH)
    return text


def _is_list_of(kind: type, value: object) -> bool:
    return type(value) is list and all(type(item) is kind for item in value)


def _another_kind() -> CorruptPayload:
    return CorruptPayload("the stored context_patch changes another kind of value than is there", path=PATH)


def no_patch() -> CorruptPayload:
    return CorruptPayload("the stored context_patch is none", path=PATH)
