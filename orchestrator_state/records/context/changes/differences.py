"""How two contexts differ: told as it is, or told so that it can be done to something else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from orchestrator_state.payloads import decode, encode
from orchestrator_state.records.context.changes.change import NULL, Change
from orchestrator_state.records.context.changes.encoded import (
    PATH,
    Encoded,
    is_number,
    items_of,
    join,
    raw_items,
    split,
)
from orchestrator_state.records.context.changes.text_edits import Edit, edit_between

_WHOLE: Final = 256
"""A value that short is stored whole: a change inside of it is not much shorter."""


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


def items_besides(items: str, recorded: str, known: Iterable[str]) -> str:
    """Those of `items` that the list `recorded` has not, beyond what it has of the lists `known`."""
    there = Counter(items_of(recorded))
    for text in known:
        there -= Counter(items_of(text))
    new = []
    for item in items_of(f"[{items}]"):
        if there[item]:
            there[item] -= 1
        else:
            new.append(item)
    return ",".join(new)


def with_growth(context: Encoded, before: Encoded, after: Encoded) -> Encoded:
    """`context` with what made `after` of `before`. Raises `CorruptPayload` if that cannot be done to it.

    What was taken out of a list, or set in it, is found there by the items' values.
    """
    change = growth_between(before, after)
    result = change.apply(context)
    for key in (change.changed.keys() | change.within.keys()) & context.keys() & before.keys():
        texts = context[key], before[key], after[key]
        kinds = {text[0] for text in texts}
        if kinds == {"["} and key in change.changed:
            result[key] = _list_with_growth(*texts)
        elif kinds == {"{"}:
            result[key] = join(with_growth(*(split(text, PATH) for text in texts)))
    return result


def _list_with_growth(text: str, before: str, after: str) -> str:
    items, old, new = items_of(text), items_of(before), items_of(after)
    besides = Counter(old) - Counter(items)
    result = []
    for item in reversed(new):
        if besides[item]:
            besides[item] -= 1
        else:
            result.append(item)
    result.reverse()
    missing = Counter(items) - Counter(old)
    for index, item in enumerate(items):
        if missing[item]:
            missing[item] -= 1
            result.insert(index, item)
    return f"[{','.join(result)}]"


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
        if before in (None, NULL):  # whoever needs it first makes it: then the other has not done so a second time
            before = _empty(after) or before
        if before is None:
            self.changed[key] = after
        elif (items := items_added(before, after)) is not None:
            self.appended[key] = items
        elif is_number(before) and is_number(after):
            self.added[key] = encode(decode(after, PATH) - decode(before, PATH), PATH)
        elif before[0] == after[0] == '"' and after.startswith(before[:-1]):
            self.extended[key] = after[len(before) - 1 : -1]
        elif before[0] == after[0] == "{":
            self.within[key] = growth_between(split(before, PATH), split(after, PATH))
        elif before[0] == after[0] == "[" and (inner := _growth_of_list(before, after)) is not None:
            self.within[key] = inner
        else:
            self.changed[key] = after


def _growth_of_list(before: str, after: str) -> Change | None:
    parts = _Growth()
    old, new = raw_items(before), raw_items(after)
    if len(new) < len(old):
        return None
    for index, (was, item) in enumerate(zip(old, new, strict=False)):
        if was != item:
            parts.note(str(index), bytes(was).decode(), bytes(item).decode())
    parts.appended[""] = b",".join(map(bytes, new[len(old) :])).decode()
    return parts.change()


def may_be_of_list(one: str, other: str) -> bool:
    """Whether `one` has an object with indices for keys where `other` has a list.

    What earlier software recorded of a change inside of a list does not say that it is one.
    """
    if one[0] != "{":
        return False
    mine = split(one, PATH)
    if other[0] == "[":
        return bool(mine) and all(key.isdigit() for key in mine)
    theirs = split(other, PATH) if other[0] == "{" else {}
    return any(may_be_of_list(mine[key], theirs[key]) for key in mine.keys() & theirs.keys())


def _empty(text: str) -> str | None:
    """What a value of this kind grows from."""
    return {"[": "[]", "{": "{}"}.get(text[0], "0" if is_number(text) else None)
