"""Runs that were under way each time that workers vanished: which of them kills its workers?

`attempts` counts the workers that vanished over a run since it last finished a step. Two that vanish in a row may be
chance: a deployment, a machine that was switched off. From the third on the run is a suspect. A process tries a few of
them at a time, then two, then one, each time after a longer pause, and those that vanished with it the least often
first. So the run that is to blame is soon alone. The others finish a step without it, and are no suspects any more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, Float, and_, case, exists, func, literal, not_, or_, select, text
from sqlalchemy.sql import Select

from orchestrator_state.database_time import database_time_in
from orchestrator_state.domain import ACTIVE
from orchestrator_state.models import workflow_states

FROM_ATTEMPT: Final = 3
_SIDE_BY_SIDE: Final = {3: 4, 4: 2}
_PAUSES: Final = {3: 0.5, 4: 1.0, 5: 2.0, 6: 4.0}  # seconds
_LONGEST_PAUSE: Final = 5.0

_w = workflow_states.c
_child = workflow_states.alias("child")
# A lease that ended without having been released is that of an owner that vanished.
ATTEMPTS_ONCE_CLAIMED: Final = case((_w.has_progressed == 1, 0), else_=_w.attempts) + case(
    (_w.lease_expires_at.is_not(None), 1), else_=0
)
# As their index has it.
_IN_INDEX: Final = text("workflow_states.attempts > 1 AND workflow_states.status IN ('pending', 'running')")
IS_SUSPECT: Final = and_(_w.attempts > 1, ATTEMPTS_ONCE_CLAIMED >= FROM_ATTEMPT)


class Suspects:
    """The suspects under way in this process."""

    def __init__(self) -> None:
        self._attempts: dict[UUID, int] = {}
        self._listeners: list[Callable[[], object]] = []
        self.are_looked_for = True
        """Whether there may be more of them that can be tried: a worker does not ask each time."""

    def add(self, workflow_state_id: UUID, attempts: int) -> None:
        """A run was claimed."""
        if attempts >= FROM_ATTEMPT:
            self._attempts[workflow_state_id] = attempts

    def clear(self, workflow_state_id: UUID) -> None:
        """The run has finished a step, or is not under way here any more."""
        if self._attempts.pop(workflow_state_id, None) is not None:
            self.are_looked_for = True
            for listener in self._listeners:
                listener()

    def __contains__(self, workflow_state_id: UUID) -> bool:
        return workflow_state_id in self._attempts

    def __len__(self) -> int:
        return len(self._attempts)

    @property
    def side_by_side(self) -> int:
        """How many may be under way together, as far as those are concerned that are."""
        most = max(self._attempts.values(), default=FROM_ATTEMPT)
        return _SIDE_BY_SIDE.get(most, 1)

    @contextlib.contextmanager
    def telling(self, listener: Callable[[], object]) -> Iterator[None]:
        """Call `listener` whenever there is room for another suspect."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)


def next_suspects(under_way: Suspects, *conditions: ColumnElement[bool], patient: bool) -> Select[Any]:
    """The ids of runs that fulfil `conditions` and may be tried beside the suspects under way.

    Who is `patient` lets them rest before. A parent is not tried while a child of its is suspect.
    """
    # Constants of their own sign: SQLite, which makes a text of them, knows no unary minus there.
    ago = {attempts: literal(-seconds, Float) for attempts, seconds in _PAUSES.items()}
    since = database_time_in(case(ago, value=ATTEMPTS_ONCE_CLAIMED, else_=literal(-_LONGEST_PAUSE, Float)))
    rested = or_(_w.lease_expires_at.is_(None), _w.lease_expires_at <= since)
    has_suspect_child = exists().where(
        _child.c.parent_id == _w.id,
        _child.c.attempts > 1,
        _child.c.has_progressed == 0,
        _child.c.status.in_(sorted(ACTIVE)),
    )
    least_suspect_first = (ATTEMPTS_ONCE_CLAIMED, _w.lease_expires_at, _w.id)
    candidates = (
        select(
            _w.id,
            (func.row_number().over(order_by=least_suspect_first) + literal(len(under_way))).label("place"),
            case(_SIDE_BY_SIDE, value=ATTEMPTS_ONCE_CLAIMED, else_=1).label("side_by_side"),
        )
        .where(_IN_INDEX, IS_SUSPECT, *conditions, not_(has_suspect_child), *([rested] if patient else []))
        .subquery("candidates")
    )
    return select(candidates.c.id).where(
        candidates.c.place <= candidates.c.side_by_side, candidates.c.place <= literal(under_way.side_by_side)
    )
