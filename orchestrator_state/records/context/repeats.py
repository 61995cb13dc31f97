"""What the functions of recorded steps did, done once more to what others have made of the values by now."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from orchestrator_state.errors import CorruptPayload, InvalidPayload
from orchestrator_state.records.context.changes.change import NULL, Change
from orchestrator_state.records.context.changes.differences import growth_between, may_be_of_list
from orchestrator_state.records.context.changes.encoded import Encoded


@dataclass(frozen=True, slots=True, repr=False)
class _Part:
    """What the step at position `by` did to a key."""

    by: int
    key: str
    change: Change
    found: Encoded
    """What is there in its place."""

    def is_replaced(self, now: Encoded) -> bool:
        """Whether what was there is so no longer, and has not only grown. Who makes a value replaces none."""
        if self.found.get(self.key, NULL) == NULL:
            return False
        growth = growth_between(self.found, now)
        return self.key in growth.changed or self.key in growth.dropped


class Waiting:
    """Changes of values that are not there yet: another branch has still to make what they are done to."""

    def __init__(self, snapshot: Callable[[str], Encoded]) -> None:
        """`snapshot` tells what is at a key now."""
        self._snapshot = snapshot
        self.parts: list[_Part] = []

    def add(self, by: int, key: str, change: Change) -> None:
        self.parts.append(_Part(by, key, change, self._at(key)))

    def _at(self, key: str) -> Encoded:
        return {at: text for at, text in self._snapshot(key).items() if at == key}

    def end(self, keys: Collection[str], at: int) -> None:
        """The commit `at` has set `keys`, and knew what was done there before it: that waits no longer."""
        if self.parts and keys:
            self.parts = [part for part in self.parts if part.by > at or part.key not in keys]

    def end_replaced(self) -> None:
        """Nor does what was to be done to a value that somebody has removed since, or put another one in its place."""
        self.parts = [part for part in self.parts if not part.is_replaced(self._at(part.key))]

    def go_on(self) -> None:
        """What was put into the context since `end_replaced` was put there by nobody."""
        self.parts = [replace(part, found=self._at(part.key)) for part in self.parts]

    def take(self, made: Iterable[tuple[int, Change]] = ()) -> Iterator[tuple[int, str, Change]]:
        """What is to be tried now, key by key: what `made` did, by step position, and what has waited."""
        self.end_replaced()
        made = list(made)
        for at, change in made:
            self.end((*change.changed, *change.dropped), at)
        waited, self.parts = self.parts, []
        for by, change in made:
            for key in change.keys:
                yield by, key, change.only([key])
        for part in waited:
            yield part.by, part.key, part.change


def done_to(context: Encoded, key: str, part: Change, like: Encoded) -> tuple[Encoded, list[str]] | None:
    """What is at `key` after `part`, or gone; None if it cannot be done.

    Nor can it be if an object would grow from nothing that may be of a list: `like` tells.
    """
    try:
        after = part.apply(context)
    except (CorruptPayload, InvalidPayload, TypeError):
        return None
    if key not in after:
        return {}, [key]
    if key not in context and key not in part.changed and may_be_of_list(after[key], like.get(key, NULL)):
        return None
    return {key: after[key]}, []
