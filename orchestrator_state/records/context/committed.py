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
        in_order = sorted(patches.items())
        self._in_line: OrderedDict[int, Change] | None = None
        """Of a handler without branches, which comes past each commit in turn: the changes that are to come."""
        self._to_come: dict[str, OrderedDict[int, Change]] = {}
        """With branches: by key, the changes of it that it has not been moved past, by position and in that order."""
        if all(patch.after is None for patch in patches.values()):
            self._in_line = OrderedDict((position, patch.change) for position, patch in in_order)
            return
        for position, patch in in_order:
            for key in patch.change.keys:
                self._to_come.setdefault(key, OrderedDict())[position] = patch.change

    def get(self, key: str) -> str | None:
        """Where it stands now."""
        return self._values.get(key)

    def part(self, keys: Iterable[str]) -> Encoded:
        """Where these stand now, without those that are not there."""
        return {key: self._values[key] for key in keys if key in self._values}

    def move_on(self, position: int, patch: Patch) -> Collection[str]:
        """Move the keys that the handler finds changed when it comes back to `patch` on to what that commit left there.

        Commits that the patch has not seen come later. Returns those keys that were not past the commit.
        """
        keys = patch.replayed.keys
        if self._in_line is not None:
            self._in_line.pop(position).apply_to(self._values)
            return keys
        moved = [key for key in keys if position in self._to_come.get(key, ())]
        for key in moved:
            to_come = self._to_come[key]
            for at in list(takewhile(position.__gt__, to_come)):
                if at not in patch.unseen:
                    to_come.pop(at).only([key]).apply_to(self._values)
            del to_come[position]
        patch.change.only(moved).apply_to(self._values)
        return moved

    def until(self, keys: Iterable[str], position: int) -> Encoded:
        """What the commits up to `position` left at these keys, those that are to come with them."""
        found: Encoded = {}
        for key in keys:
            for _, _, after in self.way(key, position):
                found |= after
        return found

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
        to_come = self._to_come.get(key, OrderedDict()) if self._in_line is None else self._in_line
        for at in takewhile(last.__ge__, to_come):
            if key in to_come[at].keys:
                before, after = after, to_come[at].only([key]).apply(after)
                yield at, before, after
