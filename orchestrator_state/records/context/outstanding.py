"""The commits on record that the handler of this attempt has not come back to yet."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile

from orchestrator_state.records.context.changes.change import Change
from orchestrator_state.records.context.changes.differences import items_besides
from orchestrator_state.records.context.changes.encoded import Encoded
from orchestrator_state.records.context.committed import CommittedValues
from orchestrator_state.records.context.patches import Patch
from orchestrator_state.records.context.repeats import done_to


class Outstanding:
    """Their patches, by step position."""

    def __init__(self, start: Encoded, patches: Mapping[int, Patch]) -> None:
        # Ordered, since of a dict whose first items are gone the first one is long in coming.
        self.patches = OrderedDict(sorted(patches.items()))
        self.first = next(iter(self.patches), math.inf)
        """The position of the first one."""
        self.values = CommittedValues(start, patches)

    def due(self, position: int) -> list[int]:
        """Those in the past of the step at `position`, and its own, in order."""
        line: list[int] = []
        while (patch := self.patches.get(position)) is not None:
            if patch.after is None:
                earlier = takewhile(position.__ge__, self.patches)
                return [*(at for at in earlier if at not in patch.unseen), *reversed(line)]
            line.append(position)
            position = patch.after
        return line[::-1]

    def come_back_to(self, position: int) -> Patch:
        """It is outstanding no longer."""
        patch = self.patches.pop(position)
        self.first = next(iter(self.patches), math.inf)
        return patch

    @property
    def keys(self) -> frozenset[str]:
        """All that they say anything of."""
        return frozenset(key for patch in self.patches.values() for key in patch.keys)

    def keys_replayed(self, due: Iterable[int]) -> frozenset[str]:
        """What the handler finds changed when it comes back to `due`."""
        return frozenset(key for at in due for key in self.patches[at].replayed.keys)

    def made_at(self, key: str) -> Iterator[Change]:
        """What the functions of their steps did to `key`, in the order of commits."""
        way: dict[int, tuple[Encoded, Encoded]] | None = None
        for at, patch in self.patches.items():
            made = patch.made
            if key in patch.brief:
                if way is None:
                    way = {at: (before, after) for at, before, after in self.values.way(key)}
                made = patch.made_between(*way.get(at, ({}, {})))
            for change in made:
                if key in change.keys:
                    yield change.only([key])

    def done_to(self, text: str, key: str, like: Encoded) -> str:
        """The value `text` at `key`, with what the functions of their steps did, so that it stays."""
        after = {key: text}
        for change in self.made_at(key):
            after, _ = done_to(after, key, change, like) or (after, ())
        return after.get(key, text)

    def not_among(self, items: str, key: str, recorded: str, seen: str) -> str:
        """Those of the `items` new to a list that a line, or a function cut short, has not added in an earlier attempt.

        Such a one is known by its value alone: two that are equal count as one, until the handler has come so far.
        """
        made = [change.appended.get(key, "") for change in self.made_at(key)]
        return items_besides(items, recorded, [seen, *(f"[{more}]" for more in made)])
