"""The commits on record that the handler of this attempt has not come back to yet."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile

from orchestrator_state.records.context.changes.change import Change
from orchestrator_state.records.context.changes.encoded import Encoded
from orchestrator_state.records.context.committed import CommittedValues
from orchestrator_state.records.context.patches import Patch


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
