"""What the functions of steps that run side by side do to the context, each by itself.

A line of the handler is executed again when its run is resumed; the function of a recorded step is not, so what it
did has to be known, and told from what others did meanwhile. It is what changed between the moment it took a key up
and the moment somebody else did, or its end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from orchestrator_state.errors import CorruptPayload
from orchestrator_state.records.context.changes.change import Change
from orchestrator_state.records.context.changes.differences import growth_between, with_growth
from orchestrator_state.records.context.changes.encoded import Encoded


@dataclass(slots=True, repr=False)
class _Trial:
    """What would be at a key without a function that may be called once more."""

    found: Encoded
    """What the function found, with what others did there since."""
    left: Encoded = field(default_factory=dict)
    """What was there when the function had last been at it."""

    def without_it(self, now: Encoded) -> Encoded:
        """What would be there now. Raises `CorruptPayload` if that cannot be told."""
        return with_growth(self.found, self.left, now)


@dataclass(slots=True, repr=False)
class _Trials:
    """Of a function that may be called once more."""

    whole: Encoded | None
    """What was everywhere before it got hold of everything at once; None if it has not."""
    by_key: dict[str | None, _Trial] = field(default_factory=dict)
    others: set[str | None] = field(default_factory=set)
    """Keys that others took up meanwhile."""


class Functions:
    """`snapshot` tells what is at a key now; with None, everywhere, if that is one value. `everything` does anyway."""

    def __init__(self, snapshot: Callable[[str | None], Encoded], everything: Callable[[], Encoded]) -> None:
        self._snapshot = snapshot
        self._everything = everything
        self._open: dict[str | None, tuple[int, Encoded]] = {}
        """By key, the call that took it up last, and what it found."""
        self._done: dict[int, list[Change]] = {}
        self._alone: dict[int, Encoded] = {}
        self._trials: dict[int, _Trials] = {}
        """By call."""
        self.were_seen = False
        """Whether a function has taken up anything: else there is nothing to `forget`."""

    def touch(self, key: str | None, call: int | None) -> None:
        """The function of `call`, or a line of the handler, takes up `key`."""
        if self._alone:
            self._end_alone(key, call)
        if self._trials:
            self._note_others((key,), call)
        found = self._open.get(key)
        if found is None and call is None:
            return
        if found is not None and found[0] == call:
            return
        now = self._snapshot(key)
        if found is not None:
            self._close(key, now)
        if call is not None:
            self._begin(key, call, now)
            self.were_seen = True

    def touch_alone(self, call: int, now: Encoded) -> None:
        """The function of `call` takes up a long key that is as the last commit left it: `now`."""
        self._alone.setdefault(call, {}).update(now)
        self.were_seen = True

    def _end_alone(self, key: str | None, call: int | None) -> None:
        """See `touch_alone`: somebody else comes to `key` now."""
        for by, found in self._alone.items():
            if key in found and by != call:
                self._begin(key, by, {key: found.pop(key)})

    def alone(self, call: int) -> Encoded:
        """See `touch_alone`: if any of these has changed, the function of `call` did that."""
        return self._alone.get(call, {})

    def is_at(self, key: str, call: int) -> bool:
        """Whether the function of `call` has taken up `key`, and nobody else since."""
        return key in self._alone.get(call, ()) or (key in self._open and self._open[key][0] == call)

    def pause(self, keys: Iterable[str]) -> dict[str | None, int]:
        """What is done to `keys` from now on is no function's doing, until `go_on` with what this returns."""
        if self._alone:
            for put in keys:
                self._end_alone(put, None)
        if self._trials:
            self._note_others(keys, None)
        paused = {key: self._open[key][0] for key in (*keys, None) if key in self._open} if self._open else {}
        for key in paused:
            self._close(key, self._snapshot(key))
        return paused

    def go_on(self, paused: Mapping[str | None, int]) -> None:
        """See `pause`."""
        for key, call in paused.items():
            self._begin(key, call, self._snapshot(key))

    def done(self, call: int) -> tuple[Change, ...]:
        """What the function of `call` has done so far, one change after the other."""
        self._close_all(call)
        return tuple(self._done.get(call, ()))

    # --- a function that is called once more -------------------------------------------------------------------------

    def may_be_repeated(self, call: int) -> bool:
        return call in self._trials

    def begin_trial(self, call: int, in_hand: Encoded | None) -> None:
        """The function of `call` is about to be called, and perhaps once more after that.

        `in_hand` is everything, if the function may have hold of it already.
        """
        self._trials[call] = _Trials(in_hand)
        self.were_seen = True

    def _note_others(self, keys: Iterable[str | None], call: int | None) -> None:
        for by, trials in self._trials.items():
            if by != call:
                trials.others.update(keys)

    def take_back(self, call: int, is_its_own: Callable[[str], bool]) -> tuple[Encoded, list[str]]:
        """What has to be put, and what has to go, so that the function of `call` has done nothing yet."""
        self._close_all(call)
        trials, alone = self._trials[call], self._alone.get(call, {})
        values = {key: text for key, text in alone.items() if is_its_own(key)}
        gone: list[str] = []
        if trials.whole is not None and None not in trials.others:
            trials.by_key.pop(None, None)
            was, is_now = trials.whole, self._everything()
            for put in (was.keys() | is_now.keys()) - trials.others - trials.by_key.keys() - alone.keys():
                if put not in was:
                    gone.append(put)
                elif was[put] != is_now.get(put):
                    values[put] = was[put]
        for key, trial in trials.by_key.items():
            now = self._snapshot(key)
            with contextlib.suppress(CorruptPayload):  # somebody made another kind of value of it, which stays
                before = trial.without_it(now)
                values |= {key: text for key, text in before.items() if now.get(key) != text}
                gone += now.keys() - before.keys()
        self.forget(call)
        return values, gone

    def forget(self, call: int) -> None:
        self._done.pop(call, None)
        self._alone.pop(call, None)
        self._trials.pop(call, None)
        if self._open:
            self._open = {key: opened for key, opened in self._open.items() if opened[0] != call}

    def _begin(self, key: str | None, call: int, now: Encoded) -> None:
        self._open[key] = call, now
        if (trials := self._trials.get(call)) is not None:
            if key is None and trials.whole is None:
                trials.whole = now or self._everything()
            if (trial := trials.by_key.get(key)) is None:
                trials.by_key[key] = _Trial(now)
            else:
                try:
                    trial.found = trial.without_it(now)
                except CorruptPayload:
                    trial.found = now

    def _close_all(self, call: int) -> None:
        if self._open:
            for key in [key for key, (by, _) in self._open.items() if by == call]:
                self._close(key, self._snapshot(key))

    def _close(self, key: str | None, now: Encoded) -> None:
        call, before = self._open.pop(key)
        change = growth_between(before, now)
        if change.keys:
            self._done.setdefault(call, []).append(change)
        if (trials := self._trials.get(call)) is not None:
            trials.by_key[key].left = now
