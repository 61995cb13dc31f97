"""Runs that were under way each time that workers vanished: which of them kills its workers?

`attempts` counts the workers that vanished over a run since it last finished a step. Two that vanish in a row may be
chance: a deployment, a machine that was switched off. From the third on the run is a suspect, and waits its turn, after
a longer pause each time. A process tries four suspects side by side, then two. From the fifth time on, or on its last
attempt, a suspect is tried alone: the process lets the others come to their end, and claims no newcomer until the
suspect has finished a step. So none can take it along, and if the process vanishes, it is to blame.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from orchestrator_state.repositories.runs import FROM_ATTEMPT, Suspect

_SIDE_BY_SIDE: Final = {3: 4, 4: 2}  # from the fifth time on, alone
_PATIENCE: Final = 3.0  # seconds in which the others may come to their end, before a suspect is tried beside them
_ALONE: Final = 4.0  # seconds in which no other is claimed, the fifth time; then twice as many each time


@dataclass(slots=True)
class _Turn:
    """The time in which suspects are tried alone. Times are of the monotonic clock."""

    began: float
    ends: float
    is_awaited: bool
    """Whether the others are still to come to their end, until `ends`."""


class Suspects:
    """What this process has claimed, as far as it matters to suspects, and when they are tried alone.

    Suspects that are tried alone and all other runs take turns, so that neither has to wait for ever.
    """

    def __init__(self, max_attempts: int = 10) -> None:
        self._max_attempts = max_attempts
        self._attempts: dict[UUID, int] = {}
        self._others: set[UUID] = set()
        self._alone: UUID | None = None
        self._turn: _Turn | None = None
        # By lot at first: a process that vanishes with the one kind must come to the other kind after a restart.
        self._next_turn_at = time.monotonic() + random.choice((0.0, _PATIENCE))  # noqa: S311 - guards nothing
        self._listeners: list[Callable[[], object]] = []
        self.are_looked_for = True
        """Whether there may be more of them that can be tried: a worker does not ask each time."""

    # --- what is under way -------------------------------------------------------------------------------------------

    def add(self, workflow_state_id: UUID, attempts: int) -> None:
        """A run was claimed."""
        if not FROM_ATTEMPT <= attempts <= self._max_attempts:
            self._others.add(workflow_state_id)
            return
        self._attempts[workflow_state_id] = attempts
        if self.is_for_itself(attempts):
            now = time.monotonic()
            ends = now + _ALONE * 2.0 ** max(attempts - max(_SIDE_BY_SIDE) - 1, 0)
            if self._turn is None:
                self._turn = _Turn(began=now, ends=ends, is_awaited=False)
            self._turn.is_awaited, self._turn.ends, self._alone = False, ends, workflow_state_id

    def clear(self, workflow_state_id: UUID) -> None:
        """The run has finished a step: it is a suspect no more."""
        if self._attempts.pop(workflow_state_id, None) is None:
            return
        self._others.add(workflow_state_id)
        self.are_looked_for = True
        for listener in self._listeners:
            listener()

    def remove(self, workflow_state_id: UUID) -> None:
        """The run is not under way here any more."""
        self.clear(workflow_state_id)
        self._others.discard(workflow_state_id)
        if workflow_state_id == self._alone:
            self._alone = None

    def __contains__(self, workflow_state_id: UUID) -> bool:
        return workflow_state_id in self._attempts

    @contextlib.contextmanager
    def telling(self, listener: Callable[[], object]) -> Iterator[None]:
        """Call `listener` whenever there is room for another suspect."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    # --- whose turn it is --------------------------------------------------------------------------------------------

    @property
    def have_their_turn(self) -> bool:
        """Whether no other run is to be claimed."""
        return self._current_turn() is not None

    @property
    def are_alone(self) -> bool:
        """Whether nothing at all is to be claimed."""
        turn = self._current_turn()
        if turn is None or not turn.is_awaited:
            return turn is not None
        return bool(self._others) and time.monotonic() < turn.ends

    @property
    def come_first(self) -> bool:
        """Whether they are looked for before the others."""
        return time.monotonic() >= self._next_turn_at

    @property
    def next_change(self) -> float:
        """Seconds until something may be claimed that could not be before, even if no run ends until then."""
        turn = self._current_turn()
        return max((self._next_turn_at if turn is None else turn.ends) - time.monotonic(), 0.0)

    def is_for_itself(self, attempts: int) -> bool:
        """Whether a run over which so many workers vanished is claimed alone: to be tried, or to be given up."""
        return attempts >= FROM_ATTEMPT and self._side_by_side(attempts) == 1

    def choose(self, candidates: Sequence[Suspect], *, beside: int) -> list[UUID]:
        """Those of the candidates that are to be tried now, beside so many others that were claimed just before.

        Those without an attempt left come first: they are only marked failed.
        """
        hopeless = [each.workflow_state_id for each in candidates if each.attempts > self._max_attempts]
        if hopeless:
            return hopeless
        together = [self._side_by_side(attempts) for attempts in self._attempts.values()]
        chosen: list[UUID] = []
        for each in candidates:
            together.append(self._side_by_side(each.attempts))
            if len(together) > min(together):
                break
            if together == [1] and not self._may_be_alone(beside):
                return []
            chosen.append(each.workflow_state_id)
        if not chosen and self._turn is not None and self._turn.is_awaited:
            self._turn = None  # somebody else has taken it
        return chosen

    def _may_be_alone(self, beside: int) -> bool:
        now, turn = time.monotonic(), self._current_turn()
        if not self._others and beside == 0:
            return True
        if turn is not None:
            return not turn.is_awaited or now >= turn.ends
        if self.come_first:
            self._turn = _Turn(began=now, ends=now + _PATIENCE, is_awaited=True)
        return False

    def _current_turn(self) -> _Turn | None:
        turn, now = self._turn, time.monotonic()
        if turn is None or turn.is_awaited:
            return turn
        if now >= turn.ends or self._alone is None:
            over = min(now, turn.ends)
            self._turn, self._alone, self._next_turn_at = None, None, over + (over - turn.began)
        return self._turn

    def _side_by_side(self, attempts: int) -> int:
        return 1 if attempts >= self._max_attempts else _SIDE_BY_SIDE.get(attempts, 1)
