"""What the functions of recorded steps did, done once more to what others have made of the values by now."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from orchestrator_state.errors import CorruptPayload, InvalidPayload
from orchestrator_state.records.context.changes.change import Change
from orchestrator_state.records.context.changes.differences import same_kind
from orchestrator_state.records.context.changes.encoded import Encoded


class Waiting:
    """Changes of values that are not there yet: another branch has still to make what they are done to."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, str, Change]] = []
        """Of one key each, and by the step at which position."""

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, by: int, key: str, part: Change) -> None:
        self._parts.append((by, key, part))

    def end(self, keys: Collection[str], at: int) -> None:
        """The commit `at` has set `keys`, and knew what was done there before it: that waits no longer."""
        if self._parts and keys:
            self._parts = [waiting for waiting in self._parts if waiting[0] > at or waiting[1] not in keys]

    def take(self, made: Iterable[tuple[int, Change]] = ()) -> Iterator[tuple[int, str, Change]]:
        """What is to be tried now, key by key: what `made` did, by step position, and what has waited."""
        made = list(made)
        for at, change in made:
            self.end((*change.changed, *change.dropped), at)
        waited, self._parts = self._parts, []
        for by, change in made:
            for key in change.keys:
                yield by, key, change.only([key])
        yield from waited


def done_to(context: Encoded, key: str, part: Change, like: Encoded) -> tuple[Encoded, list[str]] | None:
    """What is at `key` after `part`, or gone; None if it cannot be done, or would make another kind than `like` has."""
    try:
        after = part.apply(context)
    except (CorruptPayload, InvalidPayload, TypeError):
        return None
    if key not in after:
        return {}, [key]
    if key not in context and not same_kind(after[key], like.get(key, after[key])):
        return None
    return {key: after[key]}, []
