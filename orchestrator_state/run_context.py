"""A run's context through its steps.

A resumed handler runs again from the top, so its context must start where it started and pass through what each
recorded step committed; otherwise `run.context["n"] += 1` between two steps would count twice. Each step's commit
therefore stores a patch.

A patch says two things. What is everybody's from then on is all that was changed, by whomever. What the handler finds
when it comes back to the step is less: only what it has surely done once more by then (the past of the branch that
called the step), and what the step's function did, which nobody does again. What other branches did meanwhile is left
to them: they come to the same lines again, perhaps later, and a change that was there already would count twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from orchestrator_state.branches import Branch, Branches, Place
from orchestrator_state.context_value import ContextValue, Encoded, PlainContext, join, split
from orchestrator_state.errors import CorruptPayload
from orchestrator_state.functions import Functions
from orchestrator_state.patches import NOTHING, Change, Patch, apply_all, change_between, items_added

__all__ = ["ContextChange", "ContextHistory", "Encoded", "Patch", "apply_all", "join", "split"]

_ALL = None
"""In place of a key: any of them."""
_CHECKED_ALWAYS = 256 * 1024
"""A context that short is compared whole with each commit. Of a longer one, what somebody took up."""
_LOOKED_AT_ALWAYS = 64 * 1024
_MOST_HEADS = 16


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


class ContextHistory:
    """The handler's context, and everybody's.

    A resumed handler may commit something new before it has come back to all the recorded steps: another branch of it
    has not got there yet, or a new version asks for them later, or never. So what it has seen and what is committed
    are two things, and a change that it makes again is not taken for a new one.
    """

    def __init__(self, initial: str, committed: Encoded, patches: Mapping[int, Patch]) -> None:
        """`initial` is the context at the start, `patches` are by step position.

        If the patches do not lead from the one to the other, somebody edited the workflow by hand; then the edited
        context is where the run starts, and its recorded steps leave it alone.
        """
        start = split(initial, "context")
        self.was_edited = apply_all(start, (patches[position] for position in sorted(patches))) != committed
        if self.was_edited:
            start, patches = committed, {}
        self.start: Encoded = dict(start)
        """What the run starts with, before `replay`."""
        self._branches = Branches()
        self._seen = dict(start)
        self._replayed = dict(start)
        self._committed = dict(committed)
        self.length = _length_of(committed)
        """Of the committed context's JSON."""
        self._patches = dict(patches)
        self._loose = {key for patch in patches.values() for key in patch.loose}
        self._last = max(patches, default=-1)
        self._is_one_line = all(patch.after is None for patch in patches.values())
        self._heads: dict[str | None, dict[Branch, int]] = {}
        """Who took up a key last: one, or several who did not know of each other."""
        self._unsettled: set[str | None] = set()
        """What was taken up since it was last committed."""
        self.hold(PlainContext(start, self.touch))

    @property
    def committed(self) -> Encoded:
        return self._committed

    @property
    def patches(self) -> Mapping[int, Patch]:
        """What is still to be replayed, by step position."""
        return self._patches

    def hold(self, held: ContextValue) -> None:
        """Let the handler have `held`, which shows the start, in place of a dict. It tells `touch` who takes it up."""
        self.held = held
        self._functions = Functions(held.snapshot)

    # --- who does what -----------------------------------------------------------------------------------------------

    def call(self) -> AbstractContextManager[None]:
        """In here the calling branch waits for a step: what is done now is done by the step's function."""
        return self._branches.call(self._functions.forget)

    def touch(self, key: str | None) -> None:
        """Whoever is calling takes up `key`, and may change it from now on."""
        place = self._branches.advance()
        # A long value is not looked at for a function that nobody is beside.
        if len(self._seen.get(key or "", "")) <= _LOOKED_AT_ALWAYS or self._branches.others_alive(place):
            self._functions.touch(key, place.call)
        self._unsettled.add(key)
        self._know(key, place)

    def _know(self, key: str | None, place: Place) -> None:
        heads = {branch: tick for branch, tick in self._heads.get(key, {}).items() if not place.knows(branch, tick)}
        if key is not None and len(heads) >= _MOST_HEADS:
            self._loose.add(key)
            heads = {}
        heads[place.branch] = place.tick
        self._heads[key] = heads

    def _is_of(self, place: Place, key: str) -> bool:
        """Whether all that was ever done to `key` belongs to the past of `place`."""
        if key in self._loose or not self._knows(place, key):
            return False
        # Nobody was seen to take it up: somebody kept the object in a variable.
        return key in self._unsettled or _ALL in self._unsettled or not self._branches.others_alive(place)

    def _knows(self, place: Place, key: str) -> bool:
        heads = (*self._heads.get(key, {}).items(), *self._heads.get(_ALL, {}).items())
        return all(place.knows(branch, tick) for branch, tick in heads)

    # --- what is recorded --------------------------------------------------------------------------------------------

    def replay(self, position: int) -> None:
        """Move on to what the step at `position` committed, and to what its branch had come past by then."""
        due = self._due(position)
        if not due:
            return
        self._branches.saw(position)
        place = self._branches.here()
        touched: set[str] = set()
        made: list[Change] = []  # of functions
        for at in due:
            patch = self._patches.pop(at)
            patch.replayed.apply_to(self._replayed)
            # In another order than then, other branches may have been at a key already: what they did stays.
            taken = {key for key in patch.replayed.keys if self._knows(place, key)}
            touched |= taken
            made += [change.only(change.keys - taken) for change in patch.made]
        values = {key: self._replayed[key] for key in touched if key in self._replayed}
        self._see(values, touched - values.keys())
        self.held.put(values, touched - values.keys())
        for key in touched:
            self._know(key, place)
        for change in made:
            self._redo(change)

    def _due(self, position: int) -> list[int]:
        """The patches in the past of the step at `position`, and its own, that are still to be replayed; in order."""
        line: list[int] = []
        while (patch := self._patches.get(position)) is not None:
            if patch.after is None:
                earlier = (at for at in sorted(self._patches) if at <= position and at not in patch.unseen)
                return [*earlier, *reversed(line)]
            line.append(position)
            position = patch.after
        return line[::-1]

    def _redo(self, change: Change) -> None:
        """Do to the handler's context what the function of a step did, whatever else was done to it by now."""
        for key in change.keys:
            part = change.only([key])
            now = self.held.snapshot(key)
            for context, put in ((now, self.held.put), (dict(self._seen), self._see)):
                try:
                    put({key: part.apply(context)[key]})
                except (CorruptPayload, KeyError):
                    put({}, [key])

    def _see(self, values: Encoded, gone: Any = ()) -> None:
        self._seen.update(values)
        for key in gone:
            self._seen.pop(key, None)

    # --- what is new -------------------------------------------------------------------------------------------------

    def diff(self) -> ContextChange:
        """What was changed since the last commit, for a step of the calling branch. Raises `InvalidPayload`."""
        place = self._branches.here()
        seen, gone = self.held.changes(self._seen, everywhere=self.length <= _CHECKED_ALWAYS)
        done = self._functions.done(place.tick)
        if not (seen or gone or done):
            return ContextChange(None, seen, gone, length=self.length)
        before = {key: self._committed[key] for key in (*seen, *gone) if key in self._committed}
        after = dict(before)
        merged: dict[str, str] = {}
        outstanding = {key for patch in self._patches.values() for key in patch.change.keys}
        for key, text in seen.items():
            if self._is_recorded(key, text):
                continue
            theirs, items = before.get(key), items_added(self._seen.get(key), text)
            if key in outstanding and items is not None and theirs is not None and items_added(theirs, text) is None:
                merged[key] = items
            else:
                after[key] = text
        for key in gone:
            after.pop(key, None)
        change = change_between(before, after)
        if merged:
            appended = Change(appended=merged)
            after = appended.apply(after)
            change = Change(
                change.changed, {**change.appended, **merged}, change.dropped, change.extended, {}, change.within
            )
        committed = {key: text for key, text in after.items() if before.get(key) != text}
        length = self.length + _length_of(after) - _length_of(before)
        patch = self._patch(place, change, done)
        return ContextChange(patch, seen, gone, committed, change.dropped, length)

    def _patch(self, place: Place, change: Change, done: tuple[Change, ...]) -> Patch | None:
        """`change` is everybody's, `done` what the step's function did."""
        is_alone = not done or not self._branches.others_alive(place)
        growths = (
            growth if not is_alone else growth.only(key for key in growth.keys if not self._is_of(place, key))
            for growth in done
        )
        made = tuple(growth for growth in growths if growth.keys)
        if not (change.keys or made):
            return None
        kept = frozenset(key for key in change.keys if self._is_of(place, key))
        is_whole = kept == change.keys
        if self._is_one_line and place.last == self._last and is_whole and not made and not self._patches:
            return Patch(change)
        return Patch(change, after=place.last, kept=None if is_whole else change.only(kept), made=made)

    def accept(self, change: ContextChange, position: int) -> None:
        """`change` is committed, with the calling branch's step at `position`."""
        self._see(change.seen, change.gone)
        self._committed.update(change.committed)
        for key in change.dropped:
            self._committed.pop(key, None)
        self.length = change.length
        patch = change.patch
        self._unsettled -= {*change.seen, *change.gone, _ALL}
        if patch is not None:
            self._loose |= patch.loose
            self._is_one_line = self._is_one_line and patch.after is None
            self._last = max(self._last, position)
            self._branches.saw(position)

    def committed_with(self, change: ContextChange) -> Encoded:
        """Everybody's context once `change` is committed."""
        context = {**self._committed, **change.committed}
        for key in change.dropped:
            context.pop(key, None)
        return context

    def adopt(self, patch: Patch, position: int) -> None:
        """`patch` turned out to be committed."""
        patch.change.apply_to(self._seen)
        patch.change.apply_to(self._committed)
        self.length = _length_of(self._committed)
        self._loose |= patch.loose
        self._is_one_line = self._is_one_line and patch.after is None
        self._last = max(self._last, position)
        self._branches.saw(position)

    def final(self) -> Encoded:
        """The handler's context, all of it. Raises `InvalidPayload`."""
        seen, gone = self.held.changes(self._seen, everywhere=True)
        return {key: text for key, text in {**self._seen, **seen}.items() if key not in gone}

    def _is_recorded(self, key: str, after: str) -> bool:
        """Whether a step that the handler has not come back to has committed this change."""
        recorded = self._committed.get(key)
        if recorded is None or recorded == self._seen.get(key):
            return False
        return recorded == after or items_added(after, recorded) is not None


def _length_of(context: Encoded) -> int:
    """Of the context's JSON: braces, and for each key quotes, a colon and a comma."""
    return 1 + sum(len(key) + len(text) + 4 for key, text in context.items())


def converted(
    start: Encoded, patches: Mapping[int, Patch], convert: Callable[[Encoded], Encoded]
) -> tuple[Encoded, dict[int, Patch], Encoded]:
    """The same way through other contexts: each that a commit left behind is converted, and compared anew.

    Returns the start, the patches, and where they lead to.
    """
    before, last = start, convert(start)
    first, ways = last, {}
    for position in sorted(patches):
        patch = patches[position]

        def part(change: Change, before: Encoded = before, last: Encoded = last) -> Change:
            return change_between(last, convert(change.apply(before))) if change.keys else NOTHING

        after = patch.change.apply(before)
        ways[position] = Patch(
            change_between(last, new := convert(after)),
            patch.unseen,
            patch.after,
            None if patch.kept is None else part(patch.kept),
            tuple(part(made) for made in patch.made),
        )
        before, last = after, new
    return first, ways, last
