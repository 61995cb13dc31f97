"""What a commit finds changed in the context, and what it does to it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Final

from orchestrator_state.records.context.changes.change import Change
from orchestrator_state.records.context.changes.differences import change_between, growth_between
from orchestrator_state.records.context.changes.encoded import Encoded
from orchestrator_state.records.context.changes.text_edits import Edit
from orchestrator_state.records.context.patches import AS_RECORDED, GROWN, Patch

_BRIEF: Final = 256
"""Characters: what a function did is told as it is if that is no longer."""


@dataclass(slots=True, repr=False)
class ContextChange:
    """What a commit does to the context."""

    patch: Patch | None
    seen: Encoded
    """What the handler's context has become, where it has changed."""
    gone: tuple[str, ...]
    committed: Encoded = field(default_factory=dict)
    """What everybody's becomes, where it changes."""
    dropped: tuple[str, ...] = ()
    length: int = 0
    """Of everybody's context as JSON."""
    touches: int = 0
    """How often somebody had taken up something when this was seen: what comes after that is not part of it."""


@dataclass(slots=True, kw_only=True, repr=False)
class Look:
    """What a commit finds changed, seen in one go; all that follows is worked out from these texts."""

    seen: Encoded
    gone: tuple[str, ...]
    before: Encoded
    """Everybody's context, where the handler's has changed."""
    after: Encoded
    merged: Encoded
    """Items to append to lists that recorded steps have changed, where the handler has not come back to those steps."""
    outstanding: frozenset[str]
    """Keys that such steps have changed."""
    made: tuple[Change, ...]
    """What the step's function did."""
    is_alone: bool
    """Whether no other branch can have been beside it."""
    own: frozenset[str]
    """Changed keys of which all that was ever done to them belongs to the past of the calling branch."""
    last: int
    """The newest patch in that past."""
    is_one_line: bool
    length: int
    """Of everybody's context, so far."""
    touches: int

    @property
    def size(self) -> int:
        return sum(map(len, self.before.values())) + sum(map(len, self.after.values()))

    def change(self) -> ContextChange:
        """What the commit does to the context."""
        change = change_between(self.before, self.after, outright=self.outstanding)
        after = self.after
        if self.merged:
            after = Change(appended=self.merged).apply(after)
            change = replace(change, appended={**change.appended, **self.merged})
        committed = {key: text for key, text in after.items() if self.before.get(key) != text}
        length = self.length + length_of(after) - length_of(self.before)
        return ContextChange(self._patch(change), self.seen, self.gone, committed, change.dropped, length, self.touches)

    def _patch(self, change: Change) -> Patch | None:
        if not (change.keys or self.made):
            return None
        is_whole = change.keys <= self.own
        made = self._made_in_brief() if self.is_alone else self.made
        if self.is_one_line and is_whole and (self.is_alone or not made):
            return Patch(change, made=made)
        return Patch(change, after=self.last, kept=None if is_whole else change.only(self.own), made=made)

    def _made_in_brief(self) -> tuple[Change, ...]:
        """`made`, without long parts that the record tells anyway."""
        times = Counter(key for made in self.made for key in made.keys)
        result = []
        for made in self.made:
            keys = [key for key in made.keys & self.own if times[key] == 1]
            brief = {key: edit for key in keys if (edit := self._in_brief(key, made)) is not None}
            result.append(replace(made.only(made.keys - brief.keys()), edited=brief) if brief else made)
        return tuple(result)

    def _in_brief(self, key: str, made: Change) -> Edit | None:
        if key in made.edited:
            return made.edited[key]
        part = made.only([key])
        if sum(map(len, part.to_parts().values())) <= _BRIEF:
            return None
        before, after = ({key: context[key]} if key in context else {} for context in (self.before, self.after))
        if part == growth_between(before, after):
            return GROWN
        return AS_RECORDED if part.changed else None


def length_of(context: Encoded) -> int:
    """Of the context's JSON: braces, and for each key quotes, a colon and a comma."""
    return 1 + sum(len(key) + len(text) + 4 for key, text in context.items())
