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

import contextlib
import math
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Any, Final

from orchestrator_state.errors import CorruptPayload
from orchestrator_state.payloads import NotAccepted
from orchestrator_state.records.context.branches import Branches, Place
from orchestrator_state.records.context.changes.change import Change
from orchestrator_state.records.context.changes.differences import growth_between, items_added
from orchestrator_state.records.context.changes.encoded import Decoded, Encoded, split
from orchestrator_state.records.context.functions import Functions
from orchestrator_state.records.context.held import ContextValue, PlainContext
from orchestrator_state.records.context.looks import ContextChange, Look, length_of
from orchestrator_state.records.context.order import ANY, Order
from orchestrator_state.records.context.outstanding import Outstanding
from orchestrator_state.records.context.patches import GROWN, Patch, apply_all
from orchestrator_state.records.context.repeats import Waiting, done_to

_CHECKED_ALWAYS = 256 * 1024
"""A context that short is compared whole with each commit. Of a longer one, what somebody took up."""
_LOOKED_AT_ALWAYS = 64 * 1024


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
        self._outstanding = Outstanding(start, patches)
        self._committed = dict(committed)
        self.length = length_of(committed)
        """Of the committed context's JSON."""
        of_branches = [patch for patch in patches.values() if patch.after is not None]
        self._loose = {key for patch in of_branches for key in patch.loose}
        self._last = max(patches, default=-1)
        self._is_one_line = not of_branches
        self._order = Order(self._loose)
        self._touches = 0
        self._unsettled: dict[str | None, int] = {}
        """What was taken up since it was last committed, and by which touch."""
        self._waiting = Waiting(self._snapshot)
        self._held: ContextValue | None = None
        self._functions = Functions(self._snapshot, lambda: self.held.everything())  # noqa: PLW0108 - another is held later

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
        return self._outstanding.patches

    def hold(self, held: ContextValue) -> None:
        """Let the handler have `held`, which shows the start, in place of a dict. It tells `touch` who takes it up."""
        self._held = held

    def taken_up(self) -> Any:
        """What is held, for the handler to read and change."""
        if self._waiting.parts:
            self._redo()  # a line may have made what it waited for, and there may be no step before this one looks
        return (self._held or self.held).taken_up()

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

    def begin_trial(self) -> None:
        """The function of the calling step is about to be called, perhaps once more: what it did is taken back."""
        place = self._branches.here()
        if place.call is not None:
            self._take_back(place, place.call)
            self._functions.begin_trial(place.call, self.held.everything() if self.held.is_in_hand else None)

    def _take_back(self, place: Place, call: int) -> None:
        if self._functions.may_be_repeated(call):
            values, gone = self._functions.take_back(call, partial(self._order.is_past, place=place))
            with contextlib.suppress(NotAccepted):  # the model will not be stored either
                self._put(values, gone)

    def return_to(self, change: ContextChange | None, position: int) -> None:
        """What the function of the step at `position` did last is replaced by what it did in the try of `change`."""
        place = self._branches.here()
        if place.call is None:
            return
        self._take_back(place, place.call)
        if change is None:
            return
        own = {key for key in (*change.seen, *change.gone) if self._order.is_past(key, place)}
        self._put({key: text for key, text in change.seen.items() if key in own}, own.intersection(change.gone))
        if change.patch is not None:
            made = change.patch.made_between(self._committed, self.committed_with(change))
            self._redo((position, each.only(each.keys - own)) for each in made)

    def touch(self, key: str | None) -> None:
        """Whoever is calling takes up `key`, and may change it from now on."""
        place = self._branches.advance()
        call = place.call
        # A long value is not looked at for a function that nobody is beside.
        if len(self._seen.get(key or "", "")) <= _LOOKED_AT_ALWAYS or self._branches.others_alive(place):
            self._functions.touch(key, call)
        elif key is not None and call is not None and not self._functions.is_at(key, call):
            may_be_repeated = self._functions.may_be_repeated(call)
            is_own = key not in self._loose and self._order.is_past(key, place)
            if self._unsettled.keys().isdisjoint((key, ANY)) and (is_own or not may_be_repeated):
                self._functions.touch_alone(call, {key: self._seen[key]})
            elif may_be_repeated or not is_own or self._branches.others_possible(place):
                self._functions.touch(key, call)
        self._touches += 1
        self._unsettled[key] = self._touches
        place.branch.taken.add(key)
        self._order.take(key, place)
        if place.newest > self._outstanding.first:
            self._order.take_ahead([key], place.newest)

    def _is_of(self, place: Place, key: str) -> bool:
        """Whether all that was ever done to `key` belongs to the past of `place`."""
        if key in self._loose or not self._order.is_past(key, place):
            return False
        # Nobody was seen to take it up: somebody kept the object in a variable.
        return key in self._unsettled or ANY in self._unsettled or not self._branches.others_alive(place)

    # --- what is recorded --------------------------------------------------------------------------------------------

    def foreseen(self, position: int, least: int) -> Encoded:
        """What a `replay` will put into a plain context, values of at least so many characters."""
        if not isinstance(self.held, PlainContext):
            return {}
        outstanding = self._outstanding
        keys = outstanding.keys_replayed(outstanding.due(position))
        return {key: text for key, text in outstanding.values.until(keys, position).items() if len(text) >= least}

    def replay(self, position: int, ahead: Decoded | None = None) -> None:
        """Move on to what the step at `position` committed, and to what its branch had come past by then."""
        outstanding = self._outstanding
        due = outstanding.due(position)
        if not due:
            self.come_past(position)
            return
        place = self._branches.advance(position)
        outdone = self._outdone(due) if len(due) > 1 else None
        touched: set[str] = set()
        made: list[tuple[int, Change]] = []  # of functions
        for at in due:
            patch = outstanding.come_back_to(at)
            if patch.made:
                made += [(at, change) for change in patch.made_between(*outstanding.values.around(patch.brief, at))]
            moved = outstanding.values.move_on(at, patch)
            in_force = {key for key in moved if self._is_in_force(patch, place, key, at)}
            if outdone:
                in_force -= outdone
            touched |= in_force
            if made:
                made = [(by, change.only(change.keys - in_force)) for by, change in made]
            self._waiting.end(in_force, at)
            if at > outstanding.first:
                self._order.save_ahead(patch.repeated, at)
        self._settle(place, position)
        values = outstanding.values.part(touched)
        gone = touched - values.keys()
        self._see(values, gone)
        self._put(values, gone, ahead)
        for key in touched:
            self._order.take(key, place, position)
        if made or self._waiting.parts:
            for key in {key for _, change in made for key in change.keys}:
                self._order.take(key, place)
            self._redo(made)

    def come_past(self, position: int) -> None:
        """The calling branch has come past a step that is recorded without a patch."""
        place = self._branches.here()  # so that whoever calls is known to be there
        if max(position, place.newest) > self._outstanding.first:
            self._branches.advance(step=position)
        self._settle(place, position)
        if self._waiting.parts:
            self._redo()

    def _settle(self, place: Place, at: int) -> None:
        """The branch of `place` has come to the end of the step `at`."""
        taken = place.branch.taken
        if taken:
            if at > self._outstanding.first:
                self._order.take_ahead(taken, at)
            taken.clear()

    def _outdone(self, due: list[int]) -> frozenset[str]:
        """Keys that steps have changed which the handler no longer asks for, and its lines as well.

        The last step that is due, which it does ask for, says nothing of them: another branch had saved what the lines
        did after those steps. So the lines count.
        """
        if self._outstanding.patches[due[-1]].after is None:
            return frozenset()
        keys = self._outstanding.keys_replayed(due[:-1]) - self._outstanding.keys_replayed(due[-1:])
        return frozenset(key for key in keys if self.held.snapshot(key).get(key) != self._seen.get(key))

    def _is_in_force(self, patch: Patch, place: Place, key: str, at: int) -> bool:
        """Whether the handler finds at `key` what the patch `at` says. Else there is news, and that stays."""
        order = self._order
        if order.is_plain(key, place) or not (
            (is_news := order.is_news(key, place, at)) or order.may_be_news(key, place, at)
        ):
            return True
        now = self.held.snapshot(key).get(key)
        if not is_news and now == self._seen.get(key):  # it was only looked at
            return True
        if now != self._outstanding.values.get(key) or any(key in change.keys for change in patch.made):
            return False
        return order.is_met(key, place, at)

    def _redo(self, made: Iterable[tuple[int, Change]] = ()) -> None:
        """Do to the handler's context what the functions of steps did, whatever else was done to it by now.

        What another branch has still to make, so that it could be done to it, waits for that.
        """
        for by, key, part in self._waiting.take(made):
            after = done_to(self.held.snapshot(key), key, part, self._committed)
            if after is None:
                self._waiting.add(by, key, part)
                continue
            self._put(*after)
            self._see(*(done_to(self._seen, key, part, self._committed) or ({}, [key])))

    def _put(self, values: Encoded, gone: Iterable[str], ahead: Decoded | None = None) -> None:
        if not (self._functions.were_seen or self._waiting.parts):
            self.held.put(values, gone, ahead)
            return
        self._waiting.end_replaced()
        paused = self._functions.pause((*values, *gone))
        self.held.put(values, gone, ahead)
        self._functions.go_on(paused)
        self._waiting.go_on()

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
        return ContextChange(None, {}, (), length=self.length, touches=self._touches)

    @property
    def is_untouched(self) -> bool:
        """Whether nothing can have changed: nobody has taken the context up, as in a run that has no use for one."""
        return not self._waiting.parts and (self._held is None or not self._held.may_have_changed)

    def look(self, *, at_once: bool = True) -> Look | None:
        """The part of `diff` in which nobody may change anything; None if nobody has.

        Raises `InvalidPayload`; and `LongValues`, unless `at_once`.
        """
        if self.is_untouched:
            return None
        self._redo()
        place = self._branches.here()
        seen, gone = self.held.changes(self._seen, everywhere=self.length <= _CHECKED_ALWAYS, at_once=at_once)
        outstanding = self._outstanding.keys
        own = frozenset(key for key in (*seen, *gone) if key not in outstanding and self._is_of(place, key))
        made, is_alone = self._made(place, own, seen, gone)
        if not (seen or gone or made):
            return None
        before = {key: self._committed[key] for key in (*seen, *gone) if key in self._committed}
        after = dict(before)
        merged: Encoded = {}
        by_function = frozenset(key for change in made for key in change.keys)
        for key, text in seen.items():
            if key not in by_function and not any(self._outstanding.made_at(key)) and self._is_recorded(key, text):
                continue
            theirs, items = before.get(key), items_added(self._seen.get(key), text)
            if key not in outstanding:
                after[key] = text
            elif items is None or theirs is None or items_added(theirs, text) is not None:
                after[key] = self._outstanding.done_to(text, key, like=self._committed)
            elif items := self._outstanding.not_among(items, key, theirs, self._seen[key]):
                merged[key] = items
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
            is_alone=is_alone,
            own=own,
            last=place.last,
            is_one_line=self._is_one_line and place.last == self._last and not self._outstanding.patches,
            length=self.length,
            touches=self._touches,
        )

    def _made(
        self, place: Place, own: frozenset[str], seen: Encoded, gone: Collection[str]
    ) -> tuple[tuple[Change, ...], bool]:
        """What the step's function did, and whether no other branch can have been beside it."""
        made = [growth for growth in self._functions.done(place.tick) if growth.keys]
        alone = self._functions.alone(place.tick)
        now = {key: seen.get(key) or self._seen[key] for key in alone if key not in gone and key in self._seen}
        alone = {key: old for key, old in alone.items() if now.get(key) != old}
        if not (made or alone):
            return (), False
        is_alone = not self._branches.others_possible(place)
        brief = {key for key, old in alone.items() if is_alone and key in own and old == self._seen.get(key)}
        if told := {key: old for key, old in alone.items() if key not in brief}:
            made.append(growth_between(told, {key: now[key] for key in told if key in now}))
        return (*made, *([Change(edited=dict.fromkeys(brief, GROWN))] if brief else [])), is_alone

    def accept(self, change: ContextChange, position: int) -> None:
        """`change` is committed, with the calling branch's step at `position`."""
        self._see(change.seen, change.gone)
        self._committed.update(change.committed)
        for key in change.dropped:
            self._committed.pop(key, None)
        self.length = change.length
        patch = change.patch
        for taken in (*change.seen, *change.gone, ANY):
            if self._unsettled.get(taken, math.inf) <= change.touches:
                del self._unsettled[taken]
        if position > self._outstanding.first:
            self._order.save_ahead({*change.seen, *change.gone, *(() if patch is None else patch.keys)}, position)
        if patch is None:
            self.come_past(position)
        else:
            self._add(patch, position)

    def committed_with(self, change: ContextChange) -> Encoded:
        """Everybody's context once `change` is committed."""
        context = {**self._committed, **change.committed}
        for key in change.dropped:
            context.pop(key, None)
        return context

    def _add(self, patch: Patch, position: int) -> None:
        """`patch` is on record, and the calling branch has come past it."""
        self._loose |= patch.loose
        self._is_one_line = self._is_one_line and patch.after is None
        self._last = max(self._last, position)
        self._settle(self._branches.advance(position), position)

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
