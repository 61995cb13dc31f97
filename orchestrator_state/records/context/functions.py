"""What the functions of steps that run side by side do to the context, each by itself.

A line of the handler is executed again when its run is resumed; the function of a recorded step is not, so what it
did has to be known, and told from what others did meanwhile. It is what changed between the moment it took a key up
and the moment somebody else did, or its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from orchestrator_state.records.context.changes.change import Change
from orchestrator_state.records.context.changes.differences import growth_between
from orchestrator_state.records.context.changes.encoded import Encoded


class Functions:
    """`snapshot` tells what is at a key now; with None, everywhere."""

    def __init__(self, snapshot: Callable[[str | None], Encoded]) -> None:
        self._snapshot = snapshot
        self._open: dict[str | None, tuple[int, Encoded]] = {}
        """By key, the call that took it up last, and what it found."""
        self._done: dict[int, list[Change]] = {}
        self._alone: dict[int, set[str]] = {}
        self.were_seen = False
        """Whether a function has taken up anything: else there is nothing to `forget`."""

    def touch(self, key: str | None, call: int | None) -> None:
        """The function of `call`, or a line of the handler, takes up `key`."""
        found = self._open.get(key)
        if found is None and call is None:
            return
        if found is not None and found[0] == call:
            return
        now = self._snapshot(key)
        if found is not None:
            self._close(key, now)
        if call is not None:
            self._open[key] = call, now
            self.were_seen = True

    def touch_alone(self, key: str, call: int) -> None:
        """The function of `call` takes up a long `key` that nobody has changed since the last commit."""
        self._alone.setdefault(call, set()).add(key)
        self.were_seen = True

    def alone(self, call: int) -> frozenset[str]:
        """See `touch_alone`: if any of these has changed, the function of `call` did that."""
        return frozenset(self._alone.get(call, ()))

    def pause(self, keys: Iterable[str]) -> dict[str | None, int]:
        """What is done to `keys` from now on is no function's doing, until `go_on` with what this returns."""
        paused = {key: self._open[key][0] for key in (*keys, None) if key in self._open} if self._open else {}
        for key in paused:
            self._close(key, self._snapshot(key))
        return paused

    def go_on(self, paused: Mapping[str | None, int]) -> None:
        """See `pause`."""
        for key, call in paused.items():
            self._open[key] = call, self._snapshot(key)

    def done(self, call: int) -> tuple[Change, ...]:
        """What the function of `call` has done so far, one change after the other."""
        if self._open:
            for key in [key for key, (by, _) in self._open.items() if by == call]:
                self._close(key, self._snapshot(key))
        return tuple(self._done.get(call, ()))

    def forget(self, call: int) -> None:
        self._done.pop(call, None)
        self._alone.pop(call, None)
        if self._open:
            self._open = {key: opened for key, opened in self._open.items() if opened[0] != call}

    def _close(self, key: str | None, now: Encoded) -> None:
        call, before = self._open.pop(key)
        change = growth_between(before, now)
        if change.keys:
            self._done.setdefault(call, []).append(change)
