"""What one commit did to a run's context, as it is stored with the step.

There are two written forms. An object, as it always was, for changes of whole keys that the handler made all by
itself; and an array for the rest, which earlier software does not take for a patch: it leaves such a run alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from orchestrator_state.errors import CorruptPayload, InvalidPayload
from orchestrator_state.payloads import decode, encode
from orchestrator_state.records.context.changes.change import Change, inside, no_patch
from orchestrator_state.records.context.changes.differences import growth_between
from orchestrator_state.records.context.changes.encoded import PATH, Encoded, items_of, join, split
from orchestrator_state.records.context.changes.text_edits import Edit

_FORM: Final = 2
GROWN: Final = Edit(0, 0, ())
"""In `Patch.made`, in place of a long part: all that the patch says of the key. Nothing is an edit of no text."""
AS_RECORDED: Final = Edit(0, 1, ())
"""The same: the key was set to what the patch leaves there."""
_EMPTY: Final = {"set": "{}", "append": "{}", "drop": "[]"}


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
    """What the handler finds when it comes back to the step; None for all of `change`. The rest it does again.

    Only its keys are looked at. Earlier software does its values to what a branch had come past.
    """
    made: tuple[Change, ...] = ()
    """What the step's function did: done to what the handler finds, where others have changed that by then."""

    @property
    def replayed(self) -> Change:
        return self.change if self.kept is None else self.kept

    @property
    def keys(self) -> frozenset[str]:
        """What it says anything of. A function's doing may have been saved with the commit of another branch."""
        return self.change.keys.union(*(change.keys for change in self.made)) if self.made else self.change.keys

    @property
    def repeated(self) -> frozenset[str]:
        """What is done to these is done once more when the handler comes back to the step."""
        return self.replayed.keys.union(*(change.keys for change in self.made)) if self.made else self.replayed.keys

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

    @property
    def brief(self) -> frozenset[str]:
        """Keys of which `made` does not say in full what was done to them."""
        return frozenset().union(*(change.edited for change in self.made)) if self.made else frozenset()

    def made_between(self, before: Encoded, after: Encoded) -> tuple[Change, ...]:
        """`made`, told in full: the patch makes `after` of `before`."""
        return tuple(_in_full(change, before, after) if change.edited else change for change in self.made)

    def to_json(self) -> str:
        if self.after is None and self.change.is_simple and not self.made:
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
            raise no_patch() from None
        appended = {key: inside("[", items) for key, items in _texts(found.append).items()}
        return cls(Change(_texts(found.set), appended, tuple(found.drop)), tuple(found.unseen))

    @classmethod
    def _from_array(cls, text: str) -> Patch:
        items = items_of(text)
        if len(items) != 2 or items[0] != str(_FORM):
            raise no_patch()
        parts = split(items[1], PATH)
        if "change" not in parts or parts.keys() - {"change", "after", "kept", "made"}:
            raise no_patch()
        after = decode(parts.get("after", "null"), PATH)
        if after is not None and type(after) is not int:
            raise no_patch()
        made = tuple(map(_read, items_of(parts.get("made", "[]"))))
        return cls(_read(parts["change"]), (), after, _read(parts["kept"]) if "kept" in parts else None, made)


def _in_full(made: Change, before: Encoded, after: Encoded) -> Change:
    grown = [key for key, edit in made.edited.items() if edit == GROWN]
    set_to = [key for key, edit in made.edited.items() if edit == AS_RECORDED]
    growth = growth_between(_part(before, grown), _part(after, grown))
    told = made.only(made.keys - {*grown, *set_to})
    return Change(
        {**told.changed, **growth.changed, **_part(after, set_to)},
        {**told.appended, **growth.appended},
        (*told.dropped, *growth.dropped),
        {**told.extended, **growth.extended},
        {**told.added, **growth.added},
        {**told.within, **growth.within},
        told.edited,
    )


def _part(context: Encoded, keys: Iterable[str]) -> Encoded:
    return {key: context[key] for key in keys if key in context}


def _read(text: str) -> Change:
    return Change.from_parts(split(text, PATH))


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
