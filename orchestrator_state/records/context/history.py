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

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Any, Final

from orchestrator_state.errors import CorruptPayload, InvalidPayload
from orchestrator_state.records.context.branches import Branch, Branches, Place
from orchestrator_state.records.context.change import Change
from orchestrator_state.records.context.differences import items_added, same_kind
from orchestrator_state.records.context.encoded import Decoded, Encoded, split
from orchestrator_state.records.context.functions import Functions
from orchestrator_state.records.context.held import ContextValue, PlainContext
from orchestrator_state.records.context.looks import ContextChange, Look, length_of
from orchestrator_state.records.context.patches import Patch, apply_all

_ALL = None
"""In place of a key: any of them."""
_CHECKED_ALWAYS = 256 * 1024
"""A context that short is compared whole with each commit. Of a longer one, what somebody took up."""
_LOOKED_AT_ALWAYS = 64 * 1024
_MOST_HEADS = 16
_NOTHING: Final = math.inf
"""In place of the position of a patch: what was done was no replay of one."""


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
        self.was_edited = not _leads_to(committed, start, patches)
        if self.was_edited:
            start, patches = committed, {}
        self.start: Encoded = dict(start)
        """What the run starts with, before `replay`."""
        self._branches = Branches()
        self.begin_call: Final = self._branches.begin_call
        """The calling branch waits for a step: what is done until `end_call` is done by the step's function."""
        self._seen = dict(start)
        self._replayed = dict(start)
        self._committed = dict(committed)
        self.length = length_of(committed)
        """Of the committed context's JSON."""
        # By position; ordered, since of a dict whose first items are gone the first one is long in coming.
        self._patches = OrderedDict(sorted(patches.items()))
        of_branches = [patch for patch in patches.values() if patch.after is not None]
        self._loose = {key for patch in of_branches for key in patch.loose}
        self._last = max(patches, default=-1)
        self._is_one_line = not of_branches
        self._heads: dict[str | None, dict[Branch, tuple[int, float]]] = {}
        """Who took up a key last: one, or several who did not know of each other. And which patch they replayed so."""
        self._unsettled: set[str | None] = set()
        """What was taken up since it was last committed."""
        self._waiting: list[Change] = []
        """What functions of recorded steps did to values that are not there yet."""
        self._held: ContextValue | None = None
        self._functions = Functions(self._snapshot)

    @property
    def held(self) -> ContextValue:
        """What the handler has, if nothing else was given a dict."""
        if self._held is None:
            self._held = PlainContext(self.start, self.touch)
        return self._held

    @property
    def committed(self) -> Encoded:
        return self._committed

    @property
    def patches(self) -> Mapping[int, Patch]:
        """What is still to be replayed, by step position."""
        return self._patches

    def hold(self, held: ContextValue) -> None:
        """Let the handler have `held`, which shows the start, in place of a dict. It tells `touch` who takes it up."""
        self._held = held

    def _snapshot(self, key: str | None) -> Encoded:
        return self.held.snapshot(key)

    # --- who does what -----------------------------------------------------------------------------------------------

    def enter(self) -> None:
        """The handler is about to be called in this context."""
        self._branches.enter()

    def end_call(self, place: Place) -> None:
        """The step that began at `place` is over."""
        if self._functions.were_seen:
            self._functions.forget(place.tick)
        self._branches.end_call(place)

    def touch(self, key: str | None) -> None:
        """Whoever is calling takes up `key`, and may change it from now on."""
        place = self._branches.advance()
        # A long value is not looked at for a function that nobody is beside.
        if len(self._seen.get(key or "", "")) <= _LOOKED_AT_ALWAYS or self._branches.others_alive(place):
            self._functions.touch(key, place.call)
        self._unsettled.add(key)
        self._know(key, place)

    def _know(self, key: str | None, place: Place, replayed: float = _NOTHING) -> None:
        heads = self._heads.setdefault(key, {})
        if len(heads) > 1 or place.branch not in heads:  # somebody else has been there
            heads = {branch: head for branch, head in heads.items() if not place.knows(branch, head[0])}
            if key is not None and len(heads) >= _MOST_HEADS:
                self._loose.add(key)
                heads = {}
            self._heads[key] = heads
        heads[place.branch] = place.tick, replayed

    def _is_of(self, place: Place, key: str) -> bool:
        """Whether all that was ever done to `key` belongs to the past of `place`."""
        if key in self._loose or not self._knows(place, key):
            return False
        # Nobody was seen to take it up: somebody kept the object in a variable.
        return key in self._unsettled or _ALL in self._unsettled or not self._branches.others_alive(place)

    def _knows(self, place: Place, key: str, before: int = -1) -> bool:
        """Whether all that was done to `key` belongs to the past of `place`, or is the replay of a patch `before`."""
        for heads in (self._heads.get(key), self._heads.get(_ALL)):
            for branch, (tick, replayed) in (heads or {}).items():
                if replayed >= before and not place.knows(branch, tick):
                    return False
        return True

    # --- what is recorded --------------------------------------------------------------------------------------------

    def foreseen(self, position: int, least: int) -> Encoded:
        """What a `replay` will put into a plain context, values of at least so many characters."""
        if not isinstance(self.held, PlainContext):
            return {}
        changes = [self._patches[at].replayed for at in self._due(position)]
        keys = {key for change in changes for key in change.keys}
        values = {key: self._replayed[key] for key in keys if key in self._replayed}
        for change in changes:
            change.apply_to(values)
        return {key: text for key, text in values.items() if len(text) >= least}

    def replay(self, position: int, ahead: Decoded | None = None) -> None:
        """Move on to what the step at `position` committed, and to what its branch had come past by then."""
        due = self._due(position)
        if not due:
            self._branches.here()  # so that whoever calls is known to be there
            return
        place = self._branches.advance(position)
        touched: set[str] = set()
        made: list[Change] = []  # of functions
        for at in due:
            patch = self._patches.pop(at)
            patch.replayed.apply_to(self._replayed)
            # In another order than then, other branches may have been at a key already: what they did stays. But where
            # one has only replayed an earlier patch, this one was written in the knowledge of it.
            taken = {key for key in patch.replayed.keys if self._knows(place, key, before=at)}
            touched |= taken
            made += [change.only(change.keys - taken) for change in patch.made]
        values = {key: self._replayed[key] for key in touched if key in self._replayed}
        gone = touched - values.keys()
        self._see(values, gone)
        self._put(values, gone, ahead)
        for key in touched:
            self._know(key, place, position)
        for key in {key for change in made for key in change.keys}:
            self._know(key, place)
        self._redo(made)

    def _due(self, position: int) -> list[int]:
        """The patches in the past of the step at `position`, and its own, that are still to be replayed; in order."""
        line: list[int] = []
        while (patch := self._patches.get(position)) is not None:
            if patch.after is None:
                earlier = takewhile(position.__ge__, self._patches)
                return [*(at for at in earlier if at not in patch.unseen), *reversed(line)]
            line.append(position)
            position = patch.after
        return line[::-1]

    def _redo(self, made: Iterable[Change] = ()) -> None:
        """Do to the handler's context what the functions of steps did, whatever else was done to it by now.

        What another branch has still to make, so that it could be done to it, waits for that.
        """
        due, self._waiting = [*made, *self._waiting], []
        for change in due:
            for key in change.keys:
                part = change.only([key])
                after = self._done_to(self.held.snapshot(key), key, part)
                if after is None:
                    self._waiting.append(part)
                    continue
                self._put(*after)
                self._see(*(self._done_to(self._seen, key, part) or ({}, [key])))

    def _done_to(self, context: Encoded, key: str, part: Change) -> tuple[Encoded, list[str]] | None:
        """What is there then, or gone; None if it cannot be done."""
        try:
            after = part.apply(context)
        except (CorruptPayload, InvalidPayload, TypeError):
            return None
        if key not in after:
            return {}, [key]
        if key not in context and not same_kind(after[key], self._committed.get(key, after[key])):
            return None
        return {key: after[key]}, []

    def _put(self, values: Encoded, gone: Iterable[str], ahead: Decoded | None = None) -> None:
        paused = self._functions.pause((*values, *gone))
        self.held.put(values, gone, ahead)
        self._functions.go_on(paused)

    def _see(self, values: Encoded, gone: Any = ()) -> None:
        self._seen.update(values)
        for key in gone:
            self._seen.pop(key, None)

    # --- what is new -------------------------------------------------------------------------------------------------

    def diff(self) -> ContextChange:
        """What was changed since the last commit, for a step of the calling branch. Raises `InvalidPayload`."""
        look = self.look()
        return self.unchanged() if look is None else look.change()

    def unchanged(self) -> ContextChange:
        return ContextChange(None, {}, (), length=self.length)

    @property
    def is_untouched(self) -> bool:
        """Whether nothing can have changed: nobody has taken the context up, as in a run that has no use for one."""
        return not self._waiting and (self._held is None or not self._held.may_have_changed)

    def look(self, *, at_once: bool = True) -> Look | None:
        """The part of `diff` in which nobody may change anything; None if nobody has.

        Raises `InvalidPayload`; and `LongValues`, unless `at_once`.
        """
        if self.is_untouched:
            return None
        self._redo()
        place = self._branches.here()
        seen, gone = self.held.changes(self._seen, everywhere=self.length <= _CHECKED_ALWAYS, at_once=at_once)
        made = self._made(place)
        if not (seen or gone or made):
            return None
        before = {key: self._committed[key] for key in (*seen, *gone) if key in self._committed}
        after = dict(before)
        merged: Encoded = {}
        outstanding = frozenset(key for patch in self._patches.values() for key in patch.change.keys)
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
        return Look(
            seen=seen,
            gone=gone,
            before=before,
            after=after,
            merged=merged,
            outstanding=outstanding,
            made=made,
            own=frozenset(key for key in (*seen, *gone) if self._is_of(place, key)),
            last=place.last,
            is_one_line=self._is_one_line and place.last == self._last and not self._patches,
            length=self.length,
        )

    def _made(self, place: Place) -> tuple[Change, ...]:
        """What the step's function did, where others may do something to it, or have."""
        done = self._functions.done(place.tick)
        if not done:
            return ()
        if not self._branches.others_possible(place):
            done = tuple(growth.only(key for key in growth.keys if not self._is_of(place, key)) for growth in done)
        return tuple(growth for growth in done if growth.keys)

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
            self._branches.advance(position)

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
        self.length = length_of(self._committed)
        self._loose |= patch.loose
        self._is_one_line = self._is_one_line and patch.after is None
        self._last = max(self._last, position)
        self._branches.advance(position)

    def final(self, *, at_once: bool = True) -> Encoded:
        """The handler's context, all of it. Raises `InvalidPayload`; and `LongValues`, unless `at_once`."""
        self._redo()
        seen, gone = self.held.changes(self._seen, everywhere=True, at_once=at_once)
        return {key: text for key, text in {**self._seen, **seen}.items() if key not in gone}

    def _is_recorded(self, key: str, after: str) -> bool:
        """Whether a step that the handler has not come back to has committed this change."""
        recorded = self._committed.get(key)
        if recorded is None or recorded == self._seen.get(key):
            return False
        return recorded == after or items_added(after, recorded) is not None


def _leads_to(end: Encoded, start: Encoded, patches: Mapping[int, Patch]) -> bool:
    try:
        return apply_all(start, (patches[position] for position in sorted(patches))) == end
    except CorruptPayload:  # a step in between is gone
        return False
