"""What everybody's context was after each recorded commit, looked up a key at a time.

A commit's change is told relative to what everybody had committed by then. That may be more than the handler comes
past on its way to the step: a branch's commit saves what was done before the branches parted, too. So what a commit
left at a key is made of all changes of that key up to it, in the order of commits, whether or not the handler has come
back to their steps.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import takewhile

from orchestrator_state.records.context.changes.change import Change
from orchestrator_state.records.context.changes.encoded import Encoded
from orchestrator_state.records.context.patches import Patch


class CommittedValues:
    """Each key stands at one commit, the start to begin with, and is moved on from there."""

    def __init__(self, start: Encoded, patches: Mapping[int, Patch]) -> None:
        """`patches` are by step position."""
        self._values = dict(start)
        self._to_come: dict[str, OrderedDict[int, Change]] = {}
        """By key, the changes of it that it has not been moved past, by position and in that order."""
        for position in sorted(patches):
            change = patches[position].change
            for key in change.keys:
                self._to_come.setdefault(key, OrderedDict())[position] = change

    def get(self, key: str) -> str | None:
        """Where it stands now."""
        return self._values.get(key)

    def part(self, keys: Iterable[str]) -> Encoded:
        """Where these stand now, without those that are not there."""
        return {key: self._values[key] for key in keys if key in self._values}

    def move_on(self, keys: Iterable[str], position: int, unseen: Collection[int] = ()) -> list[str]:
        """Move `keys` on to what the commit at `position` left there; without the commits `unseen`, which come later.

        Returns those of them that the commit changed, and that were not past it.
        """
        moved = [key for key in keys if key in self._to_come and position in self._to_come[key]]
        if not moved:
            return moved
        for key in moved:
            if next(iter(self._to_come[key])) != position:
                self._move_up_to(key, position, unseen)
        changes = [self._to_come[key].pop(position) for key in moved]  # the same one for all of them
        _apply(changes[0], moved, self._values)
        return moved

    def _move_up_to(self, key: str, position: int, unseen: Collection[int]) -> None:
        to_come = self._to_come[key]
        for at in list(takewhile(position.__gt__, to_come)):
            if at not in unseen:
                _apply(to_come.pop(at), [key], self._values)

    def around(self, keys: Iterable[str], position: int) -> tuple[Encoded, Encoded]:
        """What was at these keys before the commit at `position`, and after it. For keys that are not past it."""
        before: Encoded = {}
        after: Encoded = {}
        for key in keys:
            for at, was, became in self.way(key, position):
                if at == position:
                    before |= was
                    after |= became
        return before, after

    def way(self, key: str, last: float = math.inf) -> Iterator[tuple[int, Encoded, Encoded]]:
        """What is to come at `key`: the position of each commit up to `last`, what was there before, and after."""
        after = self.part([key])
        for at in takewhile(last.__ge__, self._to_come.get(key, ())):
            before, after = after, dict(after)
            _apply(self._to_come[key][at], [key], after)
            yield at, before, after


def _apply(change: Change, keys: Collection[str], context: Encoded) -> None:
    (change if len(change.keys) == len(keys) else change.only(keys)).apply_to(context)
