"""What was done to a key after what: by branches that do not know of each other, and ahead of what is on record."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from orchestrator_state.records.context.branches import Branch, Place

ANY = None
"""In place of a key: any of them."""
_NOTHING: Final = math.inf
"""In place of the position of a patch: what was done was no replay of one."""
_MOST_HEADS = 16


class Order:
    """Of the changes of each key in one attempt. A step is ahead if earlier ones are on record, yet to be come to."""

    def __init__(self, loose: set[str]) -> None:
        """`loose`: where keys are put whose authors are too many to be told apart."""
        self._loose = loose
        self._heads: dict[str | None, dict[Branch, tuple[int, float]]] = {}
        """Who took up a key last: one, or several who did not know of each other. And which patch they replayed so."""
        self._saved_ahead: dict[str, int] = {}
        """The newest commit ahead that saved a key, by position."""
        self._taken_ahead: dict[str | None, int] = {}
        """The newest step ahead before or after which somebody took a key up."""

    def take(self, key: str | None, place: Place, replayed: float = _NOTHING) -> None:
        """Note who took `key` up."""
        heads = self._heads.setdefault(key, {})
        if len(heads) > 1 or place.branch not in heads:  # somebody else has been there
            heads = {branch: head for branch, head in heads.items() if not place.knows(branch, head[0])}
            if key is not ANY and len(heads) >= _MOST_HEADS:
                self._loose.add(key)
                heads = {}
            self._heads[key] = heads
        heads[place.branch] = place.tick, replayed

    def is_past(self, key: str, place: Place) -> bool:
        """Whether all that was done to `key` belongs to the past of `place`."""
        return self._is_past(key, place) and self._is_past(ANY, place)

    def _is_past(self, key: str | None, place: Place, before: int = -1) -> bool:
        """The same of just this key. Who replayed a patch `before` is in the past of a later one."""
        for branch, (tick, replayed) in self._heads.get(key, {}).items():
            if replayed >= before and not place.knows(branch, tick):
                return False
        return True

    def save_ahead(self, keys: Iterable[str], at: int) -> None:
        """The commit `at`, which is ahead, saved `keys`."""
        for key in keys:
            self._saved_ahead[key] = max(at, self._saved_ahead.get(key, -1))

    def take_ahead(self, keys: Iterable[str | None], at: int) -> None:
        """Somebody took `keys` up on his way to the step `at`, which is ahead, or from there."""
        for key in keys:
            self._taken_ahead[key] = max(at, self._taken_ahead.get(key, -1))

    def is_plain(self, key: str, place: Place) -> bool:
        """Whether there is nothing to look into, as in a handler without branches: seen in a moment."""
        heads = self._heads
        if self._saved_ahead or self._taken_ahead or ANY in heads:
            return False
        return key not in heads or (len(heads[key]) == 1 and place.branch in heads[key])

    def is_news(self, key: str, place: Place, at: int) -> bool:
        """Whether something was surely done to `key` that the patch `at` does not know of, when `place` replays it.

        In another order than then, other branches may have been at a key already. But where one has only replayed an
        earlier patch, this one was written in the knowledge of it. A step that was executed only after this one had
        been recorded, though the handler comes to it first, is news to it, too.
        """
        return self._saved_ahead.get(key, -1) > at or not self._is_past(key, place, before=at)

    def may_be_news(self, key: str, place: Place, at: int) -> bool:
        """The same, if what was taken up was changed."""
        taken = max(self._taken_ahead.get(key, -1), self._taken_ahead.get(ANY, -1))
        return taken > at or not self._is_past(ANY, place, before=at)

    def is_met(self, key: str, place: Place, at: int) -> bool:
        """Whether the news is all of lines, which have come to what is on record: then that goes on from here."""
        if not (self._is_past(key, place, before=at) and self._is_past(ANY, place, before=at)):
            return False
        self._saved_ahead.pop(key, None)
        self._taken_ahead.pop(key, None)
        return True
